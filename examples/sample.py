"""Samples images from prompts (text to image), with learned words, image to image, inpainting, adapters and guidance.

python examples/sample.py "a sketch of a <concept>" --embedding outputs/NAME/learned_embeds.safetensors
python examples/sample.py "a cartoon of a toy" --ip-adapter FILE --ip-image IMAGE
python examples/sample.py "a cartoon of a <concept>" --embedding ... --init-image IMAGE --strength 0.6
python examples/sample.py "a photo of a green cross" --invert IMAGE --source "a photo of a white cross"
python examples/sample.py "a photo of a toy" --lora FILE=0.8
python examples/sample.py "a photo of a red toy" --hint OUTLINE
python examples/sample.py "a photo of a toy" --lora LCM_LORA --sampler lcm --steps 4 --guidance-scale 1
python examples/sample.py "a red star" --trajectory
python examples/sample.py "a photo" --guidance-scale 1 --pag 3
python examples/sample.py "a photo of a toy" --clip-prompt "a photo of a green toy"
python examples/sample.py "a <a> next to a <b>" --extra-prompt "a toy next to a <b>" --extra-prompt-weight 3 ...
torchrun --nproc-per-node 2 examples/sample.py "a toy" --num-images 16
"""

from support import adapters, guidance, prompt_options
from support.command_line import arguments, finite, generators, load, make_output, run, whole
from support.given import Edit, where_mask
from support.openvino_engine import add_arguments as add_engine_argument
from support.openvino_engine import engine
from support.option_types import number_or_name
from support.strip import Trajectory

import argparse
import re
import warnings
from dataclasses import fields, replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

import minti
from minti.denoising import SAMPLERS, SampleStep, make_sampler
from minti.editing.images import latent_mask
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.guidance.conditions import Conditions
from minti.guidance.gradients import Guidance
from minti.runs import distributed
from minti.runs.files import replacing

NOT_HERE = ("original_inference_steps",)  # of lcm and tcd: 50 in all released files
OPTIONS = {  # eta: "ddim", ...
    field.name: name for name in SAMPLERS for field in fields(make_sampler(name)) if field.name not in NOT_HERE
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/samples")
    parser.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="what to sample; several prompts make several rows"
    )
    word_help = "a file of learned words, optionally under a new name; may be repeated"
    parser.add_argument("--embedding", metavar="FILE[=NAME]", action="append", default=[], help=word_help)
    parser.add_argument("--num-images", type=whole(1), default=4, help="images per prompt")
    parser.add_argument("--steps", type=whole(1), default=50, help="denoising steps")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: ddpm, with --invert ddim")
    parser.add_argument("--eta", type=finite, help="of ddim: 0 is deterministic, 1 as noisy as ddpm; default: 0")
    variance_help = "of ddpm, how much noise a step adds: posterior (least), beta (most), or 0 to 1; default: posterior"
    parser.add_argument("--variance", type=number_or_name, help=variance_help)
    karras_help = "of dpm-solver++: the noise levels of arXiv 2206.00364"
    parser.add_argument("--karras", action="store_const", const=True, help=karras_help)
    gamma_help = "of tcd: 0 is DDIM, 1 fresh noise at every step; default: 0.3"
    parser.add_argument("--gamma", type=finite, help=gamma_help)
    parser.add_argument("--negative-prompt", default="", help="what guidance leads away from")
    parser.add_argument("--height", type=whole(1), help="in pixels; default: the model's own size")
    parser.add_argument("--width", type=whole(1))
    parser.add_argument("--batch-size", type=whole(1), default=16, help="images sampled at a time")
    trajectory_help = "also save the denoising steps of each prompt's first image, as a strip and an animated GIF"
    parser.add_argument("--trajectory", action="store_true", help=trajectory_help)
    begin = parser.add_argument_group("image to image, inpainting, DDIM inversion")
    begin.add_argument("--init-image", type=Path, help="image to image: start from this image")
    begin.add_argument("--strength", type=finite, help="how much to change it, 0 to 1; default: 0.8, with a mask 1")
    begin.add_argument("--mask", type=Path, help="inpainting: white where to sample, black where to keep")
    invert_help = "DDIM inversion: start from the noise that gives this image with --source; PROMPT then edits it"
    begin.add_argument("--invert", type=Path, metavar="IMAGE", help=invert_help)
    source_help = "what the image shows: whatever it leaves out may change"
    begin.add_argument("--source", metavar="PROMPT", help=source_help)
    several = parser.add_argument_group("composed guidance: several prompts for one image")
    several.add_argument("--extra-prompt", action="append", default=[], metavar="PROMPT", help="may be repeated")
    weight_help = "of each --extra-prompt in turn, negative to lead away from it; default: the guidance scale"
    several.add_argument("--extra-prompt-weight", type=finite, action="append", default=[], help=weight_help)
    mask_help = "of each --extra-prompt in turn: left, right, top, bottom or a mask, white there; default: everywhere"
    several.add_argument("--extra-prompt-mask", action="append", default=[], metavar="HALF_OR_MASK", help=mask_help)
    adapters.add_arguments(parser)
    guidance.add_arguments(parser)
    prompt_options.add_arguments(parser)
    add_engine_argument(parser)
    return checked(parser, parser.parse_args())


