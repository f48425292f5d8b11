"""How an error counts: min-SNR weights, the Huber loss, masks; and a caption for each image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from helpers import pictures, seeded, train, wrapper
from PIL import Image

import minti
from minti.formats.image_files import open_folder
from minti.personalization.augmented_images import AugmentedImages, Captions, open_captions
from minti.personalization.losses import DiffusionLoss
from minti.runs.monitor import ValidationSet
from minti.scheduler import NoiseScheduler, SchedulerConfig

TIMESTEPS = torch.tensor([3, 200, 600, 999])


def answers():
    """What a network says and should say, (4, 4, 8, 8) each; some errors are large."""
    return 3 * torch.randn(2, 4, 4, 8, 8, generator=seeded())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_is_that_of_diffusers_scripts(kind):
    """Their weights, image by image: min(snr, gamma) / snr, for the velocity / (snr + 1)."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=kind))
    snr = compute_snr(scheduler, TIMESTEPS)
    weights = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1 if kind == "v_prediction" else snr)
    prediction, target = answers()
    losses = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    ours = DiffusionLoss(min_snr=5.0)(prediction, target, scheduler, TIMESTEPS, None)
    torch.testing.assert_close(ours, (losses * weights).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_clean_latents(kind):
    """Whatever a network predicts, a same error in x_0 counts the same: min(snr, gamma) times its square."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=kind))
    latents, noise, error = torch.randn(3, 4, 4, 8, 8, generator=seeded(), dtype=torch.float64)
    noisy = scheduler.add_noise(latents, noise, TIMESTEPS)
    wrong = latents + error
    target = scheduler.target(latents, noise, TIMESTEPS)
    prediction = scheduler.target(wrong, scheduler.noise_from_clean(noisy, wrong, TIMESTEPS), TIMESTEPS)
    alpha_bar = scheduler.alphas_cumprod.double()[TIMESTEPS]
    weights = (alpha_bar / (1 - alpha_bar)).clamp(max=5)
    expected = (weights * error.square().mean(dim=(1, 2, 3))).mean()
    ours = DiffusionLoss(min_snr=5.0)(prediction, target, scheduler, TIMESTEPS, None)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_variational_weight_gives_the_kl_divergence_of_a_step(kind):
    """Of N(mean(x_0), beta) and N(mean(x_0'), beta), x_0' with an error: torch's own, whatever the network predicts;
    for epsilon it is the weight of `003` 26's missing term, beta^2 / (2 sigma^2 alpha (1 - alpha-bar))."""
    scheduler = NoiseScheduler(SchedulerConfig(prediction_type=kind))
    latents, noise, error = torch.randn(3, 4, 4, 2, 2, generator=seeded(), dtype=torch.float64)
    noisy, wrong = scheduler.add_noise(latents, noise, TIMESTEPS), latents + error
    expected = []
    for i, t in enumerate(TIMESTEPS.tolist()):
        means = [scheduler.posterior(clean[i], noisy[i], t, t - 1, "beta") for clean in (latents, wrong)]
        true, predicted = (torch.distributions.Normal(mean, variance**0.5) for mean, variance in means)
        expected.append(torch.distributions.kl_divergence(true, predicted).mean())
    target = scheduler.target(latents, noise, TIMESTEPS)
    prediction = scheduler.target(wrong, scheduler.noise_from_clean(noisy, wrong, TIMESTEPS), TIMESTEPS)
    ours = DiffusionLoss(variational=True)(prediction, target, scheduler, TIMESTEPS, None)
    torch.testing.assert_close(ours, torch.stack(expected).mean(), rtol=1e-3, atol=0)
    beta, alpha_bar = scheduler.betas[TIMESTEPS], scheduler.alphas_cumprod[TIMESTEPS]
    if kind == "epsilon":
        weight = beta**2 / (2 * beta * (1 - beta) * (1 - alpha_bar))
        torch.testing.assert_close(DiffusionLoss(variational=True).weights(scheduler, TIMESTEPS), weight)


def test_huber_in_closed_form():
    """e^2 up to the size, then 2 d |e| - d^2: value and slope go on at the border."""
    errors = torch.tensor([0.0, 0.3, 0.5, 0.500001, 2.0]).requires_grad_(True)
    measure = DiffusionLoss(huber=0.5)
    losses = torch.stack([measure(e.view(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), None, None, None) for e in errors])
    assert losses.tolist() == pytest.approx([0, 0.09, 0.25, 0.25, 2 * 0.5 * 2.0 - 0.25], abs=1e-5)
    losses.sum().backward()
    assert errors.grad.tolist() == pytest.approx([0, 0.6, 1.0, 1.0, 1.0], abs=1e-5)


def test_a_huge_size_is_the_mean_of_squares():
    prediction, target = answers()
    torch.testing.assert_close(
        DiffusionLoss(huber=1e6)(prediction, target, None, None, None), F.mse_loss(prediction, target)
    )


def test_a_mask_is_where_an_error_counts():
    prediction, target = answers()
    masks = torch.zeros(4, 1, 8, 8)
    masks[:, :, 2:5, 1:7] = 1.0
    inside = F.mse_loss(prediction[:, :, 2:5, 1:7], target[:, :, 2:5, 1:7])
    prediction.requires_grad_(True)
    loss = DiffusionLoss()(prediction, target, None, None, masks)
    torch.testing.assert_close(loss, inside)
    loss.backward()
    assert not prediction.grad[(masks == 0).expand_as(prediction)].any()
    assert prediction.grad[(masks == 1).expand_as(prediction)].all()


# --- masks and captions from images to the batch --------------------------------------------------------------------


def cut_out(left=4, size=16):
    """An image that is opaque from a column on."""
    values = np.full((size, size, 4), 255, dtype=np.uint8)
    values[:, :left, 3] = 0
    return Image.fromarray(values, "RGBA")


def test_masks_come_from_the_alpha_channel(tiny):
    data = AugmentedImages(tiny, [cut_out(), cut_out(8)], flip=True, masked=True)
    columns = [[0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]  # of latents, two pixels wide
    columns += [row[::-1] for row in columns]
    assert torch.equal(data.masks, torch.tensor(columns).float()[:, None, None, :].expand(-1, 1, 8, -1))
    batch = data.batch(4, ["a cat"], seeded())
    assert torch.equal(batch.masks, data.masks[batch.indices])
    for place, some in ValidationSet(data, 6, seeded()).batches(["a cat"], 4):
        assert torch.equal(some.masks, data.masks[some.indices]), place


def test_what_is_transparent_does_not_teach(tiny_folder):
    """Other pixels there, the same word; unmasked, another word."""
    learned = []
    for shade in (255, 0):
        for masked in (True, False):
            pixels = np.array(cut_out(8))
            pixels[:, :8, :3] = shade
            model = minti.StableDiffusion.from_pretrained(tiny_folder)
            word, _ = train(model, [Image.fromarray(pixels, "RGBA")], steps=2, masked=masked, max_gradient_norm=None)
            learned.append(word.embedding.values.detach())
    assert not torch.equal(learned[0], learned[1])
    assert torch.equal(learned[0], learned[2])  # laid on white all the same: what is transparent has no colour
    with pytest.raises(ValueError, match="image 1 has no alpha channel"):
        train(model, [cut_out(), cut_out().convert("RGB")], masked=True)
    with pytest.raises(ValueError, match="image 0 is transparent everywhere"):
        train(model, [cut_out(16)], masked=True)


def test_each_image_has_its_caption(tiny):
    w = wrapper(tiny, captions=("a {} in red", "the dog", "a cat"))
    assert isinstance(w.prompts, Captions)
    assert w.prompts == ["a <concept> in red", "the dog", "a cat"]
    data = AugmentedImages(tiny, pictures(3), flip=True)
    batch = data.batch(32, w.prompts, seeded())
    assert {(number % 3, said) for number, said in zip(batch.indices, batch.prompts)} == set(enumerate(w.prompts))
    assert len(set(batch.indices)) == 6
    for _, some in ValidationSet(data, 8, seeded()).batches(w.prompts, 8):
        assert [w.prompts[number % 3] for number in some.indices] == some.prompts


def test_captions_that_do_not_fit(tiny):
    with pytest.raises(ValueError, match="2 captions for 3 images"):
        train(tiny, captions=("a {}", "the {}"))
    with pytest.raises(ValueError, match="does not find <other> in the prompt 'the dog'"):
        train(tiny, pictures(1), captions=("the dog",), placeholder_token="<other>")
    with pytest.raises(ValueError, match="caption"):
        minti.TextualInversionConfig(captions=("\ud800",))


def test_captions_from_files(tmp_path, recwarn):
    for name in ("b", "a"):
        cut_out().save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a {}\n in red ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.txt cannot be read .*; every image needs a caption"):
        open_captions(tmp_path)
    (tmp_path / "b.txt").write_text("the {}", encoding="utf-8")
    assert open_captions(tmp_path) == ["a {} in red", "the {}"]
    assert [image.mode for image in open_folder(tmp_path)] == ["RGB", "RGB"]
    assert [image.mode for image in open_folder(tmp_path, alpha=True)] == ["RGBA", "RGBA"]
    assert not recwarn.list
    (tmp_path / "c.txt").write_text("a cat", encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.txt is a caption without its image"):
        open_captions(tmp_path)


def test_captions_as_windows_writes_them(tmp_path):
    """UTF-8 with a byte-order mark, and two characters at the end of a line."""
    cut_out().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa caf\xc3\xa9 {}\r\n")
    assert open_captions(tmp_path) == ["a café {}"]
