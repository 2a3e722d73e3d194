"""The pseudo-terminal behaves as a serial port, with and without a thread behind it."""

from __future__ import annotations

import os
import select
import time

import pytest
import serial

from hotpolicy.robots.servo import packets
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo
from hotpolicy.runtime.errors import ConfigError


@pytest.fixture
def bus():
    return VirtualBus([VirtualServo(1), VirtualServo(2)])


def test_somebody_elses_poll_loop(bus, tmp_path):
    with VirtualPort(tmp_path / "arm") as port:
        client = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
        assert port.read() == b""
        os.write(client, packets.ping(1) + b"\r\n\x03\x04" + packets.ping(2))  # raw: nothing is translated
        poller = select.poll()
        poller.register(port.master, select.POLLIN)
        assert poller.poll(1000)
        port.pump(bus)
        assert os.read(client, 100) == packets.status(1, 0) + packets.status(2, 0)
        os.close(client)
        assert port.read() == b""  # the client's leaving is no error here
        client = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
        os.write(client, packets.ping(1))
        assert poller.poll(1000)
        port.pump(bus)
        assert os.read(client, 100) == packets.status(1, 0)
        os.close(client)
    assert not (tmp_path / "arm").is_symlink()


def test_a_client_that_does_not_read_blocks_nobody():
    with VirtualPort() as port:
        client = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
        for _ in range(100):
            port.write(bytes(1000))
        assert port.write(b"x") == 0
        os.close(client)


def test_links_are_replaced_and_files_are_not(tmp_path):
    link = tmp_path / "arm"
    link.symlink_to(tmp_path / "stale")
    with VirtualPort(link) as port:
        assert os.path.realpath(link) == port.device
    link.write_text("precious")
    with pytest.raises(ConfigError, match="found a file"):
        VirtualPort(link)
    assert link.read_text() == "precious"
    with pytest.raises(ConfigError, match="No such file"):
        VirtualPort(tmp_path / "nowhere" / "arm")


def test_unplug_and_replug_under_the_same_name(bus, tmp_path):
    with serve(bus, VirtualPort(tmp_path / "arm")) as port:
        with serial.Serial(port.path, 1_000_000, timeout=1) as client:
            client.write(packets.ping(1))
            assert client.read(6) == packets.status(1, 0)
            port.unplug()
            with pytest.raises(serial.SerialException):
                client.read(6)
        assert port.read() == b""
        assert port.write(b"x") == 0
        port.replug()
        with serial.Serial(port.path, 1_000_000, timeout=1) as client:
            client.write(packets.ping(2))
            assert client.read(6) == packets.status(2, 0)


def test_late_answers_leave_without_another_question(bus):
    bus.inject("late", id=1, times=1, delay_s=0.06)
    with serve(bus, VirtualPort()) as port, serial.Serial(port.path, 1_000_000, timeout=2) as client:
        client.write(packets.ping(1))
        assert client.read(6) == packets.status(1, 0)


def test_servos_move_behind_the_port(bus):
    with serve(bus, VirtualPort(), step_ticks=5000) as port, serial.Serial(port.path, 1_000_000, timeout=2) as client:
        client.write(packets.write(1, 42, (3000).to_bytes(2, "little")))
        assert client.read(6) == packets.status(1, 0)
        for _ in range(200):
            client.write(packets.read(1, 56, 2))
            if client.read(8)[5:7] == (3000).to_bytes(2, "little"):
                break
        else:
            pytest.fail("the servo did not arrive")


@pytest.mark.parametrize("rate", [1_000_000, 115_200, 57_600, 128_000])
def test_the_rate_a_client_opened_it_at_is_known(bus, rate):
    with VirtualPort() as port, serial.Serial(port.path, rate):
        assert port.rate() == rate


def test_a_client_at_the_wrong_rate_is_not_heard(bus):
    bus.strict_baud = True
    with serve(bus, VirtualPort()) as port:
        with serial.Serial(port.path, 115_200, timeout=0.1) as client:
            client.write(packets.ping(1))
            assert client.read(6) == b""
        with serial.Serial(port.path, 1_000_000, timeout=2) as client:
            client.write(packets.ping(1))
            assert client.read(6) == packets.status(1, 0)


def test_unplugged_on_command_and_back_by_itself(bus, tmp_path):
    with serve(bus, VirtualPort(tmp_path / "arm")) as port:
        bus.inject("unplug", delay_s=0.1)
        with serial.Serial(port.path, 1_000_000, timeout=2) as client:
            client.write(packets.ping(1))
            with pytest.raises(serial.SerialException):
                client.read(6)
        for _ in range(200):
            time.sleep(0.02)
            if port.master >= 0:
                break
        with serial.Serial(port.path, 1_000_000, timeout=2) as client:
            client.write(packets.ping(1))
            assert client.read(6) == packets.status(1, 0)
