"""Going on from a learned word: its file or its vectors as the initializer."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import learning, pictures, seeded, wrapper

import minti
from minti.embeddings import write_embeddings
from minti.personalization.num_vectors_search import NumVectorsSearch
from minti.personalization.removal import remove_word
from minti.personalization.vocabulary import known_ids
from minti.textual_inversion import batch_loss


def vectors(count, width=48):
    return torch.randn(count, width, generator=seeded())


def started(model, initializer, **options):
    """The vectors that a word is prepared with."""
    word = wrapper(model, initializer_token=initializer, **options)
    minti.prepare_for_textual_inversion(word)
    return word.embedding.values.detach()


@pytest.fixture
def file(tmp_path):
    write_embeddings(tmp_path / "word.safetensors", {"<other>": vectors(2)})
    return tmp_path / "word.safetensors"


@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_without_a_further_step_the_vectors_are_the_file_s(tiny, file, form):
    assert torch.equal(started(tiny, file, num_vectors=2, row_update=form), vectors(2))


def test_a_model_in_half_precision_does_not_round_them(tiny, file):
    tiny.text_encoder.bfloat16()
    assert not torch.equal(vectors(2).bfloat16().float(), vectors(2))
    assert torch.equal(started(tiny, file, num_vectors=2), vectors(2))


def test_files_of_every_kind(tiny, tmp_path):
    """diffusers' .bin, AUTOMATIC1111's .pt and .safetensors, and the vectors themselves, (d,) or (n, d)."""
    torch.save({"<a>": vectors(1)}, tmp_path / "a.bin")
    torch.save({"string_to_param": {"*": vectors(1)}, "name": "b"}, tmp_path / "b.pt")
    write_embeddings(tmp_path / "c.safetensors", {"emb_params": vectors(1)})
    for initializer in (*sorted(tmp_path.iterdir()), str(tmp_path / "b.pt"), vectors(1), vectors(1)[0]):
        assert torch.equal(started(copy.deepcopy(tiny), initializer), vectors(1)), initializer


def test_more_vectors_than_the_file_has_are_random_ones(tiny, file):
    """Those with which a word of so many vectors would start from nothing."""
    random = wrapper(tiny, initializer_token=None, num_vectors=3).initial_vectors()
    assert torch.equal(started(tiny, file, num_vectors=5), torch.cat([vectors(2), random]))


def test_the_number_of_vectors_is_chosen_from_a_file_on(tiny, file):
    """A further vector is behind those of the file, however often one is tried."""
    word = wrapper(tiny, initializer_token=file, num_vectors=2, steps=1)
    starts = []
    for tried in NumVectorsSearch(tiny, word.config, pictures(), most=3, size=4):
        run = minti.textual_inversion(tried, pictures())
        starts.append(tried.embedding.values.detach().clone())
        next(run)
    assert [len(start) for start in starts] == [2, 3]
    assert all(torch.equal(start[:2], vectors(2)) for start in starts)


def test_of_several_words_the_one_that_is_called_as_the_new_one(tiny, tmp_path):
    write_embeddings(tmp_path / "words.safetensors", {"<a>": vectors(1), "<b>": vectors(2)[1:]})
    with pytest.raises(
        ValueError, match=r"words\.safetensors holds 2 words \(<a>, <b>\), and none is called <concept>"
    ):
        started(tiny, tmp_path / "words.safetensors")
    assert torch.equal(started(tiny, tmp_path / "words.safetensors", placeholder_token="<b>"), vectors(2)[1:])


def test_one_step_from_a_file_is_one_step_of_the_run(tiny, tmp_path):
    """Of the run that goes on with a fresh optimizer; and AdamW's first step in closed form, where mean and root mean
    square of the gradients are the gradient and its absolute value: v (1 - rate decay) - rate g / (|g| + eps)."""
    before = wrapper(tiny, steps=3, max_gradient_norm=None)
    for _ in minti.textual_inversion(before, pictures()):
        pass
    minti.save_embeddings(before, tmp_path / "word.safetensors")
    fresh = copy.deepcopy(tiny)
    remove_word(fresh, "<concept>")

    word = wrapper(fresh, initializer_token=tmp_path / "word.safetensors", max_gradient_norm=None)
    first = next(minti.textual_inversion(word, pictures()))
    rate, decay = word.learning_rate, word.config.weight_decay
    start = before.embedding.values.detach().clone()
    optimizer = torch.optim.AdamW(before.embedding.trainable(), lr=rate, weight_decay=decay)
    trainer = minti.textual_inversion(before, pictures(), optimizer)
    batch = trainer.draw(torch.Generator().manual_seed(0))
    with before.embedding.attached(tiny):
        [gradient] = torch.autograd.grad(batch_loss(tiny, batch), before.embedding.trainable())
    expected = start * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
    assert next(trainer) == first
    assert torch.equal(word.embedding.values, before.embedding.values)
    torch.testing.assert_close(word.embedding.values.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_run_is_resumed_with_the_same_vectors_only(tiny_folder, file, tmp_path):
    """Whatever file holds them; the hash stands for them in the checkpoint."""

    def word(initializer):
        model = minti.StableDiffusion.from_pretrained(tiny_folder)
        return wrapper(model, initializer_token=initializer, num_vectors=2, steps=4)

    whole, half = word(file), word(file)
    for _ in learning(whole):
        pass
    run = learning(half)
    next(run), next(run)
    minti.save_checkpoint(half, tmp_path / "checkpoints")
    for same in (str(file.rename(tmp_path / "moved.safetensors")), vectors(2)):
        rest = word(same)
        steps = learning(rest, checkpoint=minti.load_checkpoint(tmp_path / "checkpoints"))
        assert [state.step for state in steps] == [3, 4]
        assert torch.equal(rest.embedding.values, whole.embedding.values)
    for other in (vectors(2) + 1, vectors(1), "toy"):
        with pytest.raises(ValueError, match=r"of another run: initializer_token was vectors \(2, 48\), \w+ and is "):
            learning(word(other), checkpoint=minti.load_checkpoint(tmp_path / "checkpoints"))


def test_what_a_word_learns_on_is_no_part_of_a_setting(tiny):
    """The vectors are those at the time when the settings were made, and these can be copied."""
    first = wrapper(tiny)
    steps = minti.textual_inversion(first, pictures())
    next(steps)
    config = wrapper(tiny, initializer_token=first.embedding.values, placeholder_token="<b>").config
    then = first.embedding.values.detach().clone()
    next(steps)
    assert not torch.equal(first.embedding.values, then)
    assert torch.equal(minti.TrainingWrapper(tiny, copy.deepcopy(config)).initial_vectors(), then)


def test_a_word_begun_anew_goes_on_from_itself(tiny):
    first = wrapper(tiny)
    next(minti.textual_inversion(first, pictures()))
    learned = first.embedding.values.detach().clone()
    assert torch.equal(started(tiny, first.embedding.values), learned)
    with pytest.raises(OSError, match=r"nowhere\.pt: no such file"):
        started(tiny, "nowhere.pt")
    assert torch.equal(tiny.text_encoder.get_input_embeddings().weight[-1], learned[0])  # nothing was lost


@pytest.mark.parametrize(
    ("initializer", "message"),
    [
        (
            vectors(1, 768),
            r"initializer_token has shape \(1, 768\), but the words of this model are 48 numbers wide; .*SD 1",
        ),
        (vectors(2), "initializer_token has 2 vectors, and num_vectors is 1; set it .* to 2 or more"),
        (vectors(8).view(2, 4, 48), r"initializer_token is \(2, 4, 48\) float32; expected its embedding vectors"),
        (torch.full((1, 48), torch.nan), "initializer_token, .* has numbers that are not finite"),
        (torch.ones(1, 48, dtype=torch.int64), "of floating point numbers"),
        (3, "initializer_token = 3; expected a word, a file, or vectors"),
        ("nowhere.safetensors", r"nowhere\.safetensors: no such file of learned words"),
        (Path("toy"), "toy: no such file of learned words"),
    ],
)
def test_bad_vectors_are_refused_without_a_trace(tiny, initializer, message):
    size = len(tiny.tokenizer)
    with pytest.raises((ValueError, OSError), match=message):
        started(tiny, initializer)
    assert len(tiny.tokenizer) == size == tiny.text_encoder.get_input_embeddings().num_embeddings


def test_a_word_is_a_word_whatever_files_there_are(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cat").write_bytes(b"")
    weight = tiny.text_encoder.get_input_embeddings().weight
    assert torch.equal(wrapper(tiny, initializer_token="cat").initial_vectors(), weight[known_ids(tiny, "cat")])
    with pytest.raises(ValueError, match="cat"):
        wrapper(tiny, initializer_token="./cat").initial_vectors()
    with pytest.raises(OSError, match="is a folder; name the file in it"):
        wrapper(tiny, initializer_token=str(tmp_path)).initial_vectors()


def test_dreambooth_needs_a_class():
    for initializer in ("word.pt", Path("word"), vectors(1)):
        with pytest.raises(ValueError, match="names the class of the subject"):
            minti.DreamBoothConfig(initializer_token=initializer)
