"""Frames of Dynamixel's protocol 2.0: known bytes, the vendor's SDK, and what survives splits, noise and bit flips."""

from __future__ import annotations

import dynamixel_sdk as sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.servo import dynamixel_packets as packets
from hotpolicy.robots.servo.dynamixel import Dynamixel, exact_answers, exact_fast
from hotpolicy.robots.servo.dynamixel_packets import Frame, Instruction, split_fast, split_frames
from hotpolicy.robots.servo.protocol import Reply
from hotpolicy.runtime.errors import BadRequest

SIX = tuple(range(1, 7))
POSITION = (132, 4)
STUFFING = b"\xff\xff\xfd\x11"

SYNC_WRITE_2001 = (
    "ff ff fd 00 fe 25 00 83 74 00 04 00 01 d1 07 00 00 02 d2 07 00 00 03 d3 07 00 00 04 d4 07 00 00 05 d5 07 00 00 "
    "06 d6 07 00 00 ea b2"
)
FAST_ANSWER = bytes.fromhex(
    "ff ff fd 00 fe 31 00 55 00 01 d9 07 00 00 0f 7b 00 02 e4 07 00 00 d8 e2 00 03 ee 07 00 00 fc c1 "
    "00 04 f8 07 00 00 f0 8f 00 05 02 08 00 00 d8 a0 00 06 0c 08 00 00 32 0f"
)
FAST_POSITIONS = {1: 2009, 2: 2020, 3: 2030, 4: 2040, 5: 2050, 6: 2060}


