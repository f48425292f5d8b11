"""Ways of learning a word that also listens to the rest of its prompt, over twelve held-out toys and five seeds.

    python examples/toybox/compare_words.py                                   # hours; what is there is not redone
    python examples/toybox/compare_words.py --ways default directional --toys 0 1 --seeds 0
    python examples/toybox/words_tables.py --words outputs/words/words.csv --pairs outputs/words/word_pairs.csv

Writes a line for each word and each pair as they come. Several processes can share a folder. Seconds are the
processor's, on one thread.
"""

from study import Study, options
from support.command_line import run, whole
from support.studies import write_table

import json
import statistics
import time
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import minti
import world
from data import write_json
from draw_concepts import concept_scenes
from held_out import painted, pixels_of, random_scenes
from measure import tally, tally_rates, verdicts
from minti.embeddings import read_embeddings, write_embeddings
from minti.images import to_pil
from minti.personalization.together import learn_together
from minti.runs.monitor import ValidationSet
from minti.textual_inversion import TrainingImages, batch_loss

WORD, CLASS = "<concept>", "toy"
HEART = world.Toy("heart", "spot", "white", "red")
ALONE, PAIR, PLACED = (
    "a photo of a {}",
    "a photo of a {} next to a {}",
    "a photo of a {} on the left on a navy background",
)
OWN = ("background", "place", "size")
STYLES = ("a cartoon of a {}", "a pixel art picture of a {}")
# None of these is measured.
CONTEXT = (
    "a {} next to a red star",
    "a picture of a {} next to a small cyan ring with a black stripe",
    "a sketch of a {} on the right on a teal background",
    "a {} at the bottom on a sand background",
)


@dataclass(frozen=True)
class Way:
    """Settings of `minti.TextualInversionConfig`; `rescaled`: the length that another way's vectors get afterwards,
    in mean lengths of the vocabulary; `images`: how many the word is learned from."""

    settings: dict[str, Any] = field(default_factory=dict)
    of: str = ""
    rescaled: float = 0.0
    images: int = 5


TURNED = {"directional": True, "steps": 150, "lr_schedule": "cosine"}
NEAR = {"context_weight": 0.01, "context_prompts": CONTEXT}
WAYS = {
    "default": Way(),
    "directional": Way(TURNED),
    "directional, twice as long": Way(TURNED | {"row_norm": 2.0}),
    "directional, context loss": Way(TURNED | NEAR),
    "directional, weak context loss": Way(TURNED | NEAR | {"context_weight": 0.001}),
    "context loss": Way(NEAR),
    "two vectors": Way({"num_vectors": 2}),
    "two vectors, directional": Way(TURNED | {"num_vectors": 2}),
    "together": Way(),
    "length kept": Way({"row_norm": 1.0}),
    "length at most 2": Way({"max_row_norm": 2.0}),
}
WAYS |= {f"{count} image{'s' * (count > 1)}": Way(images=count) for count in (1, 2, 3, 10)}
WAYS |= {f"default, length {length:g}": Way(of="default", rescaled=length) for length in (0.5, 1, 1.5, 2, 3, 6, 9)}


def shown(toy: int, seed: int, count: int) -> list[int]:
    """The images that a word is learned from, of the toy's five, or of ten: they begin at another for each toy."""
    return sorted((toy + seed + i) % max(count, 5) for i in range(count))


