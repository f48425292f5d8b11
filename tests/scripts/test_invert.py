"""`sample.py --invert`, DDIM inversion: the source prompt gives the image again."""

import importlib
import sys
from pathlib import Path

import minti

EXAMPLES = Path(__file__).parents[2] / "examples"
TOY = EXAMPLES / "concepts" / "white-cross-blue-spot" / "0.png"
SHOWN = "a photo of a small white cross with a blue spot on a teal background"


def test_the_source_prompt_gives_the_image_again(monkeypatch):
    """On the bundled model, in 20 steps and without guidance: within four grey levels, beside what the VAE changes."""
    monkeypatch.syspath_prepend(EXAMPLES)
    script, given = (importlib.import_module(name) for name in ("sample", "support.given"))
    monkeypatch.setattr(sys, "argv", ["sample", "a toy", "--invert", str(TOY), "--source", SHOWN, "--steps", "20"])
    args, model = script.parse(), minti.StableDiffusion.from_pretrained()
    options = given.Edit(args, model).options
    drawing = {"sampler": args.sampler, "num_inference_steps": args.steps, "guidance_scale": 1, "output": "pixels"}
    back = minti.sample(model, SHOWN, **drawing, **options)
    image = model.decode(options["begin"].init_latents)
    assert 127.5 * (back - image).abs().mean() < 4
