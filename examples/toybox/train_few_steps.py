"""Distils the toybox: LoRAs with which it samples in four, two or one unguided evaluations of its UNet.

    python examples/toybox/train_few_steps.py --output outputs/few-steps

The teacher, guided, samples trajectories from noise to images. A student learns to take four DDIM steps along them
(progressive distillation, arXiv 2202.00512, over more than one halving at once). It then samples trajectories itself,
many more in the same time, from which the students of two steps and of one learn. What a student has changed is written
as a LoRA, the singular vectors of each layer's difference, which learns a little more to make up for what was cut off.
This needs prompts only, no images. An interrupted run goes on from the checkpoints in --output.
"""

import examples_on_path
from support.command_line import arguments, finite, load, make_output, run, whole

import argparse
import copy
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import minti
import world
from minti.adapter import Adapter
from minti.adapters.lora import LoRA, Pair, layers_of, weight_shape
from minti.adapters.network import Network
from minti.distillation.consistency import consistency
from minti.distillation.progressive import step_loss
from minti.distillation.teacher import Batch, guided
from minti.runs.files import replacing
from minti.samplers.few_step import TCD
from minti.training import Trainer
from resumable import resumable

TEACHER_STEPS, STOPS = 8, 4  # the teacher's steps; every second of their ends is kept


class Round(NamedTuple):
    """A student: its optimizer steps, c of its loss, the rank of its LoRA, and what optimizer steps that takes."""

    length: int
    huber: float
    rank: int
    healing: int


ROUNDS = {4: Round(1200, 0.0, 32, 0), 2: Round(900, 0.0, 16, 250), 1: Round(1000, 0.1, 16, 250)}  # by their steps
SETTINGS = ("trajectories", "batch_size", "learning_rate", "seed", "scale")
CONSISTENCY = Round(400, 1e-3, 32, 0)


class Matrices(Network):
    """Full fine-tuning but for biases and norms, so that a LoRA can say all that has changed."""

    def trainable(self) -> list[nn.Parameter]:
        """The weights of linear layers and convolutions."""
        return [weight for weight in super().trainable() if weight.ndim > 1]


