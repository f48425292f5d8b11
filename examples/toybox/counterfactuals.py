"""Counterfactual explanations: what must change for a classifier to say "heart"? Beside them adversarial examples.

    python examples/toybox/counterfactuals.py --wish heart

A counterfactual (DiME, arXiv 2203.15636; DVCE, 2210.11841; `002` 6.4) inverts an image by DDIM and samples it again
with the gradient of a classifier of noisy latents towards the target class, while an L1 term holds it to the image:
the change is visible, and other classifiers see it too. An adversarial example follows the gradient of the judge
itself, without diffusion: its class changes, and nothing else. Projected back by diffusion, noised a little and
denoised (DiffPure, arXiv 2205.07460; ACE, 2303.09962), it is an image again, and of its old class.

Prints what the judge and the toybox's CLIP, which guided neither, say of both, and how far they are from the image.
"""

from study import Row, Study, options
from support.command_line import finite, generators, run

from collections.abc import Iterator
from statistics import fmean

import torch
from torch import Tensor

import minti
from guide import seen_by_clip
from held_out import LONG, Task, task
from measure import kept, verdicts
from minti.editing.image_to_image import ImageToImage
from minti.editing.inversion import inverted_noise
from minti.guidance.gradients import universal_guidance
from minti.images import to_pil
from networks import Judge
from noisy_judge import HEADS, by_noisy_judge, head_of, load_noisy_judge


def adversarial(judge: Judge, pictures: Tensor, wish: str, steps: int = 20, most: float = 4) -> Tensor:
    """Projected gradient descent by signs (arXiv 1706.06083), each pixel by so many grey levels of 255 at `most`:
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
    """The images inverted by 0.7 of the steps, then sampled towards the wish and held to themselves: (b, 3, h, w)."""
    towards = by_noisy_judge(model, load_noisy_judge(minti.TOYBOX), wish, scale, below=800)
    # A step down the slope of |x_0 - image|, of size `hold`: backward guidance, without a gradient of the UNet.
    held = universal_guidance(
        model.scheduler, lambda clean: (clean - latents).abs().sum(dim=(1, 2, 3)), 0, 1, backward_rate=hold
    )
    noise = inverted_noise(model, latents, prompts, steps, strength := 0.7)
    how = {"sampler": "ddim", "num_inference_steps": steps, "guidance_scale": 1, "output": "latents"}
    how |= {"latents": noise, "begin": ImageToImage(latents, strength)}
    return model.decode(minti.sample(model, prompts, guidance=lambda predict: towards(held(predict)), **how))


@torch.no_grad()
def projected(
    model: minti.StableDiffusion, pictures: Tensor, prompts: list[str], strength: float, steps: int, seed: int = 0
) -> Tensor:
    """Images noised to a share of the steps and denoised from there, without any classifier: (b, 3, h, w)."""
    begin = ImageToImage(model.scale(model.encode(pictures).mean), strength)
    how = {"sampler": "ddpm", "num_inference_steps": steps, "guidance_scale": 1, "output": "pixels"}
    return minti.sample(model, prompts, begin=begin, generator=generators(seed, len(prompts)), **how)


def prompts_without(painted: Task, head: str) -> list[str]:
    """Prompts that name all of the images but what is to change."""
    unsaid = {"main_0": "", "shape_0": "toy"}[head]
    template = LONG.replace("{0." + head.removesuffix("_0") + "}", unsaid)
    return [" ".join(prompt.split()) for prompt in painted.prompts(template)[0]]


def difference(after: Tensor, before: Tensor) -> Tensor:
    """The mean difference of the three colours as a map, white from 64 grey levels on: (b, 3, h, w)."""
    change = (after.clamp(-1, 1) - before).abs().mean(dim=1, keepdim=True)
    return (4 * change - 1).clamp(max=1).expand(-1, 3, -1, -1)


def rows(study: Study, ways: dict[str, Tensor]) -> Iterator[Row]:
    """Of each way the shares of images that the judge and CLIP see the wish in, and that keep all else; how far the
    images moved; and their page."""
    wish, first = study.args.wish, ways["as painted"]
    before = verdicts(study.judge, first)
    for way, after in ways.items():
        study.show("counterfactuals", way, after[:8])
        if after is not first:
            study.show("counterfactuals", "the difference", difference(after[:8], first[:8]))
        seen = verdicts(study.judge, after)
        yield {
            "way": way,
            "judge": fmean(now[head_of(wish)] == wish for now in seen),
            "CLIP": seen_by_clip(study.clip, to_pil(after), wish),
            "all else kept": fmean(kept(was, now, head_of(wish)) for was, now in zip(before, seen)),
            "grey levels": 127.5 * (after.clamp(-1, 1) - first).abs().mean().item(),
        }


def main() -> None:
    """A table, and a page: the images, both changes, and where they are."""
    parser = options(__doc__, "outputs/counterfactuals", count=32, steps=(25, 2))
    wishes = [answer for answers in HEADS.values() for answer in answers]
    parser.add_argument("--wish", choices=wishes, default="heart", help="target class of images that are another")
    parser.add_argument("--scale", type=finite, default=60, help="of the gradient towards the wish")
    hold_help = "how far each step pulls latents back to the image's"
    parser.add_argument("--hold", type=finite, default=0.02, help=hold_help)
    back_help = "share of the steps by which an adversarial image is noised and projected back"
    parser.add_argument("--back", type=finite, default=0.3, help=back_help)
    study = Study(parser)
    args, head = study.args, head_of(study.args.wish)
    with torch.no_grad():
        scenes = task(study.model, range(args.seed, args.seed + 2 * args.count))
    toys, field = [scene.toys[0] for scene in scenes.scenes], head.removesuffix("_0")
    chosen = [i for i, toy in enumerate(toys) if args.wish not in (getattr(toy, field), toy.second)][: args.count]
    pictures, prompts = scenes.pictures[chosen], prompts_without(scenes, head)
    how = [prompts[i] for i in chosen], args.wish, args.scale, args.hold, args.steps
    attacked, back = adversarial(study.judge, pictures, args.wish), (how[0], args.back, args.steps, args.seed)
    ways = {
        "as painted": pictures,
        "counterfactual": counterfactual(study.model, scenes.latents[chosen], *how),
        "adversarial": attacked,
        "adversarial, projected back": projected(study.model, attacked, *back),
        "as painted, projected": projected(study.model, pictures, *back),
    }
    shares = dict.fromkeys(("judge", "CLIP", "all else kept"), ".0%")
    print(f"{len(chosen)} images, wish: {args.wish}")
    study.table("counterfactuals", rows(study, ways), {"way": ""} | shares | {"grey levels": ".1f"})
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
