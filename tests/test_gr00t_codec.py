"""GR00T's bytes and back: as its clients write and read them, in every dialect; nothing else does harm."""

from __future__ import annotations

import io
import json
from typing import Any

import gr00t_client as theirs
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hotpolicy.runtime import wire
from hotpolicy.runtime.errors import BadRequest
from hotpolicy.runtime.fronts import foreign, gr00t_action
from hotpolicy.runtime.fronts import gr00t_codec as codec
from hotpolicy.runtime.fronts.gr00t_codec import Modality, Speech

ZEROS = np.zeros((1, 1, 2), np.float32)
NPY_ZEROS = (
    "82b15f5f6e6461727261795f636c6173735f5fc3a661735f6e7079c488934e554d505901007600"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 2), }".ljust(117).hex()
    + "0a0000000000000000"
)
RAW_ZEROS = "85c4026e64c3c40474797065a33c6634c4046b696e64c400c405736861706593010102c40464617461c4080000000000000000"
RAW_SCALAR = "83c4026e64c2c40474797065a33c6634c40464617461c4040000c03f"

dtypes = st.sampled_from(sorted(foreign.DTYPES))
arrays = hnp.arrays(dtype=dtypes, shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5))


# Bytes recorded from their own packers.


def test_array_in_both_dialects() -> None:
    assert codec.encode(ZEROS, Speech("npy")).hex() == NPY_ZEROS
    assert codec.encode(ZEROS, Speech("raw")).hex() == RAW_ZEROS
    assert codec.encode(ZEROS, Speech()).hex() == RAW_ZEROS


def test_replies_without_arrays() -> None:
    ping = {"status": "ok", "message": "Server is running"}
    assert codec.encode(ping, Speech()).hex() == (
        "82a6737461747573a26f6ba76d657373616765b15365727665722069732072756e6e696e67"
    )
    assert codec.encode({"error": "Unknown endpoint: foo"}, Speech()).hex() == (
        "81a56572726f72b5556e6b6e6f776e20656e64706f696e743a20666f6f"
    )
    assert codec.encode([{"a": {}}, {}], Speech()).hex() == "9281a1618080"
    assert codec.encode(None, Speech()).hex() == "c0"


@pytest.mark.parametrize(
    ("message", "endpoint", "data"),
    [
        ("81a8656e64706f696e74a470696e67", "ping", None),
        ("82a8656e64706f696e74a57265736574a46461746181a76f7074696f6e73c0", "reset", {"options": None}),
        ("80", "get_action", None),
    ],
)
def test_requests_without_arrays(message: str, endpoint: str, data: object) -> None:
    assert codec.decode(bytes.fromhex(message), wire.CAPS) == codec.Call(endpoint, data, None, None)


def test_requests_with_arrays() -> None:
    flat = bytes.fromhex("82a8656e64706f696e74aa6765745f616374696f6ea46461746181a973746174652e61726d" + NPY_ZEROS)
    call = codec.decode(flat, wire.CAPS)
    assert (call.endpoint, call.arrays, call.token) == ("get_action", "npy", None)
    assert np.array_equal(call.data["state.arm"], ZEROS)
    assert gr00t_action.asked(call.data).envelope == "flat"
    nested = bytes.fromhex(
        "83a8656e64706f696e74aa6765745f616374696f6ea46461746182ab6f62736572766174696f6e81a5737461746581a173"
        + RAW_ZEROS
        + "a76f7074696f6e73c0a96170695f746f6b656ea3616263"
    )
    call = codec.decode(nested, wire.CAPS)
    assert (call.endpoint, call.arrays, call.token) == ("get_action", "raw", "abc")
    asked = gr00t_action.asked(call.data)
    assert (asked.envelope, asked.dotted, asked.batched) == ("nested", False, True)
    assert np.array_equal(asked.rows[0]["state.s"], [0, 0])


