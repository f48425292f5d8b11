"""LoRA files: what minti writes draws the same picture in diffusers, byte for byte, and what diffusers writes here."""

import json
import math
import re

import diffusers
import peft
import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from helpers import PROMPTS, random_lora, seeded
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minti
from minti.adapters.lora import LAYERS, Pair
from minti.formats.single_file import unet_name

EVERYWHERE = {"layers": tuple(LAYERS), "text_encoder": True}
OPTIONS = [{}, {"alpha": 1.7}, {"rank": 3, "alpha": 2} | EVERYWHERE]
FORMATS = ["diffusers", "kohya"]


def drawn(model, lora, **options):
    with lora.attached(model):
        return minti.sample(model, PROMPTS, generator=seeded(), num_inference_steps=3, **options)


def drawn_by(pipe, **options):
    return pipe(PROMPTS, generator=seeded(), num_inference_steps=3, **options).images


def assert_the_same_pictures(ours, theirs, before):
    for a, b, c in zip(ours, theirs, before, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.tobytes() != c.tobytes()


def mixed_lora(model, **options):
    """Ranks and alphas that differ from layer to layer."""
    lora = random_lora(model, **options)
    for i, (path, pair) in enumerate([*lora.pairs.items()]):
        if i % 3:
            pair = Pair(pair.down.detach()[: i % 3], pair.up.detach()[:, : i % 3], [1, 0.7, 3][i % 3])
        lora.pairs[path] = pair
    return minti.LoRA(model, pairs=lora.pairs)


# --- written by minti, opened by diffusers ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_diffusers_draws_the_same_with_minti_s_files(tiny, pipeline, tmp_path, format, options):
    lora, before = random_lora(tiny, **options), drawn_by(pipeline)
    minti.save_lora(lora, tmp_path / "lora.safetensors", format)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert_the_same_pictures(drawn(tiny, lora), drawn_by(pipeline), before)
    pipeline.set_adapters("default_0", 0.6)
    lora.weight = 0.6
    assert_the_same_pictures(drawn(tiny, lora), drawn_by(pipeline), before)


def test_diffusers_draws_the_same_with_ranks_and_alphas_of_each_layer(tiny, pipeline, tmp_path):
    """In diffusers' format; of kohya's with several alphas it takes, in 0.42, the most frequent one for all layers."""
    lora, before = mixed_lora(tiny, **EVERYWHERE), drawn_by(pipeline)
    minti.save_lora(lora, tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert_the_same_pictures(drawn(tiny, lora), drawn_by(pipeline), before)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_diffusers_draws_the_same_toys(tmp_path, format):
    """On the bundled model, with the whole of its guidance and velocity prediction."""
    toybox = minti.StableDiffusion.from_pretrained()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        minti.TOYBOX, safety_checker=None, torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    lora, before = random_lora(toybox, alpha=2, **EVERYWHERE), drawn_by(pipe)
    minti.save_lora(lora, tmp_path / "lora.safetensors", format)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    ours = drawn(toybox, lora, sampler="pndm", guidance_scale=7.5)
    assert_the_same_pictures(ours, drawn_by(pipe), before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("make", [random_lora, mixed_lora])
def test_a_file_comes_back_as_it_was(tiny, tmp_path, format, make):
    lora = make(tiny, rank=3, alpha=0.7, **EVERYWHERE)
    minti.save_lora(lora, tmp_path / "lora.safetensors", format)
    again = minti.load_lora(tiny, tmp_path / "lora.safetensors", weight=0.3)
    assert again.weight == 0.3
    assert [*again.pairs] == [*lora.pairs]  # in the model's order, whatever the file's
    for pair, other in zip(again.pairs.values(), lora.pairs.values()):
        assert torch.equal(pair.down, other.down)
        assert torch.equal(pair.up, other.up)
        assert pair.alpha == pytest.approx(other.alpha, rel=1e-7)  # kohya's is a float32
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in again.trainable())


# --- names as kohya's trainer gives them ------------------------------------------------------------------------------


def named_by_kohya(pipe):
    """Every linear layer and convolution below certain classes, its whole path with _ for each point (conv_dim given:
    C3Lier, LoCon, and by the same rule LCM-LoRA)."""
    targets = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    classes = {name: ("lora_unet", pipe.unet) for name in targets}
    classes |= {name: ("lora_te.text_model", pipe.text_encoder) for name in ("CLIPAttention", "CLIPMLP")}
    names = {}
    for kind, (prefix, network) in classes.items():
        for path, module in network.named_modules():
            if type(module).__name__ == kind:
                for name, layer in module.named_modules():
                    if type(layer).__name__ in ("Linear", "Conv2d"):
                        path = path.removeprefix("text_model.")  # which transformers has had before 5.6
                        names[f"{prefix}.{path}.{name}".replace(".", "_")] = layer
    return names


def test_the_names_are_kohya_s(tiny, pipeline, tmp_path):
    """networks/lora.py of sd-scripts: LoRANetwork.create_modules, and what LoRAModule has for matrices."""
    minti.save_lora(minti.LoRA(tiny, alpha=2, **EVERYWHERE), tmp_path / "lora.safetensors", "kohya")
    tensors, layers = load_file(tmp_path / "lora.safetensors"), named_by_kohya(pipeline)
    written = {name for name in layers if "mlp" not in name}
    assert {key.split(".", 1)[0] for key in tensors} == written
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    for name in written:
        d_out, d_in, *kernel = layers[name].weight.shape
        assert tensors[f"{name}.lora_down.weight"].shape == (4, d_in, *kernel)
        assert tensors[f"{name}.lora_up.weight"].shape == (d_out, 4, *[1 for _ in kernel])
        assert tensors[f"{name}.alpha"].shape == ()
        assert tensors[f"{name}.alpha"] == 2
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        words = {"ss_network_dim": "4", "ss_network_alpha": "2.0"}
        assert words.items() <= file.metadata().items()


@pytest.mark.parametrize("alpha", [None, 1.0, 8.0])
def test_a_file_of_kohya_s_trainer_draws_the_same_as_in_diffusers(tiny, pipeline, tmp_path, alpha):
    """With the feed-forward of the text encoder, in half precision as it writes by default, with alpha or without."""
    g, tensors = seeded(), {}
    for name, layer in named_by_kohya(pipeline).items():
        d_out, d_in, *kernel = layer.weight.shape
        tensors[f"{name}.lora_down.weight"] = 0.2 * torch.randn(4, d_in, *kernel, generator=g).half()
        tensors[f"{name}.lora_up.weight"] = 0.2 * torch.randn(d_out, 4, *[1 for _ in kernel], generator=g).half()
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha).half()
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_network_dim": "4"})
    lora, before = minti.load_lora(tiny, tmp_path / "lora.safetensors"), drawn_by(pipeline)
    assert {(pair.rank, pair.alpha) for pair in lora.pairs.values()} == {(4, alpha or 4)}
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert_the_same_pictures(drawn(tiny, lora), drawn_by(pipeline), before)


# --- written by diffusers and peft ------------------------------------------------------------------------------------

TARGETS = {"unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2"], "text_encoder": ["q_proj", "out_proj"]}


