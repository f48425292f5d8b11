"""A LoRA attached to a model, compared with peft's: the same outputs, gradients and steps, bit for bit."""

import copy
import math
from dataclasses import replace

import peft
import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from helpers import pictures, random_lora, seeded

import minti
from minti.adapters.lora import Pair, layers_of
from minti.textual_inversion import TrainingImages, batch_loss
from minti.training import Trainer
from minti.unet import UNet, UNetConfig

EVERYWHERE = ("attention", "projections", "feed_forward", "convolutions")
TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "projections": ["proj_in", "proj_out"],
    "feed_forward": ["ff.net.0.proj", "ff.net.2"],
    "convolutions": ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"],
}
IN_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
OPTIONS = [{}, {"alpha": 1.7}, {"rank": 3, "alpha": 2, "layers": EVERYWHERE}, {"rank": 70, "layers": ("projections",)}]


def inputs(model, dtype=torch.float32):
    """Latents, timesteps and contexts for a UNet."""
    latents = torch.randn(2, 4, 8, 8, generator=seeded(3)).to(dtype)
    return latents, torch.tensor([3, 700]), model.encode_prompt(["a red cat", "the dog"]).to(dtype)


def add_to(network, lora, layers, prefix="unet.", name="default"):
    """The same LoRA in a network of diffusers or transformers, by peft."""
    pairs = {path.removeprefix(prefix): pair for path, pair in lora.pairs.items() if path.startswith(prefix)}
    pair = next(iter(pairs.values()))
    config = peft.LoraConfig(r=pair.rank, lora_alpha=pair.alpha, target_modules=layers)
    peft.inject_adapter_in_model(config, network, adapter_name=name)
    theirs = {key: value for key, value in network.named_parameters() if f".{name}." in key}
    assert len(theirs) == 2 * len(pairs)
    with torch.no_grad():
        for path, pair in pairs.items():
            for key, matrix in (("lora_A", pair.down), ("lora_B", pair.up)):
                theirs[f"{path}.{key}.{name}.weight"].copy_(matrix.view_as(theirs[f"{path}.{key}.{name}.weight"]))
    return theirs


def targets(options):
    return [name for kind in options.get("layers", ("attention",)) for name in TARGETS[kind]]


def tensors(model):
    return {key: value.clone() for key, value in (model.unet.state_dict() | model.text_encoder.state_dict()).items()}


# --- what it computes -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_it_begins_as_the_model_itself(tiny):
    lora = minti.LoRA(tiny, rank=2, layers=EVERYWHERE, text_encoder=True, generator=seeded())
    before, context = tiny.unet(*inputs(tiny)), tiny.encode_prompt("a cat")
    with lora.attached(tiny):
        assert torch.equal(tiny.encode_prompt("a cat"), context)
        assert torch.equal(tiny.unet(*inputs(tiny)), before)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("weight", [1.0, 0.3, -1.0])
def test_the_unet_s_answer_equals_peft_s(tiny, pipeline, options, weight):
    lora = random_lora(tiny, **options)
    lora.weight = weight
    add_to(pipeline.unet, lora, targets(options))
    if weight != 1:
        pipeline.unet.set_adapters(["default"], weight)
    before = tiny.unet(*inputs(tiny))
    with lora.attached(tiny):
        answer = tiny.unet(*inputs(tiny))
    assert torch.equal(answer, pipeline.unet(*inputs(tiny)).sample)
    assert (answer - before).abs().max() > 0.01
    assert torch.equal(tiny.unet(*inputs(tiny)), before)


