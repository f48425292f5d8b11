"""One colour of a picture changed, by a prompt, SDEdit, inversion, prompt-to-prompt and as a counterfactual.

    python examples/toybox/compare_edits.py --only edits
    python examples/toybox/compare_edits.py --only inversion --count 16

edits: in per cent how often the main colour became the wanted one, how often all else stayed and how often both, by the
judge, and how far the median pixel moved. inversion: how far from a picture what is drawn from its inverted noise is,
by the same prompt. Prints tables; writes edits.csv, inversion.csv, and edits.png with the first pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from support.command_line import arguments, load, make_output, run, whole
from support.pages import page
from support.studies import write_table

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import minti
from counterfactuals import counterfactual
from measure import load_judge, verdicts
from minti.editing.attention_maps import AttentionMaps
from minti.editing.inversion import inverted_noise
from minti.editing.prompt_to_prompt import PromptToPrompt, local_blend
from minti.images import to_pil
from networks import Judge
from recolouring import LONG, SHORT, Task, task

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
        stack.enter_context(part.attached(model))
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


def towards(
    model: minti.StableDiffusion, task: Task, scale: float, hold: float, **options: object
) -> tuple[Tensor, Tensor]:
    """A counterfactual of each, guided by the judge of noisy latents; its prompt names all but the main colour."""
    prompts, _ = task.prompts(LONG.replace("{0.main} ", ""))
    after = torch.empty_like(task.pictures)
    for colour in set(task.colours):
        chosen = [i for i, wanted in enumerate(task.colours) if wanted == colour]
        given = (task.latents[chosen], [prompts[i] for i in chosen], colour, scale, hold)
        after[chosen] = counterfactual(model, *given, options["num_inference_steps"])
    return task.pictures, after


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
    "counterfactual": partial(towards, scale=20, hold=0.02),
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


def edits(args: argparse.Namespace, model: minti.StableDiffusion) -> None:
    """All ways on the same scenes."""
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
    write_table(args.output / "edits.csv", rows)
    page(shown, size=64).save(args.output / "edits.png")
    print("| way | colour changed | all else kept | both | median pixel, grey levels |\n|---|---|---|---|---|")
    for way in args.ways:
        of_way = [row for row in rows if row["way"] == way]
        means = {name: float(np.mean([row[name] for row in of_way])) for name in of_way[0] if name != "way"}
        rates = " | ".join(f"{100 * means[name]:.0f}" for name in ("changed", "kept", "both"))
        print(f"| {way} | {rates} | {means['moved']:.1f} |")


def inversion(args: argparse.Namespace, model: minti.StableDiffusion) -> None:
    """To a picture's noise, and back with the same prompt: grey levels between the decoded pictures, and the worst."""
    scenes, rows = task(model, range(args.seed, args.seed + args.count)), []
    pictures, scales = model.decode(scenes.latents).clamp(-1, 1), (1, args.guidance_scale)
    print(f"| prompt names | iterations | deviation | guidance {scales[0]} | {scales[1]:g} |\n|---|---|---|---|---|")
    for named, template in (("all", LONG), ("the toy only", SHORT)):
        prompts, _ = scenes.prompts(template)
        for iterations in args.iterations:
            noise = inverted_noise(model, scenes.latents, prompts, args.steps, iterations=iterations)
            row = {"named": named, "iterations": iterations, "deviation": noise.std().item()}
            for scale in scales:
                options = {"num_inference_steps": args.steps, "guidance_scale": scale, "sampler": "ddim"}
                back = minti.sample(model, prompts, latents=noise, output="pixels", **options).clamp(-1, 1)
                far = 127.5 * (back - pictures).abs().mean(dim=(1, 2, 3))
                row |= {f"guidance {scale:g}": far.mean().item(), f"guidance {scale:g}, worst": far.max().item()}
            rows.append(row)
            _, _, deviation, *far = row.values()
            cells = " | ".join(f"{mean:.2f} ({worst:.2f})" for mean, worst in zip(far[::2], far[1::2]))
            print(f"| {named} | {iterations} | {deviation:.2f} | {cells} |", flush=True)
    write_table(args.output / "inversion.csv", rows)


@torch.no_grad()
def main() -> None:
    """The tables that are asked for."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/edits")
    tables = {"edits": edits, "inversion": inversion}
    parser.add_argument("--only", nargs="+", choices=tables, default=list(tables), help="which tables")
    parser.add_argument("--count", type=whole(1), default=96, help="pictures")
    parser.add_argument("--steps", type=whole(2), default=20, help="steps of DDIM")
    parser.add_argument("--batch-size", type=whole(1), default=32, help="of edits: pictures at a time")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of edits: which of them")
    iterations_help = "of inversion: how often each of its steps is mended"
    parser.add_argument("--iterations", type=whole(0), nargs="+", default=[0, 2], help=iterations_help)
    args = parser.parse_args()
    make_output(args.output)
    model = load(args)
    model.freeze()
    for name in args.only:
        tables[name](args, model)


if __name__ == "__main__":
    run(main)
