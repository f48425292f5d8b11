"""Debiasing "a photo of a toy": contexts without the colours' directions, and a soft prompt (`002` 11, 3).

    python examples/toybox/debias.py        (a few minutes; writes to outputs/debias/)

Two ways to even out which colours a prompt that names none gives. Projection (arXiv 2302.00070) removes from every
token's vector the directions in which prompts with colours differ, calibrated by pairs of them. The soft prompt, five
learned vectors in front of the prompt, is textual inversion with another loss: how far the judge's shares of a batch
are from even (distributional alignment, arXiv 2311.07604). With the one-step model, so that a sample has a gradient.
"""

from study import Row, Study, options
from support.command_line import finite, generators, run, whole

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import minti
from minti.images import to_pil
from world import COLOURS


def projection(directions: Tensor) -> Tensor:
    """P = I - A (A^T A)^-1 A^T, which removes the columns of A: (d, k) -> (d, d), symmetric, P A = 0, P P = P."""
    return torch.eye(len(directions)).to(directions) - directions @ torch.linalg.pinv(directions)


def calibrated(p: Tensor, differences: Tensor, weight: float) -> Tensor:
    """P' = P (I + weight / n sum_i d_i d_i^T)^-1 of pairs that should become alike, d_i = z_i - z_i', (n, d): the
    minimum of |P' - P|^2 + weight / n sum_i |P' d_i|^2 (arXiv 2302.00070, eq. 4)."""
    spread = weight / len(differences) * differences.T @ differences
    return torch.linalg.solve(torch.eye(len(p)).to(p) + spread, p.T).T


def unevenness(shares: Tensor) -> Tensor:
    """The divergence KL(shares, even) in nats: 0 where all classes are as frequent, log k where one is alone."""
    return (torch.xlogy(shares, shares * len(shares))).sum()


def shares(logits: Tensor) -> Tensor:
    """How often each class is the likeliest, (b, k) -> (k,)."""
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).double().mean(dim=0)


def colour_directions(model: minti.StableDiffusion, count: int) -> tuple[Tensor, Tensor]:
    """The main directions in which the contexts of prompts with colours differ, (d, count), and those of pairs of
    colours, (n, d)."""
    contexts = model.encode_prompt([f"a photo of a {colour} toy" for colour in COLOURS])  # n m d
    apart = (contexts - contexts.mean(dim=0)).flatten(0, 1)
    return torch.linalg.svd(apart, full_matrices=False).Vh[:count].T, (contexts[1:] - contexts[:-1]).flatten(0, 1)


def soft_prompt(study: Study, prompt: str) -> str:
    """Five vectors, learned so that the judge's shares of colours are even: the prompt with them in front."""
    args, model = study.args, study.model
    config = minti.TextualInversionConfig(placeholder_token="<fair>", initializer_token="a", num_vectors=5)
    wrapper = minti.TrainingWrapper(model, config)
    optimizer = minti.prepare_for_textual_inversion(wrapper)
    optimizer.param_groups[0]["lr"] = args.learning_rate
    generator = generators(args.seed + 10_000, 1)[0]
    for _ in (bar := study.bar(range(args.training_steps), "soft prompt")):
        how = {"num_inference_steps": args.steps, "sampler": "lcm", "guidance_scale": 1, "generator": generator}
        pixels = minti.sample(model, [f"<fair> {prompt}"] * 32, output="pixels", gradient=True, **how)
        loss = unevenness(study.judge(pixels.clamp(-1, 1))["main_0"].softmax(dim=1).mean(dim=0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(uneven=f"{loss.item():.3f}")
    wrapper.detach()
    return f"<fair> {prompt}"


def rows(study: Study) -> Iterator[Row]:
    """The shares of colours by each way."""
    args, model = study.args, study.model
    lora = minti.load_lora(model, Path(args.model) / "few_steps" / "one_step.safetensors")
    with lora.merged(model):
        with torch.no_grad():
            context = model.encode_prompt(args.prompt)
            directions, differences = colour_directions(model, args.directions)
            p = projection(directions)
            ways = {
                "as it is": context,
                "projection": context @ p.T,
                "projection, calibrated": context @ calibrated(p, differences, args.weight).T,
            }
        soft = soft_prompt(study, args.prompt)
        with torch.no_grad():
            ways["soft prompt"] = model.encode_prompt(soft)
            for way, prompt in ways.items():
                pixels = study.sample(prompt.expand(args.count, -1, -1), guidance_scale=1)
                study.show("debias", way, to_pil(pixels[:8]))
                answers = study.judge(pixels.clamp(-1, 1))
                colours, shapes, styles = (shares(answers[head]) for head in ("main_0", "shape_0", "style"))
                photo = styles[study.judge.answers["style"].index("photo")].item()
                uneven = {"uneven colours": unevenness(colours).item(), "uneven shapes": unevenness(shapes).item()}
                yield {"way": way} | uneven | {"photo": photo} | dict(zip(COLOURS, colours.tolist()))


def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/debias", count=128, steps=1)
    parser.add_argument("--prompt", default="a photo of a toy", help="which names no colour")
    parser.add_argument("--directions", type=whole(1), default=len(COLOURS) - 1, help="that the projection removes")
    parser.add_argument("--weight", type=finite, default=100.0, help="of the pairs in the calibration")
    parser.add_argument("--training-steps", type=whole(1), default=30, help="of the soft prompt, of 32 images each")
    parser.add_argument("--learning-rate", type=finite, default=0.02, help="of the soft prompt")
    parser.set_defaults(sampler="lcm", batch_size=32)
    study = Study(parser)
    form = {"way": "", "uneven colours": ".3f", "uneven shapes": ".3f", "photo": ".0%"} | dict.fromkeys(COLOURS, ".0%")
    study.table("debias", rows(study), form)
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