@pytest.fixture
def taught(pipeline):
    """diffusers' pipeline with peft's matrices in both networks, all random."""
    g = seeded()
    for name, targets in TARGETS.items():
        config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets)
        peft.inject_adapter_in_model(config, getattr(pipeline, name))
        for key, parameter in getattr(pipeline, name).named_parameters():
            if ".lora_" in key:
                parameter.data.normal_(std=0.2, generator=g)
    return pipeline


def layers_of_peft(pipe, convert=lambda tensors: tensors):
    return {f"{name}_lora_layers": convert(get_peft_model_state_dict(getattr(pipe, name))) for name in TARGETS}


def as_kohya(pipe):
    state = {f"{name}.{k}": v for name in TARGETS for k, v in get_peft_model_state_dict(getattr(pipe, name)).items()}
    return convert_state_dict_to_kohya({key.replace("unet.", "unet_", 1): v for key, v in state.items()})


def as_attention_processors(pipe):
    """What diffusers wrote before 0.17: `to_q_lora` of a processor, `to_out_lora`, and so in the text encoder."""
    tensors = {}
    for name in TARGETS:
        for key, value in get_peft_model_state_dict(getattr(pipe, name)).items():
            key = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
            key = re.sub(r"(attn\d)\.(to_[qkv]|to_out)(\.0)?\.lora", r"\1.processor.\2_lora", key)
            if name == "text_encoder":
                key = "text_model." + key.removeprefix("text_model.")
                key = re.sub(r"self_attn\.(\w+)_proj\.lora", r"self_attn.to_\1_lora", key)
            tensors[f"{name}.{key}"] = value
    return tensors


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("form", ["diffusers", "peft", "bin", "kohya", "processors", "half"])
def test_files_of_all_the_years_draw_the_same_as_in_diffusers(tiny, taught, tmp_path, form):
    save, path = taught.save_lora_weights, tmp_path / "pytorch_lora_weights.safetensors"
    match form:
        case "diffusers":
            save(tmp_path, **layers_of_peft(taught, convert_state_dict_to_diffusers))
        case "peft":
            save(tmp_path, **layers_of_peft(taught))
        case "bin":
            save(tmp_path, **layers_of_peft(taught), safe_serialization=False)
            path = path.with_suffix(".bin")
        case "kohya":
            save_file(as_kohya(taught), path)
        case "processors":
            save_file(as_attention_processors(taught), path)
        case "half":
            for network in TARGETS:
                for key, parameter in getattr(taught, network).named_parameters():
                    parameter.data = parameter.half().float() if ".lora_" in key else parameter
            save(tmp_path, **layers_of_peft(taught, lambda tensors: {k: v.half() for k, v in tensors.items()}))
    theirs = drawn_by(taught)
    taught.unload_lora_weights()
    before = drawn_by(taught)
    lora = minti.load_lora(tiny, path)
    assert len(lora.pairs) == 11 * (2 * 4 + 2) + 3 * 2  # of the UNet's transformers, and of the text encoder's layers
    assert_the_same_pictures(drawn(tiny, lora), theirs, before)


