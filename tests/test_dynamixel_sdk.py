"""The vendor's own SDK, which knows nothing of us, talks to the virtual Dynamixels over the pseudo-terminal."""

from __future__ import annotations

import dynamixel_sdk as sdk
import pytest

from hotpolicy.robots.sim.dynamixel import VirtualDynamixel, VirtualDynamixels
from hotpolicy.robots.sim.pty import VirtualPort, serve

SIX = range(1, 7)
OK = sdk.COMM_SUCCESS


class PatientPort(sdk.PortHandler):
    """The SDK gives up 34 ms after the wire's time, which a loaded machine can exceed."""

    def setPacketTimeout(self, packet_length):
        super().setPacketTimeout(packet_length)
        self.packet_timeout += 500.0


@pytest.fixture
def bus():
    return VirtualDynamixels(VirtualDynamixel(i, model=1060 if i < 3 else 1200) for i in SIX)


@pytest.fixture
def port(bus):
    with serve(bus, VirtualPort(), step_ticks=50) as virtual:
        handler = PatientPort(virtual.path)
        assert handler.openPort()
        yield handler
        handler.closePort()


@pytest.fixture
def handler():
    return sdk.PacketHandler(2.0)


def test_ping_finds_the_models(port, handler):
    assert [handler.ping(port, i) for i in SIX] == [(1060, OK, 0)] * 2 + [(1200, OK, 0)] * 4
    found, result = handler.broadcastPing(port)
    assert (result, found) == (OK, {i: [1060 if i < 3 else 1200, 47] for i in SIX})


def test_a_missing_servo_is_a_timeout(port, handler):
    _, result, _ = handler.ping(port, 9)
    assert result == sdk.COMM_RX_TIMEOUT


def test_single_reads_and_writes(bus, port, handler):
    assert handler.write4ByteTxRx(port, 2, 20, 0xFFFF_FC18) == (OK, 0)
    assert bus.servo(2).peek("position_offset") == -1000
    assert handler.read4ByteTxRx(port, 2, 132) == (1047, OK, 0)
    assert handler.write1ByteTxRx(port, 3, 64, 1) == (OK, 0)
    assert handler.write4ByteTxRx(port, 3, 116, 1024) == (OK, 0)
    assert bus.servo(3).goal_ticks == 1024
    for _ in range(100):
        position, result, _ = handler.read4ByteTxRx(port, 3, 132)
        assert result == OK
        if position == 1024:
            break
    assert position == 1024


@pytest.mark.parametrize(
    ("register", "value", "error"),
    [
        ((11, 1), 4, sdk.ERRNUM_ACCESS),  # EEPROM, and torque is on
        ((132, 4), 0, sdk.ERRNUM_ACCESS),  # read-only
        ((116, 4), 9999, sdk.ERRNUM_DATA_LIMIT),
        ((64, 1), 7, sdk.ERRNUM_DATA_RANGE),
    ],
)
def test_what_the_servo_refuses(port, handler, register, value, error):
    handler.write1ByteTxRx(port, 1, 64, 1)
    address, size = register
    assert handler.writeTxRx(port, 1, address, size, list(value.to_bytes(size, "little"))) == (OK, error)


def test_an_overload_ends_with_a_reboot(bus, port, handler):
    handler.write1ByteTxRx(port, 6, 64, 1)
    bus.inject("overload", id=6)
    assert handler.read1ByteTxRx(port, 6, 70) == (0x20, OK, sdk.ERRBIT_ALERT)
    assert handler.read1ByteTxRx(port, 6, 64) == (0, OK, sdk.ERRBIT_ALERT)
    assert handler.write1ByteTxRx(port, 6, 64, 1)[1] & ~sdk.ERRBIT_ALERT
    assert handler.reboot(port, 6) == (OK, 0)
    assert handler.write1ByteTxRx(port, 6, 64, 1) == (OK, 0)
    assert bus.servo(6).torque


def test_reg_write_and_action(bus, port, handler):
    handler.write1ByteTxRx(port, 4, 64, 1)
    assert handler.regWriteTxRx(port, 4, 116, 4, [0xB8, 0x0B, 0, 0]) == (OK, 0)
    assert bus.servo(4).peek("goal_position") == 2047
    assert handler.action(port, sdk.BROADCAST_ID) == OK
    assert handler.ping(port, 4)[1] == OK  # comes after the action on the wire
    assert bus.servo(4).peek("goal_position") == 3000


@pytest.mark.parametrize("read", ["txRxPacket", "fastSyncRead"])
def test_sync_read_and_write(bus, port, handler, read):
    writer = sdk.GroupSyncWrite(port, handler, 116, 4)
    reader = sdk.GroupSyncRead(port, handler, 116, 4)
    for i in SIX:
        assert writer.addParam(i, [i, 4, 0, 0])
        assert reader.addParam(i)
    assert writer.txPacket() == OK
    assert getattr(reader, read)() == OK
    assert [reader.getData(i, 116, 4) for i in SIX] == [1024 + i for i in SIX]


def test_factory_reset_keeps_what_it_is_told_to(bus, port, handler):
    handler.write1ByteTxRx(port, 5, 8, 3)
    handler.write2ByteTxRx(port, 5, 38, 900)
    assert handler.factoryReset(port, 5, 2) == (OK, 0)
    assert [bus.servo(5).peek(name) for name in ("baud_rate", "current_limit")] == [3, 1750]


def test_faults_reach_the_sdk(bus, port, handler):
    bus.inject("corrupt", id=1, times=1)
    assert handler.read4ByteTxRx(port, 1, 132)[1] == sdk.COMM_RX_CORRUPT
    assert handler.read4ByteTxRx(port, 1, 132)[1] == OK
    bus.inject("noise", id=1, times=1)
    assert handler.read4ByteTxRx(port, 1, 132) == (2047, OK, 0)


def test_a_value_that_must_be_stuffed_is_understood(bus, port, handler):
    bus.servo(1).poke("profile_velocity", 0x11FDFFFF)
    assert handler.read4ByteTxRx(port, 1, 112) == (0x11FDFFFF, OK, 0)


def test_a_write_over_several_registers_is_all_or_nothing(bus, port, handler):
    """Gains from 80 to 85 in one packet; a write that ends within a register; one that begins in a read-only one."""
    assert handler.writeTxRx(port, 1, 80, 6, [1, 0, 2, 0, 3, 0]) == (OK, 0)
    assert [bus.servo(1).peek(f"position_{gain}_gain") for gain in "dip"] == [1, 2, 3]
    assert handler.writeTxRx(port, 1, 84, 1, [7]) == (OK, 0)
    assert bus.servo(1).peek("position_p_gain") == 7
    handler.write1ByteTxRx(port, 1, 64, 1)
    assert handler.writeTxRx(port, 1, 112, 8, [1, 0, 0, 0, 0xFF, 0xFF, 0, 0]) == (OK, sdk.ERRNUM_DATA_LIMIT)
    assert bus.servo(1).peek("profile_velocity") == 0
