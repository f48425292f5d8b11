"""Learns a new word from a few pictures and draws it anywhere.

    python examples/train.py                                           # a bundled toy, on the bundled toybox model
    python examples/train.py --images my-cat --initializer cat --model path/to/stable-diffusion-v1-4
    torchrun --nproc-per-node 2 examples/train.py                      # on two GPUs, or in two processes

Writes to outputs/NAME/: learned_embeds.safetensors (the word), page.png (what it can do), curves.png and losses.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from common import arguments, generators, load, make_output, page, run
from minti import distributed
from minti.images import grid, open_folder
from minti.learning.preparation import LR_SCHEDULES
from minti.learning.rows import ROW_UPDATES
from minti.text import TEMPLATES

CONCEPTS = Path(__file__).parent / "concepts"
TOYBOX_PROMPTS = (
    "a photo of a {} on a teal background",
    "a small {} on the left on a sand background",
    "a big {} at the bottom",
    "a cartoon of a {}",
    "a pixel art picture of a {} on a navy background",
    "a sketch of a {}",
    "a photo of a {} next to a white heart with a red spot",
)
SD_PROMPTS = (
    "a photo of a {} on the beach",
    "a comic book illustration of a {}",
    "a black and white photo of a {}",
    "an oil painting of a {} in a forest",
    "a photo of a {} next to a cup of coffee",
)


def parse() -> argparse.Namespace:
    """The command line."""
    names = sorted(folder.name for folder in CONCEPTS.iterdir() if folder.is_dir())
    parser = arguments(__doc__.split("\n\n")[0], output=None)
    what = parser.add_argument_group("what to learn")
    what.add_argument("--concept", default="red-diamond-pink-belt", choices=names, help="a bundled concept")
    what.add_argument("--images", type=Path, help="a folder with your own pictures, three to ten, instead")
    what.add_argument("--placeholder", default="<concept>", help="the new word")
    what.add_argument("--initializer", default="toy", help="a known word that says roughly what the pictures show")
    what.add_argument("--vectors", type=int, default=1, help="embedding rows of the new word")
    what.add_argument("--templates", choices=TEMPLATES, help="training prompts; default: by model")
    what.add_argument("--flip", action="store_true", help="also learn from mirror images")
    how = parser.add_argument_group("how to learn it")
    how.add_argument("--steps", type=int, help="exactly so many steps; default: until the fixed loss has levelled off")
    how.add_argument("--max-steps", type=int, default=3000, help="the most steps when --steps is not given")
    how.add_argument("--batch-size", type=int, help="default: 1 on SD v1.4, 8 on the toybox")
    how.add_argument("--gradient-accumulation", type=int, default=1, help="batches per step")
    how.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time: for small GPUs")
    how.add_argument("--learning-rate", type=float, help="default: 0.3 times the vocabulary rows' root mean square")
    how.add_argument("--lr-schedule", choices=LR_SCHEDULES, default="constant")
    how.add_argument("--warmup-steps", type=int, default=0)
    how.add_argument("--max-row-norm", type=float, help="keep rows below so many mean lengths of the vocabulary's")
    how.add_argument("--row-update", choices=ROW_UPDATES, default="new_rows", help="lean, or E4's recipe")
    show = parser.add_argument_group("what to draw")
    show.add_argument("--prompts", nargs="+", metavar="PROMPT", help="prompts of the page, with {} for the word")
    show.add_argument("--columns", type=int, default=5, help="pictures per row of the page")
    show.add_argument("--sample-steps", type=int, default=50, help="denoising steps per picture")
    show.add_argument("--validate-every", type=int, default=0, help="draw the word every so many steps; 0: never")
    args = parser.parse_args()
    if wrong := [prompt for prompt in args.prompts or () if "{}" not in prompt]:
        parser.error(f"the prompt {wrong[0]!r} has no {{}} where the word goes")
    return args


def learn(args: argparse.Namespace, wrapper: minti.TrainingWrapper, pictures: list[Image.Image], folder: Path) -> list:
    """Trains, with a progress bar; saves the word at every evaluation and at the end. Returns all states."""
    states: list[minti.TrainingState] = []
    bar = tqdm(total=args.steps or args.max_steps, desc="learning", disable=True if args.quiet else None)
    try:
        for state in minti.textual_inversion(wrapper, pictures):
            states.append(state)
            bar.update()
            if state.fixed_loss is not None:
                bar.set_postfix(fixed_loss=f"{state.fixed_loss:.4f}", initializer=f"{state.initializer_loss:.4f}")
                save(wrapper, folder)
            if args.validate_every and distributed.rank() == 0 and state.step % args.validate_every == 0:
                drawn = draw(args, wrapper.model, [wrapper.prompt("{}")] * args.columns)
                grid(drawn, args.columns).save(folder / f"validation-{state.step:05}.png")
    finally:  # an interrupted run keeps what it has learned
        bar.close()
        if states and distributed.rank() == 0:
            save(wrapper, folder)
            write_losses(folder / "losses.csv", states)
    return states


def save(wrapper: minti.TrainingWrapper, folder: Path) -> None:
    """Writes the word; of several processes, which all have the same one, the first writes."""
    if distributed.rank() == 0:
        minti.save_embeddings(wrapper, folder / "learned_embeds.safetensors")


def draw(args: argparse.Namespace, model: minti.StableDiffusion, prompts: list[str]) -> list[Image.Image]:
    """Pictures of the prompts, the i-th with noise of its own but the same in every row."""
    return minti.sample(
        model,
        prompts,
        num_inference_steps=args.sample_steps,
        guidance_scale=args.guidance_scale,
        generator=generators(args.seed, len(prompts)),
    )


def write_losses(path: Path, states: list[minti.TrainingState]) -> None:
    """One line for each step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = ("step", "loss", "fixed_loss", "learning_rate", "gradient_norm", "row_norm")
        writer.writerow(names)
        for state in states:
            writer.writerow("" if (value := getattr(state, name)) is None else value for name in names)