def test_alpha_in_the_metadata_of_diffusers(tiny, pipeline, tmp_path):
    """As its training scripts write it, which know an alpha other than the rank, and patterns for some layers."""
    before = drawn_by(pipeline)
    alphas = {"attn1.to_q": 3, "to_k": 1}
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=TARGETS["unet"], alpha_pattern=alphas)
    peft.inject_adapter_in_model(config, pipeline.unet)
    for key, parameter in pipeline.unet.named_parameters():
        if ".lora_" in key:
            parameter.data.normal_(std=0.2, generator=seeded())
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    pipeline.save_lora_weights(tmp_path, layers, **_collate_lora_metadata({"unet": pipeline.unet}))
    lora = minti.load_lora(tiny, tmp_path / "pytorch_lora_weights.safetensors")
    assert {pair.alpha for pair in lora.pairs.values()} == {1, 3, 7}
    assert_the_same_pictures(drawn(tiny, lora), drawn_by(pipeline), before)


@torch.no_grad()
def layers_that_learned(unet, **options):
    """A LoRA of peft in a UNet of diffusers, attention and convolutions, random in both matrices."""
    targets = ["to_q", "to_out.0", "conv1", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj"]
    unet.add_adapter(peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options))


SCALES = [
    {"lora_alpha": 16},
    {"lora_alpha": 7, "alpha_pattern": {"to_q": 3, "mid_block.resnets.0.conv1": 1}},
    {"lora_alpha": 7, "alpha_pattern": {"to_q|to_out.0": 3, r"^down_blocks\..*conv1": 1, r"resnets\.0\.conv1": 2}},
    {"lora_alpha": 16, "use_rslora": True},
    {"lora_alpha": 16, "use_rslora": True, "rank_pattern": {"conv1": 2}},
]


