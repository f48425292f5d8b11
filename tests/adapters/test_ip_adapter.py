"""IP-Adapter, an image as a prompt: compared with diffusers', alone, in training, as a file and on the command line."""

import copy
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from helpers import PROMPTS, pictures, seeded
from PIL import Image
from running import script_inside
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import minti
from minti.adapters.ip_adapter import IPAdapter, cross_attentions, load_ip_adapter, save_ip_adapter
from minti.editing.attention_maps import AttentionMaps
from minti.layers import Attention
from minti.textual_inversion import TrainingImages
from minti.training import Trainer
from minti.unet import UNet, UNetConfig

CLIP_DIM = 20


def random_adapter(model, clip_dim=CLIP_DIM):
    """All its numbers random, large enough to be seen."""
    adapter = IPAdapter(model.unet, clip_dim).requires_grad_(False)
    for i, weight in enumerate(adapter.parameters()):
        weight.copy_(torch.randn(weight.shape, generator=seeded(i)) * 0.3)
    return adapter


def seen(count=1, clip_dim=CLIP_DIM):
    return torch.randn(count, clip_dim, generator=seeded(7))


def into(pipeline, folder, adapter=None, name="adapter.safetensors"):
    """diffusers opens the adapter's file."""
    if adapter is not None:
        save_ip_adapter(adapter, folder / name)
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=name, image_encoder_folder=None)
    return pipeline


def answer(model, *adapters, rows=2, picture=None):
    """Of the UNet, to prompts with a picture for each adapter; of several, the one entered first comes last."""
    latents = torch.randn(rows, model.unet.config.in_channels, 8, 8, generator=seeded()).to(model.dtype)
    context = model.encode_prompt(PROMPTS[:rows])
    for adapter in adapters:
        context = adapter.prompted(context, seen() if picture is None else picture)
    return model.unet(latents, torch.tensor([500, 30])[:rows], context)


def answer_of_diffusers(pipeline, model, picture, rows=2):
    latents = torch.randn(rows, model.unet.config.in_channels, 8, 8, generator=seeded())
    context = model.encode_prompt(PROMPTS[:rows])
    added = {"image_embeds": [picture.expand(rows, -1)[:, None]]}
    return pipeline.unet(latents, torch.tensor([500, 30])[:rows], context, added_cond_kwargs=added).sample


# --- beside diffusers -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_the_unet_with_an_adapter_equals_diffusers(tiny, pipeline, tmp_path, rows, scale):
    alone, adapter = answer(tiny, rows=rows), random_adapter(tiny)
    into(pipeline, tmp_path, adapter).set_ip_adapter_scale(scale)
    adapter.scale = scale
    with adapter.attached(tiny):
        got = answer(tiny, adapter, rows=rows, picture=seen(rows))
        assert torch.equal(answer(tiny, rows=rows), alone)  # prompts without an image are as ever
    assert torch.equal(got, answer_of_diffusers(pipeline, tiny, seen(rows), rows))
    assert torch.equal(got, alone) == (scale == 0)
    assert torch.equal(answer(tiny, rows=rows), alone)


@torch.no_grad()
def test_in_the_toybox_it_equals_diffusers_too(tmp_path):
    model, pipeline = minti.StableDiffusion.from_pretrained(), diffusers.StableDiffusionPipeline.from_pretrained(
        minti.TOYBOX, safety_checker=None
    )  # fmt: skip
    adapter = random_adapter(model)
    into(pipeline, tmp_path, adapter)
    with adapter.attached(model):
        assert torch.equal(answer(model, adapter), answer_of_diffusers(pipeline, model, seen()))