def four(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


GOLDEN = {
    "ping": (packets.ping(1), "ff ff fd 00 01 03 00 01 19 4e"),
    "read position": (packets.read(3, *POSITION), "ff ff fd 00 03 07 00 02 84 00 04 00 11 35"),
    "read position of 1": (packets.read(1, *POSITION), "ff ff fd 00 01 07 00 02 84 00 04 00 1d 15"),
    "torque on": (packets.write(1, 64, b"\x01"), "ff ff fd 00 01 06 00 03 40 00 01 db 66"),
    "goal": (packets.write(1, 116, four(2048)), "ff ff fd 00 01 09 00 03 74 00 00 08 00 00 42 89"),
    "stuffed goal": (
        packets.write(1, 116, b"\xff\xff\xfd\x00"),
        "ff ff fd 00 01 0a 00 03 74 00 ff ff fd fd 00 21 e7",
    ),
    "stuffed write": (packets.write(1, 112, STUFFING), "ff ff fd 00 01 0a 00 03 70 00 ff ff fd fd 11 04 63"),
    "reboot": (packets.reboot(6), "ff ff fd 00 06 03 00 08 2c a2"),
    "sync read": (packets.sync_read(SIX, *POSITION), "ff ff fd 00 fe 0d 00 82 84 00 04 00 01 02 03 04 05 06 b2 9b"),
    "fast sync read": (
        packets.fast_sync_read(SIX, *POSITION),
        "ff ff fd 00 fe 0d 00 8a 84 00 04 00 01 02 03 04 05 06 b1 b1",
    ),
    "sync write": (packets.sync_write(116, {i: four(2000 + i) for i in SIX}), SYNC_WRITE_2001),
    "status": (packets.status(1, 0), "ff ff fd 00 01 04 00 55 00 a1 0c"),
    "status ping": (packets.status(1, 0, b"\x24\x04\x2f"), "ff ff fd 00 01 07 00 55 00 24 04 2f fb 5f"),
    "status ping of an XL330": (packets.status(1, 0, b"\xa6\x04\x32"), "ff ff fd 00 01 07 00 55 00 a6 04 32 9d 55"),
    "status position": (packets.status(3, 0, four(2030)), "ff ff fd 00 03 08 00 55 00 ee 07 00 00 3e 6c"),
    "status 2048": (packets.status(1, 0, four(2048)), "ff ff fd 00 01 08 00 55 00 00 08 00 00 1c 38"),
    "status stuffed": (packets.status(1, 0, STUFFING), "ff ff fd 00 01 09 00 55 00 ff ff fd fd 11 be 9c"),
    "refused access": (packets.status(1, 7), "ff ff fd 00 01 04 00 55 07 b0 8c"),
    "refused limit": (packets.status(1, 6), "ff ff fd 00 01 04 00 55 06 b5 0c"),
    "alert": (packets.status(6, 0x80, b"\x1f"), "ff ff fd 00 06 05 00 55 80 1f 1d 49"),
    "hardware error": (packets.status(6, 0x80, b"\x20"), "ff ff fd 00 06 05 00 55 80 20 9f 49"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    built, expected = GOLDEN[name]
    assert built == bytes.fromhex(expected)
    assert [packets.encode(frame) for frame in split_frames(built)[0]] == [built]


def test_the_shared_answer_of_a_fast_sync_read():
    wire = packets.fast_head(6, 4)
    for servo, position in FAST_POSITIONS.items():
        wire += packets.fast_slot(packets.crc16(wire), servo, 0, four(position))[0]
    assert wire == FAST_ANSWER
    assert split_fast(wire, 6, 4) == [(servo, 0, four(at)) for servo, at in FAST_POSITIONS.items()]
    assert len(split_frames(wire)[0]) == 1


def test_a_shared_answer_counts_up_to_where_it_breaks():
    """A servo that stays silent ends it, a damaged byte spoils the rest."""
    whole = split_fast(FAST_ANSWER, 6, 4)
    assert split_fast(FAST_ANSWER[: 8 + 3 * 8], 6, 4) == whole[:3]
    broken = bytearray(FAST_ANSWER)
    broken[8 + 2 * 8 + 3] ^= 0x10
    assert split_fast(bytes(broken), 6, 4) == whole[:2]
    assert split_fast(b"\xff\xff\xfd" + FAST_ANSWER[:30] + FAST_ANSWER, 6, 4) == whole
    assert split_fast(FAST_ANSWER, 5, 4) == []  # not the answer to this question


# Against the vendor's SDK ---------------------------------------------------------------------------------------------


class Wire:
    """A port of the SDK's that keeps what is written and has something to read."""

    is_using = False

    def __init__(self, answer: bytes = b""):
        self.sent, self.answer = b"", answer

    def clearPort(self):
        pass

    def writePort(self, packet):
        self.sent += bytes(packet)
        return len(packet)

    def readPort(self, size):
        data, self.answer = self.answer[:size], self.answer[size:]
        return list(data)

    def setPacketTimeout(self, size):
        pass

    def isPacketTimeout(self):
        return not self.answer


HANDLER = sdk.PacketHandler(2.0)
# What the SDK must stuff it does not: it sends FF FF FD as it is. Frames that need stuffing are not compared.
tame = st.binary(min_size=1, max_size=8).filter(lambda data: packets.PLAIN not in b"\0" + data)
servos = st.integers(0, packets.MAX_ID)


@given(servos, st.integers(0, 300), tame)
def test_the_sdk_writes_the_same_bytes(servo, address, data):
    wire = Wire()
    HANDLER.writeTxOnly(wire, servo, address, len(data), list(data))
    HANDLER.readTx(wire, servo, address, len(data))
    assert wire.sent == packets.write(servo, address, data) + packets.read(servo, address, len(data))


@given(st.lists(servos, unique=True, min_size=1, max_size=8), st.sampled_from([1, 2, 4]), st.data())
def test_the_sdk_groups_into_the_same_bytes(ids, size, data):
    values = {
        i: data.draw(st.binary(min_size=size, max_size=size).map(lambda b: b.replace(b"\xfd", b"\0"))) for i in ids
    }
    wire = Wire()
    writer = sdk.GroupSyncWrite(wire, HANDLER, 116, size)
    reader = sdk.GroupSyncRead(wire, HANDLER, 132, size)
    for servo, value in values.items():
        writer.addParam(servo, list(value))
        reader.addParam(servo)
    writer.txPacket()
    reader.txPacket()
    expected = packets.sync_write(116, values) + packets.sync_read(ids, 132, size)
    assert wire.sent == expected


@given(servos, st.integers(0, 255), st.binary(min_size=1, max_size=12))
def test_the_sdk_reads_what_our_servo_says(servo, error, data):
    wire = Wire(packets.status(servo, error, data))
    assert HANDLER.readRx(wire, servo, len(data)) == (list(data), sdk.COMM_SUCCESS, error)


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: packets.ping(253),
        lambda: packets.ping(-1),
        lambda: packets.encode(Frame(1, 0xFF, b"")),
        lambda: packets.write(1, 0, bytes(packets.MAX_LENGTH)),
        lambda: packets.read(1, 70_000, 4),
        lambda: packets.sync_write(116, {}),
        lambda: packets.sync_write(116, {1: b"\0", 2: b"\0\0"}),
    ],
)
def test_what_the_wire_cannot_carry_is_the_callers_fault(wrong):
    with pytest.raises(BadRequest, match="expected"):
        wrong()


# Bytes of headers and stuffing often, so that frames look like each other and like noise.
tricky = st.binary(max_size=24) | st.lists(st.sampled_from(b"\xff\xfd\x00\x55"), max_size=24).map(bytes)
codes = st.integers(0, 0xFC)
ids = servos | st.just(packets.BROADCAST)
# A broadcast STATUS is the shared answer, which is not stuffed: a kind of its own.
frames = st.builds(Frame, ids, codes, tricky).filter(lambda f: (f.id, f.code) != (packets.BROADCAST, 0x55))
noise = (
    st.lists(st.sampled_from(b"\xff\xfd\x00\x55\x03"), max_size=8)
    .map(bytes)
    .filter(lambda junk: packets.HEADER not in junk + b"\xff" and not junk.endswith(b"\xff\xff\xfd"))
)


@given(frames)
def test_round_trip(frame):
    wire = packets.encode(frame)
    assert split_frames(wire) == ([frame], b"")
    assert wire.find(packets.HEADER, 1, -2) < 0


@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_any_split_gives_the_same_frames(sent, sizes):
    wire = b"".join(map(packets.encode, sent))
    got, rest, at = [], b"", 0
    for size in (sizes * len(wire))[: len(wire)]:
        found, rest = split_frames(rest + wire[at : at + size])
        got += found
        at += size
    assert (got, rest) == (sent, b"")


@given(st.lists(st.tuples(noise, frames), max_size=5), noise)
def test_frames_behind_noise_are_found(pieces, tail):
    wire = b"".join(junk + packets.encode(frame) for junk, frame in pieces) + tail
    assert split_frames(wire, final=True) == ([frame for _, frame in pieces], b"")


@given(tricky | st.binary(max_size=300), st.booleans())
def test_any_bytes_end_well(junk, final):
    found, rest = split_frames(junk, final)
    assert sum(len(frame.data) + 10 for frame in found) + len(rest) <= len(junk)
    assert junk.endswith(rest)
    if final:
        assert rest == b""


@given(frames, st.data())
def test_a_truncated_frame_waits_and_then_is_noise(frame, data):
    wire = packets.encode(frame)
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    found, rest = split_frames(cut)
    assert found == []
    assert split_frames(rest + wire[len(cut) :]) == ([frame], b"")
    assert split_frames(cut, final=True)[0] == []


@given(frames, frames, st.data())
def test_a_frame_begun_and_never_ended_hides_no_other(broken, frame, data):
    """The header of the next one lies within what the broken one claims to be."""
    wire = packets.encode(broken)
    cut = wire[: data.draw(st.integers(0, len(wire) - 3))]
    assert frame in split_frames(cut + packets.encode(frame), final=True)[0]


@given(st.builds(Frame, servos, st.just(0x55), st.binary(min_size=1, max_size=12)), st.data())
def test_one_flipped_bit_never_passes_for_an_answer(frame, data):
    wire = bytearray(packets.encode(frame))
    bit = data.draw(st.integers(0, len(wire) * 8 - 1))
    wire[bit // 8] ^= 1 << bit % 8
    assert split_frames(bytes(wire), final=True)[0] == []
    assert exact_answers(bytes(wire), [frame.id], len(frame.data) - 1) is None


# Questions and their answers ------------------------------------------------------------------------------------------

answer_lists = st.integers(0, 4).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.dictionaries(servos, st.tuples(st.binary(min_size=size, max_size=size), st.integers(0, 255)), min_size=2),
    )
)


