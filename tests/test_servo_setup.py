"""Finding servos at any baud rate, and giving new ones their id and rate, against virtual servos of both families."""

from __future__ import annotations

import pytest

from hotpolicy.robots.arms.koch import KOCH_FOLLOWER
from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.servo.dynamixel import DYNAMIXEL, Dynamixel
from hotpolicy.robots.servo.feetech import FEETECH
from hotpolicy.robots.servo.scan import Found, baud_rates, compare, scan
from hotpolicy.robots.servo.setup import find_one, set_up
from hotpolicy.robots.sim.dynamixel import VirtualDynamixel, VirtualDynamixels
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo
from hotpolicy.runtime.errors import BadRequest, ServoFault, ServoSilent, WrongServo

MARGIN_MS = 80.0  # a loaded machine


def feetech(id=1, baud_key=0, model=777):
    servo = VirtualServo(id, model=model)
    servo.poke("baud_rate", baud_key)
    servo._saved = servo.memory[:40]
    return servo


def dynamixel(id=1, baud_key=1, model=1200):
    servo = VirtualDynamixel(id, model=model)
    servo.poke("baud_rate", baud_key)
    servo._saved = servo.memory[:64]
    return servo


KINDS = {
    "feetech": (FEETECH, VirtualBus, feetech, SO101_FOLLOWER, 4),  # and the key of another baud rate
    "dynamixel": (DYNAMIXEL, VirtualDynamixels, dynamixel, KOCH_FOLLOWER, 2),
}


@pytest.fixture
def port(tmp_path, monkeypatch):
    monkeypatch.setattr(Dynamixel, "scan_s", 0.05)  # ours answer at once
    return VirtualPort(tmp_path / "arm")


def on(port, wire):
    wire.strict_baud = True
    return serve(wire, port)


@pytest.mark.parametrize("kind", KINDS)
def test_servos_are_found_at_each_baud_rate(port, kind):
    family, wire, servo, _, other = KINDS[kind]
    key_1m = next(key for key, rate in family.baud_rates.items() if rate == 1_000_000)
    tried = []
    with on(port, wire([servo(1, key_1m), servo(7, key_1m), servo(3, other)])):
        rates = (1_000_000, family.baud_rates[other])
        found = scan(port.path, (family,), rates, margin_ms=MARGIN_MS, progress=lambda _, rate: tried.append(rate))
        assert [(servo.id, servo.baud) for servo in found] == [(1, rates[0]), (7, rates[0]), (3, rates[1])]
        assert tried == list(rates)
        found = scan(port.path, (family,), margin_ms=MARGIN_MS, first=True)
        assert [servo.id for servo in found] == [1, 7]


def test_a_rate_that_only_the_other_family_has_is_left_out(port):
    with on(port, VirtualBus([feetech()])):
        found = scan(port.path, (FEETECH, DYNAMIXEL), (500_000, 1_000_000), margin_ms=MARGIN_MS)
    assert [str(servo) for servo in found] == ["servo 1, STS3215 (777) at 1000000 bit/s"]


def test_the_likely_rates_come_first():
    assert baud_rates(DYNAMIXEL)[:2] == (1_000_000, 57_600)
    for family in (FEETECH, DYNAMIXEL):
        assert sorted(baud_rates(family)) == sorted(family.baud_rates.values())


def test_expected_and_found_are_compared_line_by_line():
    whole = [Found(DYNAMIXEL, 1_000_000, row.id, row.model) for row in KOCH_FOLLOWER.joints]
    assert compare(KOCH_FOLLOWER, whole) == []
    found = [
        *whole[:2],
        Found(DYNAMIXEL, 57_600, 3, 1200),
        Found(DYNAMIXEL, 1_000_000, 4, 1190),
        *whole[5:],
        Found(DYNAMIXEL, 1_000_000, 9, 1060),
        Found(FEETECH, 1_000_000, 1, 777),
    ]
    lines = compare(KOCH_FOLLOWER, found)
    assert [line.split(":")[0] for line in lines] == [
        "elbow_flex",
        "wrist_flex",
        "wrist_roll",
        "servo 9, XL430-W250 (1060) at 1000000 bit/s",
        "servo 1, STS3215 (777) at 1000000 bit/s",
    ]
    assert "found it at 57600 bit/s: `hotpolicy setup-motors` sets it" in lines[0]
    assert "expected servo 4, XL330-M288 (1200) at 1000000 bit/s, found XL330-M077 (1190)" in lines[1]
    assert "found nothing: is it plugged in and powered?" in lines[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trouble", [None, "drop"])
def test_a_new_servo_gets_its_id_and_rate_to_stay(port, kind, trouble):
    """Also when nothing is heard of it while it changes over."""
    family, wire, servo, table, other = KINDS[kind]
    new = servo(1, other)
    virtual = wire([new])
    row = table.joints[4]
    with on(port, virtual):
        found = find_one(port.path, family, margin_ms=MARGIN_MS)
        assert (found.id, found.baud) == (1, family.baud_rates[other])
        new.poke("torque", 1)
        if trouble:
            write = new.write

            def deaf_after(data):
                answer = write(data)
                if new.id == row.id and not any(fault.kind == trouble for fault in virtual.faults):
                    virtual.inject(trouble, times=2)
                return answer

            new.write = deaf_after
        set_up(port.path, found, table, row, margin_ms=MARGIN_MS)
        new.power_cycle()
        assert (new.id, new.baud, new.torque) == (row.id, 1_000_000, False)
        again = find_one(port.path, family, margin_ms=MARGIN_MS)
        assert (again.id, again.baud, again.model) == (row.id, 1_000_000, row.model)
        set_up(port.path, again, table, row, margin_ms=MARGIN_MS)  # a second time changes nothing


@pytest.mark.parametrize("kind", KINDS)
def test_the_wrong_servo_is_left_as_it_was(port, kind):
    _, wire, servo, table, other = KINDS[kind]
    new = servo(1, other)
    with on(port, wire([new])):
        found = Found(table.family, new.baud, 1, 1060 if kind == "dynamixel" else 2825)
        before = bytes(new.memory)
        with pytest.raises(WrongServo, match=r"joint wrist_roll: expected .* is this the right servo\?"):
            set_up(port.path, found, table, table.joints[4])
        with pytest.raises(BadRequest, match="baud rate: expected one of"):
            set_up(port.path, Found(table.family, new.baud, 1, table.joints[4].model), table, table.joints[4], 12345)
        assert bytes(new.memory) == before


def test_there_must_be_one_servo_and_only_one(port):
    alone = r"alone on the bus, found servo 1, .*; servo 2, .*: unplug all but one"
    with on(port, VirtualBus([feetech(1), feetech(2)])), pytest.raises(WrongServo, match=alone):
        find_one(port.path, FEETECH, margin_ms=MARGIN_MS)


def test_no_servo_at_all(port):
    with on(port, VirtualBus([])), pytest.raises(WrongServo, match="none answered at any baud rate"):
        find_one(port.path, FEETECH, margin_ms=10)


def test_a_servo_that_refuses_is_not_called_done(port):
    """Its EEPROM stays locked, or its new rate is one that nobody hears."""
    new = dynamixel(1, 3)
    new._refusal = lambda register, value: 7 if register.name == "id" else 0
    with on(port, VirtualDynamixels([new])):
        found = find_one(port.path, DYNAMIXEL, margin_ms=MARGIN_MS)
        with pytest.raises((ServoSilent, ServoFault)):
            set_up(port.path, found, KOCH_FOLLOWER, KOCH_FOLLOWER.joints[4], margin_ms=MARGIN_MS)
