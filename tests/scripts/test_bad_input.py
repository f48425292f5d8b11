"""What the scripts refuse, and when: before anything is loaded, learned or written, and in one line."""

import argparse
import importlib
import signal
import sys
from pathlib import Path

import pytest
import torch
from helpers import pictures, random_lora, seeded, wrapper, write
from PIL import Image
from safetensors.torch import load_file

import minti
from minti.embeddings import read_embeddings, write_embeddings
from minti.runs import monitor

pytestmark = pytest.mark.fast
EXAMPLES = Path(__file__).parents[2] / "examples"
TOY = EXAMPLES / "concepts" / "white-cross-blue-spot" / "0.png"


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of examples/; Ctrl-C stays what it is for the tests."""
    former = signal.getsignal(signal.SIGINT)
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    signal.signal(signal.SIGINT, former)


@pytest.fixture
def call(scripts, monkeypatch):
    """Runs a function of a script with a command line, in this process."""

    def run(script, *args, function="main"):
        module = scripts(script)
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        return getattr(module, function)()

    return run


# --- the command line alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("train", "--columns 0", "--columns: 0 is not from 1"),
        ("train", "--sample-steps 0", "--sample-steps: 0 is not from 1"),
        ("train", "--validate-every -1", "--validate-every: -1 is not from 0"),
        ("train", "--warmup-steps -1", "--warmup-steps: -1 is not from 0"),
        ("train", "--steps 0", "--steps: 0 is not from 1"),
        ("train", "--steps ten", "'ten' is not a whole number"),
        ("train", "--learning-rate inf", "--learning-rate: inf is not a finite number"),
        ("train", "--max-row-norm nan", "--max-row-norm: nan is not a finite number"),
        ("train", "--seed 99999999999999999999999", "--seed: 99999999999999999999999 is not from 0"),
        ("train", "--seed -1", "--seed: -1 is not from 0"),
        *(("train", f"--{name}=", f"--{name}: '' is empty; leave") for name in ("placeholder", "initializer", "model")),
        ("train", "--learn lora --class-prompt=", "--class-prompt: '' is empty"),
        ("train", "--learn dreambooth --placeholder=", "--placeholder: '' is empty"),
        ("sample", "a --clip-prompt=", "--clip-prompt: '' is empty"),
        ("train", "--prompts cat", "the prompt 'cat' has no {}"),
        ("train", "--rank 8", "--rank means nothing for --learn word; it goes with --learn lora or word+lora"),
        ("train", "--learn dreambooth --layers projections", "--layers means nothing for --learn dreambooth"),
        ("train", "--learn lora --word-learning-rate 1", "--word-learning-rate means nothing for --learn lora"),
        ("train", "--learn lora --row-update restore", "--row-update means nothing for --learn lora"),
        ("train", "--train-text-encoder", "--train-text-encoder means nothing for --learn word"),
        ("sample", "a --init-image x.png --strength 0", "--strength 0.0: expected more than 0"),
        ("sample", "a --init-image x.png --strength 1.5", "--strength 1.5: expected more than 0 and at most 1"),
        ("sample", "a --init-image x.png --strength nan", "nan is not a finite number"),
        ("sample", "a --strength 0.5", "--strength says how much to change --init-image; give both"),
        ("sample", "a --mask x.png", "--mask says which part of --init-image"),
        ("sample", "a --invert x.png", "--source says what the image of --invert shows; give both"),
        ("sample", "a --source b", "--source says what the image of --invert shows; give both"),
        ("sample", "a --invert x.png --source b --sampler ddpm", "--invert inverts DDIM"),
        ("sample", "a --num-images 0", "--num-images: 0 is not from 1"),
        ("sample", "a --steps 0", "--steps: 0 is not from 1"),
        ("sample", "a --lora x.safetensors=much", "--lora: 'much' is not a number"),
        ("sample", "a --lora x.safetensors=nan", "--lora: nan is not a finite number"),
    ],
)
def test_command_lines_that_are_refused(call, capsys, script, args, message):
    with pytest.raises(SystemExit) as error:
        call(script, *args.split(), function="parse")
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


# --- before the model is loaded ---------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch):
    """No model is loaded."""

    def load(*args, **kwargs):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(minti.StableDiffusion, "from_pretrained", load)


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")


@pytest.mark.parametrize("device", ["foo", "mps", "meta", "cuda:99", pytest.param("cuda", marks=NO_GPU)])
def test_devices_that_are_not_there(call, unloaded, tmp_path, device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=f"--device {device} cannot be used here .*; try --device cpu") as error:
        call("train", "--device", device, "--output", tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--max-row-norm -1", "max_row_norm = -1.0; expected a number from 1e-12 to "),
        ("--learning-rate -1", "learning_rate = -1.0"),
        ("--lr-schedule cosine", "say with `steps` which that is"),
    ],
)
def test_settings_that_are_refused(call, unloaded, tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        call("train", *args.split(), "--output", tmp_path / "out")


@pytest.mark.parametrize("output", [(), ("--output", "outputs/../outputs/cat")])
def test_results_do_not_go_among_the_images(call, unloaded, tmp_path, monkeypatch, output):
    """The second run would learn from the first one's page."""
    (tmp_path / "outputs/cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "outputs/cat/1.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"the results would lie among the images in .*cat; name another folder with --output"
    ):
        call("train", "--images", "outputs/cat", *output)
    assert [path.name for path in (tmp_path / "outputs/cat").iterdir()] == ["1.png"]


