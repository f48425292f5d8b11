"""Parts: what goes inside a frozen model and comes out without a trace; and a sibling, to prove the seams."""

import copy
import itertools

import pytest
import torch
from helpers import pictures, seeded, wrapper

import minti
from minti.textual_inversion import LearnedEmbedding, MaskedEmbedding, TrainingImages, batch_loss
from minti.training import Trainer


def answer(model, prompt="a cat"):
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    return model.unet(latents, torch.tensor([500]), model.encode_prompt(prompt))


def tensors(model):
    networks = {"unet": model.unet, "vae": model.vae, "text": model.text_encoder}
    return {f"{n}.{k}": v.clone() for n, network in networks.items() for k, v in network.state_dict().items()}


def trained_lora(model, steps=3):
    model.freeze()
    lora, concept = minti.LoRA(model, rank=2, generator=seeded()), TrainingImages(model, pictures())
    optimizer = torch.optim.AdamW(lora.trainable(), lr=0.01)
    loop = Trainer(model, lora, lambda g: concept.batch(2, ["a cat"], g), batch_loss, optimizer, steps, seeded())
    losses = [step.loss for step in loop]
    assert len(losses) == steps
    return lora


# --- a sibling of textual inversion, without a second loop ------------------------------------------------------------


def test_a_lora_learns_by_the_same_loop_and_can_be_merged(tiny):
    before, old = tensors(tiny), answer(tiny)
    lora = trained_lora(tiny)
    assert all(torch.equal(value, before[key]) for key, value in tensors(tiny).items())
    assert torch.equal(answer(tiny), old)  # outside a step the model is as it was
    with lora.attached(tiny), torch.no_grad():
        beside = answer(tiny)
    assert (beside - old).abs().max() > 1e-3
    with lora.merged(tiny):
        torch.testing.assert_close(answer(tiny), beside, rtol=1e-4, atol=1e-5)


# --- inside and out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_parts_leave_in_any_order(tiny, order):
    """A word, E4's matrix of another word, and a LoRA: each does what it does alone, and nothing is left."""
    word = LearnedEmbedding(torch.randn(1, 48, generator=seeded()), tiny.add_word("<a>", torch.zeros(1, 48))[0])
    embedding = tiny.text_encoder.get_input_embeddings()
    matrix = MaskedEmbedding(embedding, tiny.add_word("<b>", torch.ones(2, 48))[0], 2)
    lora = trained_lora(tiny)
    before, old = tensors(tiny), answer(tiny, "<a> <b>")
    with word.attached(tiny), lora.attached(tiny):
        both = answer(tiny, "<a> <b>")
    contexts = [part.attached(tiny) for part in (word, matrix, lora)]
    for context in contexts:
        context.__enter__()
    assert torch.equal(answer(tiny, "<a> <b>"), both)
    assert not torch.equal(both, old)
    assert tiny.trainable() == [embedding.weight]
    for i in order:
        contexts[i].__exit__(None, None, None)
    assert all(torch.equal(value, before[key]) for key, value in tensors(tiny).items())
    assert torch.equal(answer(tiny, "<a> <b>"), old)
    assert not tiny.trainable()
    assert not any(m._forward_hooks for m in (*tiny.unet.modules(), *tiny.text_encoder.modules()))


def test_a_word_and_a_lora_in_one_step(tiny):
    """The loop takes one part; the other is inside meanwhile, and both receive their gradients."""
    lora, w = trained_lora(tiny), wrapper(tiny, steps=2)
    with lora.attached(tiny):
        for parameter in lora.parameters():
            parameter.grad = None
        states = list(minti.textual_inversion(w, pictures()))
    assert all(state.gradient_norm > 0 for state in states)
    assert all(pair.up.grad.abs().max() > 0 for pair in lora.pairs.values())


def test_what_a_part_says_of_its_place(tiny, tiny_folder):
    word = LearnedEmbedding(torch.zeros(1, 48), tiny.add_word("<a>", torch.zeros(1, 48))[0])
    other = minti.StableDiffusion.from_pretrained(tiny_folder)
    with word.attached(tiny):
        for model in (tiny, other):
            with pytest.raises(RuntimeError, match="is inside a model already; leave that first"), word.attached(model):
                pass
        with pytest.raises(RuntimeError, match="which cannot be copied so; leave it first"):
            copy.deepcopy(tiny)
    assert not copy.deepcopy(tiny).text_encoder.get_input_embeddings()._forward_hooks
    with word.attached(other), torch.no_grad():
        assert answer(other).isfinite().all()


def test_a_part_that_fails_on_its_way_in_comes_out_again(tiny):
    class Halfway(LearnedEmbedding):
        def hooks(self, model):
            yield from super().hooks(model)
            raise KeyError("no such layer")

    part = Halfway(torch.zeros(1, 48), 0)
    for _ in range(2):
        with pytest.raises(KeyError), part.attached(tiny):
            pass
    assert not tiny.text_encoder.get_input_embeddings()._forward_hooks


def test_a_prepared_word_is_inside_until_it_is_left(tiny):
    """For a learner's own loop after `prepare_for_textual_inversion`."""
    w = wrapper(tiny)
    optimizer = minti.prepare_for_textual_inversion(w)
    before = tiny.encode_prompt("a <concept>").detach()
    minti.diffusion_loss(tiny, torch.zeros(1, 4, 8, 8), torch.tensor([9]), tiny.encode_prompt("<concept>")).backward()
    optimizer.step()
    inside = tiny.encode_prompt("a <concept>").detach()
    w.detach()
    assert torch.equal(tiny.encode_prompt("a <concept>"), inside)
    assert not torch.equal(inside, before)
