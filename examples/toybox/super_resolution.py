"""Super-resolution and a cascade, with and without conditioning augmentation: the slides' table (`001`).

    python examples/toybox/super_resolution.py        (25 minutes on one CPU core, of which 17 train)

True images of the world are reduced to 16 × 16 pixels, and a base network draws as small ones. Both are enlarged to
64 × 64: bicubically; by a network that has seen low-resolution images as they are (s = 0); and by one that has seen
them with noise of random levels s, at some of these. Every network gets the prompt, as the slides' get the class.
Measured against other true images, by the toybox's CLIP (FID, KID) and judge, and where there is a true image, by PSNR.
"""

from study import Row, Study, mean_and_error, options
from support.command_line import generators, run, whole

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import world
from compare_sets import compare
from evaluate_toybox import truth
from held_out import described, painted, random_scenes
from measure import verdicts
from minti.adapters.super_resolution import augmented, enlarged
from minti.evaluation.distribution import kernel_distance
from minti.images import to_pil
from train_super_resolution import LEVELS, base_model, open_network, provide, reduced, training_options

SHOWN = 8  # images of a row
BASE_STEPS = 20


def psnr(images: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(4 / MSE), of images in [-1, 1]: (b, 3, h, w) -> (b,), in dB."""
    return 10 * (4 / (images.clamp(-1, 1) - wanted).square().mean(dim=(1, 2, 3))).log10()


class Cascade:
    """The three networks; scenes, their prompts and true images; the low images of both kinds, (n, 3, 16, 16)."""

    def __init__(self, study: Study):
        args, self.study = study.args, study
        files = provide(args.networks, args)
        self.models = {name: study.fresh() for name in files}
        self.models["base"] = base_model(self.models["base"])
        self.adapters = {name: open_network(name, path, self.models[name]) for name, path in files.items()}
        self.scenes = random_scenes(args.count, args.seed, 101)
        self.prompts, self.true = [described(scene) for scene in self.scenes], painted(self.scenes, args.seed, 102)
        how = {"output": "latents", "num_inference_steps": BASE_STEPS}
        drawn = study.sample(self.prompts, self.models["base"], **how).clamp(-1, 1)
        self.low = {"true": reduced(self.true), "drawn": drawn}

    def enlarge(self, low: Tensor, network: str, level: int) -> Tensor:
        """Super-resolution of low images by one of the networks, at an augmentation level: (n, 3, 64, 64)."""
        model, adapter = self.models[network], self.adapters[network]

        def each(some: slice) -> dict[str, object]:
            noise = generators(self.study.args.seed + 10**6 + some.start, len(low[some]))
            adapter.low, adapter.level = augmented(low[some], level, model.scheduler, noise), level
            return {}

        prompts = [""] * len(low) if self.study.args.without_prompts else self.prompts
        with adapter.attached(model):
            return self.study.sample(prompts, model, each=each)


class Measures:
    """A row of the table: FID and KID against other true images, the judge's verdict, and PSNR against the true."""

    def __init__(self, study: Study, cascade: Cascade):
        args, self.study, self.true = study.args, study, cascade.true
        other = painted(random_scenes(args.count, args.seed + 1, 101), args.seed + 1, 102)
        self.real, self.blocks = study.clip.images(to_pil(other)), args.count // 8
        self.answers = [truth(study.judge, scene) for scene in cascade.scenes]

    def row(self, low: str, by: str, pixels: Tensor) -> Row:
        """KID is the mean of eight parts, as their spread is its standard error."""
        features, length = self.study.clip.images(to_pil(pixels)), self.real.shape[1] ** 0.5  # as in `compare_sets`
        parts = [kernel_distance(self.real * length, part * length) for part in features.split(self.blocks)]
        pairs = zip(verdicts(self.study.judge, pixels), self.answers)
        right = [float(all(verdict[key] == said for key, said in answers.items())) for verdict, answers in pairs]
        found = compare(self.real, features) | {"toybox KID": mean_and_error(parts), "right": mean_and_error(right)}
        if low == "true":
            found["PSNR"] = mean_and_error(psnr(pixels, self.true).tolist())
        return {"low image": low, "enlarged by": by} | found


def rows(study: Study, cascade: Cascade) -> Iterator[Row]:
    """True images, the toybox without a cascade, and each way for both kinds of low image."""
    model, measures = study.model, Measures(study, cascade)
    yield measures.row("", "true images", cascade.true)
    through = torch.cat([model.decode(model.scale(model.encode(part).mean)) for part in cascade.true.split(16)])
    yield measures.row("", "true images through the VAE", through)
    yield measures.row("", "no cascading: the toybox", study.sample(cascade.prompts))
    ways = {"s = 0, trained without noise": ("clean", 0)}
    ways |= {
        f"s = {level}" + ", trained with noise" * (level == 0): ("augmented", level) for level in study.args.levels
    }
    for kind, low in cascade.low.items():
        bicubic = enlarged(low, (world.RESOLUTION, world.RESOLUTION))
        study.show(kind, "low-resolution image", low[:SHOWN])
        study.show(kind, "bicubic", bicubic[:SHOWN])
        yield measures.row(kind, "bicubic", bicubic)
        for name, (network, level) in ways.items():
            pixels = cascade.enlarge(low, network, level)
            study.show(kind, name, pixels[:SHOWN])
            yield measures.row(kind, name, pixels)
        if kind == "true":
            study.show(kind, "true image", cascade.true[:SHOWN])


def main() -> None:
    """The table, and a page of images for each kind of low image."""
    parser = options(__doc__, "outputs/super-resolution-table", count=(128, 16), steps=10)
    parser.add_argument("--networks", type=Path, default=Path("outputs/super-resolution"), help="where they are kept")
    levels = {"type": whole(0, LEVELS[-1]), "default": [0, 25, 50, 100, 200]}
    parser.add_argument("--levels", nargs="+", help="s, of the network trained with noise", **levels)
    parser.add_argument("--without-prompts", action="store_true", help="the base alone gets them")
    training_options(parser)
    parser.set_defaults(sampler="dpm-solver++", batch_size=16, guidance_scale=1.0)
    study = Study(parser)
    columns = {"low image": "", "enlarged by": "", "PSNR": ".2f", "toybox FID": ".3f", "toybox KID": ".3f"}
    study.table("super_resolution", rows(study, Cascade(study)), columns | {"right": ".1%"})
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