def test_a_folder_that_does_not_exist_is_no_hub_id(call, tmp_path):
    for i, model in enumerate(("../nosuch", "./nosuch", "/no/such", "nosuch")):
        with pytest.raises(FileNotFoundError, match="neither a folder, nor a file, nor an id on the hub"):
            call("sample", "a toy", "--model", model, "--output", tmp_path / str(i))


# --- before anything is learned ---------------------------------------------------------------------------------------


def test_more_denoising_steps_than_timesteps(call, tmp_path):
    with pytest.raises(ValueError, match="num_inference_steps = 1001; expected 1 to 1000"):
        call("train", "--sample-steps", 1001, "--output", tmp_path)
    assert not list(tmp_path.iterdir())


def test_own_images_on_the_toybox_are_warned_of(call, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    args = ("--images", tmp_path, "--initializer", "zebra", "--output", tmp_path / "out")
    with (
        pytest.warns(UserWarning, match="knows only the toys of its own little world; images of yours need --model"),
        pytest.raises(ValueError, match="not a single token"),
    ):
        call("train", *args)


# --- a run that learns nothing ----------------------------------------------------------------------------------------


def learn(scripts, model, folder, each_step=lambda w: None, **options):
    """A run as train.py makes it."""
    args = argparse.Namespace(resume=False, checkpoint_every=None, validate_every=1, quiet=True)
    w = wrapper(model, **options)
    learning = scripts("support.learning").Learning(args, w, folder, lambda path: each_step(w))
    learning.run(pictures())
    learning.save()
    return learning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2, "learning_rate": 1000.0}, "nothing was learned, and no word is written: .* try more steps"),
        ({"steps": 9, "learning_rate": 1e6, "weight_decay": 1e6}, "nan|not finite"),
    ],
)
def test_a_run_that_learned_nothing_says_so_and_leaves_what_was_there(scripts, tiny, tmp_path, options, message):
    path = tmp_path / "learned_embeds.safetensors"
    write_embeddings(path, {"<former>": torch.ones(1, 48)})
    former = path.read_bytes()
    with pytest.raises(minti.TrainingError, match=message):
        learn(scripts, tiny, tmp_path, **options)
    assert path.read_bytes() == former


