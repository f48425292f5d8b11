"""Images and CLIP scores of tasks 3b and 3c of exercise E4: each template with each word, or with both."""

from support import html
from support.drawing import Artist
from support.pages import page
from support.subjects import Subject

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from minti.evaluation import clip_scores
from minti.evaluation.clip_scores import Clip, Score
from minti.evaluation.grids import grid


@dataclass
class Row:
    """A prompt, its images, and their scores.

    Attributes:
        template, subjects: the prompt with {}, and the words that take their places.
        pictures, initial: images sampled with the words, and with their initializer words instead.
        likeness, obedience: image alignment (CLIP-I), {word: score}, and text alignment (CLIP-T); empty without a CLIP.
        counts: what the toybox's classifier (its judge) found right.
        sentence: what follows from the numbers.
    """

    template: str
    subjects: list[Subject]
    pictures: list[Image.Image] = field(default_factory=list)
    initial: list[Image.Image] = field(default_factory=list)
    likeness: dict[str, Score] = field(default_factory=dict)
    obedience: Score | None = None
    counts: dict[str, int] = field(default_factory=dict)
    sentence: str = ""

    @property
    def prompt(self) -> str:
        """With the learned words."""
        return fill(self.template, [subject.word for subject in self.subjects])

    @property
    def initial_prompt(self) -> str:
        """With the initializer words."""
        return fill(self.template, [subject.initializer for subject in self.subjects])


def fill(template: str, words: Sequence[str]) -> str:
    """A template with a word in each {}; of one word for several places, the same in all."""
    for word in words:
        template = template.replace("{}", word, 1)
    return template.replace("{}", words[-1])


def plan(templates: Sequence[str], subjects: Sequence[Subject]) -> list[Row]:
    """Templates with one {} for each word, then those with two for both, if there are two.

    Raises:
        ValueError: a template with no {} or more than two; one word, and only templates for two.
    """
    for template in templates:
        if not 1 <= template.count("{}") <= 2:
            raise ValueError(
                f"the template {template!r} has {template.count('{}')} {{}}; write {{}} for one word, or two"
            )
    single = [template for template in templates if template.count("{}") == 1]
    double = [template for template in templates if template.count("{}") == 2] if len(subjects) == 2 else []
    if not single and not double:
        raise ValueError(
            f"the templates have two {{}} each, and {subjects[0].word} is the only word; give a second one, or a "
            "template with one {}"
        )
    rows = [Row(template, [subject]) for subject in subjects for template in single]
    return rows + [Row(template, list(subjects)) for template in double]


def draw(rows: Sequence[Row], artist: Artist, samples: int) -> None:
    """Samples all images; a prompt that several rows share is sampled once."""
    prompts = list(dict.fromkeys(prompt for row in rows for prompt in (row.prompt, row.initial_prompt)))
    pictures = artist.draw(prompts, samples)
    drawn = {prompt: pictures[i * samples : (i + 1) * samples] for i, prompt in enumerate(prompts)}
    for row in rows:
        row.pictures, row.initial = drawn[row.prompt], drawn[row.initial_prompt]


def measure(rows: Sequence[Row], clip: Clip | None, toybox: Any) -> None:
    """Scores and sentences; `toybox` is a `ToyMeasures` or None."""
    for row in rows:
        if clip is not None:
            drawn, initial = clip.images(row.pictures), clip.images(row.initial)
            training = {subject.word: clip.images(subject.pictures) for subject in row.subjects}
            row.likeness = {word: clip_scores.likeness(drawn, initial, each) for word, each in training.items()}
            text = clip.texts([clip_scores.without_words(row.template)])
            all_training = clip.images([picture for subject in row.subjects for picture in subject.pictures])
            row.obedience = clip_scores.obedience(drawn, initial, all_training, text)
            row.sentence = sentence(row.likeness, row.obedience, row.subjects[0].initializer)
        if toybox is not None and (judged := toybox.judge_row(row.pictures, row.prompt, row.subjects)):
            row.counts, row.sentence = judged