def test_its_gradients_equal_those_of_diffusers(tiny, pipeline, tmp_path):
    adapter = random_adapter(tiny).requires_grad_(True)
    tiny.freeze()
    unet = into(pipeline, tmp_path, adapter).unet
    unet.requires_grad_(False)
    processors = [p for name, p in unet.attn_processors.items() if "attn2" in name]
    theirs = [layer.weight for p in processors for layer in (p.to_k_ip[0], p.to_v_ip[0])]
    theirs += unet.encoder_hid_proj.parameters()
    for weight in theirs:
        weight.requires_grad_(True)
    with adapter.attached(tiny):
        answer(tiny, adapter).square().sum().backward()
    answer_of_diffusers(pipeline, tiny, seen()).square().sum().backward()
    ours = [*adapter.ip_adapter.parameters(), *adapter.image_proj.parameters()]
    assert len(ours) == len(theirs) > 20
    keys_and_values = len([*adapter.ip_adapter.parameters()])
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert a.grad.abs().max() > 0
        if i < keys_and_values:
            assert torch.equal(a.grad, b.grad)
        else:  # the layers' gradients of the tokens are added up in another order
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5 * b.grad.abs().max().item())


@pytest.mark.parametrize("count", [1, 2])
def test_a_guided_image_equals_the_pipeline_byte_for_byte(tiny, pipeline, tmp_path, count):
    """One image for all prompts; the negative prompt's is zeros."""
    adapter, prompts = random_adapter(tiny), PROMPTS[:count]
    embeds = [torch.stack([torch.zeros(1, CLIP_DIM), seen()])]
    into(pipeline, tmp_path, adapter)
    how = {"generator": seeded(), "num_inference_steps": 5}
    expected = pipeline(prompts, ip_adapter_image_embeds=embeds, **how).images
    alone = minti.sample(tiny, prompts, **how | {"generator": seeded()})
    said = [adapter.prompted(tiny.encode_prompt(said), picture) for said, picture in ((prompts, seen()), ("", None))]
    with adapter.attached(tiny):
        got = minti.sample(tiny, *said, **how | {"generator": seeded()})
    assert [picture.tobytes() for picture in got] == [picture.tobytes() for picture in expected]
    assert got[0].tobytes() != alone[0].tobytes()


@pytest.fixture
def tower(tmp_path):
    """A small image encoder, written by transformers."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=CLIP_DIM)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


def test_the_command_line_samples_from_an_image_file_what_the_pipeline_samples(
    tiny, tiny_folder, pipeline, tmp_path, tower
):
    """The image is no square, so that shrinking and cropping count."""
    picture = Image.effect_noise((50, 41), 90).convert("RGB")
    picture.save(tmp_path / "picture.png")
    into(pipeline, tmp_path, random_adapter(tiny))
    pipeline.image_encoder = CLIPVisionModelWithProjection.from_pretrained(tower)
    pipeline.feature_extractor = CLIPImageProcessor(size=32, crop_size=32)
    pipeline.set_ip_adapter_scale(0.7)
    expected = pipeline("a cat", ip_adapter_image=picture, generator=seeded(0), num_inference_steps=3).images
    options = {"--model": tiny_folder, "--ip-adapter": tmp_path / "adapter.safetensors", "--ip-scale": 0.7}
    options |= {"--ip-image": tmp_path / "picture.png", "--ip-encoder": tower, "--output": tmp_path / "out"}
    options |= {"--num-images": 1, "--steps": 3, "--guidance-scale": 7.5, "--dtype": "float32", "--device": "cpu"}
    done = script_inside("sample.py", "a cat", *(x for pair in options.items() for x in pair))
    assert Image.open(tmp_path / "out" / "00-00.png").tobytes() == expected[0].tobytes()
    assert "an IP-Adapter, image" in done.stdout


def test_the_layers_are_numbered_as_the_original_does():
    """SD v1.4's: in the order of diffusers' processors, self-attentions counted too; the shapes of h94's file."""
    with torch.device("meta"):
        unet, theirs = UNet(UNetConfig()), diffusers.UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768
        )  # fmt: skip
        adapter = IPAdapter(unet, 1024)
    processors = [name for name, _ in theirs.attn_processors.items()]
    shapes = {key: tuple(value.shape) for key, value in adapter.state_dict().items()}
    expected = {"image_proj.proj.weight": (3072, 1024), "image_proj.proj.bias": (3072,)}
    expected |= {"image_proj.norm.weight": (768,), "image_proj.norm.bias": (768,)}
    for i, name in enumerate(processors):
        if name.endswith("attn2.processor"):
            width = theirs.get_submodule(name.removesuffix(".processor")).to_q.out_features
            expected |= {f"ip_adapter.{i}.{kind}.weight": (width, 768) for kind in ("to_k_ip", "to_v_ip")}
    assert shapes == expected
    assert len(processors) == 32


