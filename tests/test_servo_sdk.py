"""The vendor's own SDK, which knows nothing of us, talks to the virtual servos over the pseudo-terminal."""

from __future__ import annotations

import pytest
import scservo_sdk as sdk

from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo

SIX = range(1, 7)


class PatientPort(sdk.PortHandler):
    """The SDK gives up 34 ms after the wire's time, which a loaded machine can exceed."""

    def setPacketTimeout(self, packet_length):
        super().setPacketTimeout(packet_length)
        self.packet_timeout += 500.0


@pytest.fixture
def bus():
    return VirtualBus([VirtualServo(i, offset=-1000 if i == 2 else 0) for i in SIX])


@pytest.fixture
def port(bus):
    with serve(bus, VirtualPort(), step_ticks=50) as virtual:
        handler = PatientPort(virtual.path)
        assert handler.openPort()
        yield handler
        handler.closePort()


@pytest.fixture
def handler():
    return sdk.PacketHandler(0)


def test_ping_finds_the_model(port, handler):
    for i in SIX:
        assert handler.ping(port, i) == (777, sdk.COMM_SUCCESS, 0)


def test_a_missing_servo_is_a_timeout(port, handler):
    _, result, _ = handler.ping(port, 9)
    assert result == sdk.COMM_RX_TIMEOUT


def test_single_reads_and_writes(bus, port, handler):
    assert handler.read2ByteTxRx(port, 2, 31) == (0x0BE8, sdk.COMM_SUCCESS, 0)
    assert handler.write1ByteTxRx(port, 3, 41, 50) == (sdk.COMM_SUCCESS, 0)
    assert bus.servo(3).peek("acceleration") == 50
    assert handler.write2ByteTxRx(port, 3, 42, 1024) == (sdk.COMM_SUCCESS, 0)
    assert bus.servo(3).goal_ticks == 1024
    for _ in range(100):
        position, result, _ = handler.read2ByteTxRx(port, 3, 56)
        assert result == sdk.COMM_SUCCESS
        if position == 1024:
            break
    assert position == 1024


def test_errors_are_reported(bus, port, handler):
    bus.servo(6).errors = 0x20
    assert handler.read1ByteTxRx(port, 6, 62) == (120, sdk.COMM_SUCCESS, sdk.ERRBIT_OVERLOAD)


def test_reg_write_and_action(bus, port, handler):
    assert handler.regWriteTxRx(port, 4, 42, 2, [0xB8, 0x0B]) == (sdk.COMM_SUCCESS, 0)
    assert bus.servo(4).goal_ticks is None
    assert handler.action(port, sdk.BROADCAST_ID) == sdk.COMM_SUCCESS
    assert handler.ping(port, 4)[1] == sdk.COMM_SUCCESS  # comes after the action on the wire
    assert bus.servo(4).goal_ticks == 3000


def test_sync_read_and_write(bus, port, handler):
    writer = sdk.GroupSyncWrite(port, handler, 42, 2)
    reader = sdk.GroupSyncRead(port, handler, 42, 2)
    for i in SIX:
        assert writer.addParam(i, [i, 4])
        assert reader.addParam(i)
    assert writer.txPacket() == sdk.COMM_SUCCESS
    assert reader.txRxPacket() == sdk.COMM_SUCCESS
    assert [reader.getData(i, 42, 2) for i in SIX] == [1024 + i for i in SIX]
    assert [bus.servo(i).goal_ticks for i in SIX] == [1024 + i for i in SIX]


def test_faults_reach_the_sdk(bus, port, handler):
    bus.inject("corrupt", id=1, times=1)
    assert handler.read2ByteTxRx(port, 1, 56)[1] == sdk.COMM_RX_CORRUPT
    assert handler.read2ByteTxRx(port, 1, 56)[1] == sdk.COMM_SUCCESS
    bus.inject("noise", id=1, times=1)
    assert handler.read2ByteTxRx(port, 1, 56) == (2047, sdk.COMM_SUCCESS, 0)
