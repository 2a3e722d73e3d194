"""What time, load and the wire do to virtual servos: ramps, heat, protection, pace, rates, equal ids."""

from __future__ import annotations

import itertools

import pytest

from hotpolicy.robots.servo import packets
from hotpolicy.robots.servo.packets import Frame, split_frames
from hotpolicy.robots.sim.servos import OVERCURRENT, OVERHEAT, OVERLOAD, TOP_SPEED, VOLTAGE, VirtualBus, VirtualServo


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def servo():
    return VirtualServo(1)


@pytest.fixture
def bus(servo, clock):
    return VirtualBus([servo], clock)


def word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def drive(bus, goal: int) -> None:
    bus.feed(packets.write(1, 42, word(goal)))


# Motion ---------------------------------------------------------------------------------------------------------------


def test_a_goal_alone_is_driven_to_at_top_speed(servo, bus):
    drive(bus, 4000)
    assert servo.goal_ticks == 4000
    servo.live(0.1)
    assert servo.present_ticks == pytest.approx(2047 + TOP_SPEED * 0.1)
    assert servo.peek("present_speed") == TOP_SPEED
    servo.live(1.0)
    assert (servo.present_ticks, servo.peek("present_position")) == (4000, 4000)
    servo.live(0.1)
    assert servo.peek("present_speed") == 0


@pytest.mark.parametrize("goal", [3000, 1000])
def test_a_goal_with_a_speed_is_approached_at_that_speed(servo, bus, goal):
    bus.feed(packets.write(1, 46, word(500)))
    drive(bus, goal)
    servo.live(0.2)
    assert abs(servo.goal_ticks - 2047) == pytest.approx(100)
    assert bus.feed(packets.read(1, 66, 1)) == packets.status(1, 0, b"\1")  # moving
    for _ in range(20):
        servo.live(0.2)
    assert servo.present_ticks == servo.goal_ticks == goal
    assert bus.feed(packets.read(1, 66, 1)) == packets.status(1, 0, b"\0")


def test_an_acceleration_makes_a_ramp_up_and_down(servo, bus):
    bus.feed(packets.write(1, 41, bytes((20,))))  # 2000 ticks/s^2
    drive(bus, 3047)
    speeds, at = [], 2047.0
    for _ in range(400):
        servo.live(0.01)
        speeds.append((servo.present_ticks - at) / 0.01)
        at = servo.present_ticks
    assert speeds[0] == pytest.approx(20)  # 2000 * 0.01
    top = max(speeds)
    assert 1000 < top < 1500  # v = sqrt(a * s)
    assert max(abs(b - a) for a, b in itertools.pairwise(speeds)) < 0.2 * top
    assert servo.present_ticks == pytest.approx(3047, abs=1)


def test_no_limits_where_both_are_zero(servo, bus):
    servo.poke("min_position", 0)
    servo.poke("max_position", 0)
    drive(bus, 9000)
    assert servo.goal_ticks == 9000


# Load -----------------------------------------------------------------------------------------------------------------


def held(servo, bus, goal: int) -> None:
    servo.held = True
    drive(bus, goal)


def test_a_joint_that_is_held_strains_and_shows_it(servo, bus):
    held(servo, bus, 2197)
    servo.live(0.01)
    assert servo.present_ticks == 2047
    assert servo.peek("present_load") == 960  # 150 ticks * 32 / 5000
    assert servo.peek("present_current") > 300  # 6.5 mA
    assert servo.peek("present_voltage") < 120
    drive(bus, 1900)
    servo.live(0.01)
    assert servo.peek("present_load") < 0
    bus.feed(packets.write(1, 40, b"\0"))
    servo.live(0.01)
    assert servo.peek("present_load") == servo.peek("present_current") == 0


def test_the_torque_limit_limits(servo, bus):
    bus.feed(packets.write(1, 48, word(300)))
    held(servo, bus, 3000)
    servo.live(0.01)
    assert servo.peek("present_load") == 300
    servo.poke("max_torque", 200)
    assert servo.strength == 0.2


def test_overload_trips_after_a_while_and_weakens_until_released(servo, bus):
    held(servo, bus, 3000)
    servo.live(1.9)
    assert servo.errors == 0
    servo.live(0.2)  # protection time 2 s
    assert servo.errors == OVERLOAD
    assert servo.strength == 0.2  # protective torque
    assert split_frames(bus.feed(packets.read(1, 65, 1)))[0] == [Frame(1, OVERLOAD, bytes((OVERLOAD,)))]
    servo.live(0.1)
    assert servo.peek("present_load") == 200
    assert servo.torque
    bus.feed(packets.write(1, 40, b"\0"))
    assert (servo.errors, servo.strength) == (0, 1.0)


