"""Trains a tiny decoder for the toybox: TAESD's architecture, distilled from the VAE's decoder.

    python examples/toybox/train_tiny_decoder.py --output outputs/tiny_decoder
    python examples/toybox/train_tiny_decoder.py --only-look       # evaluates the bundled one

Prints what it loses on unseen images, beside the VAE's own decoder: PSNR, and accuracy as classified by the judge.
"""

from study import accuracies
from support.command_line import arguments, finite, load, make_output, run, whole

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import minti
from data import draw_pictures
from evaluate_toybox import SCENE, truth
from held_out import painted, random_scenes
from measure import TOY, load_judge, rates, verdicts
from minti.adapters.tiny_decoder import TinyConfig, TinyDecoder, TinyVAE
from minti.evaluation.grids import grid
from minti.formats.image_files import save_png
from minti.images import from_bytes, to_pil
from resumable import train_stage


@torch.no_grad()
def encoded(model: minti.StableDiffusion, count: int) -> Tensor:
    """Scaled latents of training images, (n, c, h, w): one draw for each."""
    generator = torch.Generator().manual_seed(0)
    parts = tqdm(draw_pictures(count).split(50), desc="encoding", mininterval=10)
    return torch.cat([model.scale(model.encode(from_bytes(part)).sample(generator)) for part in parts])


def distillation_loss(model: minti.StableDiffusion, decoder: TinyDecoder, latents: Tensor, size: int):
    """The loss of a step: how far its images are from the VAE's, of a batch whose second half is noisy as the latents
    on the way of a sampler are: previews show them, too."""

    def loss(step: int, generator: torch.Generator) -> Tensor:
        clean = latents[torch.randint(len(latents), (size,), generator=generator)]
        t = torch.randint(model.scheduler.config.num_train_timesteps, (size,), generator=generator)
        noisy = model.scheduler.add_noise(clean, torch.randn(clean.shape, generator=generator), t)
        given = torch.cat([clean[: size // 2], noisy[size // 2 :]])
        with torch.no_grad():
            target = model.decode(given)
        decoded = decoder(given)
        return F.l1_loss(decoded, target) + F.mse_loss(decoded, target)

    return loss


def psnr(images: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over the images: 10 log10(2² / MSE), of values in [-1, 1]."""
    error = (images.clamp(-1, 1) - target.clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item()


@torch.no_grad()
def look(model: minti.StableDiffusion, tiny: TinyVAE, source: str, count: int, folder: Path) -> None:
    """Prints what both decoders make of the same latents of unseen images, and saves a page of some."""
    scenes, judge = random_scenes(count, 0, 9), load_judge(source)
    pixels, truths = painted(scenes, 0, 10), [truth(judge, scene) for scene in scenes]
    latents = torch.cat([model.scale(model.encode(part).mean) for part in pixels.split(50)])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    def decoded(given: Tensor) -> tuple[Tensor, float]:
        begin = time.thread_time()
        images = torch.cat([model.decode(part) for part in given.split(50)])
        return images, 1000 * (time.thread_time() - begin) / count

    noisy = {t: model.scheduler.add_noise(latents, noise, t) for t in (200, 500, 800)}
    theirs, full = decoded(latents)
    their_noisy = {t: decoded(given)[0] for t, given in noisy.items()}
    with tiny.attached(model):
        ours, less = decoded(latents)
        near = {f"t = {t}": psnr(decoded(given)[0], their_noisy[t]) for t, given in noisy.items()}
    found = {"true images": pixels, "the VAE's decoder": theirs, "the tiny decoder": ours}
    print(accuracies({name: rates(zip(verdicts(judge, x), truths)) for name, x in found.items()}, (*TOY, *SCENE)))
    print(f"PSNR: the VAE {psnr(theirs, pixels):.1f} dB, the tiny decoder {psnr(ours, pixels):.1f} dB, ", end="")
    print(f"from the VAE's images {psnr(ours, theirs):.1f} dB, of noisy latents", end=" ")
    print(", ".join(f"{value:.1f} at {t}" for t, value in near.items()))
    print(f"{full:.2f} and {less:.2f} ms an image; {sum(p.numel() for p in tiny.parameters()):,} parameters")
    save_png(grid(to_pil(torch.cat([x[:8] for x in found.values()])), columns=8), folder / "decoded.png")


def main() -> None:
    """Encodes the training images, trains, saves and evaluates the decoder."""
    parser = arguments(__doc__.split("\n\n")[0], output="outputs/tiny_decoder")
    parser.add_argument("--steps", type=whole(1), default=1500)
    parser.add_argument("--batch-size", type=whole(2), default=16)
    parser.add_argument("--learning-rate", type=finite, default=2e-3)
    parser.add_argument("--channels", type=whole(1), default=32, help="TAESD has 64")
    parser.add_argument("--pictures", type=whole(1), default=2500, help="number of training images")
    parser.add_argument("--look-at", type=whole(1), default=960, help="number of unseen images for the evaluation")
    parser.add_argument("--only-look", action="store_true", help="evaluate the bundled decoder, train none")
    args = parser.parse_args()
    folder, model = make_output(args.output), load(args)
    model.freeze()
    if args.only_look:
        look(model, TinyVAE.from_pretrained(Path(args.model) / "tiny_decoder", model), args.model, args.look_at, folder)
        return
    sizes = model.vae.config
    levels = len(sizes.block_out_channels)
    blocks = (*[3] * (levels - 1), 1)
    torch.manual_seed(args.seed)
    config = TinyConfig(
        latent_channels=sizes.latent_channels,
        block_out_channels=(args.channels,) * levels,
        num_decoder_blocks=blocks,
    )
    decoder, latents = TinyDecoder(config), encoded(model, args.pictures)
    loss = distillation_loss(model, decoder, latents, args.batch_size)
    train_stage("training", folder, decoder, loss, args.steps, args.learning_rate, ema_decay=0.99)
    TinyVAE(decoder).save(folder, torch.float16)
    look(model, TinyVAE.from_pretrained(folder, model), args.model, args.look_at, folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    run(main)
