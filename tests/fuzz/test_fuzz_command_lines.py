"""Command lines of the scripts: any text in place of any option, and numbers from minus to plus infinity."""

from __future__ import annotations

from support import command_line

import dataclasses
import io
import math
import signal
import sys
import warnings
from pathlib import Path

import pytest
from fuzzing import NUMBERS, TEXT, check_message, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st

import sample
import train
from minti.personalization.dreambooth import DreamBoothConfig
from minti.textual_inversion import TextualInversionConfig

NAMES = """
    seed vectors steps max-steps batch-size gradient-accumulation warmup-steps checkpoint-every columns sample-steps
    validate-every num-images height width guidance-scale learning-rate max-row-norm strength weight model output images
    concept placeholder initializer templates lr-schedule row-update prompts embedding sampler negative-prompt
    init-image mask and where device dtype eta variance karras extra-prompt extra-prompt-weight extra-prompt-mask
"""
FLAGS = ["--flip", "--resume", "--quiet", "--gradient-checkpointing", "--he", "--s", "--", "-x", "@file", ""]
SPECIAL = ["nan", "inf", "-inf", "", " ", "1e3", "0x10", "١٢", "1_000", "1\n", "-0", "1e400", "1" + "0" * 5000]
VALUES = st.one_of(
    NUMBERS.map(str), st.sampled_from([*SPECIAL, "a {}", "cosine", "style", "ddim", "float16", "cat", "0.5"]), TEXT
)
OPTIONS = st.tuples(st.sampled_from(NAMES.split()), VALUES).flatmap(
    lambda pair: st.sampled_from(([f"--{pair[0]}", pair[1]], [f"--{pair[0]}={pair[1]}"], [f"--{pair[0]}"]))
)
ALONE = st.one_of(st.sampled_from(FLAGS), VALUES).map(lambda word: [word])
LINES = st.lists(st.one_of(OPTIONS, ALONE), max_size=5).map(lambda parts: [word for part in parts for word in part])


def parsed(script, arguments, monkeypatch, capsys):
    """What the script's parser makes of the arguments; None where it refuses them, in one line."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
    try:
        return script.parse()
    except SystemExit as stop:
        out, err = capsys.readouterr()
        if stop.code == 0:  # --help
            assert out
            return None
        assert stop.code == 2
        (error,) = err.removesuffix("\n").split("\n")
        assert error.startswith("error: ")
        assert err.endswith("\n")
        check_message(ValueError(error))
        return None


def finite(value) -> bool:
    return all(map(finite, value)) if isinstance(value, list) else not isinstance(value, float) or math.isfinite(value)


@inputs(8)
@given(LINES)
@example(["--seed", "\n5x"])
@example(["--seed", "\n-5"])
@example(["--max-row-norm", "0"])
@example(["--learning-rate", "-1"])
@example(["--lr-schedule", "cosine"])
@example(["--what\never"])
@example(["--prompts", "\udc80"])
@example(["--steps", "1" + "0" * 5000])
@example(["--concept", "\x1b[31m"])
def test_a_command_line_of_train_becomes_settings_or_one_line(monkeypatch, capsys, arguments):
    args = parsed(train, arguments, monkeypatch, capsys)
    if args is not None:
        assert all(map(finite, vars(args).values()))
        with refusal():
            config = train.configured(args, TextualInversionConfig if args.with_word else DreamBoothConfig)
            assert dataclasses.asdict(config)["seed"] == args.seed


@inputs(8)
@given(LINES)
@example(["a", "--strength", "nan"])
@example(["a", "--and", "b", "--weight", "inf"])
@example(["a", "--extra-prompt", "b", "--extra-prompt-weight", "-inf"])
@example(["a", "--and", "b", "--weight", "2"])
@example([])
@example(["a", "--height", "-64"])
def test_a_command_line_of_sample_becomes_settings_or_one_line(monkeypatch, capsys, arguments):
    args = parsed(sample, arguments, monkeypatch, capsys)
    if args is not None:
        assert args.prompts
        assert all(map(finite, vars(args).values()))
        assert len(args.extra_prompt_weight) in (0, len(args.extra_prompt))


@inputs(3)
@given(st.one_of(TEXT, st.sampled_from(("meta", "cpu:7", "cuda:99", "mps", "", "xla", "cpu:", "vulkan", "cpu\n"))))
@example("meta")
@example("\udc80")
def test_a_device_works_or_is_refused(name):
    with refusal("--device"):
        command_line.check_device(name)


@inputs(3)
@given(TEXT)
@example("\x00")
@example("a" * 5000)
def test_an_output_folder_is_made_or_refused(folder, name):
    if ".." in Path(name).parts:
        return
    with refusal("output"):
        command_line.make_output(folder / name.lstrip("/"))


@pytest.mark.parametrize("text", ["", "two\nlines", "\x1b[31mred", "half \udc80"])
def test_an_error_is_one_line_on_the_screen(monkeypatch, text):
    """Whatever a file or an argument smuggled into the message."""

    def main():
        raise ValueError(text)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    monkeypatch.setattr(warnings, "showwarning", None)
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        command_line.run(main)
    signal.signal(signal.SIGINT, former)
    check_message(ValueError(str(caught.value)), "error: ")
