"""Files that are ControlNets: diffusers' folder or file, and the original's file."""

from pathlib import Path

import torch

from minti.checkpoints.configs import load_config
from minti.checkpoints.folder import NETWORK
from minti.checkpoints.single_file import controlnet_name, read_file
from minti.checkpoints.weights import build, fill
from minti.networks.controlnet import ControlNetConfig, ControlNetwork


def load_controlnet(
    source: Path, dtype: torch.dtype | None, device: torch.device, config: ControlNetConfig | None = None
) -> ControlNetwork:
    """The network of a ControlNet, frozen.

    Args:
        source: diffusers' folder, with config.json and diffusion_pytorch_model.safetensors, or that file in it; or a
            file with the original's names (`control_model.input_blocks...`, with or without `control_model.`).
        dtype: None keeps the file's.
        config: of an original file; SD v1's when absent.

    Raises FileNotFoundError, ValueError: missing, damaged, not finite, or of another architecture; names the file, and
    the key or tensor.
    """
    path = source / f"{NETWORK}.safetensors" if source.is_dir() else source
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a ControlNet is diffusers' folder, or the original's file")
    tensors, origin = read_file(path), path.with_name("config.json")
    original = not any(key.startswith("controlnet_") for key in tensors)
    config = (config or ControlNetConfig()) if original else load_config(ControlNetConfig, origin)
    network = build(lambda: ControlNetwork(config), path if original else origin)
    prefix = "control_model." if any(key.startswith("control_model.") for key in tensors) else ""

    def called(key: str) -> str:
        return prefix + controlnet_name(key, config) if original else key

    if original:
        tensors = {key: tensors[called(key)] for key in network.state_dict() if called(key) in tensors}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {called(key)} has numbers that are not finite; fetch the file again")
    return fill(network, tensors, path, dtype, device, called)
