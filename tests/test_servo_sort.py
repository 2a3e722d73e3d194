"""Answers found among whatever came back: any split, junk, loss, truncation and flipped bits; never a wrong one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.servo import packets
from hotpolicy.robots.servo.bus import sort_reply
from hotpolicy.robots.servo.feetech import Feetech
from hotpolicy.robots.servo.protocol import Reply

FEETECH = Feetech()
ids = st.lists(st.integers(0, 253), unique=True, min_size=1, max_size=6).map(tuple)
quiet = st.binary(max_size=12).map(lambda junk: junk.replace(b"\xff", b"\xfe"))  # no header in it


@st.composite
def conversations(draw):
    """A sync read, and the answer of each servo as (id, reply, bytes)."""
    servos, size = draw(ids), draw(st.integers(1, 6))
    data = st.binary(min_size=size, max_size=size)
    replies = {servo: Reply(draw(data), draw(st.sampled_from((0, 1, 0x20, 0x7F)))) for servo in servos}
    wire = [packets.status(servo, reply.error, reply.data) for servo, reply in replies.items()]
    return FEETECH.sync_read(servos, 56, size), replies, wire


def test_the_answers_of_a_whole_arm_byte_by_byte():
    question = FEETECH.sync_read(tuple(range(1, 7)), 56, 2)
    assert question.request == bytes.fromhex("fffffe0a82380201020304050626")
    assert question.expected == 48
    wire = bytes.fromhex(
        "ffff010400da0719 ffff020400e4070e ffff030400ee0703 ffff040400f807f8 ffff0504000208ec ffff0604000c08e1"
    )
    answers, lacking = FEETECH.sort(question, wire)
    assert lacking == 0
    assert [int.from_bytes(reply.data, "little") for reply in answers.values()] == [2010, 2020, 2030, 2040, 2050, 2060]


@given(conversations(), st.data())
def test_any_split_never_waits_for_more_than_will_come(talk, data):
    question, replies, wire = talk
    whole = b"".join(wire)
    got = b""
    while True:
        answers, lacking = FEETECH.sort(question, got)
        assert answers.items() <= replies.items()
        if not lacking:
            break
        assert 0 < lacking <= len(whole) - len(got)
        got = whole[: len(got) + data.draw(st.integers(1, lacking))]
    assert answers == replies
    assert got == whole


@given(conversations(), st.data())
def test_answers_between_junk_are_found_without_waiting_too_long(talk, data):
    question, replies, wire = talk
    whole = b"".join(data.draw(quiet) + answer for answer in wire)
    got = b""
    while True:
        answers, lacking = FEETECH.sort(question, got)
        if not lacking:
            break
        assert lacking <= len(whole) - len(got)
        got = whole[: len(got) + lacking]
    assert answers == replies


@given(conversations(), st.data())
def test_a_lost_answer_leaves_the_others(talk, data):
    question, replies, wire = talk
    lost = data.draw(st.sets(st.sampled_from(list(replies)), min_size=1))
    left = b"".join(answer for servo, answer in zip(replies, wire, strict=True) if servo not in lost)
    answers, lacking = FEETECH.sort(question, left)
    assert answers == {servo: reply for servo, reply in replies.items() if servo not in lost}
    assert lacking == len(lost) * (question.size + packets.OVERHEAD)


@given(conversations(), st.data())
def test_a_truncated_reply_keeps_what_is_whole(talk, data):
    question, replies, wire = talk
    whole = b"".join(wire)
    cut = data.draw(st.integers(0, len(whole) - 1))
    answers, lacking = FEETECH.sort(question, whole[:cut])
    assert list(answers.items()) == list(replies.items())[: cut // len(wire[0])]
    assert lacking == len(whole) - cut


@given(conversations(), st.data())
def test_a_flipped_bit_costs_no_answer_but_its_own_and_is_never_believed(talk, data):
    question, replies, wire = talk
    broken = data.draw(st.integers(0, len(wire) - 1))
    frame = bytearray(wire[broken])
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    answers, lacking = FEETECH.sort(question, b"".join([*wire[:broken], bytes(frame), *wire[broken + 1 :]]))
    assert answers.items() <= replies.items()
    assert lacking > 0
    assert list(replies)[broken] not in answers
    if bit // 8 != 3 and b"\xff\xff" not in frame[2:]:  # a false length may hide the frame behind it
        assert len(answers) == len(replies) - 1


@given(conversations(), st.binary(max_size=60), st.data())
def test_any_bytes_at_all_end_well(talk, junk, data):
    question, _, wire = talk
    whole = b"".join(wire)
    at = data.draw(st.integers(0, len(whole)))
    answers, lacking = FEETECH.sort(question, whole[:at] + junk + whole[at:])
    assert set(answers) <= set(question.servos)
    assert (lacking == 0) == (len(answers) == len(question.servos))
    assert all(len(reply.data) == question.size for reply in answers.values())


@given(conversations(), st.sampled_from((None, True)), st.data())
def test_an_echo_before_the_answers_in_any_split(talk, echo, data):
    question, replies, wire = talk
    whole = question.request + b"".join(wire)
    got = b""
    while True:
        answers, lacking, echoed = sort_reply(got, question, FEETECH, echo)
        if not lacking:
            break
        assert lacking <= len(whole) - len(got)
        got = whole[: len(got) + data.draw(st.integers(1, lacking))]
    assert (answers, echoed) == (replies, True)


@given(st.sets(st.integers(0, 253), max_size=20), st.data())
def test_who_answers_a_broadcast(present, data):
    wire = b"".join(data.draw(quiet) + packets.status(servo, 0) for servo in sorted(present))
    assert FEETECH.found(wire) == present
    assert FEETECH.found(packets.ping(packets.BROADCAST) + wire) == present  # an echo is nobody


@pytest.mark.parametrize("error", [0x80, 0xFF])
def test_an_error_byte_that_no_servo_sends(error):
    question = FEETECH.read(1, 56, 2)
    assert FEETECH.sort(question, packets.encode(packets.Frame(1, error, b"ab")))[0] == {}
