"""A gamepad: recorded events to targets, and SDL's own virtual gamepad through the real library."""

from __future__ import annotations

import ctypes
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hotpolicy.launch.profile_file import load_profile
from hotpolicy.launch.teleop import operator
from hotpolicy.robots.operators import Beginning, Controlling, Deciding, Pausing
from hotpolicy.robots.teleop.controls import Controls
from hotpolicy.robots.teleop.gamepad import GamepadOperator, legend
from hotpolicy.robots.teleop.pad import XBOX, Axis, Button, Event, PadMapping, PadState, Plugged, Unplugged
from hotpolicy.robots.teleop.sdl import SdlGamepad
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Joint, Observation, RobotSpec

SPEC = RobotSpec(
    (*(Joint(f"joint{index}.pos", "deg", -90, 90) for index in range(5)), Joint("gripper.pos", "percent", 0, 100)),
    (),
    10.0,
)
START = np.array([0, 10, -10, 0, 0, 50], np.float32)


class Recording:
    """Plays events back, one list a tick."""

    def __init__(self, *ticks: list[Event]):
        self.ticks = list(ticks)
        self.closed = False

    def events(self) -> list[Event]:
        return self.ticks.pop(0) if self.ticks else []

    def close(self) -> None:
        self.closed = True


def see(state: np.ndarray = START) -> Observation:
    return Observation({}, np.asarray(state, np.float32), "lift the cube")


def made(*ticks: list[Event], on_stop: Callable[[str], None] | None = None) -> GamepadOperator:
    return GamepadOperator(SPEC, Recording(*ticks), Controls(None), on_stop=on_stop)


def moved(person: GamepadOperator, ticks: int = 1) -> list[float]:
    """How far the targets are from START after so many ticks."""
    for _ in range(ticks):
        target = person.act(see())
    assert target is not None
    return (target - START).round(4).tolist()


def press(button: str) -> list[Event]:
    return [Button(button, True), Button(button, False)]


def test_is_what_sources_ask_for() -> None:
    for contract in (Beginning, Controlling, Deciding, Pausing):
        assert isinstance(made(), contract)


@pytest.mark.parametrize(
    ("value", "amount"), [(0, 0), (0.2, 0), (-1, 0), (0.2001, 0.000125), (0.6, 0.5), (1, 1), (1.01, 1)]
)
def test_dead_zone_is_taken_off(value: float, amount: float) -> None:
    state = PadState(0.2)
    state.feed([Axis("leftx", value)])
    assert state.amount("+leftx") == pytest.approx(amount)
    state.feed([Axis("leftx", -value)])
    assert state.amount("-leftx") == pytest.approx(amount)


@pytest.mark.parametrize(
    ("events", "joint", "way"),
    [
        ([Axis("leftx", 1.0)], 0, 3.0),
        ([Axis("leftx", -0.6)], 0, -1.5),
        ([Axis("lefty", -1.0)], 1, 3.0),
        ([Axis("righty", 1.0)], 2, -3.0),
        ([Axis("rightx", 1.0)], 3, 3.0),
        ([Button("rightshoulder", True)], 4, 3.0),
        ([Button("leftshoulder", True)], 4, -3.0),
        ([Axis("righttrigger", 1.0)], 5, 6.0),
        ([Axis("lefttrigger", 1.0)], 5, -6.0),
    ],
)
def test_each_input_moves_its_joint_at_its_speed(events: list[Event], joint: int, way: float) -> None:
    expected = [0.0] * 6
    expected[joint] = way
    assert moved(made(events)) == pytest.approx(expected)
    expected[joint] = 3 * way
    assert moved(made(events), 3) == pytest.approx(expected)  # held is on its way


def test_recorded_drive() -> None:
    person = made(
        [Axis("leftx", 0.1), Axis("righty", -0.05)],  # nobody's thumb is still
        [Axis("leftx", 0.4), Axis("leftx", 1.0)],
        [Axis("righttrigger", 0.6)],
        [Axis("leftx", 0.0), *press("leftshoulder")],  # let go within the tick
        [Axis("righttrigger", 0.0)],
        [],
    )
    shoulder = [moved(person)[0] for _ in range(3)]
    assert shoulder == [0, 3, 6]
    assert moved(person) == [6, 0, 0, 0, -3, 6]
    assert moved(person, 2) == [6, 0, 0, 0, -3, 6]


