"""Draws pictures from prompts, with learned words if you like.

python examples/sample.py "a sketch of a <concept>" --embedding outputs/NAME/learned_embeds.safetensors
python examples/sample.py "a cartoon of a toy" --ip-adapter FILE --ip-picture PICTURE
python examples/sample.py "a cartoon of a <concept>" --embedding ... --init-image PICTURE --strength 0.6
python examples/sample.py "a photo of a green cross" --invert PICTURE --source "a photo of a white cross"
python examples/sample.py "a photo of a toy" --lora FILE=0.8
python examples/sample.py "a photo of a red toy" --hint OUTLINE
python examples/sample.py "a red star" --trajectory
python examples/sample.py "a photo" --guidance-scale 1 --pag 3
python examples/sample.py "a photo of a toy" --clip-prompt "a photo of a green toy"
python examples/sample.py "a <a> next to a <b>" --and "a <a> next to a toy" --and "a toy next to a <b>" ...
torchrun --nproc-per-node 2 examples/sample.py "a toy" --num-images 16
"""

from __future__ import annotations

from support.added import Said, add_arguments, added
from support.attention_guidance import add_arguments as add_attention_arguments
from support.attention_guidance import bent
from support.clip_guidance import add_arguments as add_clip_arguments
from support.clip_guidance import towards_text
from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.given import Edit, latent_mask, where_mask
from support.openvino_engine import add_arguments as add_engine_argument
from support.openvino_engine import engine
from support.strip import Trajectory

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

import minti
from minti.denoising import SAMPLERS, Predict, SampleStep
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.runs import distributed
from minti.runs.files import replacing
from minti.scheduler import VARIANCES

OPTIONS = {field.name: name for name, sampler in SAMPLERS.items() for field in fields(sampler)}  # eta: "ddim", ...


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/samples")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to draw; several prompts make several rows")
    word_help = "a file of learned words, under a new name if you like; may be repeated"
    parser.add_argument("--embedding", metavar="FILE[=NAME]", action="append", default=[], help=word_help)
    parser.add_argument("--num-images", type=whole(1), default=4, help="pictures per prompt")
    parser.add_argument("--steps", type=whole(1), default=50, help="denoising steps")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: ddpm, with --invert ddim")
    parser.add_argument("--eta", type=finite, help="of ddim: 0 is deterministic, 1 as noisy as ddpm; default: 0")
    variance_help = "of ddpm: how much noise a step adds; default: posterior"
    parser.add_argument("--variance", choices=VARIANCES, help=variance_help)
    karras_help = "of dpm-solver++: stop at the levels of noise of arXiv 2206.00364"
    parser.add_argument("--karras", action="store_const", const=True, help=karras_help)
    parser.add_argument("--negative-prompt", default="", help="what not to draw")
    parser.add_argument("--height", type=whole(1), help="in pixels; default: the model's own size")
    parser.add_argument("--width", type=whole(1))
    parser.add_argument("--batch-size", type=whole(1), default=16, help="pictures drawn at a time")
    trajectory_help = "also show how each prompt's first picture comes about, as a strip and as an animated GIF"
    parser.add_argument("--trajectory", action="store_true", help=trajectory_help)
    begin = parser.add_argument_group("beginning with a picture")
    begin.add_argument("--init-image", type=Path, help="begin with this picture instead of noise")
    begin.add_argument("--strength", type=finite, help="how far to leave it, 0 to 1; default: 0.8, with a mask 1")
    begin.add_argument("--mask", type=Path, help="a picture that is white where to draw, black where to keep")
    invert_help = "begin with the noise from which DDIM draws this picture by --source; PROMPT then edits it"
    begin.add_argument("--invert", type=Path, metavar="PICTURE", help=invert_help)
    source_help = "what the picture shows: whatever it leaves out may change"
    begin.add_argument("--source", metavar="PROMPT", help=source_help)
    several = parser.add_argument_group("several prompts in one picture")
    several.add_argument("--and", dest="also", action="append", default=[], metavar="PROMPT", help="may be repeated")
    weight_help = (
        "of each --and in turn, negative to remove what it says; default: the guidance scale, the first prompt's"
    )
    several.add_argument("--weight", type=finite, action="append", default=[], help=weight_help)
    where_help = "of each --and in turn: left, right, top, bottom or a picture, white there; default: everywhere"
    several.add_argument("--where", action="append", default=[], metavar="HALF_OR_MASK", help=where_help)
    add_arguments(parser)
    add_attention_arguments(parser)
    add_clip_arguments(parser)
    add_engine_argument(parser)
    return checked(parser, parser.parse_args())


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """What goes together, or one line that says what does not; the sampler with its options."""
    if args.invert and (args.sampler not in (None, "ddim") or args.eta or args.init_image):
        parser.error("--invert goes back along DDIM's path; leave out --init-image, --eta and any other --sampler")
    if bool(args.invert) != bool(args.source):
        parser.error("--source says what the picture of --invert shows; give both")
    if args.invert:
        args.num_images = 1  # that noise is one
    args.sampler = args.sampler or ("ddim" if args.invert else "ddpm")
    given = {option: value for option in OPTIONS if (value := getattr(args, option)) is not None}
    for option in given:
        if OPTIONS[option] != args.sampler:
            parser.error(f"--{option} is an option of {OPTIONS[option]}, not of --sampler {args.sampler}")
    try:
        args.sampler = SAMPLERS[args.sampler](**given)
    except ValueError as error:
        parser.error(str(error))
    if args.strength is not None and not (args.init_image or args.invert):
        parser.error("--strength says how far to leave --init-image; give both")
    if args.strength is not None and not 0 < args.strength <= 1:
        parser.error(f"--strength {args.strength}: expected more than 0 and at most 1")
    for option, values in (("--weight", args.weight), ("--where", args.where)):
        if len(values) not in (0, len(args.also)):
            parser.error(
                f"{option} is given {len(values)} times for {len(args.also)} --and; give one for each, or none"
            )
    if args.mask and not args.init_image:
        parser.error("--mask says which part of --init-image to draw anew; give both")
    return args


