"""Options that `minti.sample` had in version 0.1, by what takes their place; to go with version 0.3."""

import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from inspect import signature
from typing import Any

from minti.editing.image_to_image import ImageToImage
from minti.guidance.conditions import Conditions
from minti.model import StableDiffusion
from minti.sampling import sample, sample_steps

CONDITIONS = {"also": "extra_prompts", "guidance_interval": "interval", "refresh_every": "refresh_every"}
NEW = {old: f"cfg=Conditions(model, {new}=...)" for old, new in CONDITIONS.items()}
NEW |= dict.fromkeys(("init_latents", "strength", "mask"), "begin=ImageToImage(init_latents, strength, mask)")


def translated(model: StableDiffusion, options: dict[str, Any], cfg: Callable, begin: Callable) -> tuple[Any, Any]:
    """`cfg` and `begin` for `minti.sample`. Raises TypeError: an option that it never had; names the nearest. Or
    an old option beside the new one."""
    level = 4 if sys._getframe(2).f_code is sample_steps.__code__ else 3  # the line that called one of the two
    for name in options:
        if name not in NEW:
            known = [parameter for parameter in signature(sample).parameters if parameter != "deprecated"]
            near = [option for option in known if set(name.split("_")) <= set(option.split("_"))]
            near = near or get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"sample() got an unexpected keyword argument {name!r}{hint}")
        warnings.warn(f"{name} is {NEW[name]} now", DeprecationWarning, stacklevel=level)
    chosen = {new: options[old] for old, new in CONDITIONS.items() if old in options}
    image = {name: value for name, value in options.items() if name not in CONDITIONS}
    if image.get("init_latents") is None and image.get("mask") is not None:
        raise ValueError("a mask says which part of init_latents to sample anew; give both")
    first = ImageToImage(**({"init_latents": None} | image))  # which refuses a strength out of range
    for name, value, old in (("cfg", cfg, chosen), ("begin", begin, first.init_latents is not None)):
        if old and value is not signature(sample).parameters[name].default:
            raise TypeError(f"sample() got {name} and also {', '.join(options)}, which {name} has taken the place of")
    return Conditions(model, **chosen) if chosen else cfg, begin if first.init_latents is None else first
