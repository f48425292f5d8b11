"""Times a training step of an IP-Adapter at SD v1.4's size, beside diffusers' attention processors.

    python examples/benchmark_ip_adapter.py --rounds 3

Both have the same random weights, in one copy, and learn from the same batch, in turns and in one process, so that they
share the machine's moods. Needs diffusers (`pip install -e '.[test]'`) and some 8 GB of memory in float32.
"""

from __future__ import annotations

from support.command_line import DTYPES, run, whole
from support.host_memory import keep_freed_memory

import argparse
import statistics
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from minti.adapters.ip_adapter import IPAdapter
from minti.scheduler import NoiseScheduler
from minti.textual_inversion import diffusion_loss
from minti.training import Trainer
from minti.unet import UNet, UNetConfig

CLIP_DIM = 1024  # of h94/IP-Adapter's picture tower


class Ours:
    """The part, the loop."""

    def __init__(self, unet: UNet, batch: dict[str, Tensor]):
        self.unet, self.scheduler = unet, NoiseScheduler()
        self.device, self.dtype, self.batch = torch.device("cpu"), batch["latents"].dtype, batch
        self.tokenizer = SimpleNamespace(model_max_length=batch["context"].shape[1])
        self.adapter = IPAdapter.beside(self, CLIP_DIM, torch.Generator().manual_seed(0)).to(self.dtype)
        optimizer = torch.optim.AdamW(self.adapter.trainable(), lr=1e-4)
        loop = Trainer(self, self.adapter, lambda _: batch, self.loss, optimizer, 10**6, torch.Generator())
        self.steps = iter(loop)

    def loss(self, model: object, batch: dict[str, Tensor]) -> Tensor:
        context = self.adapter.prompted(batch["context"], batch["seen"])
        return diffusion_loss(self, batch["latents"], batch["timesteps"], context, batch["noise"])

    def step(self) -> float:
        return next(self.steps).loss


class Theirs:
    """diffusers' processors, in a loop as its examples have it."""

    def __init__(self, ours: Ours):
        import diffusers

        with torch.device("meta"):
            self.unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        self.unet.load_state_dict(ours.unet.state_dict(), assign=True)
        halves: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for key, value in ours.adapter.state_dict().items():
            half, rest = key.split(".", 1)
            halves[half][rest] = value.clone()
        self.unet.requires_grad_(False)
        self.unet._load_ip_adapter_weights([halves])
        processors = [p for name, p in self.unet.attn_processors.items() if "attn2" in name]
        weights = [w for p in (*processors, self.unet.encoder_hid_proj) for w in p.parameters()]
        for weight in weights:
            weight.requires_grad_(True)
        self.optimizer, self.batch = torch.optim.AdamW(weights, lr=1e-4), ours.batch
        self.noising = diffusers.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        )

    def step(self) -> float:
        batch = SimpleNamespace(**self.batch)
        noisy = self.noising.add_noise(batch.latents, batch.noise, batch.timesteps)
        added = {"image_embeds": [batch.seen[:, None]]}
        predicted = self.unet(noisy, batch.timesteps, batch.context, added_cond_kwargs=added).sample
        loss = F.mse_loss(predicted.float(), batch.noise.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def main() -> None:
    """In turns; the median of each, and of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--size", type=whole(8), default=512, help="of the pictures, in pixels")
    parser.add_argument("--dtype", choices=[name for name in DTYPES if name != "auto"], default="float32")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    dtype, side = DTYPES[args.dtype], args.size // 8
    unet = UNet(UNetConfig()).to(dtype).requires_grad_(False)
    batch = {
        "latents": torch.randn(1, 4, side, side, dtype=dtype),
        "noise": torch.randn(1, 4, side, side, dtype=dtype),
        "context": torch.randn(1, 77, 768, dtype=dtype),
        "seen": torch.randn(1, CLIP_DIM, dtype=dtype),
        "timesteps": torch.tensor([500]),
    }
    ours = Ours(unet, batch)
    rivals = {"minti": ours, "diffusers": Theirs(ours)}
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(args.rounds + 1):  # the first is a warm-up
        for name in list(rivals) if turn % 2 else reversed(rivals):
            begin = time.perf_counter()
            loss = rivals[name].step()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
            print(f"{name}: loss {loss:.7f}, {time.perf_counter() - begin:.2f} s", flush=True)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(theirs / mine for mine, theirs in zip(seconds["minti"], seconds["diffusers"]))
    print(f"a step: minti {middle['minti']:.2f} s, diffusers {middle['diffusers']:.2f} s; {ratio:.2f} times as fast")


if __name__ == "__main__":
    run(main)
