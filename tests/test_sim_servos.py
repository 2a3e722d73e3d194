"""The virtual servo does what the real one does: registers, memory, torque, and trouble on command."""

from __future__ import annotations

import pytest

from hotpolicy.robots.calibration import JointCalibration
from hotpolicy.robots.servo import packets
from hotpolicy.robots.servo.packets import Frame, split_frames
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo

SIX = range(1, 7)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bus(clock):
    return VirtualBus([VirtualServo(i) for i in SIX], clock)


def word(value: int) -> bytes:
    return value.to_bytes(2, "little")


def answers(bus, request):
    frames, rest = split_frames(bus.feed(request), final=True)
    assert rest == b""
    return frames


def test_golden_conversation(bus):
    for id, ticks in zip(SIX, (2010, 2020, 2030, 2040, 2050, 2060), strict=True):
        bus.servo(id).present_ticks = ticks
    assert bus.feed(bytes.fromhex("ffff010201fb")) == bytes.fromhex("ffff010200fc")
    assert bus.feed(bytes.fromhex("ffff0304023802bc")) == bytes.fromhex("ffff030400ee0703")
    assert bus.feed(bytes.fromhex("ffff0104020302f3")) == bytes.fromhex("ffff01040009 03ee")
    reply = bus.feed(bytes.fromhex("fffffe0a8238020102030405 0626"))
    assert reply.startswith(bytes.fromhex("ffff010400da0719 ffff020400e4070e"))
    assert len(reply) == 48
    bus.servo(6).errors = 0x20
    bus.servo(6).poke("present_voltage", 0x79)
    assert bus.feed(packets.read(6, 62, 1)) == bytes.fromhex("ffff0603 20795d")
    bus.servo(1).present_ticks = -400
    assert bus.feed(packets.read(1, 56, 2)) == bytes.fromhex("ffff01040090 81e9")


def test_a_released_servo_has_no_goal_until_one_is_written(bus):
    servo = bus.servo(1)
    assert servo.goal_ticks is None
    assert answers(bus, packets.write(1, 42, word(3000))) == [Frame(1, 0, b"")]
    assert servo.torque  # writing a goal energises, as in the real one
    assert servo.goal_ticks == 3000
    bus.feed(packets.write(1, 40, b"\0"))
    assert servo.goal_ticks is None
    bus.feed(packets.write(1, 40, b"\1"))
    assert servo.goal_ticks == 3000  # the stale goal


def test_firmware_that_takes_the_present_as_goal():
    servo = VirtualServo(1, goal_on_torque="present")
    bus = VirtualBus([servo])
    servo.poke("goal_position", 3000)
    servo.present_ticks = 1000
    bus.feed(packets.write(1, 40, b"\1"))
    assert servo.goal_ticks == 1000


def test_limits_clamp_the_drive_and_not_the_register():
    servo = VirtualServo(1, low=1000, high=3000)
    bus = VirtualBus([servo])
    for written, driven in ((999, 1000), (1000, 1000), (3000, 3000), (3001, 3000)):
        bus.feed(packets.write(1, 42, word(written)))
        assert servo.goal_ticks == driven
        assert servo.peek("goal_position") == written


def test_the_offset_moves_registers_and_not_the_arm():
    servo = VirtualServo(1, offset=-710)
    bus = VirtualBus([servo])
    servo.present_ticks = 2000
    bus.feed(packets.write(1, 31, word(0)))
    assert servo.peek("present_position") == 2000 - 710
    assert servo.present_ticks == 2000
    bus.feed(packets.write(1, 42, word(2000 - 710)))
    assert servo.goal_ticks == 2000


def test_torque_128_makes_here_the_middle():
    servo = VirtualServo(1)
    bus = VirtualBus([servo])
    servo.present_ticks = 1500
    bus.feed(packets.write(1, 40, bytes((128,))))
    assert servo.peek("present_position") == 2048
    assert servo.goal_ticks is None


def test_eeprom_persists_only_while_unlocked(bus):
    servo = bus.servo(1)
    bus.feed(packets.write(1, 9, word(100)))
    assert servo.peek("min_position") == 100
    servo.power_cycle()
    assert servo.peek("min_position") == 0
    bus.feed(packets.write(1, 55, b"\0") + packets.write(1, 9, word(100)) + packets.write(1, 42, word(1000)))
    servo.power_cycle()
    assert servo.peek("min_position") == 100
    assert servo.peek("lock") == 1
    assert servo.goal_ticks is None


def test_reg_write_waits_for_action(bus):
    bus.feed(packets.reg_write(1, 42, word(1234)))
    assert bus.servo(1).goal_ticks is None
    assert answers(bus, packets.action()) == []
    assert bus.servo(1).goal_ticks == 1234


def test_read_only_registers_stay(bus):
    bus.feed(packets.write(1, 3, word(1)) + packets.write(1, 56, word(1)))
    assert bus.servo(1).peek("model") == 777
    assert bus.servo(1).peek("present_position") == 2048 - 1  # the middle of 0..4095


def test_status_level_zero_answers_only_questions(bus):
    assert answers(bus, packets.write(1, 8, b"\0")) == []
    assert answers(bus, packets.write(1, 41, b"\1")) == []
    assert len(answers(bus, packets.ping(1) + packets.read(1, 41, 1) + packets.sync_read([1], 56, 2))) == 3


