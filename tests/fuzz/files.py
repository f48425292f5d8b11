"""Files of tensors, written by hand so that they can lie."""

from __future__ import annotations

import json
import struct

from fuzzing import JSON, TEXT
from hypothesis import strategies as st

DTYPES = (
    *("F16", "F32", "F64", "BF16", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL", "C64"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "Q4_0", "f32", ""),
)
SIZES = st.one_of(st.integers(-2, 60), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30]))
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(DTYPES),
            "shape": st.lists(SIZES, max_size=4),
            "data_offsets": st.lists(SIZES, min_size=2, max_size=2),
        }
    ),
    # as it should be, of one of the types
    st.sampled_from(
        [{"dtype": d, "shape": [1, 48], "data_offsets": [0, 48 * n]} for d in DTYPES for n in (1, 2, 4, 8)]
    ),
    JSON,
)
NAMES = st.one_of(st.sampled_from(("<word>", "emb_params", "__metadata__", "rows", "a\nb", "")), TEXT)
HEADERS = st.dictionaries(NAMES, ENTRIES, max_size=3)
LENGTHS = st.one_of(st.none(), st.sampled_from([0, 1, 7, 2**20, 2**32, 2**63, 2**64 - 1]))
# zeros, ones, NaN in every type, anything
BODIES = st.one_of(
    st.sampled_from([b"\0" * 384, b"\x3f" * 192, b"\xff" * 192, b"\x7f\xc0" * 96, b""]), st.binary(max_size=400)
)


def safetensors(header: object, body: bytes, length: int | None = None) -> bytes:
    """A file of that header and body; `length` says how long the header claims to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body