# --- what it is -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_second_attention_with_the_same_queries():
    """arXiv 2308.06721, eq. 5: softmax(Q Kᵀ / √d) V + λ softmax(Q K'ᵀ / √d) V', then the layer's own output."""
    config = UNetConfig(8, 4, 4, (16, 16), 1, ("CrossAttnDownBlock2D", "DownBlock2D"),
                        ("UpBlock2D", "CrossAttnUpBlock2D"), 12, 2, 4)  # fmt: skip
    torch.manual_seed(0)
    unet = UNet(config)
    adapter, layer = IPAdapter(unet, 5, scale=0.4), cross_attentions(unet)[0]
    x, context, tokens = torch.randn(1, 9, 16), torch.randn(1, 7, 12), torch.randn(1, 4, 12)
    own = adapter.ip_adapter["1"]

    def attended(to_k, to_v, source):
        q, k, v = (y[0].view(-1, 2, 8).transpose(0, 1) for y in (layer.to_q(x), to_k(source), to_v(source)))
        return (torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v).transpose(0, 1).reshape(1, 9, 16)

    both = attended(layer.to_k, layer.to_v, context) + 0.4 * attended(own["to_k_ip"], own["to_v_ip"], tokens)
    model = SimpleNamespace(unet=unet, tokenizer=SimpleNamespace(model_max_length=7))
    with adapter.attached(model):
        torch.testing.assert_close(layer(x, torch.cat([context, tokens], dim=1)), layer.to_out[0](both))


@torch.no_grad()
def test_each_sample_has_an_image_of_its_own(tiny):
    adapter = random_adapter(tiny)
    with adapter.attached(tiny):
        both = answer(tiny, adapter, picture=seen(2))
        for i in range(2):
            one = answer(tiny, adapter, picture=seen(2)[[i]])
            torch.testing.assert_close(one[i], both[i], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="negative prompts of 16 tokens for prompts of 20"):
        minti.sample(tiny, adapter.prompted(tiny.encode_prompt(PROMPTS), seen()), "")  # a negative prompt without one


@torch.no_grad()
@pytest.mark.parametrize("first", [True, False])
def test_it_leaves_no_trace_in_any_order(tiny, first):
    """Two adapters add up; what looks at the text's attention sees the text's."""
    one, two, alone = random_adapter(tiny), random_adapter(tiny), answer(tiny)
    contexts = [one.attached(tiny), two.attached(tiny)]
    with (maps := AttentionMaps(tiny, PROMPTS)).attached(tiny):
        answer(tiny)
        without = maps.maps
    for context in contexts:
        context.__enter__()
    with (maps := AttentionMaps(tiny, PROMPTS)).attached(tiny):
        both = answer(tiny, two, one)
    assert maps.maps.shape == without.shape
    with pytest.raises(RuntimeError, match="attached to a model, which cannot be copied so"):
        copy.deepcopy(tiny)
    contexts[not first].__exit__(None, None, None)
    assert not torch.equal(answer(tiny, [two, one][first]), both)
    contexts[first].__exit__(None, None, None)
    assert torch.equal(answer(tiny), alone)
    assert not [m for m in tiny.unet.modules() if m._forward_pre_hooks or (isinstance(m, Attention) and m.after)]


