"""`sample.py` reads prompts with weights, long prompts, clip skip, and LoRAs that a prompt names."""

import numpy as np
import pytest
import torch
from helpers import random_lora, seeded
from PIL import Image
from running import script_inside

import minti
from minti.prompts.long_prompts import padded

pytestmark = pytest.mark.fast
OPTIONS = ("--steps", 2, "--num-images", 1, "--quiet", "--dtype", "float32", "--guidance-scale", 2)
LONG = "a red cat, " * 4 + "the dog"


@pytest.fixture
def draw(tiny_folder, tmp_path):
    """Runs sample.py on the small model; the image of each prompt."""

    def run(*args):
        done = script_inside("sample.py", *OPTIONS, "--model", tiny_folder, "--output", tmp_path / "out", *args)
        images = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "out").glob("0?-00.png"))]
        return done, [np.asarray(image) for image in images]

    return run


@pytest.fixture
def sampled(tiny):
    """The same by `minti.sample`, of contexts."""

    def run(prompt, negative):
        options = {"num_inference_steps": 2, "guidance_scale": 2, "generator": seeded(0)}
        return np.asarray(minti.sample(tiny, prompt, negative, **options)[0])

    return run


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        (("a (red:1.4) cat", "--prompt-weights", "a1111-no-norm"), {"weights": "a1111-no-norm"}),
        (("a red++ (cat)0.5", "--prompt-weights", "compel"), {"weights": "compel"}),
        (("a red cat", "--clip-skip", 1), {"clip_skip": 1}),
    ],
)
def test_prompts_are_read_as_asked(draw, sampled, tiny, options, meant):
    done, (image,) = draw(*options, "--negative-prompt", "the dog")
    expected = sampled(tiny.encode_prompt(options[0], **meant), tiny.encode_prompt("the dog", **meant))
    assert np.array_equal(image, expected)
    assert done.stderr == ""


def test_long_prompts_and_their_negative_prompts(draw, sampled, tiny):
    """Every prompt of the command has the length of the longest, whatever stands in its batch."""
    empty = tiny.encode_prompt("")
    dog, cat = (padded(tiny.encode_prompt(prompt), 32, empty) for prompt in ("the dog", "a red cat"))
    expected = [sampled(context, dog) for context in (tiny.encode_prompt(LONG, long_prompts=True), cat)]
    for size in (1, 2):
        options = ("--negative-prompt", "the dog", "--long-prompts", "--batch-size", size)
        done, images = draw(LONG, "a red cat", *options)
        assert done.stderr == ""
        assert all(np.abs(x.astype(int) - y).max() <= 1 for x, y in zip(images, expected))
    assert "--long-prompts keeps it" in draw(LONG)[0].stderr


def test_with_other_prompts(draw, tiny, tmp_path):
    """Extra prompts, and the source prompt of an inverted image, are read in the same way."""
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(tmp_path / "black.png")
    both = ("--prompt-weights", "compel", "--long-prompts")
    done, _ = draw(LONG, *both, "--extra-prompt", "a red++ dog", "--extra-prompt-mask", "left")
    assert done.stderr == ""
    done, _ = draw("a red++ dog", *both, "--invert", tmp_path / "black.png", "--source", LONG)
    assert done.stderr == ""


@pytest.fixture
def loras(tiny, tmp_path):
    (tmp_path / "loras" / "below").mkdir(parents=True)
    minti.save_lora(random_lora(tiny), tmp_path / "loras" / "below" / "wild.safetensors")
    return tmp_path / "loras"


def test_a_lora_that_the_prompt_names(draw, loras):
    done, (image,) = draw("a red cat <lora:wild:0.5>", "--lora-dir", loras)
    _, (expected,) = draw("a red cat", "--lora", f"{loras}/below/wild.safetensors=0.5")
    assert np.array_equal(image, expected)
    assert "a LoRA of" in done.stdout
    assert "weight 0.5" in done.stdout
    assert "weight 1\n" in draw("<lora:wild>a red cat", "--lora-dir", loras)[0].stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("a <lora:wild:0.5>",),
            "names the LoRA 'wild'; give --lora-dir FOLDER, where wild.safetensors is, or in place",
        ),
        (("a <lora:wild:0.5", "--lora-dir", "."), "is not closed or has no name; write <lora:NAME:0.8>"),
        (("a <lora::0.5>", "--lora-dir", "."), "is not closed or has no name"),
        (
            ("a <lora:wild:x>", "--lora-dir", "."),
            "weight of a LoRA in the prompt 'a <lora:wild:x>': 'x' is not a number",
        ),
        (("a <lora:wild:inf>", "--lora-dir", "."), "weight of a LoRA"),
        (("a <lora:tame:1>", "--lora-dir", "LORAS"), "has no LoRA 'tame'; it has wild"),
        (("a <lora:../wild:1>", "--lora-dir", "LORAS"), "has no LoRA '../wild'"),
        (("a <lora:wild:1>", "--lora-dir", "nowhere"), "--lora-dir nowhere is no folder"),
        (("a <lora:wild:1>", "a", "--lora-dir", "LORAS"), "the prompts name different LoRAs"),
        (("a", "--negative-prompt", "<lora:wild:1>"), "a LoRA is named in PROMPT"),
        (("a", "--clip-skip", 4), "clip_skip = 4; expected 0 to 3"),
        (("a BREAK BREAK b", "--prompt-weights", "a1111"), "has an empty chunk"),
        (("a (b:1.2.3)", "--prompt-weights", "a1111"), "which is no number"),
    ],
)
def test_bad_prompts_end_with_one_line(tiny_folder, tmp_path, loras, args, message):
    args = [loras if arg == "LORAS" else arg for arg in args]
    done = script_inside(
        "sample.py", *OPTIONS, "--model", tiny_folder, "--output", tmp_path / "out", *args, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_loras_of_one_name(draw, loras):
    (loras / "wild.pt").touch()
    done = script_inside("sample.py", "a <lora:wild>", "--lora-dir", loras, check=False)
    assert "has several LoRAs 'wild'" in done.stderr


def test_a_folder_of_loras_that_no_prompt_names(draw, loras):
    assert f"--lora-dir {loras}: no prompt names a LoRA" in draw("a cat", "--lora-dir", loras)[0].stderr


def test_with_an_ip_adapter_the_image_s_tokens_are_told_from_a_long_text(tiny):
    """Of 36 tokens the last four are the image's, of 32 none."""
    from minti.adapters.ip_adapter import IPAdapter

    torch.manual_seed(0)
    adapter = IPAdapter(tiny.unet, 16)
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.no_grad():
        context = tiny.encode_prompt(LONG, long_prompts=True)
        plain = tiny.unet(x, t, context)
        with adapter.attached(tiny):
            assert torch.equal(tiny.unet(x, t, context), plain)
            assert not torch.equal(tiny.unet(x, t, adapter.prompted(context, torch.ones(1, 16))), plain)
            adapter.scale = 0.0
            assert torch.equal(tiny.unet(x, t, adapter.prompted(context, torch.ones(1, 16))), plain)