@torch.no_grad()
def test_the_text_encoder_s_answer_equals_peft_s(tiny, pipeline):
    lora = random_lora(tiny, alpha=2, layers=(), text_encoder=True)
    level = "text_encoder.text_model." if not hasattr(pipeline.text_encoder, "text_model") else "text_encoder."
    before = tiny.encode_prompt("a red cat")
    add_to(pipeline.text_encoder, lora, IN_TEXT, level)
    with lora.attached(tiny):
        context = tiny.encode_prompt("a red cat")
    assert torch.equal(context, pipeline.text_encoder(tiny.tokenize("a red cat"))[0])
    assert (context - before).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_a_model_in_half_precision_it_is_float32(tiny, pipeline, dtype):
    """As diffusers' training scripts have it: peft's matrices cast to float32, the layer's answer back to its dtype."""
    lora = random_lora(tiny, layers=("attention", "feed_forward"))
    x = inputs(tiny, dtype)
    for unet in (tiny.unet, pipeline.unet):
        unet.to(dtype)
    add_to(pipeline.unet, lora, targets({"layers": ("attention", "feed_forward")}))
    cast_training_params(pipeline.unet, torch.float32)
    add_again = {key: value for key, value in pipeline.unet.named_parameters() if ".default." in key}
    for path, pair in lora.pairs.items():  # injected in half precision, they have been rounded
        add_again[path.removeprefix("unet.") + ".lora_A.default.weight"].copy_(pair.down)
        add_again[path.removeprefix("unet.") + ".lora_B.default.weight"].copy_(pair.up)
    with lora.attached(tiny):
        answer = tiny.unet(*x)
    assert answer.dtype == dtype
    assert {parameter.dtype for parameter in lora.parameters()} == {torch.float32}
    assert torch.equal(answer, pipeline.unet(*x).sample)


@torch.no_grad()
def test_several_at_once_each_with_its_weight(tiny, pipeline):
    first, second = random_lora(tiny, 1), random_lora(tiny, 5, rank=2, alpha=3)
    for lora, name, weight in ((first, "one", 0.7), (second, "two", -0.4)):
        lora.weight = weight
        add_to(pipeline.unet, lora, TARGETS["attention"], name=name)
    pipeline.unet.set_adapters(["one", "two"], [0.7, -0.4])
    with first.attached(tiny), second.attached(tiny):
        answer = tiny.unet(*inputs(tiny))
    assert torch.equal(answer, pipeline.unet(*inputs(tiny)).sample)


@torch.no_grad()
def test_its_weight_can_be_changed_while_it_is_attached(tiny):
    lora, before = random_lora(tiny), tiny.unet(*inputs(tiny))
    with lora.attached(tiny):
        full = tiny.unet(*inputs(tiny))
        lora.weight = 0.0
        assert torch.equal(tiny.unet(*inputs(tiny)), before)
        lora.weight = 1.0
        assert torch.equal(tiny.unet(*inputs(tiny)), full)


def test_every_layer_may_have_its_own_rank_and_alpha(tiny):
    """y = W0 x + b + w (alpha / r) B A x, written out for a linear layer and a 1 x 1 convolution."""
    g, at = seeded(), "unet.mid_block.attentions.0."
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    pairs = {
        at + "proj_in": Pair(draw(3, 64), draw(64, 3), 1.5),
        at + "transformer_blocks.0.attn2.to_k": Pair(draw(5, 48), draw(64, 5), 8),
    }
    lora, layers = minti.LoRA(tiny, pairs=pairs, weight=0.5), layers_of(tiny)
    with lora.attached(tiny), torch.no_grad():
        for (path, pair), x in zip(pairs.items(), (draw(2, 64, 4, 4), draw(2, 7, 48))):
            rows = x.movedim(1, -1) if x.ndim == 4 else x  # channels last
            layer = layers[path]
            update = 0.5 * pair.alpha / pair.rank * pair.up.double() @ pair.down.double()
            weight = layer.weight.flatten(1).double() + update
            expected = rows.double() @ weight.T + (0 if layer.bias is None else layer.bias.double())
            got = layer(x).double()
            got = got.movedim(1, -1) if x.ndim == 4 else got
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# --- how it begins ----------------------------------------------------------------------------------------------------


def test_its_size_in_the_toybox_and_in_sd_v1_4(tiny):
    count = lambda lora: sum(parameter.numel() for parameter in lora.parameters())  # noqa: E731
    assert count(minti.LoRA(minti.StableDiffusion.from_pretrained())) == 32_768
    with torch.device("meta"):
        release = replace(tiny, unet=UNet(UNetConfig()))
    lora = minti.LoRA(release)
    assert count(lora) == 797_184
    assert len(lora.pairs) == 16 * 2 * 4  # transformers, each with two attentions of four matrices
    resnets, shortcuts, samplers = 22, 14, 6  # of SD v1.4
    convolutions = 3 * resnets + shortcuts + samplers
    assert len(minti.LoRA(release, layers=EVERYWHERE).pairs) == 16 * (8 + 2 + 2) + convolutions