def test_the_trainer_trains_the_adapter_and_nothing_else(tiny):
    """Also with checkpointing, to the same numbers."""
    before, trained = {key: value.clone() for key, value in tiny.unet.state_dict().items()}, []
    for checkpointing in (False, True):
        tiny.freeze(checkpointing)
        adapter = IPAdapter.beside(tiny, CLIP_DIM, seeded())
        first = {key: value.clone() for key, value in adapter.state_dict().items()}
        optimizer = torch.optim.AdamW(adapter.trainable(), lr=0.01)
        data = TrainingImages(tiny, pictures())

        def loss(model, batch, adapter=adapter):
            prompts = adapter.prompted(model.encode_prompt(batch.prompts), seen(2))
            return minti.diffusion_loss(model, batch.latents, batch.timesteps, prompts, batch.noise)

        trainer = Trainer(tiny, adapter, lambda g, data=data: data.batch(2, PROMPTS, g), loss, optimizer, 3, seeded())
        losses = [step.loss for step in trainer]
        assert not [key for key, value in adapter.state_dict().items() if torch.equal(value, first[key])]
        trained.append((losses, adapter.state_dict()))
    assert all(torch.equal(value, before[key]) for key, value in tiny.unet.state_dict().items())
    assert trained[0][0] == trained[1][0]
    torch.testing.assert_close(trained[0][1], trained[1][1], rtol=1e-4, atol=1e-6)


def test_a_new_one_begins_with_the_text_s_keys_and_values(tiny):
    """As the original's training does; and the same whatever else has been drawn at random."""
    one, two = IPAdapter.beside(tiny, CLIP_DIM, seeded()), IPAdapter.beside(tiny, CLIP_DIM, seeded())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    for own, layer in zip(one.ip_adapter.values(), cross_attentions(tiny.unet)):
        assert torch.equal(own["to_k_ip"].weight, layer.to_k.weight)
        assert torch.equal(own["to_v_ip"].weight, layer.to_v.weight)


@torch.no_grad()
def test_beside_a_model_in_half_precision(tiny_folder, tmp_path):
    model = minti.StableDiffusion.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    adapter = random_adapter(model)
    with adapter.attached(model):
        exact = answer(model, adapter)
    save_ip_adapter(adapter, tmp_path / "adapter.safetensors")
    loaded = load_ip_adapter(model, tmp_path / "adapter.safetensors")
    with loaded.attached(model):
        rounded = answer(model, loaded)
    assert next(adapter.parameters()).dtype == torch.float32
    assert next(loaded.parameters()).dtype == exact.dtype == torch.bfloat16
    assert F.cosine_similarity(exact.flatten().float(), rounded.flatten().float(), dim=0) > 0.999


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_go_both_ways(tiny, tmp_path):
    """As safetensors, and as the original's .bin, whose two halves are dicts of their own."""
    adapter, path = random_adapter(tiny), tmp_path / "adapter.safetensors"
    save_ip_adapter(adapter, path)
    tensors = load_file(path)
    halves = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        half, rest = key.split(".", 1)
        halves[half][rest] = tensor
    torch.save(halves, tmp_path / "adapter.bin")
    for name in ("adapter.safetensors", "adapter.bin"):
        loaded = load_ip_adapter(tiny, tmp_path / name, 0.5).state_dict()
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert not load_ip_adapter(tiny, path).image_proj["proj"].weight.requires_grad
    assert load_ip_adapter(tiny, path).image_proj["proj"].in_features == CLIP_DIM