class Trajectories:
    """What students learn from: latents at the stops of four steps and the image, (n, 5, c, h, w), and contexts."""

    def __init__(self, model: minti.StableDiffusion):
        size = model.latents_shape(0)[1:]
        self.latents, self.context = torch.zeros(0, STOPS + 1, *size), torch.zeros(0, 0, 0)
        self.timesteps = torch.tensor([*(stop.timestep for stop in TCD().stops(model.scheduler, STOPS)[:-1]), 0])

    def extend(self, latents: Tensor, context: Tensor) -> None:
        """Adds trajectories."""
        self.latents = torch.cat([self.latents, latents.float()])
        self.context = torch.cat([self.context, context]) if len(self.context) else context

    def batch(self, size: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Random steps of a student of so many: z_t and z_u (b, c, h, w), t and u (b,), contexts."""
        stride = STOPS // steps
        image = torch.randint(len(self.latents), (size,), generator=generator)
        start = torch.randint(steps, (size,), generator=generator) * stride
        pair = self.latents[image, start], self.latents[image, start + stride]
        return *pair, self.timesteps[start], self.timesteps[start + stride], self.context[image]


def training_prompts(count: int, seed: int) -> list[str]:
    """Half of them captions as in training, half toys with all that can be seen of them."""
    rng = np.random.default_rng((51, seed))

    def prompt() -> str:
        if rng.random() < 0.5:
            return world.caption(world.random_scene(rng), rng)
        looks = world.random_toy(rng).looks
        return f"a photo of a {looks}" if rng.random() < 0.7 else f"a {looks}"

    return [prompt() for _ in range(count)]


def autocast(model: minti.StableDiffusion) -> torch.autocast:
    """bfloat16 where it is safe."""
    return torch.autocast(model.device.type, torch.bfloat16)


@torch.no_grad()
def sampled(
    model: minti.StableDiffusion, path: Path, count: int, steps: int, scale: float, seed: int, quiet: bool
) -> tuple[Tensor, Tensor]:
    """Trajectories of DDIM and their contexts, in float16; kept in a file."""
    if not path.exists():
        prompts, latents, contexts = training_prompts(count, seed), [], []
        every, generator = steps // STOPS, torch.Generator().manual_seed(seed)
        for i in tqdm(range(0, count, 32), path.stem, disable=True if quiet else None, mininterval=30):
            context = model.encode_prompt(prompts[i : i + 32])
            noise = torch.randn(model.latents_shape(len(context)), generator=generator)
            options = {"sampler": TCD(gamma=0), "latents": noise, "output": "steps"}
            with autocast(model), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the teacher is guided, and TCD without noise is DDIM
                run = [noise, *(step.latents for step in minti.sample(model, context, "", steps, scale, **options))]
            latents.append(torch.stack(run[::every], 1).half())
            contexts.append(context.half())
        with replacing(path) as temporary:
            torch.save({"latents": torch.cat(latents), "context": torch.cat(contexts)}, temporary)
    kept = torch.load(path, weights_only=True)
    return kept["latents"], kept["context"].float()


def trainer_of(
    model: minti.StableDiffusion, adapter: Adapter, data: Trajectories, steps: int, args: argparse.Namespace
) -> Trainer:
    """A round: a student of so many steps, as the network's weights or as a LoRA."""
    whole, (length, huber, _, healing) = isinstance(adapter, Matrices), ROUNDS[steps]
    length = max(1, int(args.length * (length if whole else healing)))

    def loss(model: minti.StableDiffusion, batch: tuple[Tensor, ...]) -> Tensor:
        z, end, t, u, context = batch
        # For so few tokens, plain matrix products are twice as fast, as in `stages`.
        with autocast(model), sdpa_kernel(SDPBackend.MATH):
            return step_loss(model, z, end, t, u, context, huber)

    def rate(taken: int) -> float:
        return min(1, (taken + 1) / 40) * (1 - taken / length)

    model.freeze()
    generator, speed = torch.Generator().manual_seed(args.seed + steps), args.learning_rate * (1 if whole else 2)
    optimizer = torch.optim.AdamW(adapter.trainable(), speed, (0.9, 0.99), weight_decay=0.0, fused=True)
    draw = lambda generator: data.batch(args.batch_size, steps, generator)  # noqa: E731
    return Trainer(model, adapter, draw, loss, optimizer, length, generator, rate, max_norm=1.0)


def difference(model: minti.StableDiffusion, before: dict[str, Tensor], rank: int) -> LoRA:
    """The LoRA of that rank nearest to what has changed in the weights since: W - W_0 = U S V^T, cut at the rank."""
    pairs = {}
    for path, layer in layers_of(model).items():
        network, name = path.split(".", 1)
        if network == "unet":
            change = (layer.weight.detach() - before[f"{name}.weight"]).flatten(1)  # d_out (d_in k k)
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            r = min(rank, len(s))
            up, down = u[:, :r] * s[:r].sqrt(), s[:r, None].sqrt() * v[:r]
            pairs[path] = Pair(down.view(r, *weight_shape(layer)[1:]), up, r)
    return LoRA(model, pairs=pairs)


def consistency_trainer(model: minti.StableDiffusion, data: Trajectories, args: argparse.Namespace) -> Trainer:
    """Latent consistency distillation, from the guided model, on the images in which the trajectories end."""
    teacher = guided(copy.deepcopy(model.unet).requires_grad_(False), model.encode_prompt("").detach(), args.scale)
    if (path := args.output / f"student-{STOPS}.pt").exists():  # begins as the student of four steps
        adapter = Matrices(model)
        adapter.load_state_dict(torch.load(path, weights_only=True)["state"]["adapter"])

    def images(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(data.latents), (args.batch_size,), generator=generator)
        return data.latents[chosen, -1], data.context[chosen]

    length, generator = max(1, int(CONSISTENCY.length * args.length)), torch.Generator().manual_seed(args.seed)
    how = {
        "steps": length,
        "learning_rate": args.learning_rate,
        "solver_steps": args.solver_steps,
        "huber": CONSISTENCY.huber,
    }
    trainer = consistency(model, teacher, Matrices(model), images, generator=generator, **how)
    trainer.rate = lambda taken: 1 - taken / length
    loss = trainer.loss

    def cast(model: minti.StableDiffusion, batch: Batch) -> Tensor:
        with autocast(model), sdpa_kernel(SDPBackend.MATH):
            return loss(model, batch)

    trainer.loss = cast
    return trainer


def run_through(trainer: Trainer, path: Path, args: argparse.Namespace) -> None:
    """Takes the steps that are left."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    for smooth in resumable(trainer, path, settings, path.stem, args.quiet or None):
        if trainer.number % 100 == 0:
            print(f"{path.stem}: step {trainer.number} of {trainer.steps}, loss {smooth:.4f}", flush=True)


def train(model: minti.StableDiffusion, folder: Path, args: argparse.Namespace) -> None:
    """All rounds, each from the student before it; or the consistency model."""
    weights = lambda: {name: weight.clone() for name, weight in model.unet.state_dict().items()}  # noqa: E731
    before, data = weights(), Trajectories(model)
    data.extend(
        *sampled(model, folder / "teacher.pt", args.trajectories, TEACHER_STEPS, args.scale, args.seed, args.quiet)
    )
    for name in ROUNDS if args.method == "progressive" else ["consistency"]:
        whole = Matrices(model)
        trainer = consistency_trainer(model, data, args) if name == "consistency" else None
        run_through(trainer or trainer_of(model, whole, data, name, args), folder / f"student-{name}.pt", args)
        chosen = ROUNDS.get(name, CONSISTENCY)
        student, lora = weights(), difference(model, before, args.rank or chosen.rank)
        if chosen.healing:  # the LoRA learns a little more, to make up for what was cut off
            model.unet.load_state_dict(before)
            run_through(trainer_of(model, lora, data, name, args), folder / f"lora-{name}.pt", args)
        minti.save_lora(lora.half(), folder / f"lora-{name}.safetensors")
        print(f"wrote {folder}/lora-{name}.safetensors", flush=True)
        model.unet.load_state_dict(student)
        if name == STOPS:
            count = 2 * args.trajectories
            data.extend(*sampled(model, folder / "student.pt", count, STOPS, 1.0, args.seed + 1, args.quiet))


def main() -> None:
    """Trains the students of four steps, two and one."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/few-steps")
    method_help = "consistency: a model for any number of LCM's steps, from the student of four if it is in --output"
    parser.add_argument("--method", choices=("progressive", "consistency"), default="progressive", help=method_help)
    parser.add_argument("--solver-steps", type=whole(1), default=50, help="of the consistency model's teacher")
    count_help = "trajectories of the teacher; twice as many of the student"
    parser.add_argument("--trajectories", type=whole(1), default=4000, help=count_help)
    parser.add_argument("--batch-size", type=whole(1), default=32)
    parser.add_argument("--learning-rate", type=finite, default=3e-4)
    parser.add_argument("--rank", type=whole(1), help="of the LoRAs; default: 32 for four steps, 16 for fewer")
    parser.add_argument("--length", type=finite, default=1.0, help="fraction of the training steps, for a trial run")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    args.scale = args.guidance_scale
    train(model, folder, args)


if __name__ == "__main__":
    run(main)