def test_a_is_drawn_from_the_generator_as_linear_layers_begin(tiny):
    """kaiming_uniform with a = sqrt(5): uniform up to 1 / sqrt(d_in); its variance is a third of that, squared."""
    first, again = (minti.LoRA(tiny, rank=16, generator=seeded(4)) for _ in range(2))
    other = minti.LoRA(tiny, rank=16, generator=seeded(5))
    for path, pair in first.pairs.items():
        bound = 1 / math.sqrt(pair.down.shape[1])
        assert 0.95 * bound < pair.down.abs().max() <= bound
        assert pair.down.var().item() == pytest.approx(bound**2 / 3, rel=0.15)
        assert torch.equal(pair.down, again.pairs[path].down)
        assert not torch.equal(pair.down, other.pairs[path].down)
        assert not pair.up.any()


def test_its_state_comes_back_under_the_layers_names(tiny):
    lora, fresh = random_lora(tiny, text_encoder=True), minti.LoRA(tiny, text_encoder=True)
    state = lora.state_dict()
    assert "unet-mid_block-attentions-0-transformer_blocks-0-attn1-to_q.down" in state
    assert len(state) == 2 * len(lora.pairs)
    fresh.load_state_dict(state)
    assert all(torch.equal(fresh.pairs[path].up, pair.up) for path, pair in lora.pairs.items())
    assert len(copy.deepcopy(lora).trainable()) == len(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank = 0; expected a whole number from 1"),
        ({"rank": 1.5}, "rank = 1.5; expected a whole number from 1"),
        ({"alpha": 0}, "alpha = 0; expected a number above 0"),
        ({"alpha": math.nan}, "alpha = nan; expected a number above 0"),
        ({"alpha": math.inf}, "alpha = inf; expected a number above 0"),
        ({"layers": ("resnets",)}, r"layers = \('resnets',\); expected a list of some of attention, proj"),
        ({"layers": "attention"}, "layers = 'attention'; expected a list"),
        ({"layers": ()}, r"layers = \(\); expected a list"),
    ],
)
def test_settings_that_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        minti.LoRA(tiny, **options)


def test_another_model_than_it_was_made_for(tiny):
    toybox = minti.StableDiffusion.from_pretrained()
    lora = minti.LoRA(toybox)
    for enter in (lora.attached, lora.merged):
        with pytest.raises(ValueError, match=r"another model: unet\.\S+ is \(128, 128\), and in this one \("):
            enter(tiny).__enter__()
    assert not any(module._forward_hooks for module in tiny.unet.modules())
    with lora.attached(toybox):
        pass


# --- in the weights ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
def test_merged_it_equals_peft_s_and_comes_out_bit_for_bit(tiny, pipeline, options):
    lora, before, answer = random_lora(tiny, **options), tensors(tiny), tiny.unet(*inputs(tiny))
    add_to(pipeline.unet, lora, targets(options))
    pipeline.unet.fuse_lora()
    with pytest.raises(KeyError), lora.merged(tiny):
        merged = tiny.unet(*inputs(tiny))
        assert torch.equal(merged, pipeline.unet(*inputs(tiny)).sample)
        raise KeyError
    assert all(torch.equal(value, before[key]) for key, value in tensors(tiny).items())
    assert torch.equal(tiny.unet(*inputs(tiny)), answer)
    with lora.attached(tiny):
        torch.testing.assert_close(tiny.unet(*inputs(tiny)), merged, rtol=1e-3, atol=1e-4)  # another order of sums


@torch.no_grad()
def test_two_are_merged_into_half_precision_and_taken_out_again(tiny):
    tiny.unet.bfloat16()
    first, second, before = random_lora(tiny, 1), random_lora(tiny, 7), tensors(tiny)
    path, pair = next(iter(first.pairs.items()))
    with first.merged(tiny), second.merged(tiny):
        both = layers_of(tiny)[path].weight
        assert both.dtype == torch.bfloat16
        other = second.pairs[path]
        expected = before[path.removeprefix("unet.") + ".weight"].float() + pair.up @ pair.down + other.up @ other.down
        torch.testing.assert_close(both.float(), expected, rtol=2**-7, atol=2**-7)  # bfloat16 has eight bits
    assert all(torch.equal(value, before[key]) for key, value in tensors(tiny).items())


# --- how it learns ----------------------------------------------------------------------------------------------------

