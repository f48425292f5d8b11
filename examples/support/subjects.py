"""The words that are evaluated: learned on the spot or read from files, each with its training pictures."""

from support.curves import write_losses
from support.drawing import Artist
from support.given import tell_of_crops
from support.learning import put_aside

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

import minti
from minti.embeddings import read_embeddings
from minti.evaluation.grids import grid
from minti.formats.image_files import open_folder
from minti.personalization.vocabulary import known_ids

NAMED = re.compile(r"(.*)=(<[^<>=]+>)")


@dataclass
class Subject:
    """A word to evaluate.

    Attributes:
        word: its placeholder.
        initializer: the known word or phrase that says roughly what it is.
        folder: where its training pictures are.
        pictures: these.
        growth: (step, pictures) along the training, at fixed noise; empty for a word that was read from a file.
        summary: how it came to be, in a sentence.
    """

    word: str
    initializer: str
    folder: Path
    pictures: list[Image.Image]
    growth: list[tuple[int, list[Image.Image]]] = field(default_factory=list)
    summary: str = ""

    def tile(self, size: int) -> Image.Image:
        """Four of the training pictures as one, size x size."""
        quarter = (size - 2) // 2
        chosen = [ImageOps.fit(picture, (quarter, quarter)) for picture in (self.pictures * 4)[:4]]
        return grid(chosen, columns=2).resize((size, size), Image.Resampling.NEAREST)


def named(text: str) -> tuple[Path, str | None]:
    """ "FILE=<name>" as (FILE, "<name>"); without a name, (FILE, None)."""
    match = NAMED.fullmatch(text)
    return (Path(match[1]), match[2]) if match else (Path(text), None)


def open_subjects(args: argparse.Namespace, model: minti.StableDiffusion, concepts: Path) -> list[Subject]:
    """The words with their pictures, those of files in the model, all before anything is learned or drawn.

    Raises:
        ValueError, OSError: a folder without pictures, two words of one name, an initializer that is no word, a word
            of another model.
    """
    folders = [named(text) for text in args.images] or [(concepts / name, None) for name in args.concept]
    names = [name or default for (_, name), default in zip(folders, ("<first>", "<second>"))]
    files = [named(text) for text in args.embedding]
    if files or args.known:
        names = [*(name or _only_word(path) for path, name in files), *args.known]
    initializers = (args.initializer * 2)[: len(folders)] if len(args.initializer) == 1 else args.initializer
    if len(set(names)) < len(names):
        raise ValueError(f"both words are called {names[0]}; name one: --embedding FILE='<name>'")
    for initializer in initializers:
        known_ids(model, initializer)
    subjects = [
        Subject(name, initializer, folder, open_folder(folder))
        for name, initializer, (folder, _) in zip(names, initializers, folders)
    ]
    for subject in subjects:
        tell_of_crops(subject.folder, subject.pictures, "crop", model)
    for subject, (path, _) in zip(subjects, files):
        minti.load_embeddings(model, path, placeholder=subject.word)
        subject.summary = f"{subject.word} was read from {path.name}."
    for subject in subjects[len(files) :] if args.known else ():
        subject.summary = f"{subject.word} is what the model calls it."
    return subjects


def _only_word(path: Path) -> str:
    words = list(read_embeddings(path))
    if len(words) != 1:
        raise ValueError(
            f"{path} holds {len(words)} words ({', '.join(words)}); evaluate one that is in a file of its own"
        )
    return words[0]


def learn(args: argparse.Namespace, artist: Artist, subject: Subject, folder: Path) -> None:
    """Learns one word, with pictures along the way; writes the word and its losses."""
    config = minti.TextualInversionConfig(
        placeholder_token=subject.word,
        initializer_token=subject.initializer,
        num_vectors=args.vectors,
        steps=args.learning_steps,
        seed=args.seed,
    )
    wrapper, states, due = minti.TrainingWrapper(artist.model, config), [], 10
    prompt = "a photo of a {}"
    subject.growth = [(0, artist.draw([prompt.replace("{}", subject.initializer)], 2))]
    for state in tqdm(
        minti.monitored(minti.textual_inversion(wrapper, subject.pictures)),
        f"learning {subject.word}",
        disable=artist.quiet,
    ):
        states.append(state)
        if state.step == due and "learning" in args.sections:
            subject.growth.append((state.step, artist.draw([prompt.replace("{}", subject.word)], 2)))
            due *= 2
    subject.growth.append((state.step, artist.draw([prompt.replace("{}", subject.word)], 2)))
    folder.mkdir(exist_ok=True)
    put_aside(folder / name for name in ("learned_embeds.safetensors", "losses.csv"))
    minti.save_embeddings(wrapper, folder / "learned_embeds.safetensors")
    write_losses(folder / "losses.csv", states)
    best = min((state.validation_loss for state in states if state.validation_loss is not None), default=None)
    subject.summary = f"{subject.word} was learned from {len(subject.pictures)} images in {state.step} steps" + (
        f"; validation loss {best:.4f}, with '{subject.initializer}' {states[0].initializer_loss:.4f}."
        if best is not None
        else "."
    )
