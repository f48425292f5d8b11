"""ControlNet as an adapter: attached to a model, in files of both namings, and what is refused."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from helpers import PROMPTS, parse_config, pictures, random_controlnet, seeded, trainable
from safetensors.torch import load_file, save_file
from torch import nn

import minti
from minti.adapters.controlnet import ONLY, ControlNet, ControlNetConfig, ControlNetwork, controlnet_name
from minti.adapters.ip_adapter import IPAdapter
from minti.guidance.conditions import Conditions
from minti.textual_inversion import TrainingImages, batch_loss
from minti.training import Trainer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def theirs(opened_by_diffusers):
    """A ControlNet of diffusers for the small model."""
    return random_controlnet(opened_by_diffusers.unet, (16, 32))


@pytest.fixture(scope="module")
def written(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(written, tmp_path):
    """The same in a folder that a test may spoil."""
    return shutil.copytree(written, tmp_path / "control")


def hint(count=1, seed=5, size=(16, 16)):
    return torch.rand(count, 3, *size, generator=seeded(seed))


def draw(model, control=None, prompts=PROMPTS, **options):
    options = {"num_inference_steps": 3, "sampler": "ddim", "output": "latents"} | options
    if control is None:
        return minti.sample(model, prompts, generator=seeded(), **options)
    with control.attached(model):
        return minti.sample(model, prompts, generator=seeded(), **options)


# --- attached to a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hints", "scale"), [(1, 1.0), (2, 0.6)])
def test_guided_images_equal_the_pipeline_byte_for_byte(tiny, pipeline, theirs, saved, scale, hints):
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **pipeline.components | {"controlnet": theirs}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    given = hint(hints)
    expected = pipe(
        PROMPTS,
        image=given if hints == 1 else list(given),
        generator=seeded(),
        num_inference_steps=5,
        controlnet_conditioning_scale=scale,
    ).images
    control = ControlNet.from_pretrained(saved, tiny)
    control.hint, control.scale = given, scale
    got = draw(tiny, control, num_inference_steps=5, sampler="ddpm", output="pil")
    alone = draw(tiny, num_inference_steps=5, sampler="ddpm", output="pil")
    for mine, other, without in zip(got, expected, alone):
        assert np.asarray(mine).std() > 1
        assert mine.tobytes() == other.tobytes() != without.tobytes()


def test_it_begins_without_a_trace_and_leaves_none(tiny):
    """Zero convolutions: the same latents bit for bit. Without a hint, or once it has left, a trained one, too."""
    control, alone = ControlNet.beside(tiny, seeded()), draw(tiny)
    control.hint = hint()
    assert torch.equal(draw(tiny, control), alone)
    for parameter in control.parameters():
        nn.init.normal_(parameter, std=0.1, generator=seeded())
    assert not torch.equal(draw(tiny, control), alone)
    assert torch.equal(draw(tiny), alone)
    control.hint = None
    assert torch.equal(draw(tiny, control), alone)


def test_two_add_up_and_leave_in_any_order(tiny, theirs, saved):
    first, second = (ControlNet.from_pretrained(saved, tiny) for _ in range(2))
    double = ControlNet.from_pretrained(saved, tiny)
    first.hint = second.hint = double.hint = hint()
    double.scale = 2.0
    x, t, context = torch.randn(1, 4, 8, 8, generator=seeded()), torch.tensor([500]), tiny.encode_prompt("a cat")
    alone = tiny.unet(x, t, context)
    with double.attached(tiny):
        expected = tiny.unet(x, timesteps=t, context=context)
    with first.attached(tiny):
        once = tiny.unet(x, t, context)
    a, b = first.attached(tiny), second.attached(tiny)
    a.__enter__(), b.__enter__()
    torch.testing.assert_close(tiny.unet(x, t, context), expected, rtol=1e-4, atol=1e-4)  # a + r + r beside a + 2 r
    a.__exit__(None, None, None)
    assert torch.equal(tiny.unet(x, t, context), once)
    b.__exit__(None, None, None)
    assert torch.equal(tiny.unet(x, t, context), alone)


@pytest.mark.parametrize(
    "options", [{"refresh_every": 2}, {"guidance_scale": 1}, {"extra_prompts": [("a dog", 2.0)]}], ids=str
)
def test_the_hint_is_repeated_as_guidance_repeats_the_images(tiny, saved, options):
    """Each of two images has its own, whatever the batch: as if it were sampled alone."""
    control = ControlNet.from_pretrained(saved, tiny)
    given, noise = hint(2), torch.randn(2, 4, 8, 8, generator=seeded())
    if "guidance_scale" not in options:
        options = {"cfg": Conditions(tiny, **options)}
    control.hint = given
    both = draw(tiny, control, latents=noise, **options)
    for i in range(2):
        control.hint = given[i : i + 1]
        alone = draw(tiny, control, PROMPTS[i], latents=noise[i : i + 1], **options)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_it_reads_all_of_a_long_prompt(tiny, pipeline, theirs, saved):
    """As in diffusers, whose ControlNet gets the prompt's embeddings whole."""
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **pipeline.components | {"controlnet": theirs}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    long, other = tiny.encode_prompt(["a red cat " * 6, "the dog"], long_prompts=True).detach().split(1)
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": seeded()}
    expected = pipe(
        prompt_embeds=long, negative_prompt_embeds=other, image=hint(), output_type="latent", **options
    ).images
    control = ControlNet.from_pretrained(saved, tiny)
    control.hint = hint()
    with control.attached(tiny):
        found = minti.sample(tiny, long, other, output="latents", **options | {"generator": seeded()})
    assert torch.equal(found, expected)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_the_first_gradient_reaches_the_zero_convolutions_alone(tiny):
    """θ_c learns once they are no longer zero (arXiv 2302.05543, 3.1)."""
    tiny.freeze()
    control = ControlNet.beside(tiny, seeded())
    control.hint = hint()
    with control.attached(tiny):
        tiny.unet(
            torch.randn(1, 4, 8, 8, generator=seeded()), torch.tensor([500]), tiny.encode_prompt("a cat")
        ).mean().backward()
    for name, parameter in control.network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == name.startswith(("controlnet_down_blocks", "controlnet_mid_block")), name
    assert not trainable(tiny)


