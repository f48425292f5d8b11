"""Where does the judge look? Gradient saliency, SmoothGrad and Grad-CAM against the toy's true outline (`002` 10).

    python examples/toybox/saliency.py        (a minute; writes to outputs/saliency/)

Each map says which pixels the judge's answer to "which shape?" depends on. The world knows which pixels are the toy's,
and where its outline is: the area under the ROC curve is the chance that a pixel of the toy, or within three pixels of
the outline, has a higher value than one of the rest.
"""

from study import Row, Study, options
from support.command_line import finite, generators, run, whole
from support.pages import page

from collections.abc import Callable, Iterator
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from held_out import painted, random_scenes
from minti.formats.image_files import save_png
from minti.images import to_pil
from outlines import masks

COLUMNS = ("area under the curve: the toy", "near the outline")
Logit = Callable[[Tensor], Tensor]  # images (b, 3, h, w) -> the logit to explain, (b,)


def gradient(logit: Logit, x: Tensor) -> Tensor:
    """Vanilla gradient saliency, the greatest |d logit / d pixel| of the three colours: (b, h, w) (arXiv 1312.6034)."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(logit(x).sum(), x)[0].abs().amax(dim=1)


def smooth_grad(logit: Logit, x: Tensor, sigma: float, count: int, generator: torch.Generator) -> Tensor:
    """SmoothGrad: the mean gradient of `count` noisy images, x + sigma z, then as `gradient` (arXiv 1706.03825)."""
    total = torch.zeros_like(x)
    for _ in range(count):
        noisy = (x + sigma * torch.randn(x.shape, generator=generator).to(x)).detach().requires_grad_()
        total += torch.autograd.grad(logit(noisy).sum(), noisy)[0]
    return (total / count).abs().amax(dim=1)


def grad_cam(logit: Logit, x: Tensor, layer: nn.Module) -> Tensor:
    """Grad-CAM, relu(sum_k alpha_k A_k) with alpha_k the mean gradient of feature map A_k, enlarged to the image
    (arXiv 1610.02391, eq. 1 and 2): (b, h, w). After a global average and a linear layer it is CAM: w_k A_k."""
    kept: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())  # the weights are frozen: the gradient begins here
        return kept[0]

    hook = layer.register_forward_hook(keep)
    try:
        (slope,) = torch.autograd.grad(logit(x).sum(), kept[0])
    finally:
        hook.remove()
    weighted = (slope.mean(dim=(2, 3), keepdim=True) * kept[0].detach()).sum(dim=1, keepdim=True).relu()
    return F.interpolate(weighted, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def area_under_curve(values: Tensor, inside: Tensor) -> float:
    """The chance that a pixel inside has a higher value than one outside, half for a tie: both (h, w), by ranks."""
    flat, inner = values.flatten(), inside.flatten()
    low, high = (torch.searchsorted(flat.sort().values, flat, side=side).double() for side in ("left", "right"))
    count, rest = int(inner.sum()), int((~inner).sum())
    return (((low + high + 1) / 2)[inner].sum().item() - count * (count + 1) / 2) / (count * rest)


def rows(study: Study) -> Iterator[Row]:
    """The maps of each method: their agreement with the true toys; and the page."""
    args, judge = study.args, study.judge
    scenes = [scene for scene in random_scenes(10 * args.count, args.seed, 71, pair_rate=0) if scene.style == "photo"]
    scenes = scenes[: args.count]
    x = painted(scenes, args.seed, 72)
    toys = masks(scenes, [(args.seed, 72, i) for i in range(len(scenes))])
    inside = toys[:, 0] > 0.5
    outline = (F.max_pool2d(toys, 7, 1, 3) + F.max_pool2d(-toys, 7, 1, 3))[:, 0] > 0.5  # grown less shrunk
    chosen = torch.tensor([judge.answers["shape_0"].index(scene.toys[0].shape) for scene in scenes])[:, None]

    def logit(x: Tensor) -> Tensor:
        return judge(x)["shape_0"].gather(1, chosen)[:, 0]

    generator, maps = generators(args.seed, 1)[0], {"gradient": gradient(logit, x)}
    maps["SmoothGrad"] = smooth_grad(logit, x, args.sigma, args.times, generator)
    convolutions = [i for i, layer in enumerate(judge.trunk) if isinstance(layer, nn.SiLU)]
    for depth in (3, 4):
        maps[f"Grad-CAM, {64 >> depth} by {64 >> depth}"] = grad_cam(logit, x, judge.trunk[convolutions[depth - 1]])
    maps["chance"] = torch.rand(inside.shape, generator=generator)
    shown = [("images", to_pil(x[:8])), ("the true toys", to_pil((2.0 * inside[:8, None] - 1).expand(-1, 3, -1, -1)))]
    for name, found in maps.items():
        areas = (fmean(area_under_curve(*pair) for pair in zip(found, region)) for region in (inside, outline))
        yield {"map": name} | dict(zip(COLUMNS, areas))
        bright = found / np.maximum(found.flatten(1).quantile(0.99, dim=1), 1e-12)[:, None, None]
        if name != "chance":
            shown.append((name, to_pil((2 * bright[:8, None].clamp(max=1) - 1).expand(-1, 3, -1, -1))))
    save_png(page(shown, size=64), study.folder / "saliency.png")


def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/saliency", count=64)
    parser.add_argument("--sigma", type=finite, default=0.6, help="of SmoothGrad's noise; pixels reach from -1 to 1")
    parser.add_argument("--times", type=whole(1), default=30, help="noisy images of SmoothGrad")
    study = Study(parser)
    study.table("saliency", rows(study), {"map": ""} | dict.fromkeys(COLUMNS, ".3f"))
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
