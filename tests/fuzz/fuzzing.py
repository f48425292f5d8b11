"""What every fuzz test shares: how many inputs it gets, and what may come out of one."""

from __future__ import annotations

import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import minti

TOTAL = int(os.environ.get("MINTI_FUZZ", "200"))
SHARES = 136  # of all tests together
LONG = "MINTI_FUZZ" in os.environ
OWN = (ValueError, OSError, FileNotFoundError, minti.TrainingError)
SECONDS, MEMORY = 60, 2**30  # far beyond what any of the inputs needs


def inputs(share: int) -> Callable:
    """How many of all inputs (the environment's MINTI_FUZZ) go to a test; the same ones every time in the suite."""
    return settings(
        max_examples=max(1, round(TOTAL * share / SHARES)),
        deadline=None,
        derandomize=not LONG,
        database=None,
        print_blob=LONG,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """No answer for a minute; not caught by what catches exceptions."""


def _hang(*_: object) -> None:
    raise Hang(f"no answer after {SECONDS} seconds")


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the block hangs, or wants more memory than any of the inputs deserves."""
    pages = Path("/proc/self/statm")
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    if pages.is_file():
        now = int(pages.read_text(encoding="utf-8").split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (now + MEMORY, limits[1]))
    former = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_DATA, limits)


@contextmanager
def refusal(*names: object) -> Iterator[None]:
    """Passes over minti's own errors, each one clear line with one of the names (if there are any) in it.

    No other exception is passed over, not even a subclass: a UnicodeDecodeError is a ValueError that nobody meant.
    """
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OWN as error:
        check_message(error, *names)


def check_message(error: BaseException, *names: object) -> None:
    """One line for a person: not empty, not endless, nothing that cannot be printed, and it names what is wrong."""
    message = str(error)
    assert type(error) in OWN, f"{type(error).__name__}: {message}"
    assert message.strip(), "an empty message"
    assert message.isprintable(), f"not one printable line: {message!r}"
    assert len(message) < 1500, f"{len(message)} characters: {message}"
    assert not names or any(str(name) in message for name in names), f"names nothing: {message}"


# --- strategies -------------------------------------------------------------------------------------------------------

CHARACTERS = st.characters()  # of all planes, with control characters and lone surrogates
TEXT = st.text(CHARACTERS, max_size=40)
NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.integers(),
    st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**400]),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -0.0]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)


def flipped(data: bytes, changes: list[tuple[int, int]], keep: float) -> bytes:
    """A damaged copy: some bytes replaced, the end cut off."""
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed[: int(len(changed) * keep)])


DAMAGE = st.tuples(
    st.lists(st.tuples(st.one_of(st.integers(0, 200), st.integers(0, 10**6)), st.integers(0, 255)), max_size=8),
    st.one_of(st.just(1.0), st.floats(0, 1)),
)