@torch.no_grad()
def test_beside_an_ip_adapter_it_reads_the_text_alone(tiny, saved):
    """As in diffusers, whose ControlNet gets the prompt's embeddings without the image's."""
    control, adapter = ControlNet.from_pretrained(saved, tiny), IPAdapter.beside(tiny, 20, seeded())
    control.hint, seen = hint(), []
    control.network.register_forward_hook(lambda network, inputs, output: seen.append((inputs[2], output[0])))
    latents, timesteps, text = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([500, 30]), PROMPTS
    with control.attached(tiny), adapter.attached(tiny):
        for picture in (None, torch.ones(1, 20)):
            tiny.unet(latents, timesteps, adapter.prompted(tiny.encode_prompt(text), picture))
        tiny.unet(latents, timesteps, tiny.encode_prompt(text))
    assert len(seen) == 3
    assert all(torch.equal(a, b) for other in seen[:2] for a, b in zip(other, seen[2]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_trains_the_copy_and_nothing_else(tiny, checkpointing):
    tiny.freeze(checkpointing)
    control, data = ControlNet.beside(tiny, seeded()), TrainingImages(tiny, pictures())
    control.network.gradient_checkpointing(checkpointing)
    control.hint = hint()
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in (tiny.unet, control.network)]
    optimizer = torch.optim.AdamW(control.trainable(), lr=0.01, weight_decay=0.0)
    trainer = Trainer(tiny, control, lambda g: data.batch(2, ["a cat"], g), batch_loss, optimizer, 4, seeded())
    assert len(list(trainer)) == 4
    assert all(torch.equal(value, before[0][key]) for key, value in tiny.unet.state_dict().items())
    assert not [key for key, value in control.network.state_dict().items() if torch.equal(value, before[1][key])]


def test_float32_beside_half_precision(tiny):
    tiny.unet.bfloat16()
    control = ControlNet.beside(tiny, seeded())
    control.hint = hint()
    x, t = torch.randn(1, 4, 8, 8, generator=seeded()).bfloat16(), torch.tensor([500])
    context = tiny.encode_prompt("a cat").bfloat16()
    assert {parameter.dtype for parameter in control.parameters()} == {torch.float32}
    alone = tiny.unet(x, t, context)
    with control.attached(tiny):
        inside = tiny.unet(x, t, context)
    assert inside.dtype == torch.bfloat16 and torch.equal(inside, alone)


# --- files ------------------------------------------------------------------------------------------------------------


def test_diffusers_opens_what_is_saved(tiny, theirs, saved, tmp_path):
    """What was read is written again; a folder and its file are read alike."""
    control = ControlNet.from_pretrained(saved, tiny)
    control.save(tmp_path / "mine")
    again = diffusers.ControlNetModel.from_pretrained(tmp_path / "mine")
    for state in (
        again.state_dict(),
        ControlNet.from_pretrained(tmp_path / "mine" / WEIGHTS, tiny).network.state_dict(),
    ):
        assert state.keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())
    written, expected = (json.loads(c.to_json_string()) for c in (again, theirs))
    assert all(written[key] == value for key, value in expected.items() if not key.startswith("_"))
    assert not [path for path in (tmp_path / "mine").iterdir() if path.suffix == ".tmp"]


