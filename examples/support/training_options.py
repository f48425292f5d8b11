"""Command line options for the settings of a training run, with the types and defaults of the config's fields."""

from support.command_line import finite, whole

import argparse

from minti.personalization.config import PersonalizationConfig
from minti.personalization.fitting import FITS
from minti.prompts.syntax import SYNTAXES

HELP = {
    "steps": "exactly so many steps; default: early stopping by the validation loss, or the model's own number",
    "max_steps": "the most steps when --steps is not given",
    "batch_size": "images per forward pass; default: the model's own, 1 on SD v1.4, 8 on the toybox",
    "gradient_accumulation": "batches per step",
    "gradient_checkpointing": "less memory, more time: for small GPUs",
    "learning_rate": "default: 0.3 times the vocabulary's root mean square",
    "lr_schedule": "of the learning rate; cosine falls to zero at the last step",
    "warmup_steps": "steps of linear rise of the learning rate",
    "max_row_norm": "clip the vectors to so many times the vocabulary's mean norm",
    "row_norm": "keep the vectors at so many times the vocabulary's mean norm; default: free, or 1 with --directional",
    "directional": "learn the vectors' direction only (arXiv 2512.13672); best with --steps 150 --lr-schedule cosine",
    "kappa": "with --directional: how strongly it is drawn to the initializer's direction",
    "by_layer": "own vectors for each cross-attention of the UNet (XTI, arXiv 2303.09522)",
    "timestep_ranges": "own vectors for each of so many ranges of timesteps (ProSpect, arXiv 2305.16225)",
    "context_weight": "of the context loss (CoRe, arXiv 2408.15914), which keeps other words as they are; 0.01 is much",
    "context_prompts": "prompts of the context loss, with {} for the word; default: the model's prompts",
    "row_update": "train the new vectors, or E4's recipe",
    "prompt_weights": "how templates and captions write weights: (red:1.4) or red++; default: they have none",
    "fit": "images that are no squares: their centre; the whole, on a square where only they count; or the nearest of "
    "several shapes, with --batch-size 1",
    "huber": "Huber loss: errors beyond this size count linearly, not squared",
    "min_snr": "gamma of min-SNR weighting of the timesteps (arXiv 2303.09556); usually 5",
    "variational": "weight the timesteps as the variational bound does: mostly the cleanest",
}
CHOICES = {
    "prompt_weights": tuple(SYNTAXES),
    "lr_schedule": ("constant", "cosine"),
    "row_update": ("new_rows", "restore"),
    "fit": FITS,
}


def training_options(parser: argparse.ArgumentParser) -> None:
    """Adds them, stored under the names of the config's fields."""
    group = parser.add_argument_group("how to learn it")
    for name, text in HELP.items():
        field, option = PersonalizationConfig.__dataclass_fields__[name], f"--{name.replace('_', '-')}"
        if name in CHOICES:
            group.add_argument(option, choices=CHOICES[name], default=field.default, help=text)
        elif "Sequence" in str(field.type):
            group.add_argument(option, nargs="+", default=field.default, metavar="PROMPT", help=text)
        elif "bool" in str(field.type):
            group.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            kind = whole(0 if field.default == 0 else 1) if "int" in str(field.type) else finite
            group.add_argument(option, type=kind, default=field.default, metavar="N", help=text)