class Words(Study):
    """A word of each way, toy and seed, as a file; and what the judge says of its images."""

    def path(self, way: str, toy: int, seed: int, end: str = ".json") -> Path:
        """The file of a run."""
        return self.folder / f"toy-{toy}-seed-{seed}-{way.replace(', ', '-').replace(' ', '-')}{end}"

    def learned(self, model: minti.StableDiffusion, way: str, toy: int, seed: int) -> dict[str, float]:
        """Adds the word to the model and writes its file; what learning it took."""
        spec, begin = WAYS[way], time.process_time()
        if spec.of:
            rows = next(iter(read_embeddings(self.path(spec.of, toy, seed, ".safetensors")).values()))
            unit = minti.TrainingWrapper(model, minti.TextualInversionConfig()).vocabulary_norm
            rows = torch.nn.functional.normalize(rows, dim=1) * spec.rescaled * unit
            model.add_word(WORD, rows)
            write_embeddings(self.path(way, toy, seed, ".safetensors"), {WORD: rows})
            return {"steps": 0, "length": spec.rescaled, "seconds": 0.0}
        config = minti.TextualInversionConfig(
            placeholder_token=WORD, initializer_token=CLASS, seed=seed, **spec.settings
        )
        word = minti.TrainingWrapper(model, config)
        pixels = pixels_of(world.HELD_OUT[toy], max(spec.images, 5))[shown(toy, seed, spec.images)]
        for state in minti.monitored(minti.textual_inversion(word, pixels)):
            pass
        minti.save_embeddings(word, self.path(way, toy, seed, ".safetensors"))
        length = word.embedding.values.norm(dim=1).mean().item() / word.vocabulary_norm
        return {"steps": state.step, "length": length, "seconds": time.process_time() - begin}

    def draw(self, model: minti.StableDiffusion, prompt: str, count: int, steps: int = 15) -> list[Image.Image]:
        """Samples, whose noise is the same for every way."""
        return to_pil(self.sample([prompt] * count, model, num_inference_steps=steps))

    def right(self, model: minti.StableDiffusion, prompt: str, toys: list[world.Toy], count: int) -> float:
        """The share of samples in which the judge sees everything of the first of the toys."""
        return tally_rates(self.judge, self.draw(model, prompt, count), prompt, toys)[1]["all"]

    def one(self, way: str, toy: int, seed: int) -> dict[str, float]:
        """Learns a word and measures it. `validation`: the loss on 128 draws that are the same for all of a toy;
        `own ...`: shares of images that have the background, place or size of the one image, where there is but one."""
        model, shape = self.fresh(), world.HELD_OUT[toy]
        found = self.learned(model, way, toy, seed)
        alone, only = self.draw(model, ALONE.format(WORD), 8), concept_scenes(shape)[shown(toy, seed, 1)[0]]
        seen = verdicts(self.judge, alone)
        own = {f"own {name}": statistics.mean(verdict[name] == getattr(only, name) for verdict in seen) for name in OWN}
        placed = self.draw(model, PLACED.format(WORD), 8)
        data = TrainingImages(model, pixels_of(shape))
        validation = ValidationSet(data, 128, torch.Generator().manual_seed(1_000))
        prompts = [template.replace("{}", WORD) for template in model.defaults.templates]
        return {
            **found,
            "validation": validation.mean(partial(batch_loss, model), prompts, 16),
            "alone": tally_rates(self.judge, alone, ALONE, [shape])[1]["all"],
            "in styles": statistics.mean(self.right(model, style.format(WORD), [shape], 8) for style in STYLES),
            "in company": self.right(model, PAIR.format(WORD, HEART.looks), [shape, HEART], 8),
            "obeyed": tally_rates(self.judge, placed, PLACED, [shape])[0]["all"],
            **own,
        }

    def pair(self, way: str, a: int, b: int, seed: int) -> dict[str, float]:
        """Two learned words in one prompt: the shares in which both are right, and one of them."""
        model, toys = self.fresh(), [world.HELD_OUT[a], world.HELD_OUT[b]]
        for name, i in (("<first>", a), ("<second>", b)):
            minti.load_embeddings(model, self.path(way, i, seed, ".safetensors"), name)
        return self.both(model, toys)

    def both(self, model: minti.StableDiffusion, toys: list[world.Toy]) -> dict[str, float]:
        """The shares in which both of the words are right, and one of them."""
        prompt = PAIR.format("<first>", "<second>")
        each = [tally(self.judge, [picture], PAIR, toys)[1:] for picture in self.draw(model, prompt, 4, 20)]
        both = statistics.mean(first["all"] and second["all"] for first, second in each)
        return {"both": both, "one": statistics.mean(kept["all"] for pair in each for kept in pair)}

    def together(self, way: str, a: int, b: int, seed: int) -> dict[str, float]:
        """Two words learned together, from the images of each and five that show both; then as `pair`."""
        model, toys = self.fresh(), [world.HELD_OUT[a], world.HELD_OUT[b]]
        names = ("<first>", "<second>")
        scenes = random_scenes(5, 11, toys=tuple(toys))
        photos = [replace(scene, style="photo") for scene in scenes]
        images = torch.cat([*map(pixels_of, toys), painted(photos, 12)])
        captions = [ALONE.format(name) for name in names for _ in range(5)] + [PAIR.format(*names)] * 5
        given = {"initializer_token": CLASS, "seed": seed} | TURNED | {"steps": 300}
        words = [
            minti.TrainingWrapper(model, minti.TextualInversionConfig(placeholder_token=name, **given))
            for name in names
        ]
        for _ in learn_together(words, images, captions):
            pass
        for i, word in zip((a, b), words):
            minti.save_embeddings(word, self.path(way, a, seed, f"-with-{b}-toy-{i}.safetensors"))
        return self.both(model, toys)

    def keep(self, path: Path, measures: Any, **names: Any) -> None:
        """The measures of a run as a file, unless it is there."""
        if not path.is_file():
            write_json(path, names | measures())

    def write_tables(self) -> None:
        """All runs of the folder, by their ways: words.csv and word_pairs.csv."""
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("*.json")]
        rows.sort(
            key=lambda row: (
                list(WAYS).index(row["way"]),
                row["seed"],
                row.get("toy", 0),
                row.get("a", 0),
                row.get("b", 0),
            )
        )
        write_table(self.folder / "words.csv", [row for row in rows if "toy" in row])
        write_table(self.folder / "word_pairs.csv", [row for row in rows if "a" in row])


def main() -> None:
    """Every way for every toy and seed, then pairs of them."""
    parser = options(__doc__, "outputs/words", WAYS)
    parser.add_argument("--toys", type=whole(0, 11), nargs="+", default=list(range(12)), help="which held-out toys")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2, 3, 4], help="of the learning")
    parser.add_argument("--every", type=whole(1), default=3, help="every so many-th pair")
    parser.set_defaults(sampler="dpm-solver++", steps=15)
    study = Words(parser, shared=True)
    args = study.args
    for way in set(args.ways) - {"together"}:
        for seed in args.seeds:
            for toy in args.toys:
                names = {"way": way, "toy": toy, "seed": seed}
                study.keep(study.path(way, toy, seed), partial(study.one, **names), **names)
    for way in args.ways:
        for seed in args.seeds:
            for a, b in list(combinations(args.toys, 2))[:: args.every]:
                names = {"way": way, "a": a, "b": b, "seed": seed}
                path = study.path(way, a, seed, f"-with-{b}.json")
                study.keep(path, partial(study.together if way == "together" else study.pair, **names), **names)
    study.write_tables()


if __name__ == "__main__":
    run(main)