PROMPTS = ["a photo of a toy", "the toy"]
LEARNING = [
    {},
    {"rank": 3, "alpha": 6, "layers": EVERYWHERE},
]


def theirs(pipe, lora, options, steps):
    """A plain loop of diffusers' networks and peft's matrices, with minti's draws; yields gradients and matrices."""
    g, images = seeded(0), pictures()
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        network.requires_grad_(False)
    named = add_to(pipe.unet, lora, targets(options))
    paths = [path.removeprefix("unet.") for path in lora.pairs]
    matrices = [named[f"{path}.{key}.default.weight"] for path in paths for key in ("lora_A", "lora_B")]
    optimizer = torch.optim.AdamW(matrices, lr=0.01)
    with torch.no_grad():
        posterior = [pipe.vae.encode(pixels).latent_dist for pixels in images.split(1)]
    for _ in range(steps):
        numbers = torch.randint(len(images), (2,), generator=g)
        mean, std = (torch.cat([getattr(posterior[i], what) for i in numbers]) for what in ("mean", "std"))
        latents = (mean + std * torch.randn(mean.shape, generator=g)) * pipe.vae.config.scaling_factor
        chosen = [PROMPTS[i] for i in torch.randint(len(PROMPTS), (2,), generator=g)]
        t = torch.randint(1000, (2,), generator=g)
        noise = torch.randn(latents.shape, generator=g)
        ids = pipe.tokenizer(chosen, padding="max_length", max_length=16, return_tensors="pt").input_ids
        prediction = pipe.unet(pipe.scheduler.add_noise(latents, noise, t), t, pipe.text_encoder(ids)[0]).sample
        F.mse_loss(prediction, noise).backward()
        gradients = [matrix.grad.flatten(1).clone() for matrix in matrices]
        optimizer.step()
        optimizer.zero_grad()
        yield gradients, [matrix.detach().flatten(1).clone() for matrix in matrices]


def beside_theirs(tiny, pipeline, options, steps):
    """Yields, of each step of both loops, the largest difference of the gradients and of the matrices."""
    tiny.freeze()
    lora, data = minti.LoRA(tiny, generator=seeded(), **options), TrainingImages(tiny, pictures())
    reference = theirs(pipeline, lora, options, steps)
    optimizer, gradients = torch.optim.AdamW(lora.trainable(), lr=0.01), []
    optimizer.register_step_pre_hook(lambda *_: gradients.append([g.clone() for g in lora.gradients()]))
    draw = lambda g: data.batch(2, PROMPTS, g)  # noqa: E731
    first = [p.detach().clone() for p in lora.trainable()]
    far = lambda ours, theirs: max(  # noqa: E731
        (a.flatten(1) - b.flatten(1)).abs().max() for a, b in zip(ours, theirs, strict=True)
    ).item()
    trainer = Trainer(tiny, lora, draw, batch_loss, optimizer, steps, seeded(0))
    for (gradient, matrices), _ in zip(reference, trainer):  # theirs begins first, with the same matrices
        yield far(gradients[-1], gradient), far(lora.trainable(), matrices)
    assert far(lora.trainable(), first) > 0.01 * min(steps, 10) / 2


@pytest.mark.parametrize("options", LEARNING)
def test_a_step_equals_peft_s_bit_for_bit(tiny, pipeline, options):
    """The first moves B alone, for A has no gradient beside a B of zeros; the second moves both."""
    assert list(beside_theirs(tiny, pipeline, options, steps=2)) == [(0, 0), (0, 0)]


def test_computing_activations_again_gives_the_same_gradients(tiny):
    """With gradient checkpointing the layers, and what hangs on them, run a second time in the backward pass."""
    lora, data = random_lora(tiny, layers=EVERYWHERE, text_encoder=True), TrainingImages(tiny, pictures())
    batch, found = data.batch(2, PROMPTS, seeded()), []
    for checkpointing in (False, True):
        tiny.freeze(checkpointing)
        with lora.attached(tiny):
            found.append(torch.autograd.grad(batch_loss(tiny, batch), lora.trainable()))
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)
        assert plain.any()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "steps"), [(LEARNING[0], 100), (LEARNING[1], 25)], ids=["attention", "everywhere"])
def test_a_hundred_steps_equal_the_loop_of_diffusers_and_peft(tiny, pipeline, options, steps):
    assert set(beside_theirs(tiny, pipeline, options, steps)) == {(0, 0)}
