"""The command that guides: what it measures is right on painted pictures, and its loss is what the judge says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from running import script, script_inside

import minti
import painting
from guide import judge_loss, measure, painted
from measure import load_judge
from minti.images import to_pixels
from minti.scheduler import NoiseScheduler
from noisy_judge import NoisyJudge, by_noisy_judge, denoised, load_noisy_judge
from toy_clip import load_toy_clip
from world import Scene, Toy


@pytest.fixture(scope="module")
def pictures():
    scenes = [
        Scene((Toy(shape, "belt", main, "white"),), "big", "in the middle", "grey", "photo")
        for main, shape in (("green", "star"), ("green", "heart"), ("red", "star"), ("blue", "moon"))
    ]
    drawn = [painting.draw(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]
    return [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in drawn]


def test_what_is_painted_is_measured(toybox, pictures):
    judge, clip = load_judge(minti.TOYBOX), load_toy_clip(toybox, minti.TOYBOX)
    for wish in ("green", "star"):
        assert measure(judge, clip, pictures, wish) == {"judge": 0.5, "CLIP": 0.5, "photo": 1.0}


def test_the_loss_is_low_where_the_wish_is_painted(toybox, pictures):
    """And its gradient reaches the latents."""
    pixels = torch.stack([to_pixels(picture, 64) for picture in pictures])
    clean = toybox.scale(toybox.vae.encode(pixels).mean.detach()).requires_grad_()
    loss = judge_loss(toybox, load_judge(minti.TOYBOX), "green")(clean)
    assert loss.shape == (4,) and loss[:2].max() < loss[2:].min()
    assert (torch.autograd.grad(loss.sum(), clean)[0].flatten(1).norm(dim=1) > 0).all()


def test_the_noisy_judge_asks_what_the_model_denoises(toybox, pictures):
    """Its answer to green at t = 300 is high where green is painted, and the gradient reaches the noisy latents."""
    pixels = torch.stack([to_pixels(picture, 64) for picture in pictures])
    clean = toybox.scale(toybox.vae.encode(pixels).mean.detach())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = toybox.scheduler.add_noise(clean, noise, 300).requires_grad_()
    seen = denoised(toybox)(noisy, 300)
    assert (seen - clean).abs().mean() < 0.5 * (noisy - clean).abs().mean()
    found = load_noisy_judge(minti.TOYBOX).log_probability(seen, 300, {"main_0": "green"})
    assert found[:2].min() > found[2:].max()
    assert (torch.autograd.grad(found.sum(), noisy)[0].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.fast
@pytest.mark.parametrize("t", [100, 500, 900])
def test_policy_guidance_gives_the_mixture_without_the_avoided_class(t):
    """A Gaussian for each colour, whose Bayes' rule is the judge: at scale 1, log(1 - p(red | x_t)) takes the network's
    score of all colours to that of all but red; with the plus of `003` 37 its distance to that doubles."""
    scheduler, colours = NoiseScheduler(), NoisyJudge().answers["main_0"]
    a = scheduler.alphas_cumprod[t].double()
    means = torch.linspace(-3, 3, len(colours), dtype=torch.float64)
    parts = torch.distributions.Normal(a.sqrt() * means, (a * 0.3**2 + 1 - a).sqrt())

    class Bayes(NoisyJudge):
        def forward(self, x, timesteps):
            return {"main_0": parts.log_prob(x.flatten(1))}  # b colours: the logits of equal shares

    def score_without(x, *left_out):
        x = x.detach().requires_grad_()
        kept = [i for i, colour in enumerate(colours) if colour not in left_out]
        with torch.enable_grad():
            return torch.autograd.grad(parts.log_prob(x)[..., kept].logsumexp(-1).sum(), x)[0]

    def network(x, t):
        return scheduler.noise_from_score(score_without(x[..., None])[..., 0], t)

    x = torch.randn(40, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    scores = {}
    for scale in (1.0, -1.0):
        world = SimpleNamespace(scheduler=scheduler)
        guided = by_noisy_judge(world, Bayes(), "red", scale, 1000, away=True)(network)
        scores[scale] = scheduler.score_from_noise(guided(x, t), t)
    all_colours, right = score_without(x[..., None])[..., 0], score_without(x[..., None], "red")[..., 0]
    torch.testing.assert_close(scores[1.0], right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[-1.0] - right, 2 * (all_colours - right), rtol=1e-4, atol=1e-4)


def test_painted_pictures_show_the_wish(toybox):
    judge, clip = load_judge(minti.TOYBOX), load_toy_clip(toybox, minti.TOYBOX)
    for wish in ("green", "star"):
        assert min(measure(judge, clip, painted(wish, 8, 0), wish).values()) >= 7 / 8


def test_the_command_with_sets(tmp_path):
    options = (
        "--by",
        "noisy-judge",
        "--through-unet",
        "--want",
        "green",
        "--scales",
        "1",
        "--count",
        "6",
        "--steps",
        "2",
        "--sets",
    )
    said = script("toybox/guide.py", *options, "--output", tmp_path).stdout
    rows = [line.split("|")[2].strip() for line in said.splitlines() if line.startswith("| green")]
    assert rows == ["the prompt alone", "scale 1", "said, guidance 1"]
    assert (tmp_path / "guide.png").is_file() and "recall" in (tmp_path / "guide.csv").read_text(encoding="utf-8")


def test_a_class_is_avoided(tmp_path):
    """Policy guidance, the wrong sign and a negative prompt each have their row; without guidance by the judge none."""
    options = ("--avoid", "red", "--scales", "30", "--said-scales", "3", "--count", "4", "--steps", "2")
    said = script_inside("toybox/guide.py", *options, "--output", tmp_path).stdout
    rows = [line.split("|")[2].strip() for line in said.splitlines() if line.startswith("| not red")]
    expected = [
        "the prompt alone",
        "policy guidance, scale 30",
        "the plus of 003 37, scale 30",
        "negative prompt, guidance 3",
    ]
    assert rows == expected
