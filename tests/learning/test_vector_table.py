"""Embedding vectors by cross-attention and by timestep: XTI and ProSpect; with equal entries textual inversion."""

import pytest
import torch
from helpers import seeded, train, wrapper
from safetensors.torch import save_file

import minti
from minti.personalization.removal import remove_word
from minti.personalization.vector_table import VectorTable, in_order, load_table, save_table
from minti.textual_inversion import LearnedEmbedding
from minti.utils import randn

PROMPTS = ["a photo of a <concept>", "the red cat"]
STEPS = {"num_inference_steps": 2}


def word(model, layers, ranges, count=1, equal=False):
    """A word that was added, and a table of random entries for it."""
    shape = (1, 1, count, 48) if equal else (layers, ranges, count, 48)
    entries = torch.randn(shape, generator=seeded()).expand(layers, ranges, count, 48)
    ids = model.add_word("<concept>", entries[0, 0] if equal else entries.mean(dim=(0, 1)))
    return VectorTable(model, entries, ids[0]), entries


@pytest.mark.parametrize(("by_layer", "ranges"), [(True, 1), (False, 3), (True, 2)])
def test_equal_entries_are_textual_inversion_bit_for_bit(tiny, by_layer, ranges):
    """A whole guided run, and a training prediction."""
    table, _ = word(tiny, len(in_order(tiny)) if by_layer else 1, ranges, count=2, equal=True)
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "sampler": "ddim", "output": "pixels"}
    plain = minti.sample(tiny, PROMPTS, generator=seeded(), **options)
    with table.attached(tiny):
        assert torch.equal(minti.sample(tiny, PROMPTS, generator=seeded(), **options), plain)
    assert torch.equal(minti.sample(tiny, PROMPTS, generator=seeded(), **options), plain)


def test_every_layer_and_timestep_gets_its_own_entry(tiny):
    """What each cross-attention is given is the prompt with that entry as the word, and nothing else."""
    layers = in_order(tiny)
    table, entries = word(tiny, len(layers), 2)
    expected = torch.empty(len(layers), 2, 2, 16, 48)
    row = tiny.text_encoder.get_input_embeddings().weight
    for i in range(len(layers)):
        for j in range(2):
            with torch.no_grad():
                row[table.first] = entries[i, j, 0]
                expected[i, j] = tiny.encode_prompt(PROMPTS)
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad(), table.attached(tiny):
        for i, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda _, inputs, i=i: seen.update({i: inputs[1]}))
        context = tiny.encode_prompt(PROMPTS)
        timesteps = torch.tensor([499, 500])  # of 1,000: the last of the first range, the first of the second
        tiny.unet(torch.randn(2, 4, 8, 8, generator=seeded()), timesteps, context)
    for i in range(len(layers)):
        assert torch.equal(seen[i], torch.stack([expected[i, 0, 0], expected[i, 1, 1]]))


def test_layers_are_in_the_order_in_which_they_run(tiny):
    layers, ran = in_order(tiny), []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
    with torch.no_grad():
        tiny.unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), tiny.encode_prompt("a cat"))
    assert [id(layer) for layer in ran] == [id(layer) for layer in layers]


def test_gradients_of_equal_entries_add_up_to_textual_inversion_s(tiny):
    """d loss / d v = sum over the entries, for v in all of them."""
    table, _ = word(tiny, len(in_order(tiny)), 2, equal=True)
    tiny.freeze()
    one = LearnedEmbedding(tiny.text_encoder.get_input_embeddings(), [table.first])
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=seeded())
    for adapter in (one, table):
        with adapter.attached(tiny):
            context = tiny.encode_prompt(PROMPTS)
            minti.diffusion_loss(tiny, latents, torch.tensor([100, 800]), context, noise).backward()
    torch.testing.assert_close(table.table_values.grad.sum(dim=0), one.values.grad[0], rtol=1e-4, atol=1e-7)


def test_learning_moves_the_entries_apart(tiny, tmp_path):
    """It is saved and loaded, and the model has the mean of the entries without it."""
    w, _ = train(tiny, steps=8, by_layer=True, timestep_ranges=2, learning_rate=0.05)
    table = w.embedding
    assert (table.entries.std(dim=0) > 0).all()
    row = tiny.text_encoder.get_input_embeddings().weight[table.first]
    torch.testing.assert_close(row, table.entries.mean(dim=0)[0])
    save_table(tmp_path / "word.safetensors", "<concept>", table)
    noise = randn((2, 4, 8, 8), seeded(), "cpu", torch.float32)
    pixels = []
    for model, loaded in ((tiny, table), (tiny, None)):
        if loaded is None:
            remove_word(model, "<concept>")
            loaded = load_table(model, tmp_path / "word.safetensors")
        with loaded.attached(model):
            pixels.append(minti.sample(model, PROMPTS, latents=noise, sampler="ddim", output="pixels", **STEPS))
    assert torch.equal(*pixels)


def test_what_does_not_fit_is_refused(tiny, tmp_path):
    """Each in a line that names what is wrong; the model has no new word then."""
    table, _ = word(tiny, 1, 2)
    context = tiny.encode_prompt(PROMPTS)
    with table.attached(tiny), pytest.raises(ValueError, match="encode them while it is attached"):
        tiny.unet(torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), context)
    path = tmp_path / "table.safetensors"
    for tensors, message in (
        ({"<x>": torch.ones(3, 2, 1, 48)}, "is for 3 cross-attentions, the model has"),
        ({"<x>": torch.ones(1, 48)}, "is no table of embedding vectors"),
        ({"<x>": torch.ones(1, 2, 1, 32)}, "32"),
        ({"<x>": torch.full((1, 2, 1, 48), torch.nan)}, "not finite"),
        ({"cat": torch.ones(1, 2, 1, 48)}, "in the vocabulary already"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            load_table(tiny, path)
    assert list(tiny.words) == ["<concept>"]
    with pytest.raises(ValueError, match="need new_rows"):
        wrapper(tiny, by_layer=True, row_update="restore")
