"""Setting up an arm's servos at a terminal, and finding its port: the conversations, against virtual servos."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calling import call

from hotpolicy.launch.setup_motors import guide, require_whole
from hotpolicy.robots.arms import catalogue
from hotpolicy.robots.arms.so import SO101_FOLLOWER
from hotpolicy.robots.servo import ports
from hotpolicy.robots.sim.pty import VirtualPort, serve
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo
from hotpolicy.runtime.errors import BusLost, ConfigError, WrongServo

SHORT = replace(SO101_FOLLOWER, joints=SO101_FOLLOWER.joints[:2])  # the other four take as long each


@pytest.fixture
def virtual():
    virtual = VirtualBus([])
    virtual.strict_baud = True
    return virtual


@pytest.fixture
def port(virtual, tmp_path):
    with serve(virtual, VirtualPort(tmp_path / "arm")) as port:
        yield port.path


class Person:
    """Plugs servos in and presses keys, in the order of a script."""

    def __init__(self, virtual, *steps):
        self.virtual, self.steps = virtual, list(steps)

    def __call__(self):
        step = self.steps.pop(0)
        if isinstance(step, str):
            return [step]
        self.virtual.servos[:] = step
        return []


def test_every_servo_gets_its_id_from_the_last_joint_to_the_first(virtual, port):
    lift, pan = VirtualServo(1), VirtualServo(1)  # as they come: all have the same id
    said = []
    guide(port, SHORT, 1_000_000, Person(virtual, [lift], "enter", [pan], "enter", [pan, lift], "enter"), said.append)
    assert (pan.id, lift.id) == (1, 2)
    assert [text.split(" ")[1] for text in said if text.startswith("Plug")] == ["shoulder_lift's", "shoulder_pan's"]
    require_whole(port, SHORT, 1_000_000, said.append)
    assert said[-1] == f"{port}: all 2 servos of a so101_follower"


def test_what_went_wrong_is_said_and_asked_for_again(virtual, port):
    servos = [VirtualServo(1), VirtualServo(1, model=2825), VirtualServo(1)]
    steps = (
        *("enter",),  # nothing is plugged in
        *([servos[1]], "enter"),  # the wrong model
        *([servos[0]], "enter"),
        *([servos[2]], "s"),  # done before
        "enter",
    )
    said = []
    guide(port, SHORT, 1_000_000, Person(virtual, *steps), said.append)
    assert any("none answered at any baud rate" in text for text in said)
    assert any("is this the right servo?" in text for text in said)
    assert servos[0].id == 2


def test_escape_gives_up(virtual, port):
    with pytest.raises(ConfigError, match="given up"):
        guide(port, SHORT, 1_000_000, Person(virtual, "escape"), lambda text: None)


def test_a_lost_port_ends_it(virtual, tmp_path):
    with pytest.raises(BusLost):
        guide(str(tmp_path / "none"), SHORT, 1_000_000, Person(virtual, "enter"), lambda text: None)


def test_an_arm_that_is_not_whole_is_listed(virtual, port, capsys, monkeypatch):
    virtual.servos[:] = [VirtualServo(1), VirtualServo(7)]
    said = []
    with pytest.raises(WrongServo, match="expected the 2 servos of a so101_follower: 2 not right"):
        require_whole(port, SHORT, 1_000_000, said.append)
    assert any("shoulder_lift: expected servo 2" in text for text in said)
    assert any("servo 7" in text and "not part of a so101_follower" in text for text in said)
    monkeypatch.setattr(catalogue, "ARMS", {"short": SHORT})
    code, out, err = call(capsys, monkeypatch, "setup-motors", "--arm", "short", "--port", port, "--check")
    assert (code, "found servo 7" in out, "2 not right" in err) == (2, True, True)


# Ports ----------------------------------------------------------------------------------------------------------------


def test_the_port_that_goes_away_is_the_arms(capsys, monkeypatch):
    looks = [["/dev/a", "/dev/b"], ["/dev/a", "/dev/b"], ["/dev/a"]]
    monkeypatch.setattr(ports, "candidates", lambda: looks.pop(0))
    code, out, _ = call(capsys, monkeypatch, "find-port")
    assert code == 0
    assert out.splitlines()[-1] == "That was /dev/b. Plug it in again."


def test_nothing_to_find(capsys, monkeypatch):
    monkeypatch.setattr(ports, "candidates", list)
    assert "there is no serial port at all" in call(capsys, monkeypatch, "find-port")[2]
    monkeypatch.setattr(ports, "candidates", lambda: ["/dev/a"])
    code, _, err = call(capsys, monkeypatch, "find-port", "--seconds", "0.2")
    assert (code, "all ports stayed" in err) == (2, True)
