"""Several words learned together (MCPL): one alone is textual inversion, two get each its own gradient."""

import pytest
import torch
from helpers import pictures, wrapper

import minti
from minti.personalization.context_loss import context_loss
from minti.personalization.together import learn_together
from minti.runs.checkpoints import resumed

BOTH = ["a photo of a <one>", "a <two>", "a <one> in the <two>"]


def words(model, **options):
    """Two words."""
    shared = {"steps": 5, "batch_size": 2} | options
    first = wrapper(model, placeholder_token="<one>", initializer_token="cat", **shared)
    return [first, wrapper(model, placeholder_token="<two>", initializer_token="dog", num_vectors=2, **shared)]


@pytest.mark.parametrize("options", [{}, {"directional": True}])
def test_one_word_alone_is_textual_inversion_bit_for_bit(tiny_folder, options):
    values = []
    for learn in (learn_together, minti.textual_inversion):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        captions = ["a {}", "the {}", "{}"]
        if learn is learn_together:
            word = wrapper(model, steps=5, **options)
            run = learn([word], pictures(), [caption.replace("{}", "<concept>") for caption in captions])
        else:
            word = wrapper(model, steps=5, captions=captions, **options)
            run = learn(word, pictures())
        assert len(list(run)) == 5
        values.append(word.embedding.values.detach().clone())
    assert torch.equal(*values)


def test_both_get_the_gradient_of_the_embedding_matrix(tiny):
    """autograd's, through the matrix's own rows, with the words in it as any others; then AdamW's step of each."""
    pair = words(tiny, max_gradient_norm=None, weight_decay=0.0, steps=1)
    trainer = learn_together(pair, pictures(), BOTH)
    batch = trainer.draw(torch.Generator().manual_seed(pair[0].config.seed))
    weight = tiny.text_encoder.get_input_embeddings().weight
    weight.requires_grad_(True)
    loss = minti.diffusion_loss(tiny, batch.latents, batch.timesteps, tiny.encode_prompt(batch.prompts), batch.noise)
    (gradient,) = torch.autograd.grad(loss, weight)
    weight.requires_grad_(False)
    expected = []
    for word in pair:
        rows = torch.nn.Parameter(word.embedding.values.detach().clone())
        rows.grad = gradient[word.placeholder_ids].clone()
        torch.optim.AdamW([rows], lr=word.learning_rate, weight_decay=0.0).step()
        expected.append(rows.detach())
    assert next(trainer).loss == pytest.approx(loss.item(), rel=1e-6)
    for word, rows in zip(pair, expected):
        torch.testing.assert_close(word.embedding.values.detach(), rows, rtol=1e-4, atol=1e-6)
        assert torch.equal(weight[word.placeholder_ids], word.embedding.values)


def test_the_best_values_are_restored_and_a_checkpoint_has_all(tiny_folder, tmp_path):
    """Resumed, AdamW goes on with the moments of both words."""
    open_model = lambda: minti.StableDiffusion.from_pretrained(tiny_folder)  # noqa: E731
    whole = words(open_model(), learning_rate=0.3)
    trainer = learn_together(whole, pictures(), BOTH)
    for state in (monitor := minti.monitored(trainer)):
        if state.finished:
            for word in whole:
                word.embedding.values.data.add_(1)  # worse
    assert monitor.best_step == 5
    for i, word in enumerate(whole):
        assert torch.equal(word.embedding.values, monitor.best[f"adapters.{i}.values"])
        assert torch.equal(tiny_rows(word), word.embedding.values)
    half = words(open_model(), learning_rate=0.3)
    run = learn_together(half, pictures(), BOTH)
    next(run), next(run)
    minti.save_checkpoint(half[0], tmp_path)
    rest = words(open_model(), learning_rate=0.3)
    resumed(run := learn_together(rest, pictures(), BOTH), minti.load_checkpoint(tmp_path))
    assert len(list(run)) == 3
    for i, word in enumerate(rest):
        assert torch.equal(word.embedding.values, monitor.best[f"adapters.{i}.values"])
    others = words(open_model(), learning_rate=0.3)
    others[1] = wrapper(others[0].model, placeholder_token="<two>", initializer_token="dog", steps=5)
    with pytest.raises(
        ValueError, match=r"of another run: .*words was <one> 1 0.3, <two> 2 0.3 and is <one> 1 0.3, <two> 1"
    ):
        resumed(learn_together(others, pictures(), BOTH), minti.load_checkpoint(tmp_path))


def tiny_rows(word):
    return word.text_encoder.get_input_embeddings().weight[word.placeholder_ids]


def test_each_has_its_own_context_loss(tiny):
    """The first step's loss, less the batch's own, is the sum of both."""
    options = {"context_weight": 0.3, "context_prompts": ["a {} in red"], "steps": 1}
    pair = words(tiny, **options)
    trainer = learn_together(pair, pictures(), BOTH)
    batch = trainer.draw(torch.Generator().manual_seed(0))
    with torch.no_grad():
        two = [context_loss(tiny, *names, ["a {} in red"]) for names in (("<one>", "cat"), ("<two>", "dog"))]
        plain = minti.diffusion_loss(
            tiny, batch.latents, batch.timesteps, tiny.encode_prompt(batch.prompts), batch.noise
        )
    assert two[1] > 0
    assert next(trainer).loss == pytest.approx((plain + 0.3 * sum(two)).item(), rel=1e-5)


def test_a_second_time_both_begin_anew(tiny):
    """As one word does, so that a notebook cell can run twice."""
    learned = []
    for _ in range(2):
        pair = words(tiny)
        list(learn_together(pair, pictures(), BOTH))
        learned.append([word.embedding.values.detach().clone() for word in pair])
    assert all(torch.equal(*both) for both in zip(*learned))
    assert list(tiny.words) == ["<one>", "<two>"]


def test_what_cannot_be_learned_together_is_refused(tiny):
    """Before any word is in the vocabulary."""
    one, _ = words(tiny)
    third = wrapper(tiny, placeholder_token="<three>")
    masked = wrapper(tiny, placeholder_token="<two>", row_update="restore")
    for some, message in (
        ([one, one], "the same name"),
        ([one, third], "no caption says <three>"),
        ([one, masked], "new_rows"),
    ):
        with pytest.raises(ValueError, match=message):
            learn_together(some, pictures(), BOTH)
    for captions in (None, "a <one> <two>"):
        with pytest.raises(ValueError, match=r"captions = .*; expected a list with one for each image"):
            learn_together(words(tiny), pictures(), captions)
    tables = [wrapper(tiny, placeholder_token=name, by_layer=True) for name in ("<one>", "<two>")]
    for some, message in (
        ([], "no word to learn"),
        (tables, "<one> and <two>: only one of several words can have vectors by layer"),
        ([one, wrapper(tiny, placeholder_token="<two>", initializer_token="nonsense")], "nonsense"),
    ):
        with pytest.raises(ValueError, match=message):
            learn_together(some, pictures(), BOTH)
        assert not tiny.words
