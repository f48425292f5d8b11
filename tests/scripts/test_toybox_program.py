"""The programs that made and measure the toybox: what they keep from run to run, and on which device they work."""

import copy
from contextlib import suppress

import pytest
import torch
from helpers import pictures
from transformers.models.clip import modeling_clip

import measure
import minti
from data import draw_captions
from minti.images import from_bytes
from resumable import train_stage
from stages import contrastive_loss, encode_images
from toy_clip import load_toy_clip

CPU = torch.device("cpu")


def drawn(count):
    return ((pictures(count) + 1) * 127.5).round().to(torch.uint8)


def test_latents_of_other_pictures_or_of_another_encoder_are_not_reused(tiny, tmp_path):
    """A trial run encodes a few pictures with its VAE; the full run in the same folder, all of them with its own."""
    path, other = tmp_path / "latents.pt", copy.deepcopy(tiny.vae)
    torch.nn.init.ones_(other.encoder.conv_in.weight)
    encode_images(path, tiny.vae, drawn(4), CPU)
    for vae, count in ((tiny.vae, 9), (other, 9), (tiny.vae, 4)):
        got = encode_images(path, vae, drawn(count), CPU)
        expected = encode_images(tmp_path / f"{id(vae)}-{count}.pt", vae, drawn(count), CPU)
        assert len(got[0]) == count
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert not torch.equal(
        encode_images(path, tiny.vae, drawn(9), CPU)[0], encode_images(path, other, drawn(9), CPU)[0]
    )


def test_a_file_of_an_earlier_program_is_not_reused(tiny, tmp_path):
    torch.save((torch.zeros(4, 4, 8, 8), torch.zeros(4, 4, 8, 8)), tmp_path / "latents.pt")
    means, stds = encode_images(tmp_path / "latents.pt", tiny.vae, drawn(4), CPU)
    expected = tiny.vae.encode(from_bytes(drawn(4)))
    torch.testing.assert_close(means.float(), expected.mean, rtol=0.1, atol=0.1)  # encoded in bfloat16
    assert (stds > 0).all()


def test_latents_are_encoded_once(tiny, tmp_path):
    """Whatever becomes of the decoder, which is polished in between."""
    path = tmp_path / "latents.pt"
    first = encode_images(path, tiny.vae, drawn(4), CPU)
    written = path.stat()
    torch.nn.init.ones_(tiny.vae.decoder.conv_in.weight)
    again = encode_images(path, tiny.vae, drawn(4), CPU)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def stage(folder, steps=4, learning_rate=0.1, stop_at=None, **options):
    """A stage that fits a line; Ctrl-C at one of its steps."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)

    def loss_fn(step, generator):
        if step == stop_at:
            raise KeyboardInterrupt
        return module(torch.randn(8, 2, generator=generator)).square().mean()

    train_stage("line", folder, module, loss_fn, steps, learning_rate, **options)
    return module.weight.detach()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_an_interrupted_stage_ends_where_it_would_have_ended(tmp_path, ema_decay):
    whole = stage(tmp_path / "whole", ema_decay=ema_decay)
    for stop_at in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, stop_at=stop_at, ema_decay=ema_decay, save_every=-1)
    assert torch.equal(stage(tmp_path, ema_decay=ema_decay), whole)
    assert torch.equal(stage(tmp_path, ema_decay=ema_decay, stop_at=0), whole)  # nothing is left to do


def test_a_stage_ends_with_the_running_average(tmp_path):
    """average <- decay average + (1 - decay) weights, from the first step's weights on; the decay grows at first."""
    module, seen = torch.nn.Linear(2, 1), []

    def loss_fn(step, generator):
        seen.append(module.weight.detach().double().clone())
        return module(torch.randn(8, 2, generator=generator)).square().mean()

    train_stage("line", tmp_path, module, loss_fn, 30, 0.1, ema_decay=0.7)
    seen.append(torch.load(tmp_path / "line.pt", weights_only=True)["state"]["adapter"]["module.weight"].double())
    _, expected, *steps = seen
    for n, weights in enumerate(steps, start=2):
        decay = min(0.7, n / (n + 9))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(module.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(module.weight.detach().double(), seen[-1], rtol=1e-3)


def test_prompts_are_dropped_as_often_as_asked():
    for drop in (0.0, 0.08, 1.0):
        captions = draw_captions(torch.arange(2000), 0, drop=drop)
        spread = (drop * (1 - drop) / len(captions)) ** 0.5
        assert abs(captions.count("") / len(captions) - drop) <= 4 * spread


def test_the_contrastive_loss_is_that_of_transformers():
    """Further captions, which belong to no image, count for the images alone."""
    new = hasattr(modeling_clip, "image_text_contrastive_loss")  # an older transformers calls it otherwise
    of_transformers = getattr(modeling_clip, "image_text_contrastive_loss" if new else "clip_loss")
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contrastive_loss(logits[:, :5]), of_transformers(logits[:, :5]))
    of_pictures = torch.stack([row.logsumexp(0) - row[i] for i, row in enumerate(logits)]).mean()
    of_captions = torch.stack([row.logsumexp(0) - row[i] for i, row in enumerate(logits[:, :5].T)]).mean()
    torch.testing.assert_close(contrastive_loss(logits), (of_pictures + of_captions) / 2)


