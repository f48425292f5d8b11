"""A ControlNet inside a model: what it makes of a hint is added between the UNet's two halves (arXiv 2302.05543)."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minti.checkpoints.configs import load_config
from minti.checkpoints.folder import NETWORK
from minti.checkpoints.single_file import controlnet_name, read_file
from minti.checkpoints.weights import build, fill
from minti.machine.files import replacing
from minti.model import StableDiffusion
from minti.networks.controlnet import ControlNetConfig, ControlNetwork, copied
from minti.parts.part import Part


class ControlNet(Part):
    """What draws by a hint: an outline, edges, a pose, whatever it was trained with.

    Attributes:
        hint: (b, 3, H, W) in [0, 1], or one for all b pictures; guidance repeats it with them. None adds nothing.
        scale: what all that it adds is multiplied by.
    """

    name = "the ControlNet"

    def __init__(self, network: ControlNetwork, hint: Tensor | None = None, scale: float = 1.0):
        super().__init__()
        self.network, self.hint, self.scale = network, hint, scale
        self._answer: tuple[Tensor, list[Tensor]] | None = None
        self._longest: int | None = None

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Answers what the UNet is asked, between its two halves. Raises ValueError: it is for another model."""
        for key in ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"):
            own, other = getattr(self.network.config, key), getattr(model.unet.config, key)
            if own != other:
                raise ValueError(f"the ControlNet was made for a model with {key} = {own}; this one has {other}")
        self._longest = model.tokenizer.model_max_length  # what is behind the text is another part's
        yield model.unet.register_forward_pre_hook(self._look, with_kwargs=True).remove
        yield model.unet.up_blocks[0].register_forward_pre_hook(self._add).remove

    def _look(self, unet: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._answer = None if self.hint is None else self.answer(*args, **options)

    def _add(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._answer is None:
            return None
        (mid, down), self._answer = self._answer, None
        x, skips, *condition = inputs
        skips[:] = [skip + self.scale * added.to(skip.dtype) for skip, added in zip(skips, down)]
        return x + self.scale * mid.to(x.dtype), skips, *condition

    def answer(self, noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the network makes of the hint and of all that the UNet gets, in its own dtype.

        Raises ValueError: the hint is of another size than the pictures.
        """
        pictures, (height, width) = len(noisy_latents), (self.network.factor * n for n in noisy_latents.shape[-2:])
        if self.hint.shape[1:] != (3, height, width) or pictures % len(self.hint):
            shape = tuple(self.hint.shape)
            raise ValueError(f"the hint has shape {shape}; the pictures need (b or 1, 3, {height}, {width})")
        weight = self.network.conv_in.weight
        hint = self.hint.to(weight).repeat(pictures // len(self.hint), 1, 1, 1)
        return self.network(noisy_latents.to(weight), timesteps, context[:, : self._longest].to(weight), hint)

    @classmethod
    def beside(cls, model: StableDiffusion, generator: torch.Generator) -> "ControlNet":
        """One that is yet to learn, in float32: with it inside, a model draws bit for bit what it draws alone."""
        return cls(copied(model.unet, model.vae.config.factor, generator))

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], model: StableDiffusion, sizes: ControlNetConfig | None = None
    ) -> "ControlNet":
        """A frozen one, with a model's dtype and device: diffusers' folder, the file in it, or the original's file.

        `sizes`: of an original file, which brings no config along; SD v1's when absent.

        Raises OSError, ValueError: missing, damaged, not finite, or of another architecture; names file and key.
        """
        path = Path(source) / f"{NETWORK}.safetensors" if Path(source).is_dir() else Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a ControlNet is diffusers' folder, or the original's file")
        tensors, origin, called = read_file(path), path.with_name("config.json"), str
        if any(key.startswith("controlnet_") for key in tensors):
            config = load_config(ControlNetConfig, origin)
        else:
            config, origin = sizes or ControlNetConfig(), path
            prefix = "control_model." if any(key.startswith("control_model.") for key in tensors) else ""
            called = lambda key: prefix + controlnet_name(key, config)  # noqa: E731
        network = build(lambda: ControlNetwork(config), origin)
        if called is not str:  # much else may be in the file, such as a whole SD v1
            tensors = {key: tensors[called(key)] for key in network.state_dict() if called(key) in tensors}
        fill(network, tensors, path, model.dtype, model.device, called)
        if wrong := [called(key) for key, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
            raise ValueError(f"{path}: {wrong[0]} has numbers that are not finite; fetch the file again")
        return cls(network)

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
        """Writes a folder that `from_pretrained` and diffusers' `ControlNetModel` read. Raises OSError."""
        tensors = {key: tensor.detach().to(dtype).contiguous() for key, tensor in self.network.state_dict().items()}
        config = {"_class_name": "ControlNetModel"} | asdict(self.network.config)
        for key in ("sample_size", "out_channels", "up_block_types"):  # the right half's
            del config[key]
        with replacing(Path(folder) / f"{NETWORK}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        with replacing(Path(folder) / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")