@torch.no_grad()
@pytest.mark.parametrize("options", SCALES)
@pytest.mark.parametrize("form", ["save_lora_adapter", "save_lora_weights", "peft"])
def test_the_scale_is_in_the_metadata_of_every_writer(tiny, pipeline, tmp_path, form, options):
    """`unet.save_lora_adapter` writes keys and metadata without `unet.`, peft a folder with its config beside."""
    unet = pipeline.unet
    layers_that_learned(unet, **options)
    match form:
        case "save_lora_adapter":
            unet.save_lora_adapter(tmp_path)
        case "save_lora_weights":
            metadata = _collate_lora_metadata({"unet": unet})
            pipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(unet, adapter_name="default"), **metadata)
        case "peft":
            tensors = get_peft_model_state_dict(unet, adapter_name="default")
            save_file({f"base_model.model.{k}": v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
            unet.peft_config["default"].save_pretrained(tmp_path)
    theirs = unet(*inputs()).sample
    unet.disable_adapters()
    assert (unet(*inputs()).sample - theirs).abs().max() > 0.01
    with minti.load_lora(tiny, tmp_path).attached(tiny):
        ours = tiny.unet(*inputs())
    exact = 0 if not options.get("use_rslora") else 1e-5  # α √r / r and α / √r differ in the last bit
    torch.testing.assert_close(ours, theirs, rtol=exact, atol=exact)


def inputs():
    """Latents, timesteps and contexts for a UNet."""
    return (
        torch.randn(2, 4, 8, 8, generator=seeded(3)),
        torch.tensor([3, 700]),
        torch.randn(2, 16, 48, generator=seeded(4)),
    )


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_starts_by_changing_the_models_own_weights_is_refused(tiny, pipeline, tmp_path, start):
    peft.get_peft_model(
        pipeline.unet, peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=start)
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"adapter_model.safetensors is peft's {start}, which changes the model's own"
    ):
        minti.load_lora(tiny, tmp_path)


def test_an_adapters_name_in_the_keys(tiny, tmp_path):
    """As peft's state dictionaries have it before they are saved."""
    tensors = {f"{Q}.lora_A.default_0.weight": DOWN, f"{Q}.lora_B.default_0.weight": UP}
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "lora.safetensors")
    assert [*minti.load_lora(tiny, tmp_path / "lora.safetensors").pairs] == [Q]


@torch.no_grad()
@pytest.mark.parametrize("begin", ["diffusion_model.", "unet.", "lora_unet_"])
def test_layers_under_their_names_in_the_original_single_file(tiny, tmp_path, begin):
    """As ComfyUI and OneTrainer write them; diffusers' own converter of the original UNet says which are which."""
    lora = random_lora(tiny, **EVERYWHERE | {"text_encoder": False})
    minti.save_lora(lora, tmp_path / "lora.safetensors", "kohya")
    names = {name: original for original, name in original_names(tiny).items()}
    tensors = {}
    for path, pair in lora.pairs.items():
        original = names[path.removeprefix("unet.")]
        stem = begin + (original.replace(".", "_") if begin.endswith("_") else original)
        convolution = tiny.unet.get_submodule(path.removeprefix("unet.")).weight.ndim == 4
        for role, matrix in (("down", pair.down), ("up", pair.up)):
            grown = matrix[..., None, None] if convolution and matrix.ndim == 2 else matrix
            tensors[f"{stem}.lora_{role}.weight"] = grown.detach().clone()
    save_file(tensors, tmp_path / "other.safetensors")
    ours, theirs = (minti.load_lora(tiny, tmp_path / name) for name in ("lora.safetensors", "other.safetensors"))
    assert [*ours.pairs] == [*theirs.pairs]
    assert all(
        torch.equal(a.up, b.up) and torch.equal(a.down, b.down)
        for a, b in zip(ours.pairs.values(), theirs.pairs.values())
    )


