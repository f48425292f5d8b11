"""Prompt-to-prompt and local blend: the formulas on a small attention, the authors' alignments on cases by hand."""

from types import SimpleNamespace

import pytest
import torch
from helpers import seeded

import minti
from minti.editing.attention_maps import AttentionMaps
from minti.editing.prompt_to_prompt import PromptToPrompt, alignment, local_blend
from minti.guidance.conditions import Conditions

OPTIONS = {"num_inference_steps": 4, "sampler": "ddim", "output": "latents", "guidance_scale": 3}


def drawn(model, prompts, adapter=None, **options):
    noise = torch.randn(1, 4, 8, 8, generator=seeded(4)).repeat(len(prompts), 1, 1, 1)
    if adapter is None:
        return minti.sample(model, prompts, latents=noise, **OPTIONS, **options)
    with adapter.attached(model):
        return minti.sample(model, prompts, latents=noise, **OPTIONS, **options)


def test_the_same_prompt_is_the_same_image(tiny):
    prompts = ["a red cat", "a red cat"]
    adapter = PromptToPrompt(tiny, prompts[:1], prompts[1:], cross=1, own=1)
    expected = drawn(tiny, prompts)
    assert torch.equal(drawn(tiny, prompts, adapter), expected)
    assert torch.equal(drawn(tiny, prompts), expected)  # and the model is as it was


def test_the_source_is_sampled_as_without_the_adapter_and_the_edit_is_not(tiny):
    prompts = ["a red cat", "a red dog"]
    plain, edited = drawn(tiny, prompts), drawn(tiny, prompts, PromptToPrompt(tiny, prompts[:1], prompts[1:], 1, 0))
    assert torch.equal(edited[0], plain[0])
    assert not torch.allclose(edited[1], plain[1])
    nothing = PromptToPrompt(tiny, prompts[:1], prompts[1:], cross=0, own=0)
    assert torch.equal(drawn(tiny, prompts, nothing), plain)


@pytest.mark.parametrize(("edit", "weights"), [("a red dog", {}), ("a small red cat", {}), ("a red cat", {"red": 3.0})])
def test_attention_is_the_paper_s_formula(tiny, edit, weights):
    """Swap: all columns are the source's. Refinement: the new word's are its own. Reweighting: a column times c."""
    source = "a red cat"
    adapter = PromptToPrompt(tiny, [source], [edit], cross=1, own=0, weights=weights)
    with adapter.attached(tiny):
        layer = next(layer for name, layer in tiny.unet.named_modules() if name.endswith("attn2"))
        adapter.timestep = 900
        q, k, v = (torch.randn(4, 2, n, 8, generator=seeded(n)) for n in (9, 16, 17))
        v = v[:, :, :16]
        got = layer.around[-1](layer.attend, q, k, v)
    weight = (q @ k.mT / 8**0.5).softmax(dim=-1)
    expected = weight.clone()
    if edit.startswith("a small"):  # each token stands as many places later, but for those that are new
        first = len(tiny.tokenizer("small", add_special_tokens=False).input_ids)
        expected[3, :, :, 2 + first : 5 + first] = weight[2, :, :, 2:5]  # red cat and the end
        expected[3, :, :, :2] = weight[2, :, :, :2]
        expected[3, :, :, 5 + first :] = weight[2, :, :, 5 + first :]
    else:
        expected[3] = weight[2]
    for _ in weights:
        expected[3, :, :, 2] *= 3
    torch.testing.assert_close(got, expected @ v)


