"""Universal guidance by an outline, by a place, and by an image's style (`002` 6.3; arXiv 2302.07121).

    python examples/toybox/universal.py --by outline place style --count 8        (a few minutes)

The three losses of the notes, on the decoded image that the network predicts: cross-entropy of a soft segmentation with
the wanted one; the part of the toy that lies outside of a box; and the cosine of CLIP's embeddings with a style image.
None is known to the model, and no network was trained for them. Measured, beside the same noise without guidance, by
the overlap with the wanted outline, the part inside the box, and the judge's verdict on style and shape.
"""

from study import Row, Study, options
from support.command_line import finite, run, whole

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import world
from held_out import painted
from measure import verdicts
from minti.guidance.gradients import Recurrent, universal_guidance
from minti.images import to_pil
from outlines import DISTANCE, SHADES, drawn_masks, masks, overlap

Loss = Callable[[Tensor], Tensor]  # images (b, 3, h, w) in [-1, 1] -> (b,)

SCALES = {"outline": 30.0, "place": 60.0, "style": 100.0}
TOY = world.Toy("heart", "half", "red", "yellow")
SCENES = {  # whose outline is wanted, and whose style
    "outline": world.Scene((TOY,), "big", "in the middle", "teal", "photo"),
    "style": world.Scene((TOY,), "big", "in the middle", "teal", "sketch"),
}


def segmented(images: Tensor, sharpness: float = 30.0) -> Tensor:
    """A soft `outlines.drawn_masks`, with a gradient: sigmoid(sharpness (distance - threshold)), (b, 1, h, w). The
    distance is that of a pixel's colour from the nearest shade of the background, the median along the border."""
    unit = (images.clamp(-1, 1) + 1) / 2
    rim = torch.cat([unit[..., 0, :], unit[..., -1, :], unit[..., :, 0], unit[..., :, -1]], dim=-1)
    background = (rim.median(dim=-1).values[:, :, None] * SHADES.to(unit)).detach()  # b 3 shades
    squares = (unit[:, :, None] - background[..., None, None]).square().sum(dim=1)  # b shades h w
    nearest = squares.amin(dim=1, keepdim=True).clamp(min=1e-8).sqrt()
    return (sharpness * (nearest - DISTANCE)).sigmoid()


def outline_loss(wanted: Tensor) -> Loss:
    """Binary cross-entropy of the segmentation with a mask, (1, 1, h, w), a pixel's mean: segmentation guidance."""

    def loss(images: Tensor) -> Tensor:
        found = segmented(images).clamp(1e-4, 1 - 1e-4)
        return F.binary_cross_entropy(found, wanted.expand_as(found), reduction="none").mean(dim=(1, 2, 3))

    return loss


def place_loss(box: Tensor) -> Loss:
    """The part of the segmentation that lies outside of a box, (1, 1, h, w): object location guidance."""

    def loss(images: Tensor) -> Tensor:
        found = segmented(images)
        return ((1 - box) * found).sum(dim=(1, 2, 3)) / found.sum(dim=(1, 2, 3)).clamp(min=1)

    return loss


def style_loss(study: Study, image: Tensor) -> Loss:
    """1 - the cosine of CLIP's embeddings of the images and of one, (1, 3, h, w): style guidance."""
    wanted = study.clip.pixels(image.to(study.model.device))[0]
    return lambda images: 1 - study.clip.pixels(images) @ wanted


def box_of(place: str) -> Tensor:
    """A half of the image, (1, 1, 64, 64)."""
    box = torch.zeros(1, 1, world.RESOLUTION, world.RESOLUTION)
    half = world.RESOLUTION // 2
    box[{"left": np.s_[..., :half], "right": np.s_[..., half:], "top": np.s_[..., :half, :]}[place]] = 1
    return box


def rows(study: Study) -> Iterator[Row]:
    """Without guidance, and by each loss: all three measures of the images, and the page."""
    args, model = study.args, study.model
    wanted = masks([SCENES["outline"]], [(args.seed, 81)])
    box, style = box_of(args.place), painted([SCENES["style"]], args.seed, 82)
    losses = {"outline": outline_loss(wanted), "place": place_loss(box), "style": style_loss(study, style)}
    targets = {"outline": to_pil(2 * wanted.expand(-1, 3, -1, -1) - 1), "style": to_pil(style)}
    targets["place"] = to_pil(2 * box.expand(-1, 3, -1, -1) - 1)
    for way in ["nothing", *args.by]:
        how = {"sampler": Recurrent("ddim", args.times)}
        if way != "nothing":
            loss, scale = losses[way], SCALES[way] if args.scale is None else args.scale
            by = lambda clean, loss=loss: loss(model.decode(clean))  # noqa: E731
            how["guidance"] = universal_guidance(model.scheduler, by, scale)
        pixels = study.sample([args.prompt] * args.count, **how).cpu()
        study.show("universal", f"by {way}", targets.get(way, []) + to_pil(pixels[:7]))
        found, seen = drawn_masks(pixels), verdicts(study.judge, pixels)
        yield {
            "guided by": way,
            "overlap with the outline": overlap(found, wanted.expand_as(found)).mean().item(),
            "inside the box": ((box * found).sum(dim=(1, 2, 3)) / found.sum(dim=(1, 2, 3)).clamp(min=1)).mean().item(),
            "sketch": float(np.mean([verdict["style"] == "sketch" for verdict in seen])),
            "heart": float(np.mean([verdict["shape_0"] == "heart" for verdict in seen])),
        }


def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/universal", count=8, steps=20)
    parser.add_argument("--by", nargs="+", choices=SCALES, default=list(SCALES), help="which losses")
    parser.add_argument("--scale", type=finite, help="of the gradient; default: each loss's own")
    parser.add_argument("--times", type=whole(1), default=1, help="that each step is taken")
    parser.add_argument("--place", choices=("left", "right", "top"), default="left", help="the box")
    parser.add_argument("--prompt", default="a photo of a toy", help="what is sampled")
    parser.set_defaults(guidance_scale=1.0)
    study = Study(parser)
    shares = dict.fromkeys(("overlap with the outline", "inside the box", "sketch", "heart"), ".0%")
    study.table("universal", rows(study), {"guided by": ""} | shares)
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