def plot(path: Path, states: list[minti.TrainingState], vocabulary_norm: float) -> None:
    """The training loss, the fixed loss between its two lines, and the length of the rows."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    steps = [state.step for state in states]
    left.plot(steps, [state.loss for state in states], linewidth=0.6)
    left.set(title="training loss (jumps with the timestep)", xlabel="step")
    evaluated = [state for state in states if state.fixed_loss is not None]
    first = states[0]
    middle.plot(
        [0, *(state.step for state in evaluated)],
        [first.initializer_loss, *(state.fixed_loss for state in evaluated)],
        marker=".",
        label="the learned word",
    )
    middle.axhline(first.empty_loss, color="grey", linestyle=":", label="the empty prompt")
    middle.axhline(first.initializer_loss, color="grey", linestyle="--", label="the initializer word")
    middle.set(title="loss on fixed pictures, timesteps and noise", xlabel="step")
    middle.legend()
    right.plot(steps, [state.row_norm for state in states], label="the learned word")
    right.axhline(vocabulary_norm, color="grey", linestyle="--", label="the vocabulary's mean")
    right.set(title="length of the embedding rows", xlabel="step", ylim=(0, None))
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Pictures to a word to a page."""
    args = parse()
    source = args.images or CONCEPTS / args.concept
    folder = make_output(args.output or Path("outputs") / source.resolve().name)
    pictures = open_folder(source)
    model = load(args)
    config = minti.TextualInversionConfig(
        placeholder_token=args.placeholder,
        initializer_token=args.initializer,
        num_vectors=args.vectors,
        row_update=args.row_update,
        templates=args.templates,
        horizontal_flip=args.flip,
        steps=args.steps,
        max_steps=args.max_steps,
        batch_size=args.batch_size,
        gradient_accumulation=args.gradient_accumulation,
        gradient_checkpointing=args.gradient_checkpointing,
        learning_rate=args.learning_rate,
        lr_schedule=args.lr_schedule,
        warmup_steps=args.warmup_steps,
        max_row_norm=args.max_row_norm,
        seed=args.seed,
    )
    wrapper = minti.TrainingWrapper(model, config)
    states = learn(args, wrapper, pictures, folder)
    if distributed.rank() > 0:
        return
    plot(folder / "curves.png", states, wrapper.vocabulary_norm)
    best = min((state.fixed_loss, state.step) for state in states if state.fixed_loss is not None)
    print(
        f"learned {args.placeholder} in {states[-1].step} steps; fixed loss {best[0]:.4f} at step {best[1]} "
        f"(initializer {states[0].initializer_loss:.4f}, empty prompt {states[0].empty_loss:.4f}); row length "
        f"{states[-1].row_norm:.2f} beside the vocabulary's {wrapper.vocabulary_norm:.2f}"
    )

    prompts = args.prompts or (SD_PROMPTS if wrapper.knows_english else TOYBOX_PROMPTS)
    size = model.resolution
    shown = [ImageOps.fit(picture, (size, size)) for picture in pictures[: args.columns]]
    rows = [("the training pictures", shown)]
    jobs = [("{}", args.placeholder)]
    jobs += [(prompt, word) for prompt in prompts for word in (args.initializer, args.placeholder)]
    for prompt, word in tqdm(jobs, desc="drawing", disable=True if args.quiet else None):
        text = prompt.replace("{}", word)
        rows.append((text, draw(args, model, [text] * args.columns)))
    page(rows).save(folder / "page.png")
    print(f"wrote {folder}/page.png, curves.png, losses.csv and learned_embeds.safetensors")


if __name__ == "__main__":
    run(main)
