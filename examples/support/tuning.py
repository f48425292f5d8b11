"""LoRA and DreamBooth as the scripts run them: class images first, then the steps, then the files."""

from support.command_line import finite, whole
from support.learning import Learning, put_aside, say
from support.option_types import filled

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.adapters.lora import LAYERS
from minti.formats.image_files import image_files, open_image
from minti.personalization.dreambooth import DreamBooth, DreamBoothConfig, class_pictures, dreambooth
from minti.personalization.vocabulary import is_learned
from minti.runs import distributed
from minti.runs.messages import one_line

LEARN = ("word", "lora", "word+lora", "dreambooth")
MEANT_FOR = {  # options by the name of their setting -> the ways of learning that they are for
    # A word learns along with a LoRA by new_rows only, and without a table.
    **dict.fromkeys(("row_update", "by_layer", "timestep_ranges"), ("word",)),
    **dict.fromkeys(("max_row_norm", "row_norm", "directional", "kappa"), ("word", "word+lora")),
    **dict.fromkeys(("context_weight", "context_prompts"), ("word", "word+lora")),
    **dict.fromkeys(("rank", "alpha", "layers"), ("lora", "word+lora")),
    "word_learning_rate": ("word+lora",),
    **dict.fromkeys(("class_prompt", "class_pictures", "class_images", "prior_weight"), LEARN[1:]),
    **dict.fromkeys(("text_encoder", "optimizer"), LEARN[1:]),
}


