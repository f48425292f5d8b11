"""One colour of a picture changed, by a prompt, SDEdit, inversion and prompt-to-prompt; and what else, by the judge.

    python examples/toybox/compare_edits.py

Prints in per cent how often the main colour became the wanted one, how often all else stayed, how often both, and how
far the median pixel moved; writes edits.csv, and edits.png with the first pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page
from support.studies import write_table

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import minti
import world
from measure import load_judge, verdicts
from minti.editing import inverted_noise
from minti.evaluation.attention_maps import AttentionMaps
from minti.images import to_pil
from minti.local_blend import local_blend
from minti.machine.noise import randn
from minti.parts.prompt_to_prompt import PromptToPrompt
from networks import Judge
from painting import draw

SHORT = "a photo of a {0.main} {0.shape} with a {0.second} {0.pattern}"
LONG = "a photo of a {1.size} {0.main} {0.shape} with a {0.second} {0.pattern} {1.place} on a {1.background} background"


@dataclass
class Task:
    """Painted scenes whose toys are to have another main colour.

    Attributes:
        pictures: (b, 3, 64, 64) in [-1, 1]; `latents`, (b, c, h, w), their encodings.
        noise: (b, c, h, w), one for each.
        scenes, colours: what they show, and the wanted colours.
    """

    pictures: Tensor
    latents: Tensor
    noise: Tensor
    scenes: list[world.Scene]
    colours: list[str]

    def prompts(self, template: str) -> tuple[list[str], list[str]]:
        """What the pictures show, and what they are to show."""
        toys = [scene.toys[0] for scene in self.scenes]
        wanted = [replace(toy, main=colour) for toy, colour in zip(toys, self.colours)]
        return tuple([template.format(toy, s) for toy, s in zip(of, self.scenes)] for of in (toys, wanted))


def task(model: minti.StableDiffusion, seeds: Sequence[int]) -> Task:
    """Scene i, its wanted colour, its grain and the noise that it is drawn from are those of seed i."""
    scenes, colours, painted = [], [], []
    for seed in seeds:
        rng = np.random.default_rng((22, seed))
        scene = replace(world.random_scene(rng, pair_rate=0), style="photo")
        toy = scene.toys[0]
        scenes.append(scene)
        colours.append(str(rng.choice([c for c in world.COLOURS if c not in (toy.main, toy.second)])))
        painted.append(draw(scene, np.random.default_rng((23, seed))))
    pictures = torch.from_numpy(np.stack(painted)).permute(0, 3, 1, 2) * 2 - 1  # b h w c -> b c h w
    latents = model.scale(model.encode(pictures).mean)
    noise = randn(latents.shape, [generators(seed, 1)[0] for seed in seeds], model.device, model.dtype)
    return Task(pictures, latents, noise, scenes, colours)


# A way: the model, the task and options of `minti.sample` -> the pictures before and after, (b, 3, 64, 64) each.
Way = Callable[..., tuple[Tensor, Tensor]]


def side_by_side(
    model: minti.StableDiffusion,
    task: Task,
    template: str,
    cross: float = 0,
    own: float = 0,
    blend: bool = False,
    invert: bool = False,
    **options: object,
) -> tuple[Tensor, Tensor]:
    """[source, edited] from the same noise, with prompt-to-prompt where a share is above 0.

    `invert`: the noise is that of the painted pictures, which then are the source.
    """
    sources, edits = task.prompts(template)
    noise = task.noise
    if invert:
        noise = inverted_noise(model, task.latents, sources, options["num_inference_steps"])
    part = PromptToPrompt(model, sources, edits, cross, own)
    with ExitStack() as stack:
        stack.enter_context(part.inside(model))
        if blend:
            maps = stack.enter_context(AttentionMaps(model, [*sources, *edits]))
            words = [scene.toys[0].shape for scene in task.scenes]
            options["on_step"] = local_blend(maps, words + words)
        drawn = minti.sample(model, [*sources, *edits], latents=torch.cat([noise, noise]), **options)
    source, edited = model.decode(drawn).chunk(2)
    return task.pictures if invert else source, edited


def along(
    model: minti.StableDiffusion, task: Task, template: str, strength: float, invert: bool, **options: object
) -> tuple[Tensor, Tensor]:
    """The painted pictures' latents, noised at random (SDEdit) or along their inverted path, drawn as edited."""
    sources, edits = task.prompts(template)
    noise = task.noise
    if invert:
        noise = inverted_noise(model, task.latents, sources, options["num_inference_steps"], strength)
    given = {"latents": noise, "init_latents": task.latents, "strength": strength}
    return task.pictures, model.decode(minti.sample(model, edits, **given, **options))


