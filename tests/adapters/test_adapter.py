"""Adapters: attached to a frozen model and detached without a trace; and a LoRA in the loop of textual inversion."""

import copy
import itertools

import pytest
import torch
from helpers import learning, pictures, seeded, trainable, wrapper

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
    lora, data = minti.LoRA(model, rank=2, generator=seeded()), TrainingImages(model, pictures())
    optimizer = torch.optim.AdamW(lora.trainable(), lr=0.01)
    trainer = Trainer(model, lora, lambda g: data.batch(2, ["a cat"], g), batch_loss, optimizer, steps, seeded())
    losses = [step.loss for step in trainer]
    assert len(losses) == steps
    return lora


# --- another adapter in the same training loop ------------------------------------------------------------------------


def test_a_lora_is_trained_by_the_same_loop_and_can_be_merged(tiny):
    before, old = tensors(tiny), answer(tiny)
    lora = trained_lora(tiny)
    assert all(torch.equal(value, before[key]) for key, value in tensors(tiny).items())
    assert torch.equal(answer(tiny), old)  # outside a step the model is as it was
    with lora.attached(tiny), torch.no_grad():
        beside = answer(tiny)
    assert (beside - old).abs().max() > 1e-3
    with lora.merged(tiny):
        torch.testing.assert_close(answer(tiny), beside, rtol=1e-4, atol=1e-5)


# --- attached and detached --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_adapters_are_detached_in_any_order(tiny, order):
    """A learned embedding, E4's matrix of another word, and a LoRA: each does what it does alone; nothing is left."""
    ids = tiny.add_word("<a>", torch.zeros(1, 48)), tiny.add_word("<b>", torch.ones(2, 48))
    embedding = tiny.text_encoder.get_input_embeddings()
    word, matrix = LearnedEmbedding(embedding, ids[0]), MaskedEmbedding(embedding, ids[1])
    word.values.data.normal_(generator=seeded())
    lora = trained_lora(tiny)
    before, old = tensors(tiny), answer(tiny, "<a> <b>")
    with word.attached(tiny), lora.attached(tiny):
        both = answer(tiny, "<a> <b>")
    contexts = [adapter.attached(tiny) for adapter in (word, matrix, lora)]
    for context in contexts:
        context.__enter__()
    assert torch.equal(answer(tiny, "<a> <b>"), both)
    assert not torch.equal(both, old)
    assert [id(x) for x in trainable(tiny)] == [id(embedding.weight)]
    for i in order:
        contexts[i].__exit__(None, None, None)
    assert all(torch.equal(value, before[key]) for key, value in tensors(tiny).items())
    assert torch.equal(answer(tiny, "<a> <b>"), old)
    assert not trainable(tiny)
    assert not any(m._forward_hooks for m in (*tiny.unet.modules(), *tiny.text_encoder.modules()))


def test_a_word_and_a_lora_in_one_step(tiny):
    """The trainer takes one adapter; the other is attached meanwhile, and both receive their gradients."""
    lora, w = trained_lora(tiny), wrapper(tiny, steps=2)
    with lora.attached(tiny):
        for parameter in lora.parameters():
            parameter.grad = None
        states = list(learning(w))
    assert all(state.gradient_norm > 0 for state in states)
    assert all(pair.up.grad.abs().max() > 0 for pair in lora.pairs.values())


def test_an_attached_adapter_is_neither_attached_again_nor_copied(tiny, tiny_folder):
    ids = tiny.add_word("<a>", torch.zeros(1, 48))
    word = LearnedEmbedding(tiny.text_encoder.get_input_embeddings(), ids)
    other = minti.StableDiffusion.from_pretrained(tiny_folder)
    with word.attached(tiny):
        for model in (tiny, other):
            with pytest.raises(RuntimeError, match="is attached to a model already; detach it"), word.attached(model):
                pass
        with pytest.raises(RuntimeError, match="which cannot be copied so; detach it first"):
            copy.deepcopy(tiny)
    assert not copy.deepcopy(tiny).text_encoder.get_input_embeddings()._forward_hooks
    with word.attached(other), torch.no_grad():
        assert answer(other).isfinite().all()


def test_an_adapter_that_fails_while_it_is_attached_is_detached(tiny):
    class Halfway(LearnedEmbedding):
        def hooks(self, model):
            yield from super().hooks(model)
            raise KeyError("no such layer")

    adapter = Halfway(tiny.text_encoder.get_input_embeddings(), [0])
    for _ in range(2):
        with pytest.raises(KeyError), adapter.attached(tiny):
            pass
    assert not tiny.text_encoder.get_input_embeddings()._forward_hooks


def test_a_prepared_word_is_attached_until_it_is_detached(tiny):
    """For a loop of one's own after `prepare_for_textual_inversion`."""
    w = wrapper(tiny)
    optimizer = minti.prepare_for_textual_inversion(w)
    before = tiny.encode_prompt("a <concept>").detach()
    minti.diffusion_loss(tiny, torch.zeros(1, 4, 8, 8), torch.tensor([9]), tiny.encode_prompt("<concept>")).backward()
    optimizer.step()
    inside = tiny.encode_prompt("a <concept>").detach()
    w.detach()
    assert torch.equal(tiny.encode_prompt("a <concept>"), inside)
    assert not torch.equal(inside, before)
