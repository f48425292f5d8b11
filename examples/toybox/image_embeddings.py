"""Image embeddings as prompts: interpolation, and the difference of two texts added to one (DALL-E 2; `001`).

    python examples/toybox/image_embeddings.py        (two minutes; writes to outputs/image_embeddings/)

The IP-Adapter samples from the CLIP embedding of an image; with a fixed noise, only the embedding changes. First it
goes on the great circle from one image's to another's; then towards the difference of two texts' embeddings, from "a
photo of a red toy" to "a photo of a green toy". The judge says what the samples show.
"""

from study import Row, Study, options
from support.command_line import run, whole

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import minti
from interpolate import slerp
from measure import verdicts
from minti.adapters.ip_adapter import load_ip_adapter
from minti.formats.image_files import open_image
from minti.images import to_pil

CONCEPTS = Path(__file__).parents[1] / "concepts"


def text_difference(image: Tensor, before: Tensor, after: Tensor, share: float) -> Tensor:
    """An image's embedding on its way to the normalised difference of two texts', all of length one: (b, d) (arXiv
    2204.06125, 3.3)."""
    return slerp(image, F.normalize(after - before, dim=-1), share)


def rows(study: Study) -> Iterator[Row]:
    """Both sequences: what the judge sees in the sample of each share."""
    args, model = study.args, study.model
    folder = Path(args.model) / "ip_adapter" / "ip_adapter.safetensors"
    adapter = load_ip_adapter(model, folder, args.ip_scale)
    images = [open_image(path) for path in args.images]
    with torch.no_grad():
        one, other = study.clip.images(images).split(1)
        before, after = study.clip.texts(args.texts).split(1)
        negative = adapter.prompted(model.encode_prompt(""))
    shares = torch.linspace(0, 1, args.count).tolist()
    # A difference of texts says little about an image: half way, hardly anything of the image would be left.
    ways = {"interpolation": [slerp(one, other, share) for share in shares]} | {
        "text difference": [text_difference(one, before, after, 0.6 * share) for share in shares]
    }
    context, generator = model.encode_prompt([args.prompt]), torch.Generator().manual_seed(args.seed)
    size = model.unet.config.sample_size
    noise = torch.randn(1, model.unet.config.in_channels, size, size, generator=generator)
    study.show("image_embeddings", "both images", images)
    with adapter.attached(model):
        for way, embeddings in ways.items():
            prompts = torch.cat([adapter.prompted(context, one) for one in embeddings])
            how = {"latents": noise.expand(len(prompts), -1, -1, -1).to(model.device), "negative_prompt": negative}
            how |= {"num_inference_steps": args.steps, "sampler": "ddim", "guidance_scale": args.guidance_scale}
            pixels = minti.sample(model, prompts, output="pixels", **how)
            study.show("image_embeddings", way, to_pil(pixels))
            for share, seen, embedding in zip(shares, verdicts(study.judge, pixels), embeddings):
                found = (seen[head] for head in ("main_0", "shape_0"))
                own = study.clip.images(to_pil(pixels))[shares.index(share)]
                yield {"way": way, "share": share, "seen": " ".join(found), "cosine": float((own * embedding[0]).sum())}


def main() -> None:
    """The table and the page."""
    parser = options(__doc__, "outputs/image_embeddings", count=(7, 2, "samples from one end to the other"), steps=20)
    default = [CONCEPTS / name / "0.png" for name in ("red-cross-green-side", "blue-heart-green-side")]
    parser.add_argument("--images", type=Path, nargs=2, default=default, help="two images", metavar="IMAGE")
    texts = ["a photo of a red toy", "a photo of a green toy"]
    parser.add_argument("--texts", nargs=2, default=texts, metavar="TEXT", help="whose difference is added")
    parser.add_argument("--prompt", default="a photo of a toy", help="beside the image")
    parser.add_argument("--ip-scale", type=whole(0), default=1, help="weight of the image")
    study = Study(parser)
    study.table("image_embeddings", rows(study), {"way": "", "share": ".2f", "seen": "", "cosine": ".2f"})
    print(f"wrote {study.folder}")


if __name__ == "__main__":
    run(main)