def test_scalar_and_keys_as_text() -> None:
    scalar = bytes.fromhex("81a46461746181a178" + RAW_SCALAR)
    assert codec.decode(scalar, wire.CAPS).data == {"x": 1.5}
    text = {"nd": True, "type": "<f4", "kind": "", "shape": [2], "data": bytes(8)}
    call = codec.decode(msgpack.packb({"data": {"x": text}}), wire.CAPS)
    assert call.arrays == "raw"
    assert np.array_equal(call.data["x"], [0, 0])


# Both directions against their own way of packing.


@given(array=arrays, fortran=st.booleans())
@settings(max_examples=150, deadline=None)
def test_arrays_arrive_as_they_were(array: np.ndarray, fortran: bool) -> None:
    sent = np.asarray(array, order="F" if fortran else "C")
    for pack, dialect in ((theirs.pack_a, "npy"), (theirs.pack_b, "raw")):
        call = codec.decode(pack({"endpoint": "get_action", "data": {"x": sent}}), wire.CAPS)
        got = call.data["x"]
        assert call.arrays == dialect
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert not got.flags.writeable


@given(arrays)
@settings(max_examples=100, deadline=None)
def test_arrays_are_read_as_they_were_sent(array: np.ndarray) -> None:
    for unpack, speech in ((theirs.unpack_a, Speech("npy")), (theirs.unpack_b, Speech("raw"))):
        got = unpack(codec.encode([{"action.arm": array}, {}], speech))[0]["action.arm"]
        assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("speech", "unpack", "keys"),
    [
        (Speech("npy", "flat"), theirs.unpack_a, ["video.front"]),
        (Speech("npy", "nested"), theirs.unpack_a, ["front"]),
        (Speech("raw", "nested"), theirs.unpack_b, ["front"]),
        (Speech(), theirs.unpack_a, ["front"]),
        (Speech(), theirs.unpack_b, ["front"]),
    ],
)
def test_modality_config_of_every_generation(speech: Speech, unpack: Any, keys: list[str]) -> None:
    reply = unpack(codec.encode({"video": Modality((0,), ("video.front",))}, speech))
    assert reply == {"video": ("config", {"delta_indices": [0], "modality_keys": keys})}


def test_modality_config_of_n15_is_text() -> None:
    reply = msgpack.unpackb(codec.encode(Modality((0, 1), ("action.arm",)), Speech("npy", "flat")))
    assert reply == {
        "__ModalityConfig_class__": True,
        "as_json": '{"delta_indices":[0,1],"modality_keys":["action.arm"]}',
    }
    assert json.loads(reply["as_json"])["delta_indices"] == [0, 1]


def test_no_reply_can_be_an_object() -> None:
    for value in (np.array([object()]), np.array(["text"]), np.float32(1), object()):
        with pytest.raises(TypeError, match="no place in a reply"):
            codec.encode(value, Speech())


# Envelopes.


def picture(*lead: int) -> np.ndarray:
    return np.zeros((*lead, 4, 6, 3), np.uint8)


def test_flat_as_n15_sends_it() -> None:
    asked = gr00t_action.asked(
        {
            "video.front": picture(1),
            "state.arm": np.ones((1, 5)),
            "annotation.human.action.task_description": ["lift"],
        }
    )
    assert (asked.envelope, asked.dotted, asked.batched, len(asked.rows)) == ("flat", True, False, 1)
    row = asked.rows[0]
    assert row["video.front"].shape == (4, 6, 3)
    assert row["state.arm"].shape == (5,)
    assert row["annotation.human.action.task_description"] == "lift"
    reply = gr00t_action.answer([{"action.arm": np.zeros((8, 5), np.float32)}], {"version": "v1"}, asked)
    assert list(reply) == ["action.arm"]  # nothing but arrays: their loops look at each value's shape
    assert reply["action.arm"].shape == (8, 5)


