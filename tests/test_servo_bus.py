"""The bus against virtual servos on a pseudo-terminal: every kind of trouble, and what the caller then sees."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from hotpolicy.robots.servo import packets
from hotpolicy.robots.servo.bus import ServoBus, Timing, sort_reply
from hotpolicy.robots.servo.feetech import Feetech
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo
from hotpolicy.runtime.errors import BusBusy, BusLost, ServoSilent

SIX = tuple(range(1, 7))
POSITION = (56, 2)
PATIENT = Timing(margin_ms=400, budget_ms=2000)  # nothing is expected to be silent
BRISK = Timing(margin_ms=80, budget_ms=400)  # something is


@pytest.fixture
def virtual():
    servos = [VirtualServo(i) for i in SIX]
    for servo in servos:
        servo.present_ticks = 1000 + servo.id
    return VirtualBus(servos)


@pytest.fixture
def port(virtual, tmp_path):
    with serve(virtual, VirtualPort(tmp_path / "arm")) as port:
        yield port


@pytest.fixture
def bus(port):
    with ServoBus(port.path, PATIENT) as bus:
        yield bus


@pytest.fixture
def brisk(port):
    with ServoBus(port.path, BRISK) as bus:
        yield bus


def positions(replies):
    return {servo: int.from_bytes(reply.data, "little") for servo, reply in replies.by_id.items()}


ALL = {i: 1000 + i for i in SIX}


def test_reading_and_writing(virtual, bus):
    assert positions(bus.sync_read(SIX, *POSITION)) == ALL
    assert bus.read(3, 3, 2).data == b"\x09\x03"
    assert bus.write(3, 41, b"\x32") == 0
    assert virtual.servo(3).peek("acceleration") == 50
    assert bus.ping(4) == (b"", 0)
    assert bus.reg_write(4, 42, b"\xb8\x0b") == 0
    bus.action()
    bus.sync_write(42, {1: b"\x00\x04", 2: b"\x00\x04"})
    assert bus.ping(1) == (b"", 0)  # behind the writes on the wire
    assert [virtual.servo(i).goal_ticks for i in (1, 2, 3, 4)] == [1024, 1024, None, 3000]
    assert bus.scan() == dict.fromkeys(SIX, 777)
    assert bus.echo is False
    assert bus.counts.retries == bus.counts.damaged == bus.counts.missed == 0


def test_the_error_byte_of_every_answer_is_kept(virtual, bus):
    virtual.servo(6).errors = 0x20
    assert [reply.error for reply in bus.sync_read(SIX, *POSITION).by_id.values()] == [0, 0, 0, 0, 0, 0x20]
    assert bus.write(6, 41, b"\0") == 0x20
    assert bus.ping(6) == (b"", 0x20)


@pytest.mark.parametrize("kind", ["drop", "corrupt", "truncate", "foreign"])
def test_a_damaged_answer_is_asked_for_again(virtual, brisk, kind):
    virtual.inject(kind, id=3, times=1)
    replies = brisk.sync_read(SIX, *POSITION)
    assert (positions(replies), replies.missing) == (ALL, ())
    assert brisk.counts.retries == 1
    virtual.inject(kind, id=3, times=1)
    assert brisk.read(3, *POSITION).data == b"\xeb\x03"


@pytest.mark.parametrize("kind", ["noise", "split"])
def test_a_displaced_answer_is_found(virtual, bus, kind):
    virtual.inject(kind, id=3, times=1, delay_s=0.01)
    assert positions(bus.sync_read(SIX, *POSITION)) == ALL
    assert bus.counts.retries == 0


@pytest.mark.parametrize("gap", ["silent", "stop_at_gap"])
def test_a_silent_servo_costs_only_its_own_answer(virtual, brisk, gap):
    virtual.inject("silent", id=2)
    if gap == "stop_at_gap":
        virtual.inject("stop_at_gap", id=2)
    for _ in range(3):
        replies = brisk.sync_read(SIX, *POSITION)
        assert replies.missing == (2,)
        assert positions(replies) == {i: ALL[i] for i in SIX if i != 2}
    with pytest.raises(ServoSilent, match=r"servo 2 on .*arm: expected an answer"):
        brisk.read(2, *POSITION)
    assert brisk.ping(2) is None


def test_a_silent_servo_is_not_waited_for_in_every_cycle_and_comes_back(virtual, brisk):
    fault = virtual.inject("silent", id=2)
    assert brisk.sync_read(SIX, *POSITION).missing == (2,)
    brisk.sync_read(SIX, *POSITION)  # pings it
    asked = brisk.counts.questions
    for _ in range(4):
        assert brisk.sync_read(SIX, *POSITION).missing == (2,)
    assert brisk.counts.questions == asked + 4
    fault.times = 0
    assert brisk.sync_read(SIX, *POSITION).missing == ()


def test_retries_end_with_the_budget(virtual, port):
    virtual.inject("silent")
    with ServoBus(port.path, Timing(margin_ms=50, budget_ms=60, retries=50)) as bus:
        start = time.monotonic()
        assert bus.sync_read(SIX, *POSITION).missing == SIX
        assert time.monotonic() - start < 1.0
        assert bus.counts.retries <= 2


def test_a_late_answer_is_never_taken_for_a_newer_question(virtual, port):
    with ServoBus(port.path, Timing(margin_ms=60, budget_ms=50, retries=0)) as bus:
        virtual.inject("late", id=1, times=1, delay_s=0.15)
        with pytest.raises(ServoSilent):
            bus.read(1, *POSITION)
        virtual.servo(1).present_ticks = 3333
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # silent until its answers are in step again, never the old position
            replies = bus.sync_read((1,), *POSITION)
            if replies.by_id:
                break
        assert positions(replies) == {1: 3333}


def test_a_late_answer_of_the_same_size_goes_with_the_ping(virtual, port):
    """The old answer comes after the flush and before the ping's own: only the ping keeps it out."""
    with ServoBus(port.path, Timing(margin_ms=120, budget_ms=50, retries=0)) as bus:
        virtual.inject("late", id=1, times=1, delay_s=0.16)
        with pytest.raises(ServoSilent):
            bus.read(1, *POSITION)
        virtual.servo(1).present_ticks = 3333
        with suppress(ServoSilent):  # on a slow machine the ping may have been too early
            assert bus.read(1, *POSITION).data == (3333).to_bytes(2, "little")


