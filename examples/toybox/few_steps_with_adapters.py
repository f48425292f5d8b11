"""Do learned words, a LoRA of a toy and the ControlNet, all of them made for the toybox, work with its few-step LoRAs?

    python examples/toybox/few_steps_with_adapters.py

Held-out toys are learned on the plain model, as words and as LoRAs, and sampled by the guided model in 16 steps and by
each few-step LoRA. Prints the shares of right toys in per cent: of prompts alone, words, LoRAs, and of two toys in one
prompt; then the overlap with the ControlNet's outlines, and what is right of the toys there. Writes adapters.csv.
"""

from study import Row, Study, markdown, options
from support.command_line import run, whole

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor

import minti
import world
from compare_few_steps import LORAS
from evaluate_controlnet import CONTROLNET, Trials
from held_out import pixels_of, wrappers_to_train
from measure import recognised, verdicts
from minti.adapters.controlnet import ControlNet
from minti.samplers.few_step import TCD

COLUMNS = {
    "": "",
    "prompts": ".0%",
    "words": ".0%",
    "LoRAs": ".0%",
    "two toys": ".0%",
    "overlap": ".0%",
    "outlined": ".0%",
}
LEARNS = {"learns": "lora", "learning_rate": 4e-3, "steps": 80}  # as in compare_learning.py


class Ways:
    """The guided model, and each few-step LoRA: `self[name]` gives its options, and what attaches it."""

    def __init__(self, study: Study):
        self.names = {"guided, 16 steps": 16, "4 steps": 4, "2 steps": 2, "1 step": 1}
        self.scale = study.args.guidance_scale

    def __getitem__(self, name: str) -> dict[str, Any]:
        steps = self.names[name]
        return {"num_inference_steps": steps, "sampler": TCD(gamma=0)} | (
            {"guidance_scale": self.scale} if steps == 16 else {"guidance_scale": 1.0}
        )

    def attached(self, name: str, model: minti.StableDiffusion) -> AbstractContextManager:
        steps = self.names[name]
        return nullcontext() if steps == 16 else minti.load_lora(model, LORAS[steps]).attached(model)


def share(study: Study, pixels: Tensor, toys: list[world.Toy]) -> list[bool]:
    """Which images show their toys."""
    return [recognised(verdict, toy) for verdict, toy in zip(verdicts(study.judge, pixels), toys)]


def taught(study: Study, number: int, model: minti.StableDiffusion, lora: bool) -> Any:
    """A held-out toy, learned on the plain model: the file of its word, or its LoRA; what is there is not redone."""
    path = study.folder / f"toy-{number}{'-lora' if lora else ''}.safetensors"
    if not path.is_file():
        pictures = pixels_of(world.HELD_OUT[number])
        if lora:
            config = minti.DreamBoothConfig(initializer_token="toy", class_pictures=64, **LEARNS)
            classes = minti.class_pictures(model, config, study.folder / "class-pictures")
            training = minti.DreamBooth(model, config)
            for _ in minti.dreambooth(training, pictures, classes):
                pass
            minti.save_lora(training.lora, path)
        else:
            (word,) = wrappers_to_train(model, f"<toy-{number}>", pictures)
            for _ in minti.monitored(minti.textual_inversion(word, pictures)):
                pass
            minti.save_embeddings(word, path)
    return path


def rows(study: Study) -> Iterator[Row]:
    """A row for each way."""
    args, ways = study.args, Ways(study)
    rng, numbers = np.random.default_rng((args.seed, 71)), range(args.toys)
    known = [world.random_toy(rng) for _ in range(args.count)]
    pairs = [(known[i], known[i - 1]) for i in range(args.count)]
    words = [taught(study, number, study.fresh(), False) for number in numbers]
    loras = [taught(study, number, study.fresh(), True) for number in numbers]
    control, trials = ControlNet.from_pretrained(CONTROLNET, study.model), Trials(args.count, args.seed)
    for name in ways.names:
        found: dict[str, list[bool]] = {key: [] for key in ("prompts", "words", "LoRAs", "two toys")}
        with ways.attached(name, study.model):
            pixels = study.sample([f"a photo of a {toy.looks}" for toy in known], **ways[name])
            found["prompts"] += share(study, pixels, known)
            pixels = study.sample([f"a photo of a {a.looks} next to a {b.looks}" for a, b in pairs], **ways[name])
            both = (share(study, pixels, list(side)) for side in zip(*pairs))
            found["two toys"] += [a and b for a, b in zip(*both)]
            outlined = trials.measure(study.judge, trials.draw(study.model, control, trials.prompts(), **ways[name]))
        for number, word, file in zip(numbers, words, loras):
            model, toys = study.fresh(), [world.HELD_OUT[number]] * 16
            (placeholder,) = minti.load_embeddings(model, word)
            with ways.attached(name, model):
                found["words"] += share(
                    study, study.sample([f"a photo of a {placeholder}"] * 16, model, **ways[name]), toys
                )
                with minti.load_lora(model, file).attached(model):
                    found["LoRAs"] += share(
                        study, study.sample(["a photo of a sks toy"] * 16, model, **ways[name]), toys
                    )
        means = {key: float(np.mean(values)) for key, values in found.items()}
        yield {"": name} | means | {"overlap": outlined["overlap"], "outlined": outlined["all"]}


def main() -> None:
    """The table."""
    parser = options(__doc__, "outputs/few-steps-with-adapters", count=96, batch_size=16)
    parser.add_argument("--toys", type=whole(1, 12), default=4, help="held-out toys that are learned, 16 images each")
    parser.set_defaults(seed=800_000)
    warnings.filterwarnings("ignore", "guidance_scale")  # the teacher's sampler is guided, as DDIM
    study = Study(parser)
    study.args.steps = 1
    print(markdown(study.table("adapters", rows(study)), COLUMNS))


if __name__ == "__main__":
    run(main)