def original(theirs):
    """The tensors under the original's names."""
    config = parse_config(ControlNetConfig, theirs.config, **ONLY)
    return {controlnet_name(key, config): value for key, value in theirs.state_dict().items()}, config


def test_names_of_the_original_file():
    """Names that anyone can look up in control_sd15_canny.pth; none occurs twice."""
    with torch.device("meta"):
        keys = ControlNetwork(ControlNetConfig()).state_dict()
    assert len(keys) == 340
    assert len({controlnet_name(key, ControlNetConfig()) for key in keys}) == len(keys)
    for key, name in {
        "conv_in.weight": "input_blocks.0.0.weight",
        "time_embedding.linear_1.weight": "time_embed.0.weight",
        "down_blocks.3.resnets.1.conv2.weight": "input_blocks.11.0.out_layers.3.weight",
        "down_blocks.0.downsamplers.0.conv.bias": "input_blocks.3.0.op.bias",
        "mid_block.attentions.0.proj_out.weight": "middle_block.1.proj_out.weight",
        "controlnet_down_blocks.11.weight": "zero_convs.11.0.weight",
        "controlnet_mid_block.bias": "middle_block_out.0.bias",
        "controlnet_cond_embedding.conv_in.weight": "input_hint_block.0.weight",
        "controlnet_cond_embedding.blocks.0.weight": "input_hint_block.2.weight",
        "controlnet_cond_embedding.blocks.5.bias": "input_hint_block.12.bias",
        "controlnet_cond_embedding.conv_out.weight": "input_hint_block.14.weight",
    }.items():
        assert controlnet_name(key, ControlNetConfig()) == name


def test_names_agree_with_the_converter_of_diffusers(opened_by_diffusers):
    """With four sizes of the hint, as released: diffusers' converter knows no other number."""
    theirs = diffusers.ControlNetModel.from_unet(opened_by_diffusers.unet)
    renamed, _ = original(theirs)
    converted = convert_controlnet_checkpoint({f"control_model.{k}": v for k, v in renamed.items()}, theirs.config)
    assert converted.keys() == theirs.state_dict().keys()
    assert all(torch.equal(converted[key], value) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_original_file(tiny, theirs, tmp_path, prefix, suffix):
    """What else is in it, such as the whole Stable Diffusion of the first release, is passed over."""
    renamed, config = original(theirs)
    tensors = {prefix + key: value.contiguous() for key, value in renamed.items()}
    if prefix:
        tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(3)
    path = tmp_path / f"control{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    network = ControlNet.from_pretrained(path, tiny, config).network
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_a_file_of_differences_is_added_to_the_unet(tiny, pipeline, theirs, tmp_path):
    """diff_control_*: what is also in the UNet is the difference to it; the zero convolutions and the hint's encoder
    are whole. "difference" says so."""
    renamed, config = original(theirs)
    own = {controlnet_name(key, config): value for key, value in pipeline.unet.state_dict().items()}
    shared = own.keys() & renamed.keys()
    assert len(shared) == len(renamed) - sum(
        key.startswith(("zero", "input_hint", "middle_block_out")) for key in renamed
    )
    halved = {key: value / 2 + 0.01 for key, value in renamed.items()}
    file = {f"control_model.{k}": v - own[k] if k in shared else v for k, v in halved.items()}
    save_file(
        {k: v.contiguous() for k, v in file.items()} | {"difference": torch.zeros(1)}, tmp_path / "diff.safetensors"
    )
    network = ControlNet.from_pretrained(tmp_path / "diff.safetensors", tiny, config).network
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, halved[controlnet_name(key, config)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 4, 3, 3), (1,)])
def test_differences_to_another_unet_are_named(tiny, theirs, tmp_path, shape):
    renamed, config = original(theirs)
    wrong = {"input_blocks.0.0.weight": torch.zeros(shape), "difference": torch.zeros(1)}
    save_file({k: v.contiguous() for k, v in (renamed | wrong).items()}, tmp_path / "diff.safetensors")
    with pytest.raises(ValueError, match=r"input_blocks\.0\.0\.weight has shape .* were expected"):
        ControlNet.from_pretrained(tmp_path / "diff.safetensors", tiny, config)


