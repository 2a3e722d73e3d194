"""Every front's decoders under Hypothesis, and for a moment under bench/fuzz, which does a million of each."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpolicy.runtime.errors import HotpolicyError

sys.path.append(str(Path(__file__).parents[1] / "bench" / "fuzz"))
from corpus import CORPUS
from decoders import decoders
from mutate import Mutator

DECODERS = decoders()
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.sampled_from(["infer", "ping", "swap", "history", "get_action", "reset", "<f4", "|u1", "|O", "<U4", "robot"])
)
TEXT_NAMES = """v kind id session images front state task deadline_ms observed_at boundary episode rtc ring request_id
version limit by $a $j endpoint data observation video video.front state.joints language __ndarray_class__ as_npy nd
type shape prompt observation/front observation/state"""
BYTE_NAMES = (b"nd", b"__ndarray__", b"dtype", b"shape", b"data", b"type")
NAMES = st.sampled_from(TEXT_NAMES.split()) | st.sampled_from(BYTE_NAMES)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=6),
    max_leaves=20,
)
FRAMES = st.tuples(
    st.binary(max_size=60) | VALUES.map(msgpack.packb), st.lists(st.binary(max_size=60), max_size=3)
).map(lambda parts: [parts[0], *parts[1]])


@pytest.mark.parametrize("front", CORPUS)
def test_the_corpus_is_understood(front: str) -> None:
    refused = []
    for frames in CORPUS[front]():
        try:
            DECODERS[front](list(frames))
        except HotpolicyError as error:
            refused.append(str(error))
    allowed = {"native": 4, "control": 13, "gr00t": 8, "openpi": 0}[front]  # no observation, no such version, no action
    assert len(refused) <= allowed, refused


@pytest.mark.parametrize("front", CORPUS)
def test_mutations_are_refused_or_taken(front: str) -> None:
    mutator = Mutator(CORPUS[front](), seed=20261124)
    taken = 0
    for _ in range(4000):
        frames = mutator.next()
        try:
            DECODERS[front](frames)
            taken += 1
        except HotpolicyError:
            pass
    assert 0 < taken < 2000, "neither is the decoder deaf, nor the mutator tame"


@pytest.mark.parametrize("front", CORPUS)
@settings(max_examples=200, deadline=None)
@given(frames=FRAMES)
def test_whatever_comes_it_is_refused_or_taken(front: str, frames: list[Any]) -> None:
    with contextlib.suppress(HotpolicyError):
        DECODERS[front](frames)
