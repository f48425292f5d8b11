"""Trains a ControlNet for the toybox, with outlines as control images.

    python examples/toybox/train_controlnet.py --output outputs/controlnet

Every few steps it is evaluated on held-out toys; the results are printed, and written to progress.csv.
"""

import examples_on_path
from support.command_line import arguments, finite, load, make_output, run, whole
from support.learning import put_aside
from support.studies import write_table

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import minti
from data import draw_captions, draw_pictures, scene_of
from evaluate_controlnet import Trials
from measure import load_judge
from minti.adapters.controlnet import ControlNet
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import from_bytes, to_pil
from minti.textual_inversion import Batch, batch_loss
from minti.training import Trainer
from minti.vae import DiagonalGaussian
from outlines import hints, masks
from resumable import cosine

WRITTEN = ("diffusion_pytorch_model.safetensors", "config.json", "progress.csv")
DROP = 0.5  # fraction of prompts that are replaced by "": the control image must suffice (arXiv 2302.05543, 3.3)


class Outlined:
    """The training images, encoded to latents once, and their outlines as control images."""

    @torch.no_grad()
    def __init__(self, model: minti.StableDiffusion, count: int, size: int, quiet: bool | None):
        self.model, self.size = model, size
        parts = tqdm(draw_pictures(count).split(50), desc="encoding", disable=quiet)
        encoded = [model.encode(from_bytes(part)) for part in parts]
        self.mean = torch.cat([gaussian.mean for gaussian in encoded])  # n c h w
        self.logvar = torch.cat([gaussian.logvar for gaussian in encoded])
        self.hints = hints(masks([scene_of(i) for i in range(count)], [(2, i) for i in range(count)]))

    def draw(self, generator: torch.Generator) -> Batch:
        """A batch: scenes, new captions, timesteps and noise."""
        indices = torch.randint(len(self.mean), (self.size,), generator=generator)
        caption_seed = int(torch.randint(2**62, (), generator=generator))
        latents = self.model.scale(DiagonalGaussian(self.mean[indices], self.logvar[indices]).sample(generator))
        timesteps = torch.randint(self.model.scheduler.config.num_train_timesteps, (self.size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return Batch(latents, noise, timesteps, draw_captions(indices, caption_seed, DROP), indices.tolist())


def main() -> None:
    """Trains the ControlNet, evaluates it every few steps, and saves it."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/controlnet")
    parser.add_argument("--steps", type=whole(1), default=4000)
    parser.add_argument("--batch-size", type=whole(1), default=8)
    parser.add_argument("--learning-rate", type=finite, default=1e-3)
    parser.add_argument("--pictures", type=whole(1), default=8_000, help="number of training images")
    parser.add_argument("--look-every", type=whole(1), default=100, help="steps between two evaluations")
    parser.add_argument("--look-at", type=whole(1), default=16, help="images in each evaluation")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    data = Outlined(model, args.pictures, args.batch_size, True if args.quiet else None)
    generator = torch.Generator().manual_seed(args.seed)
    control = ControlNet.beside(model, generator)
    optimizer = torch.optim.AdamW(control.trainable(), lr=args.learning_rate, weight_decay=0.01)

    def loss(model: minti.StableDiffusion, batch: Batch) -> Tensor:
        control.hint = data.hints[batch.indices]
        return batch_loss(model, batch)

    rate = cosine(args.steps, warmup=100)
    trainer = Trainer(model, control, data.draw, loss, optimizer, args.steps, generator, rate, max_norm=1.0)
    trials, judge, losses, rows = Trials(args.look_at), load_judge(args.model), [], []
    for step in tqdm(trainer, total=args.steps, mininterval=10, disable=True if args.quiet else None):
        losses.append(step.loss)
        if trainer.number % args.look_every == 0 or trainer.number == args.steps:
            drawn = trials.draw(model, control, trials.prompts(), num_inference_steps=12, sampler="ddim")
            save_png(grid(to_pil(drawn), columns=8), folder / f"{trainer.number:05}.png")
            if not rows:
                put_aside(folder / name for name in WRITTEN)
            control.save(folder)
            rows.append({"step": trainer.number, "loss": np.mean(losses)} | trials.measure(judge, drawn))
            losses.clear()
            print(" ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
            write_table(folder / "progress.csv", rows)
    control.save(folder, torch.float16)
    print(f"wrote {folder}; examples/toybox/evaluate_controlnet.py --controlnet {folder} evaluates it")


if __name__ == "__main__":
    run(main)
