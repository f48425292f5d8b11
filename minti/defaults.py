"""What suits a model: read from a file beside its weights, or, where there is none, what suits SD v1."""

from dataclasses import dataclass

FILE = "defaults.json"


@dataclass(frozen=True)
class ModelDefaults:
    """The keys of a model folder's `defaults.json`, which only minti reads; the defaults are SD v1's.

    Attributes:
        half_precision: whether bfloat16 may be taken where a machine is fast at it; a model as small as the toybox is
            no faster.
        guidance_scale: for drawing.
        batch_size: pictures per forward pass in training.
        lora_learning_rate, network_learning_rate, tuning_steps, class_pictures: for DreamBooth.
        templates: training prompts: a name of `templates.TEMPLATES`, or prompts with `{}` where the word goes.
        prompts: what a new word is tried on, with `{}` where the word goes.
    """

    half_precision: bool = True
    guidance_scale: float = 7.5
    batch_size: int = 1
    lora_learning_rate: float = 1e-4
    network_learning_rate: float = 5e-6
    tuning_steps: int = 800
    class_pictures: int = 200
    templates: str | tuple[str, ...] = "object"
    prompts: tuple[str, ...] = (
        "a photo of a {} on the beach",
        "a comic book illustration of a {}",
        "a black and white photo of a {}",
        "an oil painting of a {} in a forest",
        "a photo of a {} next to a cup of coffee",
    )
