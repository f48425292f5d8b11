"""The tables of the study of words: means over toys, paired differences, the best of several starts; and the page."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.fast


@pytest.fixture
def tables(monkeypatch):
    for folder in (EXAMPLES, EXAMPLES / "toybox"):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module("words_tables")


def word(way, toy, seed, right, validation=0.0):
    shares = dict.fromkeys(("alone", "in styles", "in company", "obeyed"), right)
    return {
        "way": way,
        "toy": toy,
        "seed": seed,
        "validation": validation,
        "length": 1.0,
        "steps": 10,
        "seconds": 2.0,
    } | shares


def test_differences_are_those_of_the_same_toys_and_seeds(tables):
    """Toy 0: 0.5 and 0.7 against 0.4 and 0.6, +0.1; toy 1: +0.3; a seed that only one way has does not count."""
    base = [word("a", 0, 0, 0.4), word("a", 0, 1, 0.6), word("a", 1, 0, 0.2), word("a", 1, 7, 1.0)]
    rows = [word("b", 0, 0, 0.5), word("b", 0, 1, 0.7), word("b", 1, 0, 0.5), word("b", 1, 8, 0.0)]
    mean, error = tables.difference(rows, base, "alone", tables.toy_of)
    assert mean == pytest.approx(0.2)
    assert error == pytest.approx(0.1)  # standard deviation 0.1 sqrt(2), over sqrt(2)


def test_the_best_of_several_starts_is_that_of_the_lowest_validation_loss(tables):
    """Of three seeds, all three pairs: the best are seeds 1, 0, 1; steps and seconds of both count."""
    rows = [word("a", 0, 0, 0.1, 0.2), word("a", 0, 1, 0.9, 0.1), word("a", 0, 2, 0.5, 0.3)]
    best = tables.best_of(rows, 2)
    assert [row["seed"] for row in best] == [1, 0, 1]
    assert {row["steps"] for row in best} == {20}
    assert {row["seconds"] for row in best} == {4.0}


def test_the_page_has_the_tables_of_the_stored_measures(tables):
    """`examples/words.md` against the CSV files beside the script: what the command prints, line by line."""
    page = (EXAMPLES / "words.md").read_text(encoding="utf-8")
    here = EXAMPLES / "toybox"
    words = tables.read(here / "words.csv")
    for table in (*tables.tables(words, tables.read(here / "word_pairs.csv")), tables.copies(words)):
        assert table in page


def test_copies_are_means_over_the_toys_that_were_asked(tables):
    """Toy 0 has two seeds, so 1/4 and 3/4 are one toy of 1/2; with toy 1's 1 the mean is 3/4, and its error 1/4."""
    own = [word("a", 0, 0, 0.0), word("a", 0, 1, 0.0), word("a", 1, 0, 0.0)]
    rows = [row | dict.fromkeys(tables.OWN, share) for row, share in zip(own, (0.25, 0.75, 1.0))]
    _, _, line = tables.copies([*rows, word("a", 2, 0, 0.0), word("b", 0, 0, 0.0)]).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["a", "3", *["75 ± 25"] * 3, "0.000 ± 0.000"]