@given(answer_lists, st.binary(max_size=6))
def test_answers_are_sorted_whatever_lies_between_them(case, junk):
    size, said = case
    asked = tuple(said)
    question = Dynamixel(fast=False).sync_read(asked, 132, size)
    wire = [packets.status(servo, error, value) for servo, (value, error) in said.items()]
    expected = {servo: Reply(value, error) for servo, (value, error) in said.items()}
    assert Dynamixel().sort(question, b"".join(wire)) == (expected, 0)
    junk = junk.replace(b"\xff", b"\xfe")
    assert Dynamixel().sort(question, b"".join(frame + junk for frame in wire)) == (expected, 0)
    got, lacking = Dynamixel().sort(question, b"".join(wire)[:-1])
    assert got == {servo: expected[servo] for servo in asked[:-1]}
    assert lacking >= 1


@given(st.lists(servos, unique=True, min_size=2, max_size=8), st.integers(0, 4), st.data())
def test_the_quick_way_through_a_shared_answer_agrees_with_the_careful_one(ids, size, data):
    said = [(i, data.draw(st.integers(0, 255)), data.draw(st.binary(min_size=size, max_size=size))) for i in ids]
    wire = packets.fast_head(len(ids), size)
    for servo, error, value in said:
        wire += packets.fast_slot(packets.crc16(wire), servo, error, value)[0]
    assert exact_fast(wire, tuple(ids), size) == {servo: Reply(value, error) for servo, error, value in said}
    assert split_fast(wire, len(ids), size) == said
    flipped = bytearray(wire)
    bit = data.draw(st.integers(0, len(wire) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    for wrong, asked in ((bytes(flipped), ids), (wire[:-1], ids), (wire + b"\0", ids), (wire, [*ids[1:], ids[0]])):
        assert exact_fast(wrong, tuple(asked), size) is None


def test_an_answer_of_another_size_or_to_another_question_is_not_taken():
    protocol = Dynamixel()
    question = protocol.read(3, *POSITION)
    for wrong in (
        packets.status(3, 0, b"\0\0"),
        packets.status(4, 0, four(1)),
        packets.read(3, *POSITION),
        FAST_ANSWER,
    ):
        answers, lacking = protocol.sort(question, wrong)
        assert answers == {}
        assert lacking >= 1
    twice = packets.status(3, 0, four(1)) + packets.status(3, 0, four(2))
    assert protocol.sort(question, twice)[0] == {}
    assert protocol.sort(question, packets.status(3, 0, four(1)) * 2) == ({3: Reply(four(1), 0)}, 0)


def test_what_is_lacking_is_what_is_still_to_come():
    protocol = Dynamixel()
    question = protocol.sync_read(SIX, *POSITION)
    assert question.request[7] == Instruction.FAST_SYNC_READ
    assert question.expected == len(FAST_ANSWER)
    assert protocol.sort(question, b"")[1] == len(FAST_ANSWER)
    assert protocol.sort(question, FAST_ANSWER[:20])[1] == len(FAST_ANSWER) - 20
    assert protocol.sort(question, b"\xff\x13" + FAST_ANSWER[:20])[1] == len(FAST_ANSWER) - 20
    assert protocol.sort(question, b"\xff\x13" + FAST_ANSWER)[1] == 0
    stuffed = packets.status(1, 0, STUFFING)
    question = protocol.read(1, 112, 4)
    assert protocol.sort(question, stuffed[: question.expected]) == ({}, 1)
    assert protocol.sort(question, stuffed) == ({1: Reply(STUFFING, 0)}, 0)


def test_fast_reads_are_given_up_when_they_are_never_answered():
    protocol = Dynamixel()
    for _ in range(2):
        assert protocol.sync_read(SIX, *POSITION).request[7] == Instruction.FAST_SYNC_READ
    question = protocol.sync_read(SIX, *POSITION)
    protocol.sort(question, FAST_ANSWER)  # it was noise, not the firmware
    for _ in range(3):
        assert protocol.sync_read(SIX, *POSITION).request[7] == Instruction.FAST_SYNC_READ
        assert protocol.sync_read(SIX, *POSITION, plain=True).request[7] == Instruction.SYNC_READ
    assert not protocol.fast
    assert protocol.sync_read(SIX, *POSITION).request[7] == Instruction.SYNC_READ


def test_everyone_on_the_bus_is_noticed_whatever_they_answer():
    """A second master's answers, of any size, and those to a ping; never a question nor a shared answer."""
    heard = (
        packets.status(3, 0, four(1)) + packets.read(9, 132, 4) + FAST_ANSWER + packets.status(7, 0, b"\xa6\x04\x32")
    )
    assert Dynamixel().found(heard) == {3, 7}


@given(st.binary(max_size=70), st.integers(0, 0xFFFF))
def test_the_crc_is_that_of_its_definition(data, crc):
    slowly = crc
    for byte in data:
        slowly ^= byte << 8
        for _ in range(8):
            slowly = (slowly << 1 ^ (0x8005 if slowly & 0x8000 else 0)) & 0xFFFF
    assert packets.crc16(data, crc) == slowly
