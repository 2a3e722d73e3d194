"""openpi's bytes and back: as its client packs and reads them; nothing else does harm."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hotpolicy.runtime import wire
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.fronts import foreign
from hotpolicy.runtime.fronts import openpi_codec as codec

# {"a": int16[1,2], "b": float32(1.5), "c": "hi"}, recorded from openpi-client's own packer
RECORDED = bytes.fromhex(
    "83a16184c40b5f5f6e6461727261795f5fc3c40464617461c40401000200c4056474797065a33c6932c40573686170659102"
    "a16283c40d5f5f6e7067656e657269635f5fc3c40464617461cb3ff8000000000000c4056474797065a33c6634a163a26869"
)


def array(**fields: object) -> bytes:
    given = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | fields
    return bytes(msgpack.packb({"x": {key.encode(): value for key, value in given.items()}}))


def test_recorded_bytes() -> None:
    decoded = codec.decode(RECORDED, wire.CAPS)
    assert decoded["a"].dtype == np.int16
    assert decoded["a"].tolist() == [1, 2]
    assert (decoded["b"], decoded["c"]) == (1.5, "hi")
    start = RECORDED[: RECORDED.index(b"\xa1b\x83")]
    assert codec.encode({"a": np.array([1, 2], np.int16), "c": "hi"}) == b"\x82" + start[1:] + b"\xa1c\xa2hi"


@given(
    hnp.arrays(
        dtype=st.sampled_from(sorted(foreign.DTYPES)),
        shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    )
)
@settings(max_examples=100, deadline=None)
def test_arrays_arrive_as_they_were(value: np.ndarray) -> None:
    got = codec.decode(codec.encode({"x": value}), wire.CAPS)["x"]
    assert (got.dtype, got.shape, got.tobytes()) == (value.dtype, value.shape, value.tobytes())
    assert not got.flags.writeable


def test_maps_in_maps_are_flattened() -> None:
    body = msgpack.packb({"images": {"cam_high": 1, "more": {"deep": 2}}, "observation/state": 3, "prompt": "lift"})
    assert codec.decode(body, wire.CAPS) == {
        "images/cam_high": 1,
        "images/more/deep": 2,
        "observation/state": 3,
        "prompt": "lift",
    }


def test_a_text_that_came_as_an_array() -> None:
    prompt = np.asarray("hebe den Würfel")
    body = array(data=prompt.tobytes(), dtype=prompt.dtype.str, shape=[])
    assert codec.decode(body, wire.CAPS) == {"x": "hebe den Würfel"}


NUMBERS = "x: expected an array of booleans, integers or floats"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "message: expected msgpack"),
        (msgpack.packb(1), "message: expected a map, got int"),
        (
            msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [0]}),
            "message: expected a map",
        ),
        (msgpack.packb({1: 2}), "message: expected msgpack"),
        (msgpack.packb({b"k": 2}), "expected text as keys"),
        (msgpack.packb({"k" * 300: {str(n): n for n in range(200)}}), "keys of at most 256"),
        (array(dtype="|O"), NUMBERS),  # openpi's own decoder reads pointers out of this
        (array(dtype="O"), NUMBERS),
        (array(dtype="|V8"), NUMBERS),
        (array(dtype="<c8"), NUMBERS),
        (array(dtype="<M8[s]"), NUMBERS),
        (array(dtype="<U1", shape=[2]), NUMBERS),
        (array(dtype=b"<f4"), NUMBERS),
        (array(dtype=["<f4"]), NUMBERS),
        (array(dtype=None), NUMBERS),
        (array(shape=[3]), "x: expected 12 bytes"),
        (array(shape=[-1]), "x: expected a shape"),
        (array(shape=None), "x: expected a shape"),
        (array(shape=[1] * 7), "x: expected a shape"),
        (array(shape=[2**40, 2**40]), "x: expected"),
        (array(data="text"), "x: expected bytes"),
        (array(dtype="<U2", shape=[], data=b"\xff" * 8), "x: expected a text"),
        (array(dtype="<U1", shape=[], data=bytes(7)), "x: expected a text"),
        (array(dtype="<U1", shape=[], data=bytes(8004)), "x: expected a text"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}}), "x: expected a number"),
    ],
)
def test_garbage_names_the_key(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        codec.decode(body, wire.CAPS)
    assert "\n" not in str(caught.value)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_messages_decode_or_are_refused(data: st.DataObject) -> None:
    state: dict[str, Any] = {"observation/image": np.zeros((4, 6, 3), np.uint8), "observation/state": np.zeros(8)}
    body = bytearray(codec.encode({**state, "prompt": "lift", "images": {"cam_high": np.zeros((3, 4, 6), np.uint8)}}))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[where] = data.draw(st.integers(0, 255))
        else:
            body[where:where] = data.draw(st.binary(max_size=8))
    try:
        codec.decode(bytes(body), wire.CAPS)
    except BadRequest as error:
        refusal = str(error)
        if "\n" in refusal:
            raise


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["text"]), np.float32(1), object()])
def test_no_reply_can_be_an_object(value: object) -> None:
    with pytest.raises(TypeError, match="no place in a reply"):
        codec.encode({"x": value})
