"""Frames of the Feetech protocol: known bytes, and what survives any split, noise, truncation and bit flip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.servo import packets
from hotpolicy.robots.servo.packets import Frame, exact_answers, split_frames
from hotpolicy.robots.servo.registers import STS3215
from hotpolicy.runtime.errors import BadRequest

SIX = range(1, 7)

GOLDEN = {
    "ping": (packets.ping(1), "ff ff 01 02 01 fb"),
    "broadcast ping": (packets.ping(packets.BROADCAST), "ff ff fe 02 01 fe"),
    "read position": (packets.read(3, 56, 2), "ff ff 03 04 02 38 02 bc"),
    "read model": (packets.read(1, 3, 2), "ff ff 01 04 02 03 02 f3"),
    "torque on": (packets.write(1, 40, b"\x01"), "ff ff 01 04 03 28 01 ce"),
    "goal": (packets.write(1, 42, b"\x00\x08"), "ff ff 01 05 03 2a 00 08 c4"),
    "offset": (packets.write(2, 31, b"\xe8\x0b"), "ff ff 02 05 03 1f e8 0b e3"),
    "move": (packets.write(1, 41, bytes.fromhex("320004 0000dc05")), "ff ff 01 0a 03 29 32 00 04 00 00 dc 05 b1"),
    "reg write": (packets.reg_write(4, 42, b"\xb8\x0b"), "ff ff 04 05 04 2a b8 0b 05"),
    "action": (packets.action(), "ff ff fe 02 05 fa"),
    "sync read": (packets.sync_read(SIX, 56, 2), "ff ff fe 0a 82 38 02 01 02 03 04 05 06 26"),
    "sync write": (
        packets.sync_write(42, {i: (2000 + i).to_bytes(2, "little") for i in SIX}),
        "ff ff fe 16 83 2a 02 01 d1 07 02 d2 07 03 d3 07 04 d4 07 05 d5 07 06 d6 07 08",
    ),
    "sync write, one goal": (
        packets.sync_write(42, {i: b"\x00\x08" for i in SIX}),
        "ff ff fe 16 83 2a 02 01 00 08 02 00 08 03 00 08 04 00 08 05 00 08 06 00 08 f7",
    ),
    # made by the vendor's SDK
    "position, 1": (packets.read(1, 56, 2), "ff ff 01 04 02 38 02 be"),
    "offset -710": (packets.write(1, 31, STS3215["position_offset"].encode(-710)), "ff ff 01 05 03 1f c6 0a 07"),
    "status 2048": (packets.status(1, 0, b"\x00\x08"), "ff ff 01 04 00 00 08 f2"),
    "status": (packets.status(1, 0), "ff ff 01 02 00 fc"),
    "status position": (packets.status(3, 0, b"\xee\x07"), "ff ff 03 04 00 ee 07 03"),
    "status overload": (packets.status(6, 0x20, b"\x79"), "ff ff 06 03 20 79 5d"),
    "status negative": (packets.status(1, 0, b"\x90\x81"), "ff ff 01 04 00 90 81 e9"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    built, expected = GOLDEN[name]
    assert built == bytes.fromhex(expected)
    assert [packets.encode(frame) for frame in split_frames(built)[0]] == [built]


def test_a_frame_inside_data_belongs_to_its_outer_frame():
    inner = packets.status(1, 0)
    outer = packets.status(2, 0, inner)
    assert split_frames(outer) == ([Frame(2, 0, inner)], b"")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: packets.ping(255),
        lambda: packets.ping(-1),
        lambda: packets.encode(Frame(1, 256, b"")),
        lambda: packets.write(1, 0, bytes(packets.MAX_DATA)),
        lambda: packets.sync_write(42, {}),
        lambda: packets.sync_write(42, {1: b"\0", 2: b"\0\0"}),
    ],
)
def test_what_the_wire_cannot_carry_is_the_callers_fault(wrong):
    with pytest.raises(BadRequest, match="expected"):
        wrong()


frames = st.builds(Frame, st.integers(0, 254), st.integers(0, 255), st.binary(max_size=packets.MAX_DATA))
short_frames = st.builds(Frame, st.integers(0, 253), st.integers(0, 0x7F), st.binary(max_size=12))
noise = st.binary(max_size=8).map(lambda junk: junk.replace(b"\xff", b"\xfe"))


@given(frames)
def test_round_trip(frame):
    assert split_frames(packets.encode(frame)) == ([frame], b"")


@given(st.lists(short_frames, max_size=6), st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_any_split_gives_the_same_frames(sent, sizes):
    wire = b"".join(map(packets.encode, sent))
    got, rest, at = [], b"", 0
    for size in (sizes * len(wire))[: len(wire)]:
        found, rest = split_frames(rest + wire[at : at + size])
        got += found
        at += size
    assert (got, rest) == (sent, b"")


@given(st.lists(st.tuples(noise, short_frames), max_size=6), noise)
def test_frames_behind_noise_are_found(pieces, tail):
    wire = b"".join(junk + packets.encode(frame) for junk, frame in pieces) + tail
    assert split_frames(wire, final=True) == ([frame for _, frame in pieces], b"")


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_well(junk, final):
    found, rest = split_frames(junk, final)
    assert sum(len(frame.data) + packets.OVERHEAD for frame in found) + len(rest) <= len(junk)
    assert all(packets.encode(frame) in junk for frame in found)
    assert junk.endswith(rest)
    if final:
        assert rest == b""


@given(short_frames, st.data())
def test_a_truncated_frame_waits_and_then_is_noise(frame, data):
    wire = packets.encode(frame)
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    found, rest = split_frames(cut)
    assert frame not in found
    assert split_frames(rest + wire[len(cut) :])[0] == [frame] or found == []
    assert frame not in split_frames(cut, final=True)[0]


@given(short_frames, st.data())
def test_one_flipped_bit_never_passes_for_an_answer_of_that_size(frame, data):
    wire = bytearray(packets.encode(frame))
    bit = data.draw(st.integers(0, len(wire) * 8 - 1))
    wire[bit // 8] ^= 1 << bit % 8
    assert all(len(found.data) != len(frame.data) for found in split_frames(bytes(wire), final=True)[0])
    assert exact_answers(bytes(wire), [frame.id], len(frame.data)) is None


@given(st.lists(st.integers(0, 253), unique=True, max_size=8), st.integers(0, 4), st.data())
def test_the_quick_way_agrees_with_the_search(ids, size, data):
    sent = [Frame(i, data.draw(st.integers(0, 0x7F)), data.draw(st.binary(min_size=size, max_size=size))) for i in ids]
    wire = b"".join(map(packets.encode, sent))
    assert exact_answers(wire, ids, size) == {frame.id: (frame.data, frame.code) for frame in split_frames(wire)[0]}
    assert exact_answers(wire + b"\0", ids, size) is None
    if ids:
        assert exact_answers(wire[:-1], ids, size) is None
        assert exact_answers(wire, [*ids, ids[0]], size) is None


@pytest.mark.parametrize("fill", [b"\xff", b"\x00"])
def test_the_largest_frames_add_up(fill):
    """Their bytes add up to almost all that the quick checksum can count."""
    data = fill * packets.MAX_DATA
    wire = packets.encode(Frame(253, 0x7F, data))
    assert exact_answers(wire, [253], len(data)) == {253: (data, 0x7F)}
    assert exact_answers(wire[:-1] + bytes(((wire[-1] + 1) & 0xFF,)), [253], len(data)) is None
    slots = {253: fill * (packets.MAX_DATA - 3)}
    written = packets.sync_write(255, slots)
    assert written[-1] == packets.checksum(written[2:-1])


def test_an_instruction_is_not_taken_for_an_answer():
    assert exact_answers(packets.encode(Frame(1, 0x82, b"")), [1], 0) is None
