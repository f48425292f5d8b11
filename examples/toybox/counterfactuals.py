"""What must change for a classifier to say "heart"? A counterfactual, beside an adversarial picture of the same.

    python examples/toybox/counterfactuals.py --wish heart

A counterfactual (DiME, arXiv 2203.15636; DVCE, 2210.11841; `002` 6.4) goes back along the picture's own path and is
drawn again with the gradient of a judge of noisy latents towards the wish, while an L1 term holds it to the picture:
what changes can be seen, and other classifiers see it too. An adversarial picture goes up the gradient of the judge
itself, without diffusion: its answer changes, and nothing else.

Prints what the judge and the toybox's CLIP, which guided neither, say of both, and how far they are from the picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, finite, load, make_output, run, whole
from support.pages import page

import torch
from PIL import Image
from torch import Tensor

import minti
from guide import SAID
from measure import load_judge, verdicts
from minti.editing.inversion import inverted_noise
from minti.guidance.gradients import universal_guidance
from minti.images import to_pil
from networks import Judge
from noisy_judge import HEADS, by_noisy_judge, head_of, load_noisy_judge
from recolouring import LONG, task
from toy_clip import load_toy_clip


def adversarial(judge: Judge, pictures: Tensor, wish: str, steps: int = 20, most: float = 4) -> Tensor:
    """Up the judge's gradient by signs (arXiv 1706.06083), each pixel by so many grey levels of 255 at `most`:
    (b, 3, h, w) in [-1, 1]."""
    bound = most / 127.5
    x = pictures.clone()
    for _ in range(steps):
        x.requires_grad_()
        log_p = judge(x)[head_of(wish)].log_softmax(dim=1)[:, HEADS[head_of(wish)].index(wish)]
        slope = torch.autograd.grad(log_p.sum(), x)[0]
        x = pictures + (x.detach() + bound / 4 * slope.sign() - pictures).clamp(-bound, bound)
        x = x.clamp(-1, 1)
    return x


def counterfactual(
    model: minti.StableDiffusion, latents: Tensor, prompts: list[str], wish: str, scale: float, hold: float, steps: int
) -> Tensor:
    """The pictures drawn again from 0.7 of their path, guided towards the wish and held to themselves: (b, 3, h, w)."""
    towards = by_noisy_judge(model, load_noisy_judge(minti.TOYBOX), wish, scale, below=800)
    # A step down the slope of |x_0 - picture|, of size `hold`: backward guidance, without a gradient of the UNet.
    held = universal_guidance(
        model.scheduler, lambda clean: (clean - latents).abs().sum(dim=(1, 2, 3)), 0, 1, backward_rate=hold
    )
    noise = inverted_noise(model, latents, prompts, steps, strength := 0.7)
    return model.decode(
        minti.sample(
            model,
            prompts,
            sampler="ddim",
            num_inference_steps=steps,
            guidance_scale=1,
            latents=noise,
            init_latents=latents,
            strength=strength,
            guidance=lambda predict: towards(held(predict)),
            output="latents",
        )
    )


def main() -> None:
    """A table, and a page: the pictures, both changes, and where they are."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/counterfactuals")
    parser.add_argument("--wish", choices=[answer for answers in HEADS.values() for answer in answers], default="heart")
    parser.add_argument("--count", type=whole(1), default=32, help="painted pictures that are something else")
    parser.add_argument("--steps", type=whole(2), default=25, help="denoising steps of the whole path")
    parser.add_argument("--scale", type=finite, default=60, help="of the gradient towards the wish")
    parser.add_argument(
        "--hold", type=finite, default=0.02, help="how far each step pulls latents back to the picture's"
    )
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    judge, clip, head = (
        load_judge(args.model).requires_grad_(False),
        load_toy_clip(model, args.model),
        head_of(args.wish),
    )
    field = head.removesuffix("_0")
    with torch.no_grad():
        painted = task(model, range(args.seed, args.seed + 2 * args.count))
    toys = [scene.toys[0] for scene in painted.scenes]
    chosen = [i for i, toy in enumerate(toys) if args.wish not in (getattr(toy, field), toy.second)][: args.count]
    pictures, latents = painted.pictures[chosen], painted.latents[chosen]
    # The prompt says all but what is to change.
    unsaid = {"main_0": "", "shape_0": "toy"}[head]
    prompts = [LONG.replace("{0." + field + "}", unsaid).format(toys[i], painted.scenes[i]) for i in chosen]
    prompts = [" ".join(prompt.split()) for prompt in prompts]
    ways = {
        "as painted": pictures,
        "counterfactual": counterfactual(model, latents, prompts, args.wish, args.scale, args.hold, args.steps),
        "adversarial": adversarial(judge, pictures, args.wish),
    }
    before = verdicts(judge, pictures)
    texts = clip.texts([SAID[head].format(answer) for answer in HEADS[head]])
    print(f"| {len(chosen)} pictures, in % | {args.wish}: judge | CLIP | all else kept | grey levels |\n{'|---' * 5}|")
    for way, after in ways.items():
        seen, drawn = verdicts(judge, after), to_pil(after)
        said = (clip.images(drawn) @ texts.T).argmax(dim=1) == HEADS[head].index(args.wish)
        kept = [
            all(was[key] == now[key] for key in was if key != head and not key.endswith("_1"))
            for was, now in zip(before, seen)
        ]
        share = [
            sum(now[head] == args.wish for now in seen) / len(seen),
            said.float().mean().item(),
            sum(kept) / len(kept),
        ]
        moved = 127.5 * (after.clamp(-1, 1) - pictures).abs().mean().item()
        print(f"| {way} | " + " | ".join(f"{100 * value:.0f}" for value in share) + f" | {moved:.1f} |")
    page(rows(ways), size=64).save(folder / "counterfactuals.png")
    print(f"wrote {folder}")


def rows(ways: dict[str, Tensor], shown: int = 8) -> list[tuple[str, list[Image.Image]]]:
    """The first pictures, and below each change its map: the mean difference of the three colours, white from 64 grey
    levels on."""
    found = []
    first = next(iter(ways.values()))
    for way, after in ways.items():
        found.append((way, to_pil(after[:shown])))
        if after is not first:
            change = (after[:shown].clamp(-1, 1) - first[:shown]).abs().mean(dim=1, keepdim=True)
            found.append(("the difference", to_pil((4 * change - 1).clamp(max=1).expand(-1, 3, -1, -1))))
    return found


if __name__ == "__main__":
    run(main)
