"""Keys and values of the prompt, kept over a sampling run: a "KV cache" for diffusion, and what it saves.

    python examples/kv_cache.py                       # the toybox
    python examples/kv_cache.py --model SD_V1_4       # hardly more

A language model keeps the keys and values of the tokens before; a diffusion model's prompt is the same at every
timestep, so those of its cross-attentions could be computed once. Prints whether the images are the same bit for bit,
which share of the UNet's multiplications it saves, and the processor's seconds with and without it, in turns.
"""

from support.command_line import arguments, generators, load, make_output, run, whole
from support.pages import page

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import minti
from minti.adapter import Adapter
from minti.adapters.ip_adapter import cross_attentions
from minti.images import to_pil
from minti.speed.packed import replaced


class KVCache(Adapter):
    """Computes `to_k` and `to_v` of every cross-attention once for each context, (b, m, d), and keeps them."""

    name = "the KV cache"

    def hooks(self, model: minti.StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces their `forward`."""
        for attention in cross_attentions(model.unet):
            for layer in (attention.to_k, attention.to_v):
                yield replaced(layer, Kept(layer))


class Kept:
    """A layer's last output, given again for the same input."""

    def __init__(self, layer: nn.Linear):
        self.forward, self.input, self.output = layer.forward, torch.empty(0), torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or self.output.requires_grad):
            return self.forward(x)  # a prompt that learns is another one at every step
        if not torch.equal(self.input, x):
            self.input, self.output = x.clone(), self.forward(x)
        return self.output


def multiplications(model: minti.StableDiffusion, context: Tensor) -> dict[str, int]:
    """Of one evaluation of the UNet: in all its layers, and in those that see nothing but the prompt."""
    found, handles = {"all": 0, "prompt": 0}, []
    prompt = {id(layer) for attention in cross_attentions(model.unet) for layer in (attention.to_k, attention.to_v)}

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        number = output.numel() * layer.weight[0].numel()  # each output is a sum of so many products
        found["all"] += number
        found["prompt"] += number if id(layer) in prompt else 0

    for layer in model.unet.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            handles.append(layer.register_forward_hook(count))
    latents = torch.zeros(model.latents_shape(len(context)), device=model.device, dtype=model.dtype)
    model.unet(latents, torch.zeros(len(context), device=model.device), context)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def main() -> None:
    """The same run with and without it."""
    parser = arguments(__doc__.split("\n\n")[0], "outputs/kv-cache")
    parser.add_argument("--prompt", default="a photo of a red star", help="what is sampled")
    parser.add_argument("--steps", type=whole(1), default=20, help="DDIM steps")
    parser.add_argument("--rounds", type=whole(1), default=5, help="runs of each, in turns")
    args = parser.parse_args()
    folder = make_output(args.output)
    model, seconds, images = load(args), {"without": [], "with": []}, {}
    options = {"num_inference_steps": args.steps, "sampler": "ddim", "output": "latents"}
    options |= {"guidance_scale": args.guidance_scale}
    for _ in range(args.rounds):
        for way in seconds:
            begin = time.process_time()
            if way == "with":
                with KVCache().attached(model):
                    images[way] = minti.sample(model, args.prompt, generator=generators(args.seed, 1)[0], **options)
            else:
                images[way] = minti.sample(model, args.prompt, generator=generators(args.seed, 1)[0], **options)
            seconds[way].append(time.process_time() - begin)
    pixels = model.decode(torch.cat(list(images.values())))
    page([("without, with", to_pil(pixels))], size=128).save(folder / "kv_cache.png")
    print(f"bit for bit the same: {torch.equal(*images.values())}")
    of = multiplications(model, model.encode_prompt([args.prompt]))
    share = of["prompt"] / of["all"]
    print(f"multiplications in the layers of an evaluation: {of['all']:,}; for keys and values {of['prompt']:,}")
    print(f"kept over {args.steps} steps it saves {100 * share * (1 - 1 / args.steps):.2f} % of them")
    print(f"seconds: {median(seconds['without']):.2f} without it, {median(seconds['with']):.2f} with it")


if __name__ == "__main__":
    run(main)