def checked(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Checks what goes together; makes the sampler with its options."""
    args.prompts = list(dict.fromkeys(args.prompts))  # one that is given twice would give the same images again
    if args.invert and (args.sampler not in (None, "ddim") or args.eta or args.init_image):
        parser.error("--invert inverts DDIM; leave out --init-image, --eta and any other --sampler")
    if bool(args.invert) != bool(args.source):
        parser.error("--source says what the image of --invert shows; give both")
    if args.invert:
        args.num_images = 1  # there is one such noise
    args.sampler = args.sampler or ("ddim" if args.invert else "ddpm")
    given = {option: value for option in OPTIONS if (value := getattr(args, option)) is not None}
    for option in given:
        if OPTIONS[option] != args.sampler:
            parser.error(f"--{option} is an option of {OPTIONS[option]}, not of --sampler {args.sampler}")
    try:
        args.sampler = replace(make_sampler(args.sampler), **given)
    except ValueError as error:
        parser.error(str(error))
    if args.strength is not None and not (args.init_image or args.invert):
        parser.error("--strength says how much to change --init-image; give both")
    if args.strength is not None and not 0 < args.strength <= 1:
        parser.error(f"--strength {args.strength}: expected more than 0 and at most 1")
    count = len(args.extra_prompt)
    for option, values in (("weight", args.extra_prompt_weight), ("mask", args.extra_prompt_mask)):
        if len(values) not in (0, count):
            times = f"--extra-prompt-{option} is given {len(values)} times for {count} --extra-prompt"
            parser.error(f"{times}; give one for each, or none")
    if args.mask and not args.init_image:
        parser.error("--mask says which part of --init-image to sample anew; give both")
    return args


def extra_prompts(args: argparse.Namespace, model: minti.StableDiffusion) -> list[tuple[str, float, Tensor | None]]:
    """The extra prompts with their weights and masks."""
    weights = args.extra_prompt_weight or [args.guidance_scale] * len(args.extra_prompt)
    height, width = args.height or model.resolution, args.width or model.resolution
    fitted = [where_mask(where, height, width) for where in args.extra_prompt_mask]
    masks = [latent_mask(mask, model.vae.config.factor) for mask in fitted] or [None] * len(args.extra_prompt)
    return list(zip(args.extra_prompt, weights, masks))


def sample(
    args: argparse.Namespace,
    model: minti.StableDiffusion,
    encode: adapters.Encode,
    jobs: list[tuple[str, int]],
    guidance: Guidance,
) -> list[Image.Image]:
    """Images of (prompt, number) pairs, in batches; the number seeds the noise."""
    read, images = prompt_options.reader(args, model), []
    edit, tiny = Edit(args, model, read), adapters.own_tiny_decoder(args.model, model) if args.trajectory else None
    extra = [(encode(read([prompt])), weight, mask) for prompt, weight, mask in extra_prompts(args, model)]
    options = edit.options | ({"cfg": Conditions(model, extra)} if extra else {})
    with tqdm(total=len(jobs), desc="sampling", disable=True if args.quiet else None) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            seen = {at: Trajectory(tiny) for at, (_, i) in enumerate(batch) if args.trajectory and i == 0}

            def watch(step: SampleStep, seen: dict[int, Trajectory] = seen) -> None:
                bar.set_postfix(timestep=step.timestep)
                for at, trajectory in seen.items():
                    trajectory.add(step, at)

            sampled = minti.sample(
                model,
                encode(read([prompt for prompt, _ in batch])),
                encode(read([args.negative_prompt]), False),
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                sampler=args.sampler,
                generator=[generators(args.seed + i, 1)[0] for _, i in batch],
                height=args.height,
                width=args.width,
                on_step=watch,
                guidance=guidance,
                **options,
            )
            images += [edit.paste(image) for image in sampled]
            bar.update(len(batch))
            for at, trajectory in seen.items():
                name = f"{args.prompts.index(batch[at][0]):02}-trajectory"
                with replacing(args.output / f"{name}.png") as temporary:
                    trajectory.strip(model).save(temporary, "png")
                with replacing(args.output / f"{name}.gif") as temporary:
                    trajectory.save_animation(temporary, model)
    return images


def main() -> None:
    """Prompts to images."""
    args = parse()
    prompt_options.take_loras(args)
    folder = make_output(args.output)
    model = load(args)
    adapters.load_words(model, args.embedding, [*args.prompts, *args.extra_prompt, args.negative_prompt, args.source])
    first = args.sampler.stops(model.scheduler, args.steps)[0].timestep
    if not args.init_image and first < model.scheduler.config.num_train_timesteps / 4:
        what = f"this sampler begins at timestep {first:g}, where hardly any noise is removed"
        warnings.warn(f"--steps {args.steps}: {what}; take more, or --sampler dpm-solver++", stacklevel=2)

    # Every prompt gets the same noises, so that the columns of the grid can be compared.
    jobs = [(prompt, i) for prompt in args.prompts for i in range(args.num_images)]
    share = -(-len(jobs) // distributed.world_size())
    mine = jobs[distributed.rank() * share :][:share]
    with adapters.attached(args, model) as encode, guidance.attached(args, model) as guided, engine(args, model):
        images = distributed.gather(sample(args, model, encode, mine, guided))
    if distributed.rank() > 0:
        return
    names = {f"{args.prompts.index(prompt):02}-{i:02}.png": image for (prompt, i), image in zip(jobs, images)}
    for name, image in names.items():
        save_png(image, folder / name)
    found = (path.name for path in folder.iterdir() if re.fullmatch(r"\d{2,}-\d{2,}\.png", path.name))
    if old := sorted(name for name in found if name not in names):
        listed = f"{old[0]}, ..., {old[-1]}" if len(old) > 2 else ", ".join(old)
        text = f"{folder} also holds images of an earlier run, which are not in grid.png: {listed}"
        warnings.warn(text, stacklevel=2)
    save_png(grid(images, columns=args.num_images), folder / "grid.png")
    print(f"wrote {len(images)} images and {folder}/grid.png")


if __name__ == "__main__":
    run(main)
