"""Ports by name: found again when plugged in elsewhere, and refused while another program has them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from hotpolicy.robots.servo import ports
from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.port import Port
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo
from hotpolicy.runtime.errors import BusBusy, BusLost

PATIENT = Timing(margin_ms=400, budget_ms=2000)
BRISK = Timing(margin_ms=80, budget_ms=400)
SIX = tuple(range(1, 7))
POSITION = (56, 2)


@pytest.fixture
def virtual():
    return VirtualBus([VirtualServo(i) for i in SIX])


@pytest.fixture
def by_id(monkeypatch, tmp_path):
    folder = tmp_path / "by-id"
    folder.mkdir()
    monkeypatch.setattr(ports, "BY_ID", folder)
    return folder


def test_a_port_is_found_again_under_another_number(virtual, by_id):
    """Named by its device number, unplugged, and back as another device: the name of the adapter leads to it."""
    link = by_id / "usb-1a86_USB_Single_Serial_5A46081234-if00"
    with serve(virtual, VirtualPort(link)) as port:
        device = port.device
        with ServoBus(device, PATIENT) as bus:
            assert bus.ping(1)
            port.unplug()
            with pytest.raises(BusLost, match=f"port {device}"):
                bus.ping(1)
            keeper = VirtualPort()  # takes the number that has become free
            port.replug()
            assert port.device != device
            bus.open()
            assert bus.sync_read(SIX, *POSITION).missing == ()
            keeper.close()


def test_stable_names(by_id, tmp_path):
    (tmp_path / "ttyACM3").touch()
    (by_id / "usb-arm").symlink_to(tmp_path / "ttyACM3")
    assert ports.stable_name(str(tmp_path / "ttyACM3")) == str(by_id / "usb-arm")
    assert ports.stable_name(str(by_id / "usb-arm")) == str(by_id / "usb-arm")
    assert ports.stable_name(str(tmp_path / "other")) == str(tmp_path / "other")
    assert ports.stable_name("socket://10.0.0.2:4000") == "socket://10.0.0.2:4000"
    assert ports.candidates() == [str(by_id / "usb-arm")]


def test_devices_are_candidates_where_nothing_has_a_stable_name(by_id, tmp_path, monkeypatch):
    monkeypatch.setattr(ports, "DEVICES", tmp_path)
    for name in ("ttyUSB1", "ttyACM0", "tty0"):
        (tmp_path / name).touch()
    assert ports.candidates() == [str(tmp_path / "ttyACM0"), str(tmp_path / "ttyUSB1")]


def test_a_program_that_did_not_ask_for_the_port_alone_is_named(virtual):
    """A plain open does not lock the port, and would steal every other answer."""
    code = "import sys, serial; port = serial.Serial(sys.argv[1]); print('open'); sys.stdin.read()"
    with serve(virtual, VirtualPort()) as port:
        command = [sys.executable, "-c", code, port.device]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(BusBusy, match=rf"another program has it open: python.* \(process {other.pid}\)"):
                ServoBus(port.device).open()
            other.kill()
        with ServoBus(port.device, PATIENT) as bus:
            assert bus.ping(1)


def test_the_process_behind_a_pseudo_terminal_is_no_stranger(tmp_path):
    code = (
        "import sys; from pathlib import Path; from hotpolicy.robots.sim.pty import VirtualPort;"
        "port = VirtualPort(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "arm")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as device:
        assert device.stdout is not None
        assert device.stdout.readline() == b"open\n"
        port = Port(str(tmp_path / "arm"), 1_000_000)
        port.open()
        port.close()
        device.kill()


def test_answers_nobody_asked_for_are_diagnosed(virtual, caplog):
    """A second master on the wire: its answers come between ours."""
    with serve(virtual, VirtualPort()) as port, ServoBus(port.device, BRISK) as bus:
        for _ in range(5):
            virtual.inject("foreign", id=6, times=1)
            assert bus.sync_read(SIX, *POSITION).missing == ()
        assert bus.counts.strange == 5
        text = caplog.messages[-1]
        assert "5 times now answers came that were not asked for" in text
        assert "another program or controller is on this bus" in text
        assert "two servos have the same id" in text


@contextmanager
def over_tcp(bus: VirtualBus, **faults: float):
    """A serial server: the bus behind a TCP port. `hang_up_after` answers it closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = faults.get("hang_up_after")

    def run() -> None:
        nonlocal left
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    while data := client.recv(4096):
                        reply = bus.feed(data)
                        for byte in range(0, len(reply), 5):  # TCP keeps no boundaries
                            client.sendall(reply[byte : byte + 5])
                        if left is not None and reply:
                            left -= 1
                            if left <= 0:
                                left = None
                                break

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"socket://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_bus_behind_a_tcp_serial_server(virtual):
    with over_tcp(virtual) as url, ServoBus(url, PATIENT) as bus:
        assert bus.scan() == dict.fromkeys(SIX, 777)
        bus.sync_write(42, {i: (1000 + i).to_bytes(2, "little") for i in SIX})
        replies = bus.sync_read(SIX, 42, 2)
        assert [int.from_bytes(reply.data, "little") for reply in replies.by_id.values()] == [1000 + i for i in SIX]
        assert bus.counts.retries == 0
        with pytest.raises(BusBusy, match="another hotpolicy program"):
            ServoBus(url).open()


def test_trouble_behind_a_tcp_serial_server(virtual):
    with over_tcp(virtual) as url, ServoBus(url, BRISK) as bus:
        virtual.inject("corrupt", id=3, times=1)
        virtual.inject("noise", id=2, times=1)
        assert bus.sync_read(SIX, *POSITION).missing == ()
        assert bus.counts.retries == 1
        virtual.inject("silent", id=4)
        assert bus.sync_read(SIX, *POSITION).missing == (4,)


def test_a_tcp_serial_server_that_hangs_up_is_a_lost_bus(virtual):
    with over_tcp(virtual, hang_up_after=1) as url, ServoBus(url, BRISK) as bus:
        assert bus.ping(1)
        time.sleep(0.05)  # the end of the connection has to get here
        with pytest.raises(BusLost, match="port socket://"):
            bus.ping(1)
        bus.open()
        assert bus.ping(1)


def test_a_silent_bus_costs_no_more_than_its_budget(virtual):
    """Several servos gone at once are tried one a cycle, so the cycle of the others keeps its length."""
    with serve(virtual, VirtualPort()) as port, ServoBus(port.device, BRISK) as bus:
        for i in (2, 3, 4):
            virtual.inject("silent", id=i)
        assert bus.sync_read(SIX, *POSITION).missing == (2, 3, 4)
        for _ in range(6):
            asked = bus.counts.questions
            assert bus.sync_read(SIX, *POSITION).missing == (2, 3, 4)
            assert bus.counts.questions <= asked + 2
        virtual.clear()
        for _ in range(15):
            left = bus.sync_read(SIX, *POSITION).missing
        assert left == ()


def test_a_lock_file_names_the_device_and_not_the_link(virtual, tmp_path):
    from hotpolicy.robots.servo.port import lock_file

    with VirtualPort(tmp_path / "arm") as port:
        assert lock_file(str(tmp_path / "arm")) == lock_file(port.device)
        assert lock_file(os.devnull) != lock_file(port.device)
