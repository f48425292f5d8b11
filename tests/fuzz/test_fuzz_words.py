"""Pickled files of learned words: containers of every kind, odd tensors, and code that must not run."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from fuzzing import DAMAGE, SCALARS, TEXT, flipped, inputs, refusal
from hypothesis import example, given
from hypothesis import strategies as st

import minti


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(1, 48), 0.1, 0, torch.qint8)


ODD = {
    "rows": lambda: torch.ones(2, 48),
    "one": lambda: torch.ones(48),
    "number": lambda: torch.tensor(1.0),
    "empty": lambda: torch.ones(0, 48),
    "no width": lambda: torch.ones(2, 0),
    "three": lambda: torch.ones(1, 1, 48),
    "half": lambda: torch.ones(1, 48, dtype=torch.float16),
    "eight bits": lambda: torch.ones(1, 48).to(torch.float8_e4m3fn),
    "eight bits more": lambda: torch.ones(1, 48).to(torch.float8_e5m2),
    "powers": lambda: torch.ones(1, 48).to(getattr(torch, "float8_e8m0fnu", torch.float8_e5m2)),
    "whole": lambda: torch.ones(1, 48, dtype=torch.int64),
    "complex": lambda: torch.ones(1, 48, dtype=torch.complex64),
    "truth": lambda: torch.ones(1, 48, dtype=torch.bool),
    "sparse": lambda: torch.ones(1, 48).to_sparse(),
    "rows of sparse": lambda: torch.ones(1, 48).to_sparse_csr(),
    "quantised": quantised,
    "meta": lambda: torch.ones(1, 48, device="meta"),
    "repeated": lambda: torch.ones(1, 1).expand(2**20, 48),
    "parameter": lambda: torch.nn.Parameter(torch.ones(1, 48)),
    "nan": lambda: torch.full((1, 48), float("nan")),
    "inf": lambda: torch.full((1, 48), -float("inf")),
    "long": lambda: torch.ones(99, 48),
}
TENSORS = st.sampled_from(sorted(ODD)).map(lambda name: ODD[name]())
KEYS = st.one_of(
    st.sampled_from(("string_to_param", "emb_params", "name", "*", "<word>", "<Word>", "<a\nb>", 3, None)), TEXT
)
CONTENTS = st.recursive(
    st.one_of(TENSORS, SCALARS),
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"string_to_param": inner}, optional={"name": st.one_of(inner, TEXT)}),
    ),
    max_leaves=5,
)


def pickled(content: object, old: bool) -> bytes:
    """What torch.save makes of it: today's zip file, or the plain pickle of before."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def check_load(model: minti.StableDiffusion, path: Path) -> None:
    """Words that can be sampled, or a refusal that names the file and leaves no trace."""
    size = len(model.tokenizer)
    with refusal(path):
        try:
            words = minti.load_embeddings(model, path)
        except ValueError:
            assert len(model.tokenizer) == size
            raise
        assert model.encode_prompt(words).isfinite().all()


@inputs(10)
@given(CONTENTS, st.booleans(), st.sampled_from(("word.pt", "word.bin", "two words.pt")))
@example({"string_to_param": [1]}, False, "word.pt")
@example({"string_to_param": {}}, False, "word.pt")
@example({"string_to_param": {"*": torch.ones(1, 48)}, "name": torch.ones(2)}, False, "word.pt")
@example({"<a>": quantised()}, False, "word.bin")
@example({"<a>": ODD["sparse"]()}, False, "word.bin")
@example({"<a>": ODD["powers"]()}, False, "word.bin")
@example({"<a>": ODD["meta"]()}, False, "word.bin")
@example({"<a>": ODD["repeated"]()}, False, "word.bin")
@example({"<a>": torch.ones(1, 48), "<A>": torch.ones(1, 48)}, True, "word.bin")
@example({"<a>": torch.full((1, 48), 1e300, dtype=torch.float64)}, False, "word.bin")
@example({3: torch.ones(1, 48), "3": torch.ones(1, 48)}, True, "word.bin")
def test_any_container_is_read_or_refused(fresh, folder, content, old, name):
    path = folder / name
    path.write_bytes(pickled(content, old))
    check_load(fresh(), path)


@inputs(5)
@given(st.booleans(), DAMAGE)
@example(False, ([], 0.5))
@example(True, ([(0, 0)], 1.0))
def test_a_damaged_file_is_read_or_refused(fresh, folder, old, damage):
    path = folder / "word.pt"
    path.write_bytes(flipped(pickled({"<a>": torch.ones(1, 48)}, old), *damage))
    check_load(fresh(), path)


class Payload:
    """Calls a function as soon as it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@inputs(4)
@given(CONTENTS, st.booleans(), st.booleans(), st.sampled_from((open, eval, exec, Path.touch, __import__("os").system)))
@example({}, False, False, eval)
@example({}, True, True, open)
def test_nothing_is_executed(fresh, folder, content, old, plain, function):
    """The file asks for a function that would leave a file behind."""
    canary, path = folder / "executed", folder / "word.pt"
    arguments = {
        open: (str(canary), "w"),
        Path.touch: (canary,),
        eval: (f"open({str(canary)!r}, 'w')",),
        exec: (f"open({str(canary)!r}, 'w')",),
    }.get(function, (f"touch {canary}",))
    payload = {"<a>": torch.ones(1, 48), "other": [content, Payload(function, *arguments)]}
    if plain:
        try:
            path.write_bytes(pickle.dumps(payload))
        except NotImplementedError:  # a tensor that plain pickles cannot hold
            return
    else:
        path.write_bytes(pickled(payload, old))
    with pytest.raises(ValueError, match=r"which minti refuses|that can be read safely|is damaged") as caught:
        minti.load_embeddings(fresh(), path)
    assert str(path) in str(caught.value)
    assert not canary.exists()