def test_nested_batch_as_n16_sends_it() -> None:
    asked = gr00t_action.asked(
        {
            "observation": {
                "video": {"front": picture(2, 1)},
                "state": {"arm": np.arange(10, dtype=np.float32).reshape(2, 1, 5)},
                "language": {"annotation.human.task_description": [["lift"], ["drop"]]},
            },
            "options": None,
        }
    )
    assert (asked.envelope, asked.dotted, asked.batched, len(asked.rows)) == ("nested", False, True, 2)
    assert [row["annotation.human.task_description"] for row in asked.rows] == ["lift", "drop"]
    assert np.array_equal(asked.rows[1]["state.arm"], [5, 6, 7, 8, 9])
    parts = [{"action.arm": np.full((8, 5), n, np.float32)} for n in range(2)]
    action, info = gr00t_action.answer(parts, {"version": "v1"}, asked)
    assert action["arm"].shape == (2, 8, 5)
    assert action["arm"][1, 0, 0] == 1
    assert info == {"version": "v1"}


def test_flat_keys_in_the_nested_envelope_as_the_simulators_wrapper_sends_them() -> None:
    observation = {"video.front": picture(1, 1), "state.arm": np.ones((1, 1, 5), np.float32), "task": ["lift"]}
    asked = gr00t_action.asked({"observation": observation, "options": None})
    assert (asked.envelope, asked.dotted, asked.batched) == ("nested", True, True)
    assert asked.rows[0]["task"] == "lift"
    action, _ = gr00t_action.answer([{"action.arm": np.zeros((8, 5), np.float32)}], {}, asked)
    assert action["action.arm"].shape == (1, 8, 5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "data: expected a map"),
        ([1], "data: expected a map"),
        ({"observation": {"video": {"front": picture(2, 1)}, "state": {"arm": np.zeros((3, 1, 5))}}}, "one batch size"),
        ({"video.front": picture(2)}, "video.front: expected one moment, got 2"),
        ({"video.front": picture(1, 2)}, "video.front: expected one moment, got 2"),
        ({"state.arm": np.zeros((3, 5))}, "state.arm: expected one moment"),
        ({"state.arm": np.zeros((65, 1, 5))}, "state.arm: expected a batch of 1 to 64"),
        ({"observation": {"video": [1], "state": {}}}, "video: expected a map"),
        ({f"key{n}": n for n in range(65)}, "data: expected a map"),
    ],
)
def test_observations_of_the_wrong_form_name_the_key(data: Any, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        gr00t_action.asked(data)


# What is not a message, or not a harmless one.


def npy(header: str, data: bytes = bytes(8), version: bytes = b"\x01\x00", cut: int | None = None) -> bytes:
    text = (header + "\n").encode("latin-1")
    return (b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data)[:cut]


def a(file: object) -> bytes:
    return bytes(msgpack.packb({"data": {"x": {"__ndarray_class__": True, "as_npy": file}}}))


def b(**fields: object) -> bytes:
    given = {"nd": True, "type": "<f4", "kind": b"", "shape": [2], "data": bytes(8)} | fields
    return bytes(msgpack.packb({"data": {"x": {key.encode(): value for key, value in given.items()}}}))


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


OF_NUMBERS = "data.x: expected a(n array|.*file) of booleans, integers or floats"
DEEP: object = 1
for _ in range(600):
    DEEP = [DEEP]
WIDE = [[[] for _ in range(4000)] for _ in range(40)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "message: expected msgpack"),
        (b"\xc1", "message: expected msgpack"),
        (msgpack.packb([1]), "message: expected a map, got list"),
        (msgpack.packb(None), "message: expected a map, got NoneType"),
        (msgpack.packb({b"nd": True, b"type": "<f4", b"shape": [0], b"data": b""}), "message: expected a map"),
        (msgpack.packb({"endpoint": 1}), "endpoint: expected"),
        (msgpack.packb({"endpoint": "x" * 200}), "endpoint: expected"),
        (msgpack.packb({"endpoint": "ping", "api_token": b"x"}), "api_token: expected text"),
        (msgpack.packb({"data": {1: 2}}), "message: expected msgpack"),
        (msgpack.packb({"data": {b"other": 2}}), "data: expected text as keys"),
        (msgpack.packb({"data": DEEP}), "levels|message"),
        (msgpack.packb({"data": WIDE}), "message: expected at most 65536 values"),
        (msgpack.packb({"data": {str(n): n for n in range(300)}}), "message: expected msgpack"),
        (msgpack.packb({"data": {"k" * 257: 1}}), "message: expected keys of at most 256"),
        (msgpack.packb({"data": msgpack.Timestamp(1, 2)}), "message|data"),
        (bytes(65 << 20), "message: expected at most"),
        (a(1), OF_NUMBERS),
        (a(b"PK\x03\x04" + bytes(20)), OF_NUMBERS),
        (a(b"\x93NUMPY\x01"), OF_NUMBERS),
        (a(b"\x93NUMPY\x07\x00" + bytes(20)), OF_NUMBERS),
        (a(saved(np.array([object()], object))), OF_NUMBERS),
        (a(saved(np.array(["text"]))), OF_NUMBERS),
        (a(saved(np.zeros(2, "M8[s]"))), OF_NUMBERS),
        (a(saved(np.zeros(2, "c8"))), OF_NUMBERS),
        (a(saved(np.zeros(2, [("x", "f4")]))), OF_NUMBERS),
        (a(npy("{'descr': '<f3', 'fortran_order': False, 'shape': (2,), }")), OF_NUMBERS),
        (a(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")), OF_NUMBERS),
        (a(npy("__import__('os').abort()")), OF_NUMBERS),
        (a(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }")), "data.x: expected 12 bytes"),
        (a(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }")), OF_NUMBERS),
        (a(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }")), "data.x: expected"),
        (a(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9999999999, 9999999999), }", b"")), "a shape"),
        (a(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 1, 1, 1, 1, 2), }")), "a shape of at most 6"),
        (a(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" + " " * 600)), OF_NUMBERS),
        (a(npy("{'descr': '|b1', 'fortran_order': False, 'shape': (8,), }", b"\x02" * 8)), "bytes 0 and 1"),
        (a(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", cut=40)), OF_NUMBERS),
        (b(kind=b"O"), OF_NUMBERS),
        (b(kind=b"V"), OF_NUMBERS),
        (b(type="|O"), OF_NUMBERS),
        (b(type="O"), OF_NUMBERS),
        (b(type="<U1"), OF_NUMBERS),
        (b(type=[["x", "<f4"]]), OF_NUMBERS),
        (b(type=b"<f4"), OF_NUMBERS),
        (b(shape=[3]), "data.x: expected 12 bytes"),
        (b(shape=[-2]), "a shape"),
        (b(shape=2), "a shape"),
        (b(shape=[1] * 7), "a shape"),
        (b(shape=[2**62, 2**62]), "data.x: expected"),
        (b(data="text"), "data.x: expected bytes"),
        (b(nd=False), "data.x: expected 4 bytes"),
        (b(nd=False, data=None), "data.x: expected bytes"),
        (b(nd=False, type="|O"), OF_NUMBERS),
    ],
)
def test_garbage_names_the_field(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        codec.decode(body, wire.CAPS)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(body: bytes) -> None:
    try:
        codec.decode(body, wire.CAPS)
    except BadRequest:
        return
    assert type(msgpack.unpackb(body, strict_map_key=False)) is dict


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_messages_decode_or_are_refused(data: st.DataObject) -> None:
    observation = {"video": {"front": picture(1, 1)}, "state": {"arm": ZEROS}, "language": {"task": [["lift"]]}}
    pack = data.draw(st.sampled_from([theirs.pack_a, theirs.pack_b]))
    body = bytearray(pack({"endpoint": "get_action", "data": {"observation": observation, "options": None}}))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                body[where] = data.draw(st.integers(0, 255))
            case "cut":
                del body[where : where + data.draw(st.integers(1, 40))]
                body += b"\0"
            case "insert":
                body[where:where] = data.draw(st.binary(max_size=8))
    try:
        gr00t_action.asked(codec.decode(bytes(body), wire.CAPS).data)
    except BadRequest as error:
        refusal = str(error)
        if "\n" in refusal:
            raise
