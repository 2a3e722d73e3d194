"""Real-time chunking on the wire: what a robot says of the chunk it executes, and what nobody may say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving import observation

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.errors import BadReply, BadRequest
from hotpolicy.runtime.messages import ActionChunk, InferRequest, Rtc

RTC = Rtc(previous=4, executed=3, delay=2, execution_horizon=5, schedule="linear", max_weight=7.5)


def sent(rtc: Rtc | None) -> dict[str, Any]:
    request = InferRequest(5, "robot", observation(), 1.5, 100.0, rtc=rtc)
    return wire.decode(wire.encode(envelope.from_request(request)))


def test_a_request_says_what_its_robot_executes() -> None:
    assert envelope.to_request(sent(RTC)).rtc == RTC


def test_a_robot_that_knows_nothing_of_it_is_understood() -> None:
    message = sent(None)
    assert "rtc" not in message, "an older server sees what it always saw"
    assert envelope.to_request(message).rtc is None


@pytest.mark.parametrize("name", ["previous", "executed", "delay", "execution_horizon"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, None, "3", [], {}, np.zeros(2)])
def test_a_count_that_is_none_is_refused_by_its_name(name: str, value: object) -> None:
    message = sent(RTC)
    message["rtc"][name] = value
    with pytest.raises(BadRequest, match=rf"^rtc\.{name}: expected an integer"):
        envelope.to_request(message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "EXP"),
        ("schedule", ""),
        ("schedule", b"exp"),
        ("schedule", None),
        ("schedule", "exp" * 40),
        ("max_weight", 0),
        ("max_weight", -1.0),
        ("max_weight", 100.5),
        ("max_weight", float("nan")),
        ("max_weight", float("inf")),
        ("max_weight", True),
        ("max_weight", None),
        ("max_weight", "10"),
    ],
)
def test_a_schedule_or_a_weight_that_makes_no_sense_is_refused_by_its_name(name: str, value: object) -> None:
    message = sent(RTC)
    message["rtc"][name] = value
    with pytest.raises(BadRequest, match=rf"^rtc\.{name}: expected"):
        envelope.to_request(message)


@pytest.mark.parametrize("value", [None, [], "exp", 3, np.zeros(3)])
def test_rtc_itself_is_a_map(value: object) -> None:
    with pytest.raises(BadRequest, match=r"^rtc: expected a map"):
        envelope.to_request({**sent(None), "rtc": value})


@pytest.mark.parametrize("name", ["previous", "executed", "delay", "execution_horizon", "schedule", "max_weight"])
def test_no_field_of_it_may_be_left_out(name: str) -> None:
    message = sent(RTC)
    del message["rtc"][name]
    with pytest.raises(BadRequest, match=rf"^rtc\.{name}: expected .*, got nothing"):
        envelope.to_request(message)


def answer(**changed: object) -> dict[str, Any]:
    chunk = ActionChunk(np.zeros((4, 2), np.float32), 10.0, 0.0, 5, "v1", "d", guided=True)
    return {**envelope.from_chunk(chunk), **changed}


def test_an_answer_says_whether_it_carries_on() -> None:
    assert envelope.to_chunk(wire.decode(wire.encode(answer()))).guided is True
    assert envelope.to_chunk(answer(guided=False)).guided is False


def test_an_answer_of_an_older_server_does_not() -> None:
    message = answer()
    del message["guided"]
    assert envelope.to_chunk(message).guided is False


@pytest.mark.parametrize("value", [1, None, "true"])
def test_an_answer_that_says_it_oddly_is_no_answer(value: object) -> None:
    with pytest.raises(BadReply, match=r"^guided: expected true or false"):
        envelope.to_chunk(answer(guided=value))