def test_target_stays_in_range() -> None:
    person = made([Axis("leftx", 1.0), Axis("lefttrigger", 1.0)])
    assert moved(person, 50) == [90, 0, 0, 0, 0, -50]


@pytest.mark.parametrize(("button", "decision"), [("start", "done"), ("back", "again"), ("y", "stop")])
def test_buttons_end_the_episode(button: str, decision: str) -> None:
    person = made(press(button))
    assert person.act(see()) is None
    assert person.decision == decision


def test_only_stop_holds_between_episodes() -> None:
    person = made(press("start"), [], press("y"))
    person.begin("a")
    assert person.act(see()) is not None
    person.begin("b")
    assert person.act(see()) is None
    assert person.decision == "stop"


def test_take_over_starts_where_the_arm_is_and_hands_back_at_once() -> None:
    person = made([], [*press("a"), Axis("leftx", 1.0)], [], press("a"))
    person.act(see())
    assert not person.in_control
    there = START + 20
    target = person.act(see(there))
    assert person.in_control
    assert target is not None
    assert target[0] == pytest.approx(23)
    person.act(see(there))
    person.act(see(there))
    assert not person.in_control


def test_pause_holds_though_a_stick_is_held() -> None:
    person = made([Axis("leftx", 1.0)], press("x"), [], press("x"))
    assert moved(person)[0] == 3
    assert moved(person, 2)[0] == 0  # where the arm is
    assert person.paused
    assert moved(person)[0] == 3
    assert not person.paused


def test_emergency_stop_comes_first() -> None:
    reasons: list[str] = []
    person = made([*press("start"), *press("b")], press("b"), on_stop=reasons.append)
    assert person.act(see()) is None
    assert reasons == ["gamepad button b"]
    person.begin("next")
    assert len(reasons) == 2  # between episodes too


def test_unplugged_holds_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    person = made(
        [Axis("leftx", 1.0), Button("rightshoulder", True)],
        [Unplugged()],
        [Unplugged()],
        [],
        [Plugged("Pad")],
        [Axis("leftx", -1.0)],
    )
    with caplog.at_level(logging.WARNING):
        moved(person)
        assert moved(person, 3) == [3, 0, 0, 0, 3, 0]
        assert [record.getMessage() for record in caplog.records] == [
            "gamepad: unplugged; the arm holds until it is plugged in again"
        ]
        assert moved(person) == [3, 0, 0, 0, 3, 0]  # what was held before the gap is not held now
        assert moved(person) == [0, 0, 0, 0, 3, 0]
    assert caplog.records[-1].getMessage() == "gamepad: Pad is plugged in; going on"


def test_what_does_not_fit_is_refused() -> None:
    many = RobotSpec(SPEC.joints * 2, (), 10.0)
    with pytest.raises(ConfigError, match="at most 9 joints, got 12"):
        GamepadOperator(many, Recording(), Controls(None))
    odd = RobotSpec((Joint("lift.pos", "m", 0, 1),), (), 10.0)
    with pytest.raises(ConfigError, match=re.escape("lift.pos is in neither")):
        GamepadOperator(odd, Recording(), Controls(None))
    with pytest.raises(ConfigError, match="several of a"):
        PadMapping(joints=(("a", "b"),), keys={"a": "space"})
    with pytest.raises(ConfigError, match="dead"):
        PadMapping(joints=(), keys={}, dead=1.0)


def test_legend_tells_of_every_joint_and_button() -> None:
    rows = dict(legend(SPEC))
    assert rows["-lefty / +lefty"] == "joint1.pos + / -"
    assert rows["b"].startswith("EMERGENCY STOP")
    assert len(rows) == len(SPEC.joints) + len(XBOX.keys)