@pytest.mark.parametrize("stop_at", [2, None])
@pytest.mark.parametrize("other", [{"steps": 400}, {"learning_rate": 0.2}])
def test_a_stage_does_not_go_on_with_another_one_s_checkpoint(tmp_path, stop_at, other):
    """That of a trial run, finished or not: it would pass for the full run's."""
    with suppress(KeyboardInterrupt):
        stage(tmp_path, stop_at=stop_at, save_every=-1)
    left = (tmp_path / "line.pt").read_bytes()
    was, now = "with steps 4, learning_rate 0.1", {"steps": 4, "learning_rate": 0.1} | other
    with pytest.raises(ValueError, match=f"line.pt is the checkpoint of another run, {was}; this run has ") as caught:
        stage(tmp_path, **other)
    expected = f"steps {now['steps']}, learning_rate {now['learning_rate']}. Give the same settings or another folder, "
    assert str(caught.value).endswith(expected + "or delete the file")
    assert (tmp_path / "line.pt").read_bytes() == left


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(tmp_path):
    stage(tmp_path)
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    del saved["identity"]
    torch.save(saved, tmp_path / "line.pt")
    with pytest.raises(ValueError, match="of another version of minti; delete it"):
        stage(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "flipped"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    stage(tmp_path)
    whole, weight = (tmp_path / "line.pt").read_bytes(), stage(tmp_path).numpy().tobytes()
    flipped = whole.replace(weight, weight[:-1] + bytes([weight[-1] ^ 1]))
    assert flipped != whole
    damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"x" * 99, "flipped": flipped}[damage]
    (tmp_path / "line.pt").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"line.pt is damaged, .* delete it to begin anew"):
        stage(tmp_path)


def test_its_clip_leaves_the_model_as_it_is():
    """Bit for bit: the attention of the model's text encoder stays the one that diffusers has."""
    model = minti.StableDiffusion.from_pretrained()
    before = model.encode_prompt("a photo of a red star")
    load_toy_clip(model, minti.TOYBOX)
    assert torch.equal(model.encode_prompt("a photo of a red star"), before)


class Elsewhere(torch.Tensor):
    """A tensor on another device: it can be converted and brought here, but no layer of this device takes it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function in (torch.nn.functional.conv2d, torch.conv2d):
                raise RuntimeError("Expected all tensors to be on the same device")
            result = function(*args, **(kwargs or {}))
            moved = function is torch.Tensor.to and (CPU in args or (kwargs or {}).get("device") == CPU)
            is_tensor = isinstance(result, torch.Tensor)
            return result.as_subclass(torch.Tensor if moved else cls) if is_tensor else result


def test_pictures_come_to_the_judge_from_any_device():
    judge = measure.load_judge(minti.TOYBOX)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    elsewhere = pixels.as_subclass(Elsewhere)
    with pytest.raises(RuntimeError, match="same device"):
        judge(elsewhere)
    assert measure.verdicts(judge, elsewhere) == measure.verdicts(judge, pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_pictures_come_to_the_judge_from_a_gpu():
    judge = measure.load_judge(minti.TOYBOX)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    assert measure.verdicts(judge, pixels.cuda()) == measure.verdicts(judge, pixels)