def original_names(model):
    """{name in the original file: name in diffusers' UNet} of the layers, by diffusers' converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = {"layers_per_block": model.unet.config.layers_per_block, "class_embed_type": None}
    config["addition_embed_type"] = None
    numbers = {key: torch.tensor(i) for i, key in enumerate(model.unet.state_dict())}
    originals = {unet_name(key, model.unet.config): number for key, number in numbers.items()}
    converted = convert_ldm_unet_checkpoint(dict(originals), config)
    back = {int(number): key for key, number in converted.items()}
    begin = "model.diffusion_model."
    return {
        name.removeprefix(begin).removesuffix(".weight"): back[int(number)].removesuffix(".weight")
        for name, number in originals.items()
        if name.endswith(".weight")
    }


# --- what is refused --------------------------------------------------------------------------------------------------

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = torch.ones(2, 64), torch.ones(64, 2)


def one(changed):
    """A good file of one layer, changed; None takes a tensor away."""
    tensors = {f"{Q}.lora.down.weight": DOWN, f"{Q}.lora.up.weight": UP} | changed
    return {key: tensor.clone() for key, tensor in tensors.items() if tensor is not None}


def test_the_file_that_the_refusals_change_is_good(tiny, tmp_path):
    save_file(one({}), tmp_path / "lora.safetensors")
    assert [*minti.load_lora(tiny, tmp_path / "lora.safetensors").pairs] == [Q]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{Q}.dora_scale": UP}, "dora_scale is DoRA's; minti reads plain LoRAs only"),
        ({f"{Q}.lora_magnitude_vector": UP}, "is DoRA's"),
        ({f"{FLAT}.hada_w1_a": UP}, "is LoHa's"),
        ({f"{FLAT}.lokr_w1": UP}, "is LoKr's"),
        ({f"{FLAT}.oft_blocks": UP}, "is OFT's"),
        ({f"{FLAT}.on_input": UP}, "is IA3's"),
        ({f"{FLAT}.a1.weight": UP}, "a1.weight is GLoRA's"),
        ({f"{FLAT}.diff": UP}, "is a whole difference of LyCORIS"),
        ({"bundle_emb.cat.string_to_param.*": UP}, "is a word that OneTrainer has bundled with it"),
        ({"unet:0:up": UP}, "is of cloneofsimo's trainer, which numbers the layers"),
        ({"lora_transformer_single_transformer_blocks_0_attn_to_k.lora_up.weight": UP}, "is of a transformer, as FLUX"),
        ({"<s1>": UP}, r"<s1> is a learned word's: load it as an embedding \(--embedding\)"),
        ({"emb_params": UP}, "emb_params is a learned word's"),
        ({f"{FLAT}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "lora_mid.weight is LoCon's with a Tucker"),
        (
            {f"{Q}.lora.down.weight": torch.ones(2, 64, 3, 3)},
            r"another model: \S+to_q is \(64, 64, 3, 3\), and in this one \(64, 64\)",
        ),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": UP}, "is SDXL's"),
        ({f"{Q}.lora.up.bias": UP}, "bias is unexpected; minti reads plain LoRAs only"),
        ({"step": UP}, "step is unexpected"),
        ({f"{Q}.lora.down.weight": None}, f"{Q} has half a pair, without numbers for its down"),
        ({f"{Q}.lora.up.weight": None}, f"{Q} has half a pair, without numbers for its up"),
        ({"unet.mid_block.proj_in.lora.up.weight": UP}, "is for a layer that this model does not have"),
        ({"unet.conv_norm_out.lora.up.weight": UP}, "is for a layer that this model does not have"),
        ({"lora_te_text_model_encoder_layers_7_mlp_fc1.lora_up.weight": UP}, "is for a layer that this model does not"),
        (
            {f"{Q}.lora.down.weight": torch.ones(2, 32)},
            r"another model: \S+to_q is \(64, 32\), and in this one \(64, 64\)",
        ),
        ({f"{Q}.lora.up.weight": torch.ones(64, 3)}, "down is of rank 2, up of 3; expected the same, from 1"),
        (
            {f"{Q}.lora.down.weight": torch.ones(0, 64), f"{Q}.lora.up.weight": torch.ones(64, 0)},
            r"down is of rank 0, up of 0; expected the same, from 1",
        ),
        ({f"{Q}.lora.up.weight": torch.ones(64)}, r"up is \(64,\), torch.float32; expected a matrix"),
        (
            {f"{Q}.lora.up.weight": torch.ones(64, 2, dtype=torch.int32)},
            r"up is \(64, 2\), torch.int32; expected a matrix",
        ),
        ({f"{Q}.lora.up.weight": torch.full((64, 2), math.nan)}, "to_q has numbers that are not finite"),
        ({f"{FLAT}.alpha": torch.tensor(math.inf)}, r"alpha is tensor\(inf\); expected a number above 0"),
        ({f"{FLAT}.alpha": torch.tensor(0.0)}, r"alpha is tensor\(0\.\); expected a number above 0"),
        ({f"{FLAT}.alpha": torch.ones(2)}, r"alpha is tensor\(\[1\., 1\.\]\); expected a number above 0"),
    ],
)
def test_files_that_are_refused(tiny, tmp_path, changed, message):
    path = tmp_path / "lora.safetensors"
    save_file(one(changed), path)
    with pytest.raises(ValueError, match=message) as error:
        minti.load_lora(tiny, path)
    assert str(error.value).startswith(f"{path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[" * 9**5,
        "[]",
        "3",
        '{"unet.lora_alpha": "four"}',
        '{"unet.lora_alpha": -1}',
        '{"unet.lora_alpha": 1%s}' % ("0" * 400),
        '{"unet.alpha_pattern": [1]}',
        '{"unet.use_rslora": true, "unet.lora_alpha": "4"}',
    ],
)
def test_metadata_that_is_refused(tiny, tmp_path, config):
    save_file(one({}), tmp_path / "lora.safetensors", {LORA_ADAPTER_METADATA_KEY: config})
    with pytest.raises(ValueError, match=r"lora\.safetensors: .*(cannot be read|expected a number above 0)") as error:
        minti.load_lora(tiny, tmp_path / "lora.safetensors")
    assert "\n" not in str(error.value)


def test_no_such_file_and_others_that_are_no_loras(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nosuch\.safetensors: no such file of a LoRA"):
        minti.load_lora(tiny, tmp_path / "nosuch.safetensors")
    for content in ([1], {}, {1: UP}):
        torch.save(content, tmp_path / "lora.pt")
        with pytest.raises(ValueError, match=r"lora\.pt holds no LoRA; expected a file of diffusers or of kohya's"):
            minti.load_lora(tiny, tmp_path / "lora.pt")
    for odd in (
        UP.to_sparse(),
        UP.to("meta"),
        UP.to(torch.complex64),
        torch.quantize_per_tensor(UP, 0.1, 0, torch.qint8),
    ):
        torch.save(one({f"{Q}.lora.up.weight": odd}), tmp_path / "lora.pt")
        with pytest.raises(ValueError, match=r"to_q(: up is .*; expected a matrix| has half a pair, without numbers)"):
            minti.load_lora(tiny, tmp_path / "lora.pt")
    (tmp_path / "lora.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        minti.load_lora(tiny, tmp_path / "lora.safetensors")


def test_what_is_not_written(tiny, tmp_path):
    path, lora = tmp_path / "lora.safetensors", random_lora(tiny)
    minti.save_lora(lora, path)
    good = path.read_bytes()
    next(iter(lora.pairs.values())).up.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"is not written: unet\.\S+ is not finite; try a lower learning rate"):
        minti.save_lora(lora, path)
    assert path.read_bytes() == good
    lora = random_lora(tiny)
    with pytest.raises(ValueError, match="written as safetensors only; end the name in"):
        minti.save_lora(lora, tmp_path / "lora.pt")
    with pytest.raises(ValueError, match="format = 'a1111'; expected 'diffusers' or 'kohya'"):
        minti.save_lora(lora, path, "a1111")
    with pytest.raises(OSError, match="cannot write"):
        minti.save_lora(lora, path / "lora.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]


def test_the_metadata_says_rank_and_alpha_as_peft_does(tiny, tmp_path):
    minti.save_lora(minti.LoRA(tiny, rank=3, alpha=2, text_encoder=True), tmp_path / "lora.safetensors")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        config = json.loads(file.metadata()[LORA_ADAPTER_METADATA_KEY])
    for network in ("unet", "text_encoder"):
        own = {key.removeprefix(f"{network}."): v for key, v in config.items() if key.startswith(f"{network}.")}
        made = peft.LoraConfig(**own)
        assert (made.r, made.lora_alpha, made.rank_pattern, made.alpha_pattern) == (3, 2, {}, {})
