"""Restoration without training: deblurring, super-resolution and colourisation by universal guidance (`003` 46, 32).

    python examples/toybox/restore.py        (six minutes on one CPU core)

The degradation A is known, and an image y = A(x) is given. Sampling is guided by ‖A(D(x̂_0)) - y‖, of the decoded image
that the network predicts; no network was trained for it (arXiv 2302.07121; diffusion posterior sampling, 2209.14687).
Measured for "a photo of a toy" from noise, begun at the degraded image (img2img) and there without guidance, and for a
prompt that names all looks: PSNR against the true image, PSNR of A(result) against y, the judge's verdicts.
"""

from study import Row, Study, mean_and_error, options
from support.command_line import finite, run

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import world
from held_out import described, painted, random_scenes
from measure import verdicts
from minti.adapters.super_resolution import enlarged
from minti.editing.image_to_image import ImageToImage
from minti.guidance.gradients import universal_guidance
from super_resolution import psnr
from train_super_resolution import reduced

Degradation = Callable[[Tensor], Tensor]  # images (b, 3, 64, 64) in [-1, 1] -> what is left of them

SIGMA = 2.5  # of the blur, in pixels
SHOWN = 5  # images of a row
VAGUE = "a photo of a toy"
WAYS = {
    "guided from noise": ("guided",),
    "begun at it, without guidance": ("begun",),
    "begun at it, and guided": ("begun", "guided"),
    "looks named, without guidance": ("named",),
    "looks named, guided from noise": ("named", "guided"),
}


def blurred(images: Tensor, sigma: float = SIGMA) -> Tensor:
    """Gaussian blur, with the border's pixels repeated."""
    reach = int(3 * sigma)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=images.device) ** 2) / (2 * sigma**2))
    kernel = (weights / weights.sum()).expand(images.shape[1], 1, 1, -1).to(images.dtype)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=len(kernel)), kernel.mT, groups=len(kernel))


def grey(images: Tensor) -> Tensor:
    """The luminance, as one channel."""
    return (images * images.new_tensor(world.LUMINANCE)[:, None, None]).sum(dim=1, keepdim=True)


DEGRADATIONS: dict[str, Degradation] = {"blur": blurred, "low resolution": reduced, "grey": grey}


def as_image(given: Tensor) -> Tensor:
    """A degraded image as it would be shown: grey in three channels, and a small one enlarged bicubically."""
    return enlarged(given.expand(-1, 3, -1, -1), (world.RESOLUTION, world.RESOLUTION))


def distance(study: Study, degradation: Degradation, given: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss ‖A(D(x̂_0)) - y‖ of clean latents, (b,). Not squared: the gradient of the square grows with the distance,
    and at first, when nothing fits, throws the latents out of the data. (2209.14687 divides its step by the same.)"""
    return lambda clean: (degradation(study.model.decode(clean)) - given).square().sum(dim=(1, 2, 3)).sqrt()


def restored(study: Study, degradation: Degradation, given: Tensor, way: str, named: list[str]) -> Tensor:
    """Samples of one of `WAYS`, (n, 3, 64, 64)."""
    args, model, how = study.args, study.model, WAYS[way]
    latents = model.scale(model.encode(as_image(given)).mean)

    def each(some: slice) -> dict[str, object]:
        options: dict[str, object] = {}
        if "guided" in how:
            loss = distance(study, degradation, given[some])
            options["guidance"] = universal_guidance(model.scheduler, loss, args.scale)
        if "begun" in how:
            options |= {"begin": ImageToImage(latents[some], args.strength), "sampler": "ddim"}  # without new noise
        return options

    return study.sample(named if "named" in how else [VAGUE] * len(given), each=each).clamp(-1, 1)


def rows(study: Study) -> Iterator[Row]:
    """For each degradation: the degraded images, and the restored ones in every way."""
    args = study.args
    scenes = [replace(scene, style="photo") for scene in random_scenes(args.count, args.seed, 111, pair_rate=0)]
    true, toys = painted(scenes, args.seed, 112), [scene.toys[0] for scene in scenes]

    def row(degraded: str, way: str, images: Tensor) -> Row:
        study.show("restore", f"{degraded}: {way}", images[:SHOWN])
        degradation, pairs = DEGRADATIONS[degraded], list(zip(verdicts(study.judge, images), toys))
        colours = [(said["main_0"], said["second_0"]) == (toy.main, toy.second) for said, toy in pairs]
        return {
            "degraded by": degraded,
            "": way,
            "PSNR": mean_and_error(psnr(images, true).tolist()),
            "PSNR of A": mean_and_error(psnr(degradation(images), degradation(true)).clamp(max=99).tolist()),
            "shape": mean_and_error([float(said["shape_0"] == toy.shape) for said, toy in pairs]),
            "colours": mean_and_error([float(right) for right in colours]),
        }

    study.show("restore", "true images", true[:SHOWN])
    for name in args.by:
        given = DEGRADATIONS[name](true)
        yield row(name, "as it is", as_image(given))
        for way in args.ways:
            yield row(name, way, restored(study, DEGRADATIONS[name], given, way, [*map(described, scenes)]))


def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/restore", WAYS, count=(16, 2), steps=20)
    parser.add_argument("--by", nargs="+", choices=DEGRADATIONS, default=list(DEGRADATIONS), help="which degradations")
    parser.add_argument("--scale", type=finite, default=10.0, help="of the gradient")
    parser.add_argument("--strength", type=finite, default=0.5, help="of what begins at the degraded image")
    parser.set_defaults(guidance_scale=1.0)
    study = Study(parser)
    measured = {"PSNR": ".1f", "PSNR of A": ".1f", "shape": ".0%", "colours": ".0%"}
    study.table("restore", rows(study), {"degraded by": "", "": ""} | measured)
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
