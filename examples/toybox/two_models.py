"""Two models multiplied: a style from a small one, what the prompt says from a pretrained one (Video Adapter; `001`).

    python examples/toybox/two_models.py --count 32        (ten minutes, of which three train)

The small model is the toybox with a LoRA that has seen images of one style, without captions. Its density is
multiplied by how much more likely the pretrained toybox finds an image with the prompt than without (arXiv 2306.01872),
or than with another prompt: "a photo of a red star" against "a photo of a toy" says star and red, but not photo. A row
is of one way; the judge says how often the style is right, and the toy.
"""

from study import Row, Study, options
from support.command_line import finite, generators, run, whole

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

import minti
import world
from held_out import painted, random_scenes
from measure import recognised, verdicts
from minti.denoising import Predict
from minti.guidance.gradients import Guidance, to_prediction_type
from minti.sampling import conditional
from minti.scheduler import NoiseScheduler
from minti.training import Trainer


def multiplied(scheduler: NoiseScheduler, other: Predict, unconditional: Predict | None, gamma: float) -> Guidance:
    """p(x) (p_other(x | c) / p_other(x))^gamma: epsilon + gamma (epsilon_other - epsilon_other,0).

    `other`, `unconditional`: the other model's raw output, with the prompt and without; None adds its noise as the
    slide's Algorithm 1 does, in all 1 + gamma times the noise. Sums are of the noise: velocities may be added only
    where the coefficients add up to 1. Exact at one level of noise, as all products."""

    def noise_of(predict: Predict, latents: Tensor, t: float) -> Tensor:
        return scheduler.clean_and_noise(predict(latents, t), latents, t)[1]

    def product(predict: Predict, latents: Tensor, t: float) -> Tensor:
        ratio = noise_of(other, latents, t)
        if unconditional is not None:
            ratio = ratio - noise_of(unconditional, latents, t)
        noise = noise_of(predict, latents, t) + gamma * ratio
        return to_prediction_type(scheduler, scheduler.clean_from_noise(latents, noise, t), noise, t, gamma)

    return lambda predict: partial(product, predict)


def small_model(study: Study) -> tuple[minti.StableDiffusion, minti.LoRA]:
    """The toybox once more, and a LoRA that learns a style from images without captions."""
    args, model = study.args, study.fresh()
    model.freeze()
    scenes = [scene for scene in random_scenes(10_000, args.seed, 61, pair_rate=0) if scene.style == args.style]
    with torch.no_grad():
        latents = model.scale(model.encode(painted(scenes[: args.images], args.seed, 62).to(model.device)).mean)
    lora = minti.LoRA(
        model, rank=8, layers=["attention", "feed_forward", "convolutions"], generator=generators(0, 1)[0]
    )
    context, batch = model.encode_prompt("").detach(), 8

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        timesteps = torch.randint(model.scheduler.config.num_train_timesteps, (batch,), generator=generator)
        return latents[chosen], timesteps, torch.randn(latents[:batch].shape, generator=generator).to(latents)

    def loss(model: minti.StableDiffusion, drawn: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return minti.diffusion_loss(model, *drawn[:2], context.expand(batch, -1, -1), drawn[2])

    optimizer = torch.optim.AdamW(lora.trainable(), lr=args.learning_rate, weight_decay=0)
    trainer = Trainer(model, lora, draw, loss, optimizer, args.training_steps, generators(args.seed, 1)[0])
    for _ in study.bar(trainer, "the style", total=args.training_steps):
        pass
    return model, lora


def rows(study: Study) -> Iterator[Row]:
    """Each way samples the same prompts from the same noise."""
    args, pretrained = study.args, study.model
    rng = np.random.default_rng((args.seed, 63))
    toys = [world.random_toy(rng) for _ in range(args.count)]
    prompts = [f"a photo of a {toy.looks}" for toy in toys]
    small, lora = small_model(study)
    text = pretrained.encode_prompt(prompts)

    def by(gamma: float, reference: str | None) -> dict[str, object]:
        other = None if reference is None else pretrained.encode_prompt(reference)

        def each(some: slice) -> dict[str, object]:
            with_prompt = conditional(pretrained.unet, text[some])
            without = None if other is None else conditional(pretrained.unet, other.expand(len(text[some]), -1, -1))
            return {"guidance": multiplied(pretrained.scheduler, with_prompt, without, gamma)}

        return {"guidance_scale": 1, "each": each}

    scale, nothing = args.guidance_scale, [""] * args.count
    ways = {
        f"pretrained, guidance {scale:g}": (pretrained, prompts, {}),
        "small, without a prompt": (small, nothing, {"guidance_scale": 1}),
        f"small, guidance {scale:g}": (small, prompts, {}),
        **{
            f"multiplied, against {reference!r}, gamma = {gamma:g}": (small, nothing, by(gamma, reference))
            for reference in args.references
            for gamma in args.gammas
        },
        "the slide's sum, gamma = 1": (small, nothing, by(1, None)),
    }
    with lora.merged(small):
        for name, (model, said, how) in study.bar(ways.items(), "ways"):
            pixels = study.sample(said, model, **how)
            study.show("two_models", name, pixels[:8])
            seen = verdicts(study.judge, pixels)
            style = np.mean([verdict["style"] == args.style for verdict in seen])
            toy = [recognised(verdict, toy) for verdict, toy in zip(seen, toys)]
            both = np.mean([right and verdict["style"] == args.style for right, verdict in zip(toy, seen)])
            yield {"way": name, args.style: float(style), "toy": float(np.mean(toy)), "both": float(both)}


def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/two_models", count=32, steps=20, batch_size=32)
    styles = [style for style in world.STYLES if style not in world.COLOURLESS]
    parser.add_argument("--style", choices=styles, default="pixel art", help="that the small model learns")
    parser.add_argument("--gammas", type=finite, nargs="+", default=[1, 3], help="exponents of the pretrained model")
    reference_help = "what the pretrained model's prompt is compared with"
    parser.add_argument("--references", nargs="+", default=["", "a photo of a toy"], help=reference_help)
    parser.add_argument("--images", type=whole(8), default=64, help="that the small model learns from")
    parser.add_argument("--training-steps", type=whole(1), default=300, help="of the small model, of 8 images each")
    parser.add_argument("--learning-rate", type=finite, default=1e-3, help="of its LoRA")
    parser.set_defaults(sampler="ddim")
    study = Study(parser)
    columns = {"way": ""} | dict.fromkeys((study.args.style, "toy", "both"), ".0%")
    study.table("two_models", rows(study), columns)
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
