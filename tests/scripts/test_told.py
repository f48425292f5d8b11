"""`sample.py` tells of words that no prompt says, of other syntax, of masks of one colour; and transparency in
masks and hints is black."""

import warnings

import numpy as np
import pytest
import torch
from helpers import pictures, seeded
from PIL import Image
from running import script_inside
from safetensors.torch import save_file

import minti
from minti.adapters.controlnet import ControlNet
from minti.denoising import SAMPLERS, make_sampler
from minti.images import to_pil

pytestmark = pytest.mark.fast
OPTIONS = ("--steps", 2, "--num-images", 1, "--quiet", "--dtype", "float32", "--guidance-scale", 2)


@pytest.fixture
def word(tmp_path):
    save_file({"<rex>": torch.randn(1, 48, generator=seeded())}, tmp_path / "rex.safetensors")
    return tmp_path / "rex.safetensors"


@pytest.fixture
def draw(tiny_folder, tmp_path):
    """Runs sample.py on the small model; what it wrote to stderr, and the image."""

    def run(*args):
        done = script_inside("sample.py", *OPTIONS, "--model", tiny_folder, "--output", tmp_path / "out", *args)
        return done.stderr, Image.open(tmp_path / "out/00-00.png").convert("RGB")

    return run


@pytest.mark.parametrize("prompt", ["a my-rex", "a rex"])
def test_a_word_that_no_prompt_says(draw, word, prompt):
    said, _ = draw(prompt, "--embedding", word)
    assert said == f"warning: {word}: no prompt says <rex>, so it changes nothing\n"


@pytest.mark.parametrize(
    "prompts",
    [("a <rex>",), ("a cat", "a <REX>"), ("a cat", "--negative-prompt", "<rex>"), ("a", "--extra-prompt", "<rex>")],
)
def test_a_word_that_some_prompt_says(draw, word, prompts):
    assert draw(*prompts, "--embedding", word)[0] == ""


def test_a_placeholder_that_the_model_lacks(draw, word):
    said, _ = draw("a <x> <rex>", "--embedding", word)
    assert said.startswith("warning: the prompt says '<x>', no word of this model; load its file")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("a (red:1.4) cat", "(red:1.4)"),
        ("a ((red)) cat", "((red))"),
        (r"a (cat \(pet\):1.2)", r"(cat \\(pet\\):1.2)"),
        ("a (cat (red) b:1.2 )", "(cat (red) b:1.2 )"),
        ("a [cat]", "[cat]"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5]"),
        ("a cat <lora:thing_v2:0.8>", "<lora:thing_v2:0.8>"),
        ("a cat BREAK a dog", "BREAK"),
        ("a red++ cat", "d++"),
        ("a (cat)0.5", "(cat)0.5"),
    ],
)
def test_the_syntax_of_other_programs(tiny, prompt, part):
    with pytest.warns(UserWarning, match="the prompt holds") as told:
        tiny.encode_prompt(prompt)
    messages = [str(one.message) for one in told if "cut off" not in str(one.message)]
    assert [f"'{part}'" in message for message in messages] == [True]


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (red)",
        "a cat, 3:4, daybreak",
        "3 < 4",
        "a 'cat': red",
        "a cat :)",
        "",
        "a <-> b",
        "I <3 it",
        "</br>",
        "(a)-b",
        "a--b",
    ],
)
def test_plain_text_is_not_taken_for_syntax(tiny, prompt):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tiny.encode_prompt(prompt)
    assert told == []


def test_a_prompt_given_twice_numbers_its_files_once(draw, tmp_path):
    draw("a cat", "a cat", "a dog", "--trajectory")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    trajectories = {f"{i:02}-trajectory.{kind}" for i in range(2) for kind in ("png", "gif")}
    assert names == {"00-00.png", "01-00.png", "grid.png"} | trajectories