WAYS: dict[str, Way] = {
    "same noise": partial(side_by_side, template=SHORT),
    "prompt-to-prompt, cross 0.8": partial(side_by_side, template=SHORT, cross=0.8),
    "prompt-to-prompt, cross and self 0.8": partial(side_by_side, template=SHORT, cross=0.8, own=0.8),
    "the same, local blend": partial(side_by_side, template=SHORT, cross=0.8, own=0.8, blend=True),
    "SDEdit, strength 0.6": partial(along, template=SHORT, strength=0.6, invert=False),
    "inverted half way": partial(along, template=SHORT, strength=0.5, invert=True),
    "inverted": partial(along, template=SHORT, strength=1, invert=True),
    "same noise, all named": partial(side_by_side, template=LONG),
    "inverted, all named": partial(along, template=LONG, strength=1, invert=True),
    "inverted, prompt-to-prompt": partial(side_by_side, template=SHORT, cross=0.8, own=0.8, invert=True),
}


def judged(judge: Judge, task: Task, before: Tensor, after: Tensor) -> list[dict[str, float]]:
    """Of each picture: whether the colour is the wanted one, all else is as the judge saw it before, and both; and the
    median distance of a pixel, in grey levels: of one off the toy, which covers less than a third of a picture."""
    moved = 127.5 * (after.clamp(-1, 1) - before.clamp(-1, 1)).abs().mean(dim=1)  # b h w
    rows = []
    for i, (was, is_now) in enumerate(zip(verdicts(judge, before), verdicts(judge, after))):
        changed = is_now["main_0"] == task.colours[i]
        others = [name for name in was if name != "main_0" and not name.endswith("_1")]
        kept = all(is_now[name] == was[name] for name in others)
        rows.append({"changed": changed, "kept": kept, "both": changed and kept, "moved": moved[i].median().item()})
    return rows


@torch.no_grad()
def main() -> None:
    """All ways on the same scenes."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/edits")
    parser.add_argument("--count", type=whole(1), default=96, help="pictures")
    parser.add_argument("--steps", type=whole(2), default=20, help="steps of DDIM")
    parser.add_argument("--batch-size", type=whole(1), default=32, help="pictures at a time")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which of them")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    judge, rows, shown = load_judge(args.model), [], []
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    options |= {"sampler": "ddim", "output": "latents"}
    seeds = range(args.seed, args.seed + args.count)
    for start in tqdm(seeds[:: args.batch_size], "batches", disable=True if args.quiet else None):
        scenes = task(model, seeds[start - args.seed :][: args.batch_size])
        for way in args.ways:
            before, after = WAYS[way](model, scenes, **options)
            rows += [{"way": way} | row for row in judged(judge, scenes, before, after)]
            if start == args.seed:
                shown += [(f"{way}: before", to_pil(before[:6])), (f"{way}: after", to_pil(after[:6]))]
    write_table(folder / "edits.csv", rows)
    page(shown, size=64).save(folder / "edits.png")
    print("| way | colour changed | all else kept | both | median pixel, grey levels |\n|---|---|---|---|---|")
    for way in args.ways:
        of_way = [row for row in rows if row["way"] == way]
        means = {name: float(np.mean([row[name] for row in of_way])) for name in of_way[0] if name != "way"}
        rates = " | ".join(f"{100 * means[name]:.0f}" for name in ("changed", "kept", "both"))
        print(f"| {way} | {rates} | {means['moved']:.1f} |")


if __name__ == "__main__":
    run(main)