def others(args: argparse.Namespace, model: minti.StableDiffusion) -> list[tuple[str, float, Tensor | None]]:
    """The prompts of --and with their weights and masks."""
    weights = args.weight or [args.guidance_scale] * len(args.also)
    height, width = args.height or model.resolution, args.width or model.resolution
    fitted = [where_mask(where, height, width) for where in args.where]
    masks = [latent_mask(mask, model.vae.config.factor) for mask in fitted] or [None] * len(args.also)
    return list(zip(args.also, weights, masks))


def draw(
    args: argparse.Namespace,
    model: minti.StableDiffusion,
    said: Said,
    jobs: list[tuple[str, int]],
    guidance: Callable[[Predict], Predict],
) -> list[Image.Image]:
    """Pictures of (prompt, number) pairs: with noise by the number, and some at a time."""
    edit, pictures = Edit(args, model), []
    also = [(said([prompt]), weight, mask) for prompt, weight, mask in others(args, model)]
    with tqdm(total=len(jobs), desc="drawing", disable=True if args.quiet else None) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            seen = {at: Trajectory() for at, (_, i) in enumerate(batch) if args.trajectory and i == 0}

            def watch(step: SampleStep, seen: dict[int, Trajectory] = seen) -> None:
                bar.set_postfix(timestep=step.timestep)
                for at, trajectory in seen.items():
                    trajectory.add(step, at)

            drawn = minti.sample(
                model,
                said([prompt for prompt, _ in batch]),
                said([args.negative_prompt], False),
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                sampler=args.sampler,
                generator=[generators(args.seed + i, 1)[0] for _, i in batch],
                height=args.height,
                width=args.width,
                on_step=watch,
                also=also,
                guidance=guidance,
                **edit.options,
            )
            pictures += [edit.keep(picture) for picture in drawn]
            bar.update(len(batch))
            for at, trajectory in seen.items():
                name = f"{args.prompts.index(batch[at][0]):02}-trajectory"
                with replacing(args.output / f"{name}.png") as temporary:
                    trajectory.strip(model).save(temporary, "png")
                with replacing(args.output / f"{name}.gif") as temporary:
                    trajectory.save_animation(temporary, model)
    return pictures


def main() -> None:
    """Prompts to pictures."""
    args = parse()
    folder = make_output(args.output)
    model = load(args)
    for given in args.embedding:
        path, name = (given, None) if Path(given).exists() or "=" not in given else given.rsplit("=", 1)
        words = minti.load_embeddings(model, path, name)
        if distributed.rank() == 0:
            print(f"{path}: {', '.join(words)}")

    # Every prompt gets the same noises, so that the columns of the grid can be compared.
    prompts = list(dict.fromkeys(args.prompts))  # one that is given twice would draw the same pictures again
    jobs = [(prompt, i) for prompt in prompts for i in range(args.num_images)]
    share = -(-len(jobs) // distributed.world_size())
    mine, towards = jobs[distributed.rank() * share :][:share], towards_text(args, model)
    with added(args, model) as said, bent(args, model) as guidance, engine(args, model):
        pictures = distributed.gather(draw(args, model, said, mine, lambda predict: towards(guidance(predict))))
    if distributed.rank() > 0:
        return
    for (prompt, i), picture in zip(jobs, pictures):
        save_png(picture, folder / f"{prompts.index(prompt):02}-{i:02}.png")
    save_png(grid(pictures, columns=args.num_images), folder / "grid.png")
    print(f"wrote {len(pictures)} pictures and {folder}/grid.png")


if __name__ == "__main__":
    run(main)