@pytest.mark.parametrize("first", ["ping", "read", "sync_read"])
def test_an_adapter_that_echoes_is_recognised(virtual, bus, first):
    virtual.inject("echo")
    if first == "ping":
        assert bus.ping(1) == (b"", 0)
    elif first == "read":
        assert bus.read(1, *POSITION).data == b"\xe9\x03"
    assert positions(bus.sync_read(SIX, *POSITION)) == ALL
    assert bus.echo is True
    bus.sync_write(42, {1: b"\x00\x04"})
    assert bus.write(1, 41, b"\x01") == 0
    assert positions(bus.sync_read(SIX, *POSITION)) == ALL
    assert bus.counts.retries == 0


def test_the_echo_of_a_question_to_a_silent_servo_is_no_answer(virtual, brisk):
    virtual.inject("echo")
    assert brisk.ping(9) is None
    with pytest.raises(ServoSilent):
        brisk.read(9, *POSITION)
    assert brisk.read(1, *POSITION).data == b"\xe9\x03"
    assert brisk.ping(9) is None


def test_replies_sort_out_in_any_portions():
    feetech = Feetech()
    question = feetech.sync_read((1, 2), 56, 2)
    request = question.request
    reply = packets.status(1, 0, b"ab") + packets.status(2, 1, b"cd")
    for echo, wire in ((None, reply), (None, request + reply), (True, request + reply)):
        for end in range(len(wire)):
            answers, lacking, _ = sort_reply(wire[:end], question, feetech, echo)
            assert lacking > 0
            assert len(answers) < 2
        answers, lacking, echoed = sort_reply(wire, question, feetech, echo)
        assert answers == {1: (b"ab", 0), 2: (b"cd", 1)}
        assert (lacking, echoed) == (0, wire.startswith(request))


