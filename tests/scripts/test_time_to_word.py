"""How soon a word is there: the clock and the count of `time_to_word.py`, and what the two sides hand to the judge."""

from study import report

import argparse
import math
import time
from itertools import islice

import pytest
import torch

import minti
import world
from time_to_word import COLUMNS, WORD, by_minti, by_recipe, follow


def learning(steps, taken=None):
    """A run whose model is the number of steps so far; each takes a moment."""
    for step in range(steps + 1):
        time.sleep(0.002)
        if taken is not None:
            taken.append(step)
        yield lambda step=step: step


def right_from(step):
    return lambda model: 14 + model % 3 if model >= step else 13


def test_a_word_is_there_at_the_first_look_that_finds_14_of_16():
    row = follow(learning(100), right_from(43), every=20, go_on=True)
    assert row["steps to the word"] == 60
    assert row["steps in all"] == 100
    assert row["right"] == 14 + 100 % 3
    assert 0.002 * 60 < row["seconds to the word"] < row["seconds in all"]


def test_what_has_no_end_of_its_own_ends_when_the_word_is_there():
    taken = []
    row = follow(learning(100, taken), right_from(43), every=20, go_on=False)
    assert taken[-1] == row["steps in all"] == row["steps to the word"] == 60
    assert row["seconds in all"] == row["seconds to the word"]


def test_a_word_that_never_comes_takes_for_ever():
    row = follow(learning(50), right_from(51), every=20, go_on=False)
    assert row["steps to the word"] == row["seconds to the word"] == math.inf
    assert (row["steps in all"], row["right"]) == (50, 13)


def test_the_clock_stands_still_while_the_judge_looks_on():
    def slow(model):
        time.sleep(0.5)
        return 0

    assert follow(learning(8), slow, every=2, go_on=True)["seconds in all"] < 0.5


def test_the_median_counts_what_never_came():
    came = {
        "steps to the word": 40,
        "seconds to the word": 2.0,
        "steps in all": 100,
        "seconds in all": 5.0,
        "right": 16,
    }
    never = came | {"steps to the word": math.inf, "seconds to the word": math.inf, "right": 8}
    rows = [{"way": "one"} | row for row in (came, never, came)] + [
        {"way": "two"} | row for row in (never, never, came)
    ]
    _, _, one, two = report(rows, "way", COLUMNS).splitlines()
    assert one == "| one | 2 of 3 | 40 | 2.0 | 100 | 5.0 | 2 of 3 | 83 |"
    assert two == "| two | 1 of 3 | inf | inf | 100 | 5.0 | 1 of 3 | 67 |"


@pytest.mark.parametrize("way", [by_minti, by_recipe])
def test_the_judge_sees_the_word_as_it_is_now_and_nothing_else_has_changed(way):
    args = argparse.Namespace(model=str(minti.TOYBOX), device="cpu", dtype="float32", quiet=True, guidance_scale=5.0)
    before = minti.StableDiffusion.from_pretrained().text_encoder.get_input_embeddings().weight
    rows = []
    for model in islice(way(args, world.HELD_OUT[0], 0), 1, 4):
        known = model()
        after = known.text_encoder.get_input_embeddings().weight
        assert torch.equal(after[:-1], before)
        assert known.tokenizer.convert_tokens_to_ids(WORD) == len(before)
        rows.append(after[-1].detach().clone())
    toy = before[known.tokenizer.convert_tokens_to_ids("toy</w>")]
    distances = [(row - toy).norm() for row in rows]
    assert 0 < distances[0] < distances[1] < distances[2]