class VirtualPad:
    """SDL's virtual gamepad, by the library that pygame has loaded. Numbers are SDL's."""

    def __init__(self) -> None:
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libSDL2-2" in line}
        self._sdl = ctypes.CDLL(loaded.pop())
        self._sdl.SDL_JoystickOpen.restype = ctypes.c_void_p
        self._sdl.SDL_JoystickSetVirtualAxis.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int16)
        self._sdl.SDL_JoystickSetVirtualButton.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint8)
        self._sdl.SDL_JoystickClose.argtypes = (ctypes.c_void_p,)
        self.index = -1

    def plug_in(self) -> None:
        self._sdl.SDL_InitSubSystem(0x200)  # joysticks; counted, so that the pad outlives ours
        self.index = self._sdl.SDL_JoystickAttachVirtual(1, 6, 15, 0)
        self.pad = self._sdl.SDL_JoystickOpen(self.index)

    def axis(self, number: int, value: int) -> None:
        assert self._sdl.SDL_JoystickSetVirtualAxis(self.pad, number, value) == 0

    def button(self, number: int, down: int) -> None:
        assert self._sdl.SDL_JoystickSetVirtualButton(self.pad, number, down) == 0

    def unplug(self) -> None:
        if self.index >= 0:
            self._sdl.SDL_JoystickDetachVirtual(self.index)
            self._sdl.SDL_JoystickClose(self.pad)
            self._sdl.SDL_QuitSubSystem(0x200)
            self.index = -1


@pytest.fixture
def hand() -> Iterator[VirtualPad]:
    hand = VirtualPad()
    hand.plug_in()
    yield hand
    hand.unplug()


def test_sdl_tells_by_name(hand: VirtualPad) -> None:
    pad = SdlGamepad()
    try:
        pad.events()
        hand.axis(1, -32768)
        hand.axis(5, 32767)
        hand.button(0, 1)
        hand.button(14, 1)
        events = pad.events()
        assert Axis("lefty", -1.0) in events
        assert Axis("righttrigger", 1.0) in events
        assert [event for event in events if isinstance(event, Button)] == [Button("a", True), Button("dpright", True)]
        hand.button(0, 0)
        assert pad.events() == [Button("a", False)]
        assert pad.events() == []
    finally:
        pad.close()
        pad.close()


def test_sdl_pad_that_goes_and_comes_back(hand: VirtualPad) -> None:
    pad = SdlGamepad()
    try:
        pad.events()
        hand.unplug()
        assert pad.events()[-1] == Unplugged()
        assert pad.events() == []
        hand.plug_in()
        assert [type(event) for event in pad.events()] == [Plugged]
        hand.button(1, 1)
        assert pad.events() == [Button("b", True)]
    finally:
        pad.close()


def test_teleop_gamepad_is_one_of_the_operators(hand: VirtualPad, capsys: pytest.CaptureFixture[str]) -> None:
    reasons: list[str] = []
    profile = load_profile("virtual_so101")
    rig: Any = SimpleNamespace(profile=profile, arm=SimpleNamespace(stop=reasons.append), stepped=False)
    person = operator(rig, "gamepad")
    try:
        assert "EMERGENCY STOP" in capsys.readouterr().err
        hand.axis(0, 32767)
        hand.button(1, 1)
        start = np.array([(joint.low + joint.high) / 2 for joint in profile.spec.joints])
        target = person.act(see(start))
        assert target is not None
        assert target[0] - start[0] == pytest.approx(30 / profile.rate_hz, abs=1e-3)
        assert reasons == ["gamepad button b"]
    finally:
        person.close()


def test_without_a_gamepad_it_says_how_to_check_and_leaves_signals_and_output_alone() -> None:
    code = """
from hotpolicy.robots.teleop.sdl import SdlGamepad
from hotpolicy.runtime.errors import ConfigError
import re, pygame
from pygame._sdl2 import controller
controller.init()
if pygame.joystick.get_count():
    print("a gamepad is plugged in")
else:
    try:
        SdlGamepad()
    except ConfigError as error:
        print(error)
pygame.display.init()
caught = int(re.search(r"SigCgt:\\t(\\w+)", open("/proc/self/status").read())[1], 16)
print(bool(caught >> 14 & 1))  # SIGTERM
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, caught = done.stdout.splitlines()
    if said == "a gamepad is plugged in":
        pytest.skip(said)
    assert said.startswith("gamepad: expected one, found none: `ls -l /dev/input/js*`")
    assert caught == "False"