def test_one_id_with_two_answers_is_not_believed():
    feetech = Feetech()
    question = feetech.sync_read((1, 2), 56, 2)
    twins = packets.status(1, 0, b"ab") + packets.status(1, 0, b"xy")
    assert list(feetech.sort(question, twins + packets.status(2, 0, b"cd"))[0]) == [2]
    assert list(feetech.sort(question, twins[:8] * 2)[0]) == [1]


def test_no_trouble_ever_becomes_a_position(virtual, port):
    """Three cycles in four have an answer that is lost, damaged, displaced or late."""
    dice = random.Random(7)
    kinds = ("drop", "corrupt", "truncate", "noise", "late", "split", "foreign")
    with ServoBus(port.path, Timing(margin_ms=8, budget_ms=12)) as bus:
        for cycle in range(300):
            truth = {i: 100 * i + cycle % 50 for i in SIX}
            for servo in virtual.servos:
                servo.present_ticks = truth[servo.id]
            if dice.random() < 0.75:
                virtual.inject(dice.choice(kinds), dice.choice(SIX), times=1, delay_s=dice.uniform(0, 0.03))
            got = positions(bus.sync_read(SIX, *POSITION))
            assert got.items() <= truth.items()
        assert bus.counts.retries > 0
        assert bus.counts.missed > 0
        virtual.clear()
        deadline = time.monotonic() + 10
        while bus.sync_read(SIX, *POSITION).missing:
            assert time.monotonic() < deadline
        assert positions(bus.sync_read(SIX, *POSITION)) == truth


# The port -------------------------------------------------------------------------------------------------------------


def test_no_port_there(tmp_path):
    with pytest.raises(BusLost, match="expected a serial port, there is none; found here:"):
        ServoBus(str(tmp_path / "nothing")).open()


def test_not_a_serial_port(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BusLost, match="expected a serial port"):
        ServoBus(str(tmp_path / "file")).open()
    with pytest.raises(BusLost, match="expected a serial port"):
        ServoBus("telepathy://arm").open()
    with pytest.raises(BusLost, match="expected a serial port"):
        ServoBus("socket://127.0.0.1:1").open()


def test_a_second_opener_is_refused(port, bus):
    with pytest.raises(BusBusy, match=f"port {port.path}: another"):
        ServoBus(port.path).open()
    with pytest.raises(BusBusy, match=f"port {port.device}: another"):  # the same device by another name
        ServoBus(port.device).open()
    assert bus.ping(1) == (b"", 0)
    bus.close()
    with ServoBus(port.path, PATIENT) as second:
        assert second.ping(1) == (b"", 0)


def test_a_second_program_is_refused_and_a_dead_one_leaves_no_lock(port):
    code = "import sys, serial; port = serial.Serial(sys.argv[1], exclusive=True); print('open'); sys.stdin.read()"
    command = [sys.executable, "-c", code, port.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(BusBusy, match="another program has it open"):
            ServoBus(port.path).open()
        other.kill()
    with ServoBus(port.path, PATIENT) as bus:
        assert bus.ping(1) == (b"", 0)


def test_unplugging_is_one_error_and_plugging_in_mends_it(port, bus):
    assert bus.ping(1) == (b"", 0)
    port.unplug()
    with pytest.raises(BusLost, match=f"port {port.path}"):
        bus.sync_read(SIX, *POSITION)
    for call in (lambda: bus.ping(1), bus.action, lambda: bus.write(1, 41, b"\0"), bus.scan):
        with pytest.raises(BusLost, match="not open"):
            call()
    with pytest.raises(BusLost):
        bus.open()
    bus.close()
    port.replug()
    bus.open()
    assert positions(bus.sync_read(SIX, *POSITION)) == ALL


def test_unplugging_while_waiting(virtual, port):
    virtual.inject("silent")
    with ServoBus(port.path, PATIENT) as bus:
        timer = threading.Timer(0.05, port.unplug)
        timer.start()
        with pytest.raises(BusLost):
            bus.ping(1)
        timer.join()


def test_the_device_name_may_be_a_link(port, bus):
    assert os.path.islink(port.path)
    assert bus.port == port.path
