"""Several words learned together (MCPL): one alone is textual inversion, two get each its own gradient."""

import pytest
import torch
from helpers import pictures, wrapper

import minti
from minti.personalization.together import learn_together

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
    assert not tiny.words