def snippet() -> str:
    """The source of what samples and measures."""
    return "\n\n".join(inspect.getsource(function) for function in (draw, measure))


def write_pictures(rows: Sequence[Row], folder: Path) -> Image.Image:
    """Writes every image to a file, and every row's as a grid; returns the labelled page, with training images."""
    for name in ("pictures", "grids"):
        (folder / name).mkdir(exist_ok=True)
    labelled = []
    for number, row in enumerate(rows):
        grid(row.pictures, columns=4).save(folder / "grids" / f"{number:02}.png")
        for i, picture in enumerate(row.pictures):
            picture.save(folder / "pictures" / f"{number:02}-{i:02}.png")
        tiles = [subject.tile(256) for subject in row.subjects]
        labelled.append((row.prompt, [*tiles, *[Image.new("RGB", (8, 8), "white")] * (2 - len(tiles)), *row.pictures]))
    return page(labelled)


def records(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The numbers, for a CSV file."""
    table = []
    for number, row in enumerate(rows):
        record: dict[str, object] = {"row": number, "prompt": row.prompt, "in_words": row.sentence}
        for i, (_, score) in enumerate(row.likeness.items()):
            record |= {f"likeness_{i}{end}": value for end, value in zip(("", "_floor", "_ceiling"), score)}
        if row.obedience:
            record |= {f"obedience{end}": value for end, value in zip(("", "_floor", "_ceiling"), row.obedience)}
        table.append(record | row.counts)
    return table


def cards(rows: Sequence[Row]) -> list[str]:
    """Each row as HTML: training images, sampled images, those with the initializer, scores, sentences."""
    cards = []
    for number, row in enumerate(rows):
        tiles = [html.image(s.tile(256), s.word, f"training images of {s.word}") for s in row.subjects]
        drawn = [html.image(p, "", f"{row.prompt}, {i}") for i, p in enumerate(row.pictures)]
        initial = [html.image(p, "", f"{row.initial_prompt}, {i}") for i, p in enumerate(row.initial)]
        known = row.subjects[0].initializer
        meters = [
            html.meter(f"image alignment with {word}", *score, (f"'{known}'", "training images"))
            for word, score in row.likeness.items()
        ]
        if row.obedience:
            meters.append(html.meter("text alignment", *row.obedience, ("training images", f"'{known}'")))
        cards.append(
            html.card(
                row.prompt,
                html.images([html.images(tiles, "first"), *drawn]),
                html.paragraph(f"{row.sentence[0].upper()}{row.sentence[1:]}.", "said") if row.sentence else "",
                f'<div class="meters">{"".join(meters)}</div>' if meters else "",
                html.paragraph(f"The same with '{known}':", "soft") + html.images(initial, "small"),
            )
        )
    return cards


def sentence(likenesses: dict[str, Score], obeyed: Score, initializer: str) -> str:
    """What the scores of a row say, in words.

    Args:
        likenesses: {word: its image alignment}, one or two of them.
        obeyed: the text alignment.
    """
    parts = []
    for word, score in likenesses.items():
        where = score.position
        if where is None:
            parts.append(f"whether it is {word} cannot be told, for '{initializer}' is as like")
        elif where >= 0.8:
            parts.append(f"{word} is there")
        elif where >= 0.35:
            parts.append(f"{word} is partly there ({100 * where:.0f} % of the way)")
        else:
            parts.append(f"{word} is hardly there ({100 * max(0.0, where):.0f} % of the way)")
    where = obeyed.position
    if where is None:
        parts.append("text alignment cannot be told")
    elif where >= 0.8:
        parts.append(f"the prompt is obeyed as with '{initializer}'")
    elif where >= 0.35:
        parts.append(f"the prompt is obeyed in part ({100 * where:.0f} % of '{initializer}')")
    else:
        parts.append(f"the prompt is hardly obeyed ({100 * max(0.0, where):.0f} % of '{initializer}')")
    return "; ".join(parts)
