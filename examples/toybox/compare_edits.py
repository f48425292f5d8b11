"""Image editing: one colour changed by a prompt, SDEdit, DDIM inversion, prompt-to-prompt and as a counterfactual.

    python examples/toybox/compare_edits.py --only edits
    python examples/toybox/compare_edits.py --only inversion --count 16

edits: in per cent how often the main colour became the wanted one, how often all else stayed and how often both, by the
judge, and how far the median pixel moved. inversion: the distance, in grey levels, between an image and what is sampled
from its inverted noise by the same prompt, and the largest one. Prints tables; writes edits.csv, inversion.csv, and
edits.png with the first images.
"""

from study import Row, Study, of, options, report
from support.command_line import run, whole

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

import minti
from counterfactuals import counterfactual
from held_out import LONG, SHORT, Task, task
from measure import kept, verdicts
from minti.editing.attention_maps import AttentionMaps
from minti.editing.image_to_image import ImageToImage
from minti.editing.inversion import inverted_noise
from minti.editing.prompt_to_prompt import PromptToPrompt, local_blend
from networks import Judge

# A way: the model, the task and options of `minti.sample` -> the images before and after, (b, 3, 64, 64) each.
Way = Callable[..., tuple[Tensor, Tensor]]
EDITS = {
    "colour changed": (".0%", of("changed")),
    "all else kept": (".0%", of("kept")),
    "both": (".0%", of("both")),
    "median pixel, grey levels": (".1f", of("moved")),
}


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

    `invert`: the noise is that of the painted images by DDIM inversion, and they are the source.
    """
    sources, edits = task.prompts(template)
    noise = task.noise
    if invert:
        noise = inverted_noise(model, task.latents, sources, options["num_inference_steps"])
    part = PromptToPrompt(model, sources, edits, cross, own)
    with ExitStack() as stack:
        stack.enter_context(part.attached(model))
        if blend:
            maps = AttentionMaps(model, [*sources, *edits])
            stack.enter_context(maps.attached(model))
            options["keep"] = local_blend(maps, 2 * [scene.toys[0].shape for scene in task.scenes])
        drawn = minti.sample(model, [*sources, *edits], latents=torch.cat([noise, noise]), **options)
    source, edited = model.decode(drawn).chunk(2)
    return task.pictures if invert else source, edited


def along(
    model: minti.StableDiffusion, task: Task, template: str, strength: float, invert: bool, **options: object
) -> tuple[Tensor, Tensor]:
    """Img2img by the edited prompt: the painted images noised at random (SDEdit) or by DDIM inversion."""
    sources, edits = task.prompts(template)
    noise = task.noise
    if invert:
        noise = inverted_noise(model, task.latents, sources, options["num_inference_steps"], strength)
    begin = ImageToImage(task.latents, strength)
    return task.pictures, model.decode(minti.sample(model, edits, latents=noise, begin=begin, **options))


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
    """Of each image: whether the colour is the wanted one, all else is classified as before, and both; and the median
    distance of a pixel, in grey levels: of one off the toy, which covers less than a third of an image."""
    moved = 127.5 * (after.clamp(-1, 1) - before.clamp(-1, 1)).abs().mean(dim=1)  # b h w
    rows = []
    for i, (was, is_now) in enumerate(zip(verdicts(judge, before), verdicts(judge, after))):
        changed, same = is_now["main_0"] == task.colours[i], kept(was, is_now, "main_0")
        rows.append({"changed": changed, "kept": same, "both": changed and same, "moved": moved[i].median().item()})
    return rows


def edits(study: Study) -> Iterator[list[Row]]:
    """All ways on the same scenes."""
    args = study.args
    how = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    seeds = range(args.seed, args.seed + args.count)
    for start in study.bar(range(0, args.count, args.batch_size), "batches"):
        scenes, shown = task(study.model, seeds[start : start + args.batch_size]), None
        wanted = [f"{scene.toys[0].main} to {colour}" for scene, colour in zip(scenes.scenes[:6], scenes.colours)]
        for way in args.ways:
            before, after = WAYS[way](study.model, scenes, sampler="ddim", output="latents", **how)
            if start == 0:
                if before is not shown:  # all ways that edit the painted images begin with the same
                    study.show("edits", f"before: {'painted' if before is scenes.pictures else way}", before[:6])
                study.show("edits", way, after[:6], wanted, size=96)
                shown = before
            yield [{"way": way} | row for row in judged(study.judge, scenes, before, after)]


def inversion(study: Study, scales: Sequence[float]) -> Iterator[Row]:
    """DDIM inversion and back, with the same prompt: the distances in grey levels, their mean and largest."""
    args, model = study.args, study.model
    scenes = task(model, range(args.seed, args.seed + args.count))
    pictures = model.decode(scenes.latents).clamp(-1, 1)
    for named, template in (("all", LONG), ("the toy only", SHORT)):
        prompts, _ = scenes.prompts(template)
        for iterations in args.iterations:
            noise = inverted_noise(model, scenes.latents, prompts, args.steps, iterations=iterations)
            row = {"named": named, "iterations": iterations, "deviation": noise.std().item()}
            for scale in scales:
                how = {"num_inference_steps": args.steps, "guidance_scale": scale, "sampler": "ddim"}
                back = minti.sample(model, prompts, latents=noise, output="pixels", **how).clamp(-1, 1)
                far = 127.5 * (back - pictures).abs().mean(dim=(1, 2, 3))
                row |= {f"guidance {scale:g}": far.mean().item(), f"guidance {scale:g}, worst": far.max().item()}
            yield row


@torch.no_grad()
def main() -> None:
    """The tables that are asked for."""
    parser = options(__doc__, "outputs/edits", WAYS, count=96, steps=(20, 2), batch_size=32)
    tables = ("edits", "inversion")
    parser.add_argument("--only", nargs="+", choices=tables, default=tables, help="which tables")
    iterations_help = "of inversion: fixed-point iterations of each of its steps"
    parser.add_argument("--iterations", type=whole(0), nargs="+", default=[0, 2], help=iterations_help)
    study = Study(parser)
    if "edits" in study.args.only:
        print(report(study.table("edits", edits(study)), "way", EDITS))
    if "inversion" in study.args.only:
        scales, columns = (1, study.args.guidance_scale), {"named": "", "iterations": "", "deviation": ".2f"}
        columns |= {f"guidance {scale:g}{worst}": ".2f" for scale in scales for worst in ("", ", worst")}
        study.table("inversion", inversion(study, scales), columns)


if __name__ == "__main__":
    run(main)
