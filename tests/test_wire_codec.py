"""Frames and back: every value that may travel does; nothing else does harm."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hotpolicy.runtime import wire
from hotpolicy.runtime.errors import BadReply, BadRequest

arrays = hnp.arrays(
    dtype=st.sampled_from(sorted(wire.DTYPES)),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=20),
    elements=None,
)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
values = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter(lambda k: k != "$a"), inner, max_size=4)
    ),
    max_leaves=8,
)
messages = st.dictionaries(st.text(min_size=1).filter(lambda k: k not in ("$a", "v")), values, max_size=5)


def same(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or left != left)


@given(messages)
@settings(max_examples=150, deadline=None)
def test_round_trip(fields: dict) -> None:
    message = {"v": wire.VERSION, **fields}
    frames = [bytes(frame) for frame in wire.encode(message)]
    try:
        decoded = wire.decode(frames)
    except BadRequest as error:  # the strategy may build what the caps refuse
        if "levels" in str(error) or "frames" in str(error):
            return
        raise
    assert same(decoded, message)


@given(st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=300, deadline=None)
def test_random_frames_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(BadRequest):
        wire.decode(frames)
    wire.peek_id(frames)


def example_frames() -> list[bytes]:
    message = {
        "v": 1,
        "kind": "infer",
        "id": 7,
        "images": {"front": np.zeros((48, 64, 3), np.uint8)},
        "state": np.zeros(6, np.float32),
        "flags": np.array([True, False]),
        "more": [{"deep": [np.ones((30, 40), np.float64)]}],
    }
    return [bytes(frame) for frame in wire.encode(message)]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_frames_decode_or_are_refused(data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in example_frames()]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        where = data.draw(st.integers(0, max(0, min(len(frame) - 1, 400))))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip" if frame:
                frame[where] = data.draw(st.integers(0, 255))
            case "cut":
                del frame[where:]
            case "insert":
                frame[where:where] = data.draw(st.binary(max_size=8))
            case "double" if len(frames) < 6:
                frames.append(frame[:])
    for fault in (BadRequest, BadReply):
        try:
            wire.decode([bytes(frame) for frame in frames], fault=fault)
        except fault as error:
            refusal = str(error)
            if "\n" in refusal:
                raise


def plain_frames() -> list[bytes]:
    """What a robot sends: it goes the short way."""
    message = {
        "v": 1,
        "kind": "infer",
        "id": 7,
        "images": {"front": np.zeros((48, 64, 3), np.uint8), "wrist": np.ones((48, 64, 3), np.uint8)},
        "state": np.zeros(6, np.float32),
        "rtc": {"previous": 6, "schedule": "exp"},
    }
    return [bytes(frame) for frame in wire.encode(message)]


def read(frames: list[bytes]) -> object:
    try:
        return wire.decode(frames)
    except BadRequest as error:
        return str(error)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_the_short_way_and_the_long_way_read_the_same(data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in plain_frames()]
    for _ in range(data.draw(st.integers(0, 3))):
        where = data.draw(st.integers(0, len(frames[0]) - 1))
        frames[0][where] = data.draw(st.integers(0, 255) | st.integers(0, 3))
    frames = [frames[0], *data.draw(st.permutations(frames[1:]))[data.draw(st.integers(0, 1)) :]]
    whole = [bytes(frame) for frame in frames]
    short = read(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.QuickReader, "read", lambda self, header: False)
        assert same(short, read(whole))


def test_what_a_robot_sends_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.Reader, "walk", lambda *_: pytest.fail("the long way"))
    decoded = wire.decode(plain_frames())
    assert decoded["images"]["wrist"].min() == 1
    assert not decoded["images"]["wrist"].flags.writeable
    assert not decoded["state"].flags.writeable


def header(**fields: object) -> bytes:
    return bytes(msgpack.packb({"v": 1, "kind": "infer", "id": 1, **fields}))


DEEP: object = 1
for _ in range(600):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("frames", "names"),
    [
        ([], "frames"),
        ([b""], "header"),
        ([b"\xc1"], "header"),
        ([msgpack.packb([1, 2])], "header"),
        ([msgpack.packb({"v": 2})], "v: expected 1, got 2"),
        ([msgpack.packb({"kind": "infer"})], "v: expected 1, got None"),
        ([header() + b"x"], "header"),
        ([header(), b"orphan"], "frames"),
        ([header()] + [b""] * 40, "frames"),
        ([header(a={"$a": ["|O8", [1], b"12345678"]})], "a: expected a dtype"),
        ([header(a={"$a": ["O", [1], b"12345678"]})], "a: expected a dtype"),
        ([header(a={"$a": ["<M8[s]", [1], b"12345678"]})], "a: expected a dtype"),
        ([header(a={"$a": ["<U2", [1], b"12345678"]})], "a: expected a dtype"),
        ([header(a={"$a": [["<f4"], [1], b"1234"]})], "a: expected a dtype"),
        ([header(a={"$a": ["<f4", [2], b"1234"]})], "a: expected 8 bytes"),
        ([header(a={"$a": ["<f4", [-1], b"1234"]})], "a: expected a shape"),
        ([header(a={"$a": ["<f4", [True], b"1234"]})], "a: expected a shape"),
        ([header(a={"$a": ["<f4", [1.0], b"1234"]})], "a: expected a shape"),
        ([header(a={"$a": ["<f4", [1] * 7, b"1234"]})], "a: expected a shape"),
        ([header(a={"$a": ["<f4", [2**62, 2**62], b"1234"]})], "a: expected"),
        ([header(a={"$a": ["<f4", [0, 2**62, 2**62], b""]})], "a: expected a shape"),
        ([header(a={"$a": ["|b1", [1], b"\x02"]})], "a: expected bytes 0 and 1"),
        ([header(a={"$a": ["<f4", [1], 1]})], "a: expected the number"),
        ([header(a={"$a": ["<f4", [1], 0]})], "a: expected the number"),
        ([header(a={"$a": ["<f4", [1], -1]}), b"1234"], "a: expected the number"),
        ([header(a={"$a": ["<f4", [1], 1]}, b={"$a": ["<f4", [1], 1]}), b"1234"], "b: expected the number"),
        ([header(a={"b": [0, {"$a": ["<f4", [1]]}]})], r"a.b\[1\]: expected an array"),
        ([header(a={"$a": ["<f4", [1], b"1234"], "x": 1})], "a: expected an array"),
        ([header(a=DEEP)], "levels|header"),
        ([header(a={str(n): n for n in range(300)})], "header"),
        ([header(a=list(range(5000)))], "header"),
        ([header(a=msgpack.Timestamp(1, 2))], "header|a: expected plain"),
        ([msgpack.packb({"v": 1, "a": {b"bytes": 1}})], "a: expected text as keys"),
        ([header(a=b"x" * (1 << 20))], "header: expected at most"),
        ([header(), b"x" * (65 << 20)], "message: expected at most"),
    ],
)
def test_garbage_names_the_field(frames: list[bytes], names: str) -> None:
    with pytest.raises(BadRequest, match=names):
        wire.decode(frames)


def test_large_arrays_are_neither_copied_in_nor_out() -> None:
    image = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
    frames = wire.encode({"v": 1, "image": image, "state": np.zeros(6, np.float32)})
    assert len(frames) == 2
    image[0, 0, 0] = 99
    assert frames[1][0] == 99
    decoded = wire.decode(frames)
    assert np.shares_memory(decoded["image"], image)
    assert not decoded["image"].flags.writeable
    assert not decoded["state"].flags.writeable


def test_unaligned_and_foreign_arrays_arrive_whole() -> None:
    array = np.arange(4000, dtype=np.float32)
    frames = wire.encode({"v": 1, "a": array.astype(">f4"), "b": np.asfortranarray(array.reshape(40, 100))})
    shifted = [frames[0], memoryview(b"x" + bytes(frames[1]))[1:], frames[2]]
    decoded = wire.decode(shifted)
    assert decoded["a"].flags.aligned
    assert (decoded["a"] == array).all()
    assert (decoded["b"] == array.reshape(40, 100)).all()


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["text"]),
        np.longdouble([1]),
        object(),
        2**64,
        {1, 2},
        "\ud800",
        np.datetime64(1, "s"),
    ],
)
def test_what_has_no_place_on_the_wire_is_the_callers_bug(value: object) -> None:
    with pytest.raises(BadRequest):
        wire.encode({"v": 1, "before": "x" * 1000, "value": value})
    assert wire.decode(wire.encode({"v": 1, "after": 1})) == {"v": 1, "after": 1}


def test_peek_id() -> None:
    assert wire.peek_id([header(a={"$a": 1})]) == 1
    assert wire.peek_id([header(), b"orphan"]) == 1
    assert wire.peek_id([b"\xc1"]) is None
    assert wire.peek_id([msgpack.packb({"id": "text"})]) is None
