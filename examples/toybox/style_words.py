"""A style as a word, learned from five images of different toys: with the style templates, and with others.

    python examples/toybox/style_words.py

The lecture notes (`002` 16) name styles among what textual inversion learns, and the paper (arXiv 2208.01618, 4.2) has
other templates for them: "a painting in the style of {}" in place of "a photo of a {}". Each word is then asked for
toys that none of its images show. The judge says how often the style is right, the toy, and both.
"""

from study import Row, Study, mean_and_error, of, options, report
from support.command_line import run, whole

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean

import numpy as np

import minti
import world
from held_out import painted, random_scenes
from measure import Verdict, seen_of, verdicts

WORD = "<style>"
PLAIN, OF, IN = "a {0}", "a {1} of a {0}", "a {0} in the style of {1}"  # a toy and a style
# What a word is trained with: the model's own are an object's; the last have the form of the toybox's captions.
TEMPLATES = {
    "style templates": "style",
    "object templates": None,
    "captions": ("a {} of a toy",),
}


def shown(style: str, seed: int, count: int = 5) -> list[world.Scene]:
    """Images of one style, each of another toy."""
    scenes = random_scenes(20 * count, 71, seed, pair_rate=0)
    toys = list(dict.fromkeys(scene.toys for scene in scenes))
    return [replace(scene, toys=toy, style=style) for scene, toy in zip(scenes, toys[:count])]


def asked(count: int, known: set[world.Toy]) -> list[world.Toy]:
    """Toys that none of the training images show."""
    rng = np.random.default_rng(72)
    toys = dict.fromkeys(world.random_toy(rng) for _ in range(2 * count + len(known)))
    return [toy for toy in toys if toy not in known][:count]


def learned(study: Study, style: str, way: str, seed: int) -> minti.StableDiffusion:
    """A model with the word."""
    model, given = study.fresh(), {"placeholder_token": WORD, "initializer_token": "photo"}
    config = minti.TextualInversionConfig(**given, templates=TEMPLATES[way], seed=seed)
    word = minti.TrainingWrapper(model, config)
    for _ in minti.monitored(minti.textual_inversion(word, painted(shown(style, seed), 73, seed))):
        pass
    return model


def shares(seen: Sequence[Verdict], toys: Sequence[world.Toy], style: str) -> dict[str, float]:
    """Shares of images that have the style, all that can be seen of the toy in that style, and both."""
    styles = [verdict["style"] == style for verdict in seen]
    kept = [all(verdict[f"{k}_0"] == v for k, v in seen_of(toy, style).items()) for toy, verdict in zip(toys, seen)]
    return {"style": fmean(styles), "toy": fmean(kept), "both": fmean(map(min, styles, kept))}


def rows(study: Study) -> Iterator[Row]:
    """For each style and seed: a prompt without it, its name in both prompts, and each word in both."""
    args = study.args
    for style, seed in study.bar(list(product(args.styles, args.seeds)), "words"):
        scenes = shown(style, seed)
        toys, own = asked(args.count, {scene.toys[0] for scene in scenes}), world.STYLES[style][2:-3]
        study.show(style.replace(" ", "-"), "training images", painted(scenes, 73, seed))
        for way in ("nothing", "its name", *args.ways):
            model, name = (learned(study, style, way, seed), WORD) if way in TEMPLATES else (study.model, own)
            for prompt in (PLAIN,) if way == "nothing" else (OF, IN):
                pixels = study.sample([prompt.format(toy.looks, name) for toy in toys], model)
                label = {"word": way, "prompt": prompt.format("toy", "<s>" if way in TEMPLATES else "s")}
                study.show(style.replace(" ", "-"), ": ".join(label.values()), pixels[:8])
                found = shares(verdicts(study.judge, pixels), toys, style)
                yield label | {"style": style, "seed": seed} | {f"right {key}": x for key, x in found.items()}


def main() -> None:
    """The table over all styles and seeds, and a page for each style."""
    styles = [style for style in world.STYLES if style != "photo"]
    parser = options(__doc__, "outputs/style_words", TEMPLATES, count=(16, 1, "toys of each word and prompt"), steps=15)
    parser.add_argument("--styles", choices=styles, nargs="+", default=styles[:3], help="to learn")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0], help="of the learning, and of its images")
    parser.set_defaults(sampler="dpm-solver++", batch_size=16)
    study = Study(parser)
    found = [row | {"way": f"{row['word']}: {row['prompt']}"} for row in study.table("style_words", rows(study))]
    columns = {name: (".0%", of(f"right {name}", mean_and_error)) for name in ("style", "toy", "both")}
    print(report(found, "way", {"words": ("", len)} | columns))


if __name__ == "__main__":
    run(main)