def test_images_of_an_earlier_run_are_told(draw, tmp_path):
    draw("a cat", "a dog")
    before = (tmp_path / "out/01-00.png").read_bytes()
    said, _ = draw("a cat")
    assert said == (
        f"warning: {tmp_path / 'out'} also holds images of an earlier run, which are not in grid.png: 01-00.png\n"
    )
    assert (tmp_path / "out/01-00.png").read_bytes() == before
    assert draw("a bird", "a dog")[0] == ""


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_that_begins_at_the_end_is_told(draw, sampler):
    """With one step most samplers, as diffusers has them, begin where an image would have next to no noise."""
    said, _ = draw("a cat", "--sampler", sampler, "--steps", 1)
    begins = make_sampler(sampler).stops(minti.StableDiffusion.from_pretrained().scheduler, 1)[0].timestep
    assert ("--steps 1: this sampler begins at timestep" in said) == (begins < 2)
    assert draw("a cat", "--sampler", sampler, "--steps", 2)[0] == ""


# --- masks and hints --------------------------------------------------------------------------------------------------


def square(colour, transparent):
    """A square of a colour on transparent pixels of another."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., :3] = transparent
    pixels[4:12, 4:8] = (*colour, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("transparent", [(0, 0, 0), (255, 255, 255)])
def test_a_mask_on_transparency_samples_its_white_only(draw, tmp_path, transparent):
    image = to_pil(pictures()[:1])[0]
    image.save(tmp_path / "image.png")
    square((255, 255, 255), transparent).save(tmp_path / "mask.png")
    said, drawn = draw("a cat", "--init-image", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    moved = np.abs(np.asarray(drawn, dtype=int) - np.asarray(image, dtype=int)).max(2) > 0
    assert said == ""
    assert moved[4:12, 4:8].any()
    moved[4:12, 4:8] = False
    assert not moved.any()


@pytest.mark.parametrize(("colour", "means"), [("white", "everything is sampled"), ("black", "nothing is sampled")])
def test_a_mask_of_one_colour_is_told(draw, tmp_path, colour, means):
    to_pil(pictures()[:1])[0].save(tmp_path / "image.png")
    Image.new("L", (16, 16), colour).save(tmp_path / "mask.png")
    said, _ = draw("a cat", "--init-image", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    assert said == f"warning: {tmp_path / 'mask.png'}: the mask is all {colour}, so {means}\n"


def test_a_mask_of_another_shape_lies_on_its_image(draw, tmp_path):
    """The left half of a wide mask is the left half of the image, as diffusers' mask processor has it."""
    image = to_pil(pictures()[:1])[0]
    image.save(tmp_path / "image.png")
    mask = Image.new("L", (64, 16))
    mask.paste(255, (0, 0, 32, 16))
    mask.save(tmp_path / "mask.png")
    said, drawn = draw("a cat", "--init-image", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    columns = np.abs(np.asarray(drawn, dtype=int) - np.asarray(image, dtype=int)).max((0, 2)) > 0
    assert said == ""
    assert columns.tolist() == [True] * 8 + [False] * 8


def test_an_image_whose_sides_are_cut_off_is_told(draw, tmp_path):
    to_pil(pictures()[:1])[0].resize((32, 16)).save(tmp_path / "wide.png")
    said, _ = draw("a cat", "--init-image", tmp_path / "wide.png")
    assert said.startswith(f"warning: {tmp_path / 'wide.png'}: of its 32 x 16 pixels the middle is taken")
    assert draw("a cat", "--init-image", tmp_path / "wide.png", "--width", 32, "--height", 16)[0] == ""


@pytest.mark.parametrize("transparent", [(0, 0, 0), (255, 255, 255)])
def test_a_hint_on_transparency_is_on_black(draw, tiny, tmp_path, transparent):
    """The same image as with the outline on black."""
    control = ControlNet.beside(tiny, seeded())
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(1)))
    control.save(tmp_path / "control")
    outline = square((255, 255, 255), transparent)
    outline.save(tmp_path / "transparent.png")
    black = Image.new("RGB", outline.size)
    black.paste(outline, mask=outline.getchannel("A"))
    black.save(tmp_path / "black.png")
    Image.new("RGB", outline.size, "white").save(tmp_path / "white.png")
    drawn = [
        draw("a cat", "--controlnet", tmp_path / "control", "--hint", tmp_path / f"{name}.png")[1].tobytes()
        for name in ("transparent", "black", "white")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