def tuning_options(parser: argparse.ArgumentParser) -> None:
    """Options under the names of `DreamBoothConfig`, None where they are not given."""
    more = parser.add_argument_group("LoRA and DreamBooth")
    prompt_help = "of the class images; default: a photo of a ..., with the initializer"
    more.add_argument("--class-prompt", type=filled, metavar="PROMPT", help=prompt_help)
    more.add_argument(
        "--num-class-images",
        dest="class_pictures",
        type=whole(0),
        metavar="N",
        help="sampled before training, for prior preservation; default: 200, the toybox 64",
    )
    class_help = "images of the class, instead of sampled ones"
    more.add_argument("--class-images", type=Path, metavar="FOLDER", help=class_help)
    weight_help = "of prior preservation, the loss of the class images; 0: without them; default: 1"
    more.add_argument("--prior-weight", type=finite, metavar="WEIGHT", help=weight_help)
    more.add_argument("--rank", type=whole(1), help="of the LoRA; default: 4")
    more.add_argument("--alpha", type=finite, help="of the LoRA; default: its rank")
    layers_help = "of the LoRA; default: attention"
    more.add_argument("--layers", nargs="+", choices=LAYERS, help=layers_help)
    text_help = "also train the text encoder"
    more.add_argument("--train-text-encoder", dest="text_encoder", action="store_const", const=True, help=text_help)
    optimizer_help = "in 8 bits its state takes a quarter of the memory; needs pip install bitsandbytes"
    more.add_argument("--optimizer", choices=("adamw", "adamw8bit"), default="adamw", help=optimizer_help)
    word_help = "of the word while the LoRA is trained; default: a tenth of the one before"
    more.add_argument("--word-learning-rate", type=finite, help=word_help)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses options that --learn has no use for."""
    for setting, ways in MEANT_FOR.items():
        if getattr(args, setting) != parser.get_default(setting) and args.learn not in ways:
            names = {"text_encoder": "train-text-encoder", "class_pictures": "num-class-images"}
            option = names.get(setting, setting.replace("_", "-"))
            parser.error(f"--{option} means nothing for --learn {args.learn}; it goes with --learn {' or '.join(ways)}")
    grow = args.num_vectors == "auto"
    if (grow or args.starts > 1) and args.learn != "word":
        parser.error(f"{'--vectors auto' if grow else '--starts'} goes with --learn word alone")
    if grow and args.starts > 1:
        parser.error("--starts goes with a number of --vectors, not with auto")
    if args.context_prompts and not args.context_weight:
        parser.error("--context-prompts are of the context loss; give it a --context-weight, such as 0.001")
    if args.learn != "word" and is_learned(args.initializer_token):
        parser.error("--initializer FILE is for --learn word alone; here it names the class, such as toy")


def class_images(
    args: argparse.Namespace, model: minti.StableDiffusion, config: DreamBoothConfig, folder: Path
) -> list[Image.Image]:
    """Those that the arguments name, or sampled ones, which the output folder keeps."""
    if not config.prior_weight:
        return []
    if args.class_images:
        size = (model.resolution,) * 2  # as in training, and now: a thousand photos in full size would fill the memory
        opened = map(open_image, image_files(args.class_images))
        return [ImageOps.fit(image, size, Image.Resampling.BICUBIC) for image in opened]
    count = config.class_pictures or model.defaults.class_pictures
    with tqdm(total=count, desc="class images", disable=args.quiet or None) as bar:
        return class_pictures(model, config, folder / "class-pictures", bar.update)


class Tuning(Learning):
    """A run of DreamBooth, of the network or a LoRA, with `prior`, the class images."""

    wrapper: DreamBooth
    prior: list[Image.Image]

    def steps(self, images: list[Image.Image]) -> Iterator[minti.TrainingState]:
        """The steps of the run."""
        return dreambooth(self.wrapper, images, self.prior, self.checkpoint, optimizer_of(self.args.optimizer))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The model with the LoRA."""
        with self.wrapper.adapter.attached(self.wrapper.model):
            yield

    @property
    def improved(self) -> bool:
        """Whether there was a step: the last one's values are the result, as in every trainer of DreamBooth."""
        return self.wrapper.trainer is not None and self.wrapper.trainer.completed > 0

    @property
    def results(self) -> list[str]:
        """What it writes."""
        if self.wrapper.lora is None:
            return ["model"]
        return ["lora.safetensors", *(["learned_embeds.safetensors"] if self.wrapper.word else [])]

    def save(self) -> None:
        """The LoRA and the word that goes with it, or the model as a folder; an older folder is put aside."""
        if distributed.rank() > 0 or not self.improved:
            return
        if self.wrapper.lora is None:
            self.begin()
            new = self.folder / "model-new"
            shutil.rmtree(new, ignore_errors=True)  # of a run that was killed while it wrote this
            self.wrapper.model.save_pretrained(new)
            put_aside([self.folder / "model"])
            new.rename(self.folder / "model")
            return
        self.begin_results()
        minti.save_lora(self.wrapper.lora, self.folder / "lora.safetensors")
        if self.wrapper.word:
            minti.save_embeddings(self.wrapper.word, self.folder / "learned_embeds.safetensors")

    def summary(self) -> str:
        """What was learned, in a sentence."""
        trainer, monitor = self.wrapper.trainer, self.wrapper.trainer.monitor
        numbers = sum(weight.numel() for weight in self.wrapper.adapter.trainable())
        rate, learned = self.wrapper.learning_rate, self.wrapper.subject if self.wrapper.named else "from the captions"
        higher = f"; it is higher now: try a lower learning rate (it is {rate:g})"
        return (
            f"learned {learned} in {trainer.completed} steps with {numbers:,} parameters; validation loss "
            f"{monitor.losses[-1]:.4f} (before {monitor.losses[0]:.4f}, empty prompt {monitor.empty_loss:.4f})"
            + (higher if monitor.losses[-1] > monitor.losses[0] else "")
        )


def optimizer_of(name: str) -> Callable[..., torch.optim.Optimizer]:
    """What makes the optimizer of that name. Raises OSError: its library is not there."""
    if name == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise OSError(f"--optimizer {name} needs a library ({one_line(error)}): pip install bitsandbytes") from None
    return AdamW8bit


def tune(learning: Tuning, images: list[Image.Image], prior: list[Image.Image]) -> Tuning:
    """Runs it to its end, with class images, and saves the result."""
    learning.prior = prior
    if learning.wrapper.lora is None:  # a whole network's checkpoint is enough, and large
        learning.keep, learning.saves_early = 1, False
    learning.run(images)
    learning.save()
    say(learning.summary())
    return learning
