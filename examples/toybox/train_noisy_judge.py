"""Trains a classifier of noisy latents, for classifier guidance of the toybox.

    python examples/toybox/train_noisy_judge.py --output outputs/noisy_judge
    python examples/toybox/train_noisy_judge.py --only-look       # evaluates the bundled one

Prints, at several timesteps and in per cent, its accuracy on unseen images, and the cosine similarity of its guidance
with that of a prompt that names the target class: classifying x_t, or the UNet's prediction of x_0.
"""

from study import accuracies
from support.command_line import arguments, finite, load, make_output, run, whole

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import minti
from data import batches
from guide import PROMPT, SAID
from held_out import random_scenes, to_pixels
from minti.sampling import conditional
from networks import Judge, save_weights
from noisy_judge import NoisyJudge, by_noisy_judge, head_of, load_noisy_judge
from painting import draw
from resumable import train_stage

HEADS = ("main_0", "shape_0", "place", "style", "background", "size", "pattern_0", "second_0")


@torch.no_grad()
def encoded(model: minti.StableDiffusion, count: int, seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Means and standard deviations of the latents, unscaled, (n, 8, 16, 16) each, and labels {head: (n,)}."""
    scenes, judge = random_scenes(count, 41, seed, pair_rate=0.1), Judge()
    labels = [judge.labels(scene) for scene in scenes]
    means, deviations = [], []
    for start in tqdm(range(0, count, 100), desc="encoding", mininterval=10):
        drawn = [draw(scenes[i], np.random.default_rng((42, seed, i))) for i in range(start, min(start + 100, count))]
        gaussian = model.vae.encode(to_pixels(drawn))
        means.append(gaussian.mean)
        deviations.append(gaussian.std)
    answers = {head: torch.tensor([label[head] for label in labels]) for head in NoisyJudge().answers}
    return torch.cat(means), torch.cat(deviations), answers


@torch.no_grad()
def accuracy(
    judge: NoisyJudge, model: minti.StableDiffusion, means: Tensor, answers: dict[str, Tensor], t: int
) -> dict[str, float]:
    """Accuracy of each head at timestep t, over the images that have a label."""
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(t))
    logits = judge(model.scheduler.add_noise(model.scale(means), noise, t), torch.full((len(means),), t))
    known = {head: answers[head] >= 0 for head in HEADS}
    right = {head: logits[head].argmax(dim=1) == answers[head] for head in HEADS}
    return {head.removesuffix("_0"): right[head][known[head]].float().mean().item() for head in HEADS}


def nearness(
    judge: NoisyJudge, model: minti.StableDiffusion, clean: Tensor, wish: str, t: int, through_unet: bool
) -> float:
    """Cosine similarity of what classifier guidance adds to a prediction, and what a prompt that names the class adds.

    `clean`: scaled latents. A random direction has 0.02.
    """
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(t))
    latents = model.scheduler.add_noise(clean, noise, t)

    def predicted(prompt: str) -> Tensor:
        predict = conditional(model.unet, model.encode_prompt(prompt).expand(len(latents), -1, -1))
        with torch.no_grad():
            return predict(latents, t)

    plain, said = predicted(PROMPT), predicted(SAID[head_of(wish)].format(wish))
    pushed = by_noisy_judge(model, judge, wish, 1.0, 1000, through_unet)(lambda latents, t: plain)(latents, t)
    return torch.cosine_similarity((pushed - plain).flatten(1), (said - plain).flatten(1)).mean().item()


def look(judge: NoisyJudge, model: minti.StableDiffusion, count: int) -> None:
    """Prints accuracies and cosine similarities."""
    means, _, answers = encoded(model, count, 1)
    photos = model.scale(means[answers["style"] == judge.answers["style"].index("photo")][:32])
    rows = {}
    for t in (0, 200, 300, 400, 500, 600, 800):
        near = {
            f"{wish}, {way}": nearness(judge, model, photos, wish, t, way == "UNet") if t else 0.0
            for wish in ("green", "star")
            for way in ("straight", "UNet")
        }
        rows[f"t = {t}"] = accuracy(judge, model, means, answers, t) | near
    print(accuracies(rows, list(rows["t = 0"])))


def main() -> None:
    """Encodes the training images, trains, saves and evaluates the classifier."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/noisy_judge")
    parser.add_argument("--steps", type=whole(1), default=4000)
    parser.add_argument("--batch-size", type=whole(2), default=64)
    parser.add_argument("--learning-rate", type=finite, default=2e-3)
    parser.add_argument("--pictures", type=whole(100), default=5000, help="number of training images")
    parser.add_argument("--look-at", type=whole(1), default=500, help="number of unseen images for the evaluation")
    parser.add_argument("--only-look", action="store_true", help="evaluate the bundled classifier, train none")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    if args.only_look:
        return look(load_noisy_judge(args.model), model, args.look_at)
    torch.manual_seed(args.seed)
    judge, (means, deviations, answers) = NoisyJudge(), encoded(model, args.pictures, 0)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        rows = batches(args.pictures, args.batch_size, step)
        clean = means[rows] + deviations[rows] * torch.randn(means[rows].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(model.scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        logits = judge(model.scheduler.add_noise(model.scale(clean), noise, timesteps), timesteps)
        return sum(F.cross_entropy(logits[head], answers[head][rows]) for head in judge.answers)

    train_stage("noisy_judge", folder, judge, loss, args.steps, args.learning_rate, ema_decay=0.999)
    save_weights(folder / "noisy_judge.safetensors", judge.state_dict())
    look(judge, model, args.look_at)


if __name__ == "__main__":
    run(main)