def test_a_short_strain_does_not_trip(servo, bus):
    for _ in range(5):
        held(servo, bus, 3000)
        servo.live(1.5)
        drive(bus, 2047)
        servo.live(0.1)
    assert servo.errors == 0


def test_heat_lets_go_of_the_joint(servo, bus):
    servo.poke("protective_torque", 100)
    held(servo, bus, 3000)
    for _ in range(400):
        servo.live(1.0)
        if servo.errors & OVERHEAT:
            break
    assert servo.peek("present_temperature") > servo.peek("max_temperature") - 1
    assert not servo.torque
    hot = servo.motor.temperature
    for _ in range(60):
        servo.live(1.0)
    assert servo.motor.temperature < hot


def test_overcurrent_lets_go_too(servo, bus):
    bus.feed(packets.write(1, 28, word(250)))
    servo.poke("protection_time", 254)
    held(servo, bus, 3000)
    servo.live(1.0)
    servo.live(1.5)
    assert servo.errors & OVERCURRENT
    assert not servo.torque


def test_a_sagging_supply_is_reported_and_forgotten(servo):
    servo.motor.supply = 3.5
    servo.live(0.1)
    assert servo.errors == VOLTAGE
    servo.motor.supply = 12.0
    servo.live(0.1)
    assert servo.errors == 0


def test_overload_on_command(servo, bus):
    bus.inject("overload", id=2)
    assert servo.errors == 0
    bus.inject("overload", id=1)
    assert servo.errors == OVERLOAD
    servo.power_cycle()
    assert (servo.errors, servo.strength) == (0, 1.0)


# The wire -------------------------------------------------------------------------------------------------------------


def test_a_wire_with_a_pace_takes_ten_bits_a_byte(clock):
    bus = VirtualBus([VirtualServo(i) for i in (1, 2)], clock, baud=1_000_000)
    bus.servo(2).poke("return_delay", 100)  # 200 us
    question = packets.sync_read((1, 2), 56, 2)
    assert bus.feed(question) == b""
    first = len(question) * 1e-5 + 8e-5
    assert bus.next_due == pytest.approx(first)
    clock.now = first + 1e-6
    assert bus.due() == packets.status(1, 0, word(2047))
    assert bus.next_due == pytest.approx(first + 200e-6 + 8e-5)
    clock.now = 1.0
    assert bus.due() == packets.status(2, 0, word(2047))


def test_writes_take_their_time_before_the_next_question(clock):
    bus = VirtualBus([VirtualServo(1)], clock, baud=1_000_000)
    goals = packets.sync_write(42, {1: word(1000)})
    bus.feed(goals)
    assert bus.next_due is None
    bus.feed(packets.ping(1))
    assert bus.next_due == pytest.approx((len(goals) + 6 + 6) * 1e-5)


@pytest.mark.parametrize("rate", [1_000_000, 115_200, 76_800])
def test_a_servo_hears_only_its_own_rate(servo, bus, rate):
    index = {1_000_000: 0, 115_200: 4, 76_800: 5}[rate]
    servo.poke("baud_rate", index)
    for other in (1_000_000, 115_200, 76_800):
        assert (bus.feed(packets.ping(1), other) != b"") == (other == rate)
    assert bus.feed(packets.ping(1)) != b""  # nobody cares about rates here
    servo.poke("baud_rate", 99)
    assert bus.feed(packets.ping(1), rate) == b""


def test_two_servos_of_one_id_talk_over_one_another(clock):
    bus = VirtualBus([VirtualServo(1), VirtualServo(1), VirtualServo(2)], clock)
    bus.servos[0].present_ticks, bus.servos[1].present_ticks = 1000, 3001
    assert bus.feed(packets.ping(1)) == packets.status(1, 0)  # both say the same
    assert split_frames(bus.feed(packets.read(1, 56, 2)), final=True)[0] == []  # 1000 & 3001, and no checksum of it
    frames, _ = split_frames(bus.feed(packets.sync_read((1, 2), 56, 2)), final=True)
    assert [frame.id for frame in frames] == [2]