def test_a_new_id_is_heard_at_once(bus):
    bus.feed(packets.write(6, 5, b"\x09"))
    assert answers(bus, packets.ping(6)) == []
    assert answers(bus, packets.ping(9)) == [Frame(9, 0, b"")]


def test_broadcast_ping_finds_all(bus):
    assert [frame.id for frame in answers(bus, packets.ping(packets.BROADCAST))] == list(SIX)


def test_reading_past_the_table_gives_zeros(bus):
    assert answers(bus, packets.read(1, 250, 4)) == [Frame(1, 0, bytes(4))]


def test_sync_write_moves_all_at_once(bus):
    assert answers(bus, packets.sync_write(42, {i: word(1000 + i) for i in SIX})) == []
    assert [bus.servo(i).goal_ticks for i in SIX] == [1001, 1002, 1003, 1004, 1005, 1006]


def test_servos_follow_at_a_bounded_speed(bus):
    servo = bus.servo(1)
    start = servo.present_ticks
    bus.feed(packets.write(1, 42, word(3000)))
    assert answers(bus, packets.read(1, 66, 1))[0].data == b"\1"
    servo.advance(100)
    assert servo.present_ticks == start + 100
    servo.advance(10000)
    assert servo.present_ticks == 3000
    assert answers(bus, packets.read(1, 66, 1))[0].data == b"\0"


def test_any_split_and_any_junk(bus):
    request = b"\x00\xff" + packets.ping(1) + b"junk" + packets.ping(2)
    out = b"".join(bus.feed(request[i : i + 1]) for i in range(len(request)))
    assert out == packets.status(1, 0) + packets.status(2, 0)


def test_a_question_that_stops_half_way_is_given_up(bus, clock):
    bus.feed(b"\xff\xff\x05\xfa")
    clock.now = 0.5
    assert answers(bus, packets.ping(1)) == [Frame(1, 0, b"")]


def test_malformed_requests_are_ignored(bus):
    for code, data in (
        (0x02, b"\x38"),
        (0x03, b"\x2a"),
        (0x04, b""),
        (0x83, b"\x2a"),
        (0x83, b"\x2a\x02\x01"),
        (0x77, b""),
    ):
        assert bus.feed(packets.encode(Frame(1, code, data))) == b""
    assert bus.servo(1).goal_ticks is None


def test_built_from_a_calibration():
    joint = JointCalibration(id=3, drive_mode=0, homing_offset=158, range_min=708, range_max=3431)
    servo = VirtualBus.from_calibration({"elbow": joint}).servo(3)
    assert (servo.peek("position_offset"), servo.peek("min_position"), servo.peek("max_position")) == (158, 708, 3431)
    assert servo.present_ticks == (708 + 3431) // 2


# Faults ---------------------------------------------------------------------------------------------------------------

GOOD = packets.status(2, 0)


@pytest.mark.parametrize(
    ("kind", "out"),
    [
        ("silent", b""),
        ("drop", b""),
        ("truncate", GOOD[:-1]),
        ("foreign", packets.status(3, 0)),
        ("echo", packets.ping(2) + GOOD),
    ],
)
def test_a_fault_changes_one_servo_until_it_is_used_up(bus, kind, out):
    bus.inject(kind, id=2, times=1)
    assert bus.feed(packets.ping(1)) == packets.status(1, 0)
    assert bus.feed(packets.ping(2)) == out
    assert bus.feed(packets.ping(2)) == GOOD


def test_corrupt_and_noise(bus):
    bus.inject("corrupt", times=1)
    assert answers(bus, packets.ping(2)) == []
    bus.inject("noise", times=1)
    reply = bus.feed(packets.ping(2))
    assert len(reply) > len(GOOD)
    assert split_frames(reply, final=True)[0] == [Frame(2, 0, b"")]


def test_a_silent_servo_does_not_hear(bus):
    bus.inject("silent", id=2)
    bus.feed(packets.write(2, 42, word(1000)) + packets.sync_write(42, {2: word(1000)}))
    assert bus.servo(2).goal_ticks is None
    bus.clear()
    bus.inject("drop", id=2)
    bus.feed(packets.write(2, 42, word(1000)))
    assert bus.servo(2).goal_ticks == 1000


def test_sync_read_around_and_up_to_a_gap(bus):
    bus.inject("silent", id=3)
    assert [f.id for f in answers(bus, packets.sync_read(SIX, 56, 2))] == [1, 2, 4, 5, 6]
    bus.inject("stop_at_gap", id=3)
    assert [f.id for f in answers(bus, packets.sync_read(SIX, 56, 2))] == [1, 2]


def test_late_answers_keep_their_order(bus, clock):
    bus.inject("late", id=2, times=1, delay_s=0.08)
    assert bus.feed(packets.ping(2)) == b""
    assert bus.next_due == pytest.approx(0.08)
    assert bus.feed(packets.ping(1)) == b""  # waits behind the late one
    clock.now = 0.081
    assert bus.due() == packets.status(2, 0) + packets.status(1, 0)
    assert bus.next_due is None


def test_split_answers(bus, clock):
    bus.inject("split", times=1, delay_s=0.01)
    first = bus.feed(packets.ping(2))
    clock.now = 0.02
    assert 0 < len(first) < len(GOOD)
    assert first + bus.due() == GOOD
