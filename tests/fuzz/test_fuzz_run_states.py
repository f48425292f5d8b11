"""Checkpoints of an interrupted run: damaged, and made up."""

from __future__ import annotations

from support.curves import COLUMNS, read_losses

import copy
import csv
import itertools

import pytest
import torch
from fuzzing import DAMAGE, JSON, flipped, inputs, refusal
from helpers import pictures
from hypothesis import example, given
from hypothesis import strategies as st

import minti
from minti.runs.checkpoints import Checkpoint, write_run_state

CONFIG = minti.TextualInversionConfig(
    steps=4, initializer_token="cat", batch_size=1, lr_schedule="cosine", warmup_steps=1
)


@pytest.fixture(scope="module")
def interrupted(fresh, tmp_path_factory):
    """The folder and the state of a run after two of four steps."""
    folder, wrapper = tmp_path_factory.mktemp("interrupted"), minti.TrainingWrapper(fresh(), CONFIG)
    for state in itertools.islice(minti.textual_inversion(wrapper, pictures()), 2):
        minti.save_checkpoint(wrapper, folder)
    return folder, minti.load_checkpoint(folder)


def check_resume(model, folder) -> None:
    """The run goes on with finite numbers, or the checkpoint is refused."""
    with refusal("checkpoint"):
        checkpoint = minti.load_checkpoint(folder)
        wrapper = minti.TrainingWrapper(model, CONFIG)
        for state in minti.textual_inversion(wrapper, pictures(), checkpoint=checkpoint):
            assert torch.isfinite(torch.tensor([state.loss, state.row_norm, state.learning_rate])).all()
        assert wrapper.embedding.values.isfinite().all()


@inputs(4)
@given(DAMAGE, st.integers(0, 10**6))
@example(([], 1.0), 3)
@example(([], 0.0), 0)
def test_any_damage_is_noticed(interrupted, tmp_path_factory, damage, place):
    """A file is as it was written, or it is not used: neither a lost end nor a bit that turned over passes."""
    source, _ = interrupted
    folder = tmp_path_factory.mktemp("damaged")
    data = (source / "step-000002.safetensors").read_bytes()
    changed = flipped(data, *damage) or b"?"
    if changed == data:  # nothing happened: turn one bit
        changed = bytearray(data)
        changed[place % len(data)] ^= 1 << place % 8
    (folder / "step-000002.safetensors").write_bytes(changed)
    with (
        pytest.warns(UserWarning, match="is damaged") as caught,
        pytest.raises(ValueError, match="every checkpoint"),
    ):
        minti.load_checkpoint(folder)
    assert "\n" not in str(caught[0].message)
    (folder / "step-000001.safetensors").write_bytes((source / "step-000001.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="looking for an older one"):
        assert minti.load_checkpoint(folder).step == 1


TENSORS = st.sampled_from(
    [
        torch.zeros(1, 48),
        torch.full((1, 48), float("nan")),
        torch.zeros(2, 48),
        torch.zeros(48),
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(1, 48, dtype=torch.complex64),
        torch.zeros(1, 48, dtype=torch.int64),
        torch.zeros(5056, dtype=torch.uint8),
        torch.full((5056,), 255, dtype=torch.uint8),
        None,
    ]
)
NAMES = """
    part.values best.values generator optimizer other optimizer.9.x optimizer.0.exp_avg optimizer.0.exp_avg_sq
    optimizer.0.step
"""
PATHS = """
    step format identity loop watcher other watcher/losses watcher/empty_loss watcher/best_step loop/taken loop/scaler
    identity/seed identity/templates identity/steps
"""
FACTS = st.one_of(JSON, st.lists(st.floats(), max_size=3), st.integers(-1, 5))


@inputs(4)
@given(
    st.dictionaries(st.sampled_from(NAMES.split()), TENSORS, max_size=2),
    st.dictionaries(st.sampled_from(PATHS.split()), FACTS, max_size=2),
)
@example({}, {})
@example({"optimizer.0.exp_avg": None}, {})
@example({"optimizer.0.exp_avg_sq": torch.tensor(0.0)}, {})
@example({"optimizer.0.step": torch.tensor(-1.0)}, {})
@example({"optimizer.0.step": torch.zeros(1, 48)}, {})
@example({"part.values": torch.full((1, 48), float("inf"))}, {})
@example({"generator": torch.full((5056,), 255, dtype=torch.uint8)}, {})
@example({}, {"watcher/losses": []})
@example({}, {"watcher/losses": [float("nan")]})
@example({}, {"loop/taken": 3})
@example({}, {"loop/taken": -1})
@example({}, {"identity": []})
@example({}, {"identity/seed": "a\nb" * 1000})
@example({}, {"step": True})
@example({}, {"step": 10**400})
@example({"optimizer.0.exp_avg": torch.zeros(48)}, {"step": 0})
@example({"optimizer.0.exp_avg_sq": torch.full((1, 48), float("nan"))}, {"step": 0})
def test_a_made_up_state_goes_on_or_is_refused(fresh, interrupted, tmp_path_factory, tensors, facts):
    _, state = interrupted
    changed, folder = copy.deepcopy(state.facts), tmp_path_factory.mktemp("made-up")
    for path, value in facts.items():
        inner, (*outer, last) = changed, path.split("/")
        for key in outer:
            inner = inner[key] if isinstance(inner.get(key), dict) else {}
        inner[last] = value
    kept = {name: tensor for name, tensor in (state.tensors | tensors).items() if tensor is not None}
    write_run_state(folder, Checkpoint(state.step, kept, changed))
    check_resume(fresh(), folder)


LINES = st.lists(
    st.lists(st.one_of(st.text(max_size=8), st.floats().map(str), st.integers(-1, 3).map(str))), max_size=5
)


@inputs(3)
@given(st.one_of(st.binary(max_size=200), LINES), st.booleans())
@example(b"step,loss\n1,\x00\n", False)
@example(b"step,loss\n1," + b"2" * 200_000, False)
@example(b'step,"loss\n1,2', False)
@example(b"\xff\xfe", False)
def test_a_table_of_losses_is_read_or_passed_over(interrupted, folder, table, whole):
    path = folder / "losses.csv"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        with path.open("w", newline="", errors="replace") as file:
            csv.writer(file).writerows([COLUMNS, *table])
    with refusal():
        assert len(read_losses(path, interrupted[1])) in (0, 2)
