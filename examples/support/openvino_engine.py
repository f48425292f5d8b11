"""The UNet computed by OpenVINO: the same weights and the same call, converted and compiled for each shape it meets."""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import minti
from minti.adapter import Adapter
from minti.layers import Attention, timestep_embedding
from minti.speed.packed import Prepared
from minti.unet import UNet


class AfterSines(nn.Module):
    """The UNet behind the sines and cosines of the timesteps, (b, c_0), which are given."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet

    def forward(self, noisy_latents: Tensor, features: Tensor, context: Tensor) -> Tensor:
        time_emb = self.unet.time_embedding(features)
        x, skips = self.unet.left(noisy_latents, time_emb, context)
        return self.unet.right(x, skips, time_emb, context)


class OpenVINO(Adapter):
    """Computes a UNet as it is when this is attached: later changes of it are not seen, and there is no gradient.

    A bfloat16 UNet is compiled with bfloat16 as its precision, one of float32 with float32; threads are torch's.

    Attributes: seconds: what conversion and compilation have taken so far.
    Raises ValueError: the package is missing, the device is no CPU, or another adapter is attached to the UNet.
    """

    name = "OpenVINO"

    def __init__(self) -> None:
        super().__init__()
        try:
            import openvino
        except ImportError:
            raise ValueError("OpenVINO is not installed; pip install openvino") from None
        self.openvino, self.seconds = openvino, {"conversion": 0.0, "compilation": 0.0}

    def hooks(self, model: minti.StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Stands in for the UNet's `forward`."""
        unet, compiled = model.unet, {}
        if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"OpenVINO is for float32 or bfloat16 on the cpu; the model is {model.dtype} on {model.device}"
            )
        if changed(unet):
            others = "LoRA, ControlNet, IP-Adapter, vector table, DeepCache, --fast or guidance by attention"
            raise ValueError(f"OpenVINO computes the UNet as the file has it; leave out other adapters: {others}")

        def forward(noisy_latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
            if noisy_latents.requires_grad:
                raise ValueError("OpenVINO gives no gradient; leave out what guides by one, or --engine openvino")
            config = unet.config
            # In bfloat16 OpenVINO would round the timesteps, and 999 is 1000 there: so their sines are torch's.
            features = timestep_embedding(
                timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
            )
            inputs = noisy_latents.float(), features, context.float()
            shapes = tuple(x.shape for x in inputs)
            if shapes not in compiled:
                compiled[shapes] = self.compiled(unet, inputs)
            return torch.from_numpy(compiled[shapes]([x.numpy() for x in inputs])[0]).to(noisy_latents.dtype)

        unet.forward = forward
        yield lambda: delattr(unet, "forward")

    @torch.no_grad()
    def compiled(self, unet: UNet, inputs: tuple[Tensor, ...]) -> Callable[[list], Any]:
        """For inputs of these shapes, (b, c, h, w), (b, c_0) and (b, n, d), in float32."""
        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[unet.conv_in.weight.dtype]
        begin = time.perf_counter()
        alone = AfterSines(unet if precision == "f32" else copy.deepcopy(unet).float())  # of which a trace is plain
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # branches by shape and dtype, which are settled here
            traced = torch.jit.trace(alone, inputs, check_trace=False)
        network = self.openvino.convert_model(traced, example_input=inputs, input=[list(x.shape) for x in inputs])
        converted = time.perf_counter()
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        result = self.openvino.Core().compile_model(network, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
        self.seconds["conversion"] += converted - begin
        self.seconds["compilation"] += time.perf_counter() - converted
        return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who computes the UNet."""
    engine_help = "who computes the UNet; openvino (pip install openvino) on a CPU, and without adapters of the UNet"
    parser.add_argument("--engine", choices=("torch", "openvino"), default="torch", help=engine_help)


def engine(args: argparse.Namespace, model: minti.StableDiffusion) -> AbstractContextManager[None]:
    """A context in which the model's UNet is computed by what the command line names."""
    return OpenVINO().attached(model) if args.engine == "openvino" else nullcontext()


def changed(unet: UNet) -> bool:
    """Whether an adapter is attached: in place of a layer's forward, before, behind or in an attention."""
    return "forward" in vars(unet) or any(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or isinstance(vars(layer).get("forward"), Prepared)
        or (isinstance(layer, Attention) and (layer.around or layer.after))
        for layer in unet.modules()
    )