def test_diffusers_opens_ours(tiny, pipeline, tmp_path):
    adapter = random_adapter(tiny)
    unet = into(pipeline, tmp_path, adapter).unet
    theirs = [p.to_k_ip[0].weight for name, p in unet.attn_processors.items() if "attn2" in name]
    ours = [own["to_k_ip"].weight for own in adapter.ip_adapter.values()]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def spoiled(adapter, **changes):
    """The adapter's tensors with some replaced, and those that are None left out."""
    tensors = {key: value.clone() for key, value in adapter.state_dict().items()} | changes
    return {key: value for key, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ip_adapter.3.to_k_ip.weight": None}, "lacks tensor ip_adapter.3.to_k_ip.weight"),
        ({"ip_adapter.99.to_k_ip.weight": torch.ones(2)}, "has an unexpected tensor ip_adapter.99.to_k_ip.weight"),
        ({"ip_adapter.3.to_k_ip.weight": torch.ones(64, 768)}, r"has shape \(64, 768\)"),
        ({"ip_adapter.3.to_k_ip.weight": torch.full((32, 48), torch.nan)}, "numbers that are not finite"),
        ({"image_proj.proj.weight": None}, "is no IP-Adapter"),
        ({"image_proj.proj.weight": torch.ones(3)}, "is no IP-Adapter"),
        ({"image_proj.proj.weight": None, "image_proj.latents": torch.ones(1, 16, 8)}, "is an IP-Adapter Plus;"),
        ({"image_proj.proj.weight": None, "image_proj.proj.0.weight": torch.ones(2, 2)}, "is an IP-Adapter FaceID;"),
        (
            {"image_proj.proj.0.weight": torch.ones(2, 2), "image_proj.proj.3.weight": torch.ones(2)},
            "is an IP-Adapter Full Face;",
        ),
        (
            {"image_proj.proj.0.weight": torch.ones(1), "image_proj.perceiver_resampler.proj_in.weight": torch.ones(1)},
            "is an IP-Adapter FaceID Plus;",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tiny, tmp_path, changes, message):
    save_file(spoiled(random_adapter(tiny), **changes), tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load_ip_adapter(tiny, tmp_path / "adapter.safetensors")
    assert "adapter.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"image_proj": {}, "ip_adapter": {}}, {"a": 1}, {"image_proj": {1: 2}}]
)
def test_a_bin_of_something_else_is_refused(tiny, tmp_path, content):
    torch.save(content, tmp_path / "adapter.bin")
    with pytest.raises(ValueError, match="is no IP-Adapter"):
        load_ip_adapter(tiny, tmp_path / "adapter.bin")


def test_a_missing_or_another_model_s_file_is_refused(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such IP-Adapter; expected a file such as ip-adapter_sd15"):
        load_ip_adapter(tiny, tmp_path / "adapter.safetensors")
    save_ip_adapter(random_adapter(tiny), tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match=r"unexpected tensor .* it does not fit the model's config"):
        load_ip_adapter(minti.StableDiffusion.from_pretrained(), tmp_path / "adapter.safetensors")


def test_what_is_not_finite_is_not_written(tiny, tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_ip_adapter(random_adapter(tiny), path)
    good, adapter = path.read_bytes(), random_adapter(tiny)
    adapter.ip_adapter["1"]["to_k_ip"].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"is not written: ip_adapter.1.to_k_ip.weight is not finite; try a lower"):
        save_ip_adapter(adapter, path)
    assert path.read_bytes() == good


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ip-image", "P"], "--ip-adapter and --ip-image go together"),
        (["--ip-adapter", "A"], "--ip-adapter and --ip-image go together"),
        (["--ip-adapter", "A", "--ip-image", "P"], "--ip-encoder is missing, the IP-Adapter's CLIP image encoder"),
        (["--ip-adapter", "A", "--ip-image", "nowhere.png", "--ip-encoder", "T"], "no such image"),
        (
            ["--ip-adapter", "A", "--ip-image", "P", "--ip-encoder", "nowhere"],
            "cannot reach the image encoder nowhere",
        ),
        (
            ["--ip-adapter", "B", "--ip-image", "P", "--ip-encoder", "T"],
            "takes 6 numbers for an image, its CLIP gives 20",
        ),
        (["--ip-adapter", "A", "--ip-image", "P", "--ip-scale", "nan"], "nan is not a finite number"),
    ],
)
def test_the_command_line_refuses(tiny, tiny_folder, tmp_path, tower, options, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    save_ip_adapter(random_adapter(tiny), tmp_path / "adapter.safetensors")
    save_ip_adapter(random_adapter(tiny, 6), tmp_path / "other.safetensors")
    files = {"A": "adapter.safetensors", "B": "other.safetensors", "P": "picture.png", "T": "tower"}
    options = [tmp_path / files[option] if option in files else option for option in options]
    done = script_inside(
        "sample.py", "a cat", "--model", tiny_folder, "--output", tmp_path / "out", *options, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