@pytest.mark.parametrize(
    ("source", "edited", "columns"),
    [
        ("b a red cat e", "b a red dog e", {0: [0], 1: [1], 2: [2], 3: [3], 4: [4], 5: [5]}),
        ("b a cat e", "b a small cat e", {0: [0], 1: [1], 2: [], 3: [2], 4: [3], 5: [5]}),
        ("b a small cat e", "b a cat e", {0: [0], 1: [1], 2: [3], 3: [4], 4: [4], 5: [5]}),
        ("b a cat e", "b a guinea pig e", {0: [0], 1: [1], 2: [2], 3: [2], 4: [3], 5: [5]}),
        ("b a guinea pig e", "b a cat e", {0: [0], 1: [1], 2: [2, 3], 3: [4], 4: [4], 5: [5]}),
    ],
)
def test_alignment_is_the_authors(source, edited, columns):
    """As google/prompt-to-prompt's seq_aligner has it: get_replacement_mapper_ (1 / k each) and get_mapper, by hand."""
    moved = alignment(source.split(), edited.split(), 6)
    for column, rows in columns.items():
        assert moved[:, column].nonzero().flatten().tolist() == rows
    torch.testing.assert_close(moved.sum(dim=1)[1], torch.tensor(1.0))
    if "guinea" in edited:
        assert moved[2, 2:4].tolist() == [0.5, 0.5]


def test_outside_the_word_the_blend_is_the_source(tiny):
    """A map that is 1 at one place and 0 elsewhere changes that place and its neighbours; the tensor that a sampler
    goes on from is a new one, for a sampler may still need its own."""
    prompts, maps = ["a red cat", "a red dog"], torch.zeros(2, 16, 8, 8)
    maps[:, 3, 2, 5] = 1
    latents = torch.randn(2, 4, 8, 8, generator=seeded(1))
    before = latents.clone()
    known = SimpleNamespace(maps=maps, prompts=prompts, model=tiny)
    blended = local_blend(known, ["cat", "dog"])(latents, tiny.scheduler.level(500))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:4, 4:7] = True
    assert torch.equal(latents, before)
    assert torch.equal(blended[0], before[0])
    assert torch.equal(blended[1][:, inside], before[1][:, inside])
    assert torch.equal(blended[1][:, ~inside], before[0][:, ~inside])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "pndm", "dpm-solver++", "euler", "heun"])
def test_every_sampler_goes_on_from_the_blend(tiny, sampler):
    """With an empty region the edit is the source at every step, at whatever scale the sampler works; with the whole
    image as the region nothing changes. In ddpm both images get the same noise."""
    prompts, options = ["a red cat", "a red dog"], OPTIONS | {"sampler": sampler}
    options["latents"] = torch.randn(1, 4, 8, 8, generator=seeded(4)).repeat(2, 1, 1, 1)
    draw = lambda **more: minti.sample(  # noqa: E731
        tiny, prompts, generator=[seeded(), seeded()], on_step=steps.append, **options, **more
    )
    steps = []
    plain = draw()
    steps.clear()
    adapter, maps = PromptToPrompt(tiny, prompts[:1], prompts[1:], cross=0, own=0), AttentionMaps(tiny, prompts)
    with adapter.attached(tiny), maps.attached(tiny):
        nowhere = draw(keep=local_blend(maps, ["cat", "dog"], threshold=2.0))
        assert len(steps) >= 4
        assert all(torch.equal(*step.latents) for step in steps)
        everywhere = draw(keep=local_blend(maps, ["cat", "dog"], threshold=-1.0))
    assert torch.equal(nowhere[0], plain[0])
    assert torch.equal(nowhere[1], plain[0])
    assert torch.equal(everywhere, plain)
    assert not torch.allclose(plain[1], plain[0])


@pytest.mark.parametrize(
    ("source", "edit", "options", "message"),
    [
        ("a red cat", "toy", {}, "no word in common"),
        ("a cat", "a dog", {"cross": 1.5}, "cross = 1.5; expected a share"),
        ("a cat", "a dog", {"weights": {"red": 2.0}}, "'red' is not in the prompt 'a dog'"),
    ],
)
def test_what_cannot_be_edited_is_told(tiny, source, edit, options, message):
    with pytest.raises(ValueError, match=message):
        PromptToPrompt(tiny, [source], [edit], **options)


def test_another_batch_is_told(tiny):
    adapter = PromptToPrompt(tiny, ["a cat"], ["a dog"])
    with pytest.raises(ValueError, match="3 images in the UNet; expected 1 sources"):
        drawn(tiny, ["a cat"] * 3, adapter, cfg=Conditions(tiny, interval=(0, 0)))