@pytest.mark.parametrize("suffix", ["bin", "fp16.safetensors"])
def test_a_folder_with_one_kind_of_weights(tiny, theirs, saved, suffix):
    tensors = {key: value.clone() for key, value in load_file(saved / WEIGHTS).items()}
    (saved / WEIGHTS).unlink()
    path = saved / f"{WEIGHTS.removesuffix('.safetensors')}.{suffix}"
    torch.save(tensors, path) if suffix == "bin" else save_file({k: v.half() for k, v in tensors.items()}, path)
    with pytest.warns(
        UserWarning, match=r"taking (diffusion_pytorch_model.bin|the weights of variant fp16), for there"
    ):
        network = ControlNet.from_pretrained(saved, tiny).network
    rounding = 0 if suffix == "bin" else 2**-10
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=rounding, atol=rounding * 1e-3)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (1, 3, 8, 8), (1, 1, 16, 16), (3, 3, 16, 16)])
def test_a_hint_of_another_size(tiny, saved, shape):
    control = ControlNet.from_pretrained(saved, tiny)
    control.hint = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"the hint has shape .*; the images need \(b or 1, 3, 16, 16\)$"):
        draw(tiny, control)


def test_a_controlnet_of_another_model(tiny, saved):
    """Nothing of it stays inside."""
    toybox = minti.StableDiffusion.from_pretrained()
    control = ControlNet.from_pretrained(saved, toybox)
    with pytest.raises(ValueError, match=r"made for a model with in_channels = 4; this one has 8"):
        draw(toybox, control)
    control.hint = hint()
    draw(tiny, control)


def spoiled(folder, **config):
    content = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"controlnet_conditioning_channel_order": "bgr"}, "controlnet_conditioning_channel_order = 'bgr', but minti"),
        ({"conditioning_channels": 1}, "conditioning_channels = 1, but minti implements"),
        (
            {"conditioning_embedding_out_channels": []},
            "the config's numbers do not go together",
        ),
        ({"conditioning_embedding_out_channels": [16, -1]}, "the config's numbers do not go together"),
        ({"global_pool_conditions": True}, "global_pool_conditions = True, but minti"),
        ({"use_linear_projection": True}, "use_linear_projection = True, but minti"),
        ({"down_block_types": ["CrossAttnDownBlock2D"]}, "has an unexpected tensor"),
        ({"norm_num_groups": 7}, "the config's numbers do not go together"),
        ({"cross_attention_dim": 32}, "has shape .* were expected"),
        ({"layers_per_block": 1}, "has an unexpected tensor"),
    ],
)
def test_configs_that_are_refused(tiny, saved, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        ControlNet.from_pretrained(spoiled(saved, **config), tiny)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_refused(tiny, theirs, saved, tmp_path):
    tensors = {key: value.clone() for key, value in load_file(saved / WEIGHTS).items()}  # unmapped
    lacking = {key: value for key, value in tensors.items() if key != "controlnet_mid_block.weight"}
    save_file(lacking, saved / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors lacks tensor controlnet_mid_block\.weight"):
        ControlNet.from_pretrained(saved, tiny)
    tensors["conv_in.bias"][3] = torch.nan
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(ValueError, match=r"model\.safetensors: conv_in\.bias has numbers that are not finite"):
        ControlNet.from_pretrained(saved, tiny)
    (saved / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        ControlNet.from_pretrained(saved, tiny)
    (saved / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        ControlNet.from_pretrained(saved, tiny)
    renamed, config = original(theirs)
    torch.save({f"control_model.{k}": v for k, v in renamed.items() if "zero_convs.2.0" not in k}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth lacks tensor control_model\.zero_convs\.2\.0\.bias and 1 more"):
        ControlNet.from_pretrained(tmp_path / "a.pth", tiny, config)