def test_the_norm_that_is_printed_is_that_of_what_was_saved(scripts, tiny, tmp_path, monkeypatch):
    """The vectors are spoilt on the way: the best are those of the first step, and the last are far longer."""

    def spoil(w):
        first = w.trainer.monitor.first
        write(w, first["values"] - 50 * (w.embedding.values - first["values"]))  # as far the wrong way

    monkeypatch.setattr(monitor, "evaluation_interval", lambda *_: 1)
    learning = learn(scripts, tiny, tmp_path, spoil, steps=2)
    (rows,) = load_file(tmp_path / "learned_embeds.safetensors").values()
    first, last = learning.states
    assert first.validation_loss < min(first.initializer_loss, last.validation_loss), (
        "the test needs a run that gets worse"
    )
    assert rows.norm().item() == pytest.approx(first.row_norm)
    assert f"validation loss {first.validation_loss:.4f} at step 1 " in learning.summary()
    assert f"norm of its vectors {first.row_norm:.2f}, " in learning.summary()
    assert last.row_norm > 2 * first.row_norm


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_two_words_of_one_name_and_one_prompt_twice(call, capsys, tmp_path):
    """Words are renamed on the command line; a prompt that is given twice is drawn once, and no more is claimed."""
    files = [tmp_path / "a=b.safetensors", tmp_path / "other.safetensors"]
    for i, path in enumerate(files):
        write_embeddings(path, {"<concept>": torch.full((1, 128), 0.01 * i)})
    draw = ("--steps", 1, "--num-images", 1, "--guidance-scale", 1, "--quiet", "--output")
    with pytest.raises(ValueError, match=r"other\.safetensors: .*in the vocabulary already.*load it"):
        call("sample", "a <concept>", "--embedding", files[0], "--embedding", files[1], *draw, tmp_path / "none")
    words = ("--embedding", files[0], "--embedding", f"{files[1]}=<other>")
    call("sample", "a <concept> and a <other>", "a toy", "a <concept> and a <other>", *words, *draw, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"{files[1]}: <other>" in said
    assert "wrote 2 images" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00-00.png", "01-00.png", "grid.png"]
    assert read_embeddings(files[1]).keys() == {"<concept>"}


def test_loras_that_are_refused_before_anything_is_sampled(call, tiny, tmp_path):
    """One that is not there, one twice, one of another model; the output stays empty."""
    good, other = tmp_path / "good.safetensors", tmp_path / "other.safetensors"
    minti.save_lora(minti.LoRA(minti.StableDiffusion.from_pretrained()), good)
    minti.save_lora(minti.LoRA(tiny), other)
    for files, message in (
        ((tmp_path / "nosuch=1",), r"nosuch: no such file of a LoRA"),
        (
            (good, f"{tmp_path}/../{tmp_path.name}/good.safetensors=0.5"),
            r"good\.safetensors is given 2 times; give it once",
        ),
        ((good, other), r"other\.safetensors(: .* does not have| was learned on another model: .*)"),
    ):
        options, out = [argument for file in files for argument in ("--lora", file)], tmp_path / message[:5]
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            call("sample", "a toy", *options, "--quiet", "--output", out)
        assert "\n" not in str(error.value)
        assert not list(out.iterdir())


def test_a_lora_has_its_weight(call, capsys, tmp_path):
    """Pictures with a weight, with none, and without a LoRA; a name with = in it is a name if there is such a file."""
    model, path = minti.StableDiffusion.from_pretrained(), tmp_path / "a=b.safetensors"
    lora = random_lora(model)
    minti.save_lora(lora, path)
    for i, (given, weight) in enumerate(((f"{path}=0.5", 0.5), (f"{path}", 1.0), (f"{path}=0", 0.0))):
        lora.weight, out = weight, tmp_path / str(i)
        call("sample", "a toy", "--lora", given, "--steps", 2, "--num-images", 1, "--quiet", "--output", out)
        with lora.attached(model):
            (expected,) = minti.sample(model, ["a toy"], num_inference_steps=2, generator=[seeded(0)])
        assert Image.open(out / "00-00.png").tobytes() == expected.tobytes()
        assert f"a LoRA of 32 layers, weight {weight:g}" in capsys.readouterr().out


def test_the_strength_that_is_given_is_the_one_that_is_used(scripts, call, tmp_path):
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    model, edit = minti.StableDiffusion.from_pretrained(), scripts("sample").Edit
    for args, strength in (((), 0.8), (("--strength", "0.05"), 0.05), (("--mask", tmp_path / "mask.png"), 1.0)):
        parsed = call("sample", "a", "--init-image", TOY, *args, function="parse")
        assert edit(parsed, model).options["begin"].strength == strength
    with pytest.raises(ValueError, match=r"a run of one step begins at pure noise; strength = 0\.3 needs two steps"):
        call("sample", "a", "--init-image", TOY, "--strength", 0.3, "--steps", 1, "--output", tmp_path / "out")
