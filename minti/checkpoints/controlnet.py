"""Files that are ControlNets: diffusers' folder or file, and the original's file."""

from pathlib import Path

import torch

from minti.checkpoints.configs import load_config
from minti.checkpoints.folder import NETWORK
from minti.checkpoints.single_file import controlnet_name, read_file
from minti.checkpoints.weights import build, fill
from minti.networks.controlnet import ControlNetConfig, ControlNetwork


def load_controlnet(
    source: Path, dtype: torch.dtype | None, device: torch.device, sizes: ControlNetConfig | None = None
) -> ControlNetwork:
    """A ControlNet, frozen: diffusers' folder, the file in it, or a file with the original's names.

    `dtype`: None keeps the file's. `sizes`: of an original file, which brings no config along; SD v1's when absent.

    Raises OSError, ValueError: missing, damaged, not finite, or of another architecture; names the file, and the key.
    """
    path = source / f"{NETWORK}.safetensors" if source.is_dir() else source
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
    if wrong := [called(key) for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path}: {wrong[0]} has numbers that are not finite; fetch the file again")
    return fill(network, tensors, path, dtype, device, called)
