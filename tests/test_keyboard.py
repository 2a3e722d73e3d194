"""The keyboard: bytes to keys, keys to targets through a real pseudo-terminal, and a terminal left as it was found."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.kinematics import SO101
from hotpolicy.robots.operators import Beginning, Controlling, Deciding
from hotpolicy.robots.sources import HOLD, OperatorSource, SharedSource, Wish
from hotpolicy.robots.teleop.controls import HAND_BACK_S
from hotpolicy.robots.teleop.keyboard import KeyboardOperator, legend
from hotpolicy.robots.teleop.keys import LONGEST, settle, split_keys
from hotpolicy.robots.teleop.terminal import ESCAPE_S
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Joint, Observation, RobotSpec

ROOT = Path(__file__).parent.parent
NAMES = ("pan", "lift", "elbow", "flex", "roll")
JOINTS = (*(Joint(f"{name}.pos", "deg", -90.0, 90.0) for name in NAMES), Joint("gripper.pos", "percent", 0.0, 100.0))
SPEC = RobotSpec(JOINTS, (), rate_hz=10.0)
START = np.array([10, 0, -20, 30, 0, 50], np.float32)
UP, DOWN, RIGHT, LEFT, ESC = b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b"


# Bytes to keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "keys", "remainder"),
    [
        (b"", [], b""),
        (b"qA w\t", ["q", "a", "space", "w", "tab"], b""),
        (b"\r\n\x7f", ["enter", "enter", "backspace"], b""),
        (b"\x00\x03\xc3\xa9\xf0\x9f\x98\x80q", ["q"], b""),  # nothing of an umlaut is a letter
        (UP + DOWN + RIGHT + LEFT, ["up", "down", "right", "left"], b""),
        (b"\x1bOC\x1bOD", ["right", "left"], b""),  # application mode
        (b"\x1b[1;5Cq", ["q"], b""),  # control and arrow
        (b"\x1b[3~\x1b[15~\x1bOPq", ["q"], b""),  # delete, F5, F1
        (b"\x1b[[Aq", ["q"], b""),  # F1 of the Linux console
        (b"\x1b[200~q", ["q"], b""),
        (ESC, [], ESC),
        (ESC + ESC, ["escape"], ESC),
        (ESC + b"q", ["escape", "q"], b""),
        (ESC + RIGHT, ["escape", "right"], b""),
        (b"\x1b[", [], b"\x1b["),
        (b"q\x1b[1;", ["q"], b"\x1b[1;"),
        (b"\x1b[1" + RIGHT, ["right"], b""),  # broken off by another
        (b"\x1b[" + b"1" * LONGEST + b"q", ["1", "1", "q"], b""),  # endless
    ],
)
def test_bytes_to_keys(data: bytes, keys: list[str], remainder: bytes) -> None:
    assert split_keys(data) == (keys, remainder)


PIECES = st.sampled_from([UP, RIGHT, LEFT, ESC, b"\x1b[", b"\x1bO", b"\x1b[1;5C", b"q", b"W", b"[", b"1", b"\xff"])
BYTES = st.one_of(st.binary(max_size=80), st.lists(PIECES, max_size=30).map(b"".join))


@given(BYTES, st.lists(st.integers(0, 80), max_size=6))
def test_cutting_the_bytes_anywhere_changes_nothing(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    keys: list[str] = []
    remainder = b""
    for start, end in itertools.pairwise(edges):
        more, remainder = split_keys(remainder + data[start:end])
        keys += more
    assert (keys, remainder) == split_keys(data)
    assert len(remainder) < LONGEST
    assert remainder[:1] in (b"", ESC)


def test_only_a_lone_escape_is_one() -> None:
    assert settle(ESC) == ["escape"]
    assert settle(b"\x1b[1;") == settle(b"") == []


# Keys to targets ------------------------------------------------------------------------------------------------------


class Person:
    """Types on the other end of the terminal; owns the clock."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def press(self, data: bytes) -> None:
        os.write(self.master, data)
        # The kernel hands bytes over to the other end in its own time.
        assert select.select([self.slave], [], [], 5)[0]

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def person() -> Iterator[Person]:
    person = Person()
    yield person
    person.close()


@pytest.fixture
def operator(person: Person) -> Iterator[KeyboardOperator]:
    with KeyboardOperator(SPEC, fd=person.slave, now=person.now) as operator:
        yield operator


def seen(state: np.ndarray = START) -> Observation:
    return Observation({}, state, "touch the red cube")


def moved(operator: KeyboardOperator, state: np.ndarray = START) -> list[float]:
    """How far each target is from `state`."""
    target = operator.act(seen(state))
    assert target is not None
    assert target.dtype == np.float32
    return [round(float(d), 3) for d in target - state]


def test_without_a_key_the_arm_stays(operator: KeyboardOperator) -> None:
    assert moved(operator) == [0.0] * 6
    operator.act(seen(START + 5))  # it sags, or is pushed
    assert np.array_equal(operator.act(seen(START + 9)), START)


@pytest.mark.parametrize(("joint", "pair"), list(enumerate(["qa", "ws", "ed", "rf", "tg", "yh"])))
def test_each_joint_has_two_keys(operator: KeyboardOperator, person: Person, joint: int, pair: str) -> None:
    step = 6.0 if joint == 5 else 3.0  # 60 percent/s and 30 deg/s at 10 Hz
    person.press(pair[0].encode())
    expected = [0.0] * 6
    expected[joint] = step
    assert moved(operator) == expected
    assert moved(operator) == expected  # let go: no further
    person.press(pair[1].upper().encode())
    assert moved(operator) == [0.0] * 6


def test_keys_work_together_and_repeat_once_a_tick(operator: KeyboardOperator, person: Person) -> None:
    person.press(b"qqqqwwwwq")
    assert moved(operator) == [3.0, 3.0, 0, 0, 0, 0]
    person.press(b"qa")
    assert moved(operator) == [3.0, 3.0, 0, 0, 0, 0]
    person.press(b"z5!" + UP)
    assert moved(operator) == [3.0, 3.0, 0, 0, 0, 0]


def test_targets_stay_in_range(operator: KeyboardOperator, person: Person) -> None:
    for _ in range(40):
        person.press(b"qsyh")
        target = operator.act(seen())
    for _ in range(20):
        person.press(b"y")
        target = operator.act(seen())
    assert target is not None
    assert target.tolist() == [90.0, -90.0, -20.0, 30.0, 0.0, 100.0]
    person.press(b"a")
    assert operator.act(seen())[0] == 87.0  # type: ignore[index]  # the way back begins at once


def test_an_arm_outside_its_range_is_brought_back(operator: KeyboardOperator) -> None:
    assert moved(operator, np.array([95, 0, 0, 0, 0, -1], np.float32)) == [-5.0, 0, 0, 0, 0, 1.0]


@pytest.mark.parametrize("step", [2.0, (2, 2, 2, 2, 2, 2)])
def test_steps_can_be_given(person: Person, step: float | tuple[float, ...]) -> None:
    with KeyboardOperator(SPEC, step, person.slave) as operator:
        person.press(b"qy")
        assert moved(operator) == [2.0, 0, 0, 0, 0, 2.0]


@pytest.mark.parametrize("step", [0, -1.0, float("nan"), (1.0, 2.0)])
def test_steps_that_are_none(person: Person, step: float | tuple[float, ...]) -> None:
    before = termios.tcgetattr(person.slave)
    with pytest.raises(ConfigError, match="step: expected one number above 0, or 6 of them"):
        KeyboardOperator(SPEC, step, person.slave)
    assert termios.tcgetattr(person.slave) == before


def test_more_joints_than_keys(person: Person) -> None:
    with pytest.raises(ConfigError, match="expected at most 9 joints, got 12"):
        KeyboardOperator(RobotSpec(JOINTS * 2, (), 10.0), fd=person.slave)


def test_the_legend_names_every_key() -> None:
    assert legend(SPEC)[0] == ("q / a", "pan.pos + / -")
    assert [keys for keys, _ in legend(SPEC)[6:]] == ["space, tab", "p", "right", "left", "escape", "x"]


# Episodes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "decision"),
    [
        (RIGHT, "done"),
        (LEFT, "again"),
        (b"q" + LEFT + b"w", "again"),
        (RIGHT + LEFT, "again"),
        (RIGHT + ESC + ESC, "stop"),
    ],
)
def test_a_key_ends_the_episode(operator: KeyboardOperator, person: Person, keys: bytes, decision: str) -> None:
    operator.act(seen())
    person.press(keys)
    assert operator.act(seen()) is None
    assert operator.decision == decision


def test_a_lone_escape_stops_after_a_moment(operator: KeyboardOperator, person: Person) -> None:
    person.press(ESC)
    assert operator.act(seen()) is not None  # may be the start of an arrow
    person.time += 2 * ESCAPE_S
    assert operator.act(seen()) is None
    assert operator.decision == "stop"


def test_an_arrow_that_comes_in_two_parts(operator: KeyboardOperator, person: Person) -> None:
    person.press(RIGHT[:1])
    assert operator.act(seen()) is not None
    person.time += ESCAPE_S / 2
    person.press(RIGHT[1:])
    assert operator.act(seen()) is None
    assert operator.decision == "done"


def test_a_new_episode_starts_where_the_arm_is(operator: KeyboardOperator, person: Person) -> None:
    source = OperatorSource(operator)
    source.begin("touch the red cube")
    person.press(b"q")
    source.act(seen())
    person.press(b"w" + RIGHT)  # too late: the referee had ended it
    source.begin("touch the blue cube")
    assert moved(operator, START - 7) == [0.0] * 6
    person.press(LEFT)
    assert source.act(seen()) is None
    assert source.decision() == "again"
    source.begin("touch the blue cube")
    assert (moved(operator), source.decision()) == ([0.0] * 6, "done")


def test_escape_between_episodes_is_not_lost(operator: KeyboardOperator, person: Person) -> None:
    person.press(ESC + b"q")
    operator.begin("touch the red cube")
    assert operator.act(seen()) is None
    assert operator.decision == "stop"


def test_a_cut_line_stops(operator: KeyboardOperator, person: Person) -> None:
    assert operator.act(seen()) is not None
    person.hang_up()
    for _ in range(2):
        assert operator.act(seen()) is None
        assert operator.decision == "stop"
        operator.begin("again")


# Taking over ----------------------------------------------------------------------------------------------------------


class Planner:
    """A policy that always wants the same."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self, task: str) -> None:
        self.begun += 1

    def act(self, observation: Observation) -> Wish | None:
        return HOLD

    def decision(self) -> str:
        return "done"


def test_it_is_what_sources_ask_for(operator: KeyboardOperator) -> None:
    assert isinstance(operator, Deciding)
    assert isinstance(operator, Controlling)
    assert isinstance(operator, Beginning)


@pytest.mark.parametrize("key", [b" ", b"\t"])
def test_taking_over_and_handing_back(operator: KeyboardOperator, person: Person, key: bytes) -> None:
    policy = Planner()
    source = SharedSource(policy, operator)  # type: ignore[arg-type]
    source.begin("touch the red cube")
    person.press(b"q")
    assert source.act(seen()) is HOLD  # the policy acts, keys move nothing
    person.press(key)
    wish = source.act(seen(START + 4))
    assert wish is not None
    assert wish.intervention
    assert np.array_equal(wish.action, START + 4)  # from where the policy has brought the arm
    person.time += 2 * HAND_BACK_S
    person.press(key)
    assert source.act(seen()) is HOLD
    assert policy.begun == 2


def test_a_key_held_too_long_leaves_the_person_in_control(operator: KeyboardOperator, person: Person) -> None:
    person.press(b" ")
    operator.act(seen())
    for _ in range(20):  # begins to repeat, then does so quickly
        person.time += 0.5
        person.press(b"  ")
        operator.act(seen())
        assert operator.in_control
    person.time += 2 * HAND_BACK_S
    person.press(b" ")
    operator.act(seen())
    assert not operator.in_control
    person.time += 0.1
    person.press(b" ")
    operator.act(seen())
    assert operator.in_control  # taking over never waits


# The terminal ---------------------------------------------------------------------------------------------------------


def cooked(fd: int) -> bool:
    return bool(termios.tcgetattr(fd)[3] & termios.ICANON and termios.tcgetattr(fd)[3] & termios.ECHO)


def test_the_terminal_is_restored(person: Person) -> None:
    before = termios.tcgetattr(person.slave)
    with KeyboardOperator(SPEC, fd=person.slave) as operator:
        assert not cooked(person.slave)
        assert os.get_blocking(person.slave)
    assert termios.tcgetattr(person.slave) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    operator.close()


def test_keys_typed_before_are_not_for_the_arm(person: Person) -> None:
    os.write(person.master, b"qqq\n")
    with KeyboardOperator(SPEC, fd=person.slave) as operator:
        assert moved(operator) == [0.0] * 6


def test_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(ConfigError, match="expected a terminal, got descriptor"):
        KeyboardOperator(SPEC, fd=file.fileno())
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="expected a terminal on standard input, there is none"):
        KeyboardOperator(SPEC)


PROGRAM = """
import os, signal, sys, time
from hotpolicy.robots.teleop.keyboard import KeyboardOperator
from hotpolicy.runtime.messages import Joint, RobotSpec

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the test runner made of it
if sys.argv[1] == "handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
operator = KeyboardOperator(RobotSpec((Joint("pan.pos", "deg", -90.0, 90.0),), (), 10.0))
print("listening", flush=True)
if sys.argv[1] == "exit":
    sys.exit(7)
if sys.argv[1] == "error":
    raise RuntimeError
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("exit", None, 7),
        ("error", None, 1),
        ("plain", signal.SIGINT, -signal.SIGINT),
        ("plain", signal.SIGTERM, -signal.SIGTERM),
        ("plain", signal.SIGHUP, -signal.SIGHUP),
        ("handler", signal.SIGTERM, 7),
    ],
)
def test_the_terminal_is_restored_however_the_program_ends(
    person: Person, how: str, number: int | None, code: int
) -> None:
    before = termios.tcgetattr(person.slave)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], stdin=person.slave, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": ".types"},
    )  # fmt: skip
    assert program.stdout is not None
    with program:
        assert program.stdout.readline() == b"listening\n"
        if number is not None:
            assert not cooked(person.slave)
            time.sleep(0.05)  # until it sleeps
            program.send_signal(number)
        assert program.wait(30) == code
    assert termios.tcgetattr(person.slave) == before


# The tool -------------------------------------------------------------------------------------------------------------

BENT = np.array([10.0, -20.0, 30.0, 25.0, 15.0, 50.0], np.float32)


@pytest.fixture
def tool(person: Person) -> Iterator[KeyboardOperator]:
    with KeyboardOperator(SPEC, fd=person.slave, now=person.now, chain=SO101) as operator:
        person.press(b"c")
        assert np.array_equal(operator.act(seen(BENT)), BENT)  # no jump
        yield operator


@pytest.mark.parametrize(
    ("key", "way"),
    [("w", (1, 0, 0)), ("s", (-1, 0, 0)), ("a", (0, 1, 0)), ("d", (0, -1, 0)), ("q", (0, 0, 1)), ("e", (0, 0, -1))],
)
def test_a_key_moves_the_tool(tool: KeyboardOperator, person: Person, key: str, way: tuple[int, ...]) -> None:
    start = SO101.where(BENT)
    for _ in range(3):
        person.press(key.encode() * 2)
        target = tool.act(seen(BENT))
    assert target is not None
    went = SO101.where(target) - start
    assert went @ np.array(way) == pytest.approx(0.03, abs=0.006)  # 100 mm/s, three ticks of 0.1 s
    assert np.linalg.norm(went) < 0.035
    assert target[4:].tolist() == BENT[4:].tolist()  # neither roll nor gripper


@pytest.mark.parametrize(("keys", "joint", "by"), [("t", 4, 3.0), ("g", 4, -3.0), ("y", 5, 6.0), ("h", 5, -6.0)])
def test_roll_and_gripper(tool: KeyboardOperator, person: Person, keys: str, joint: int, by: float) -> None:
    person.press(keys.encode())
    expected = [0.0] * 6
    expected[joint] = by
    assert moved(tool, BENT) == expected


def test_pitch_turns_the_nose(tool: KeyboardOperator, person: Person) -> None:
    for _ in range(5):
        person.press(b"f")
        target = tool.act(seen(BENT))
    assert target is not None
    assert (target - BENT)[1:4].sum() == pytest.approx(15, abs=3)  # 30 deg/s, half a second


def test_back_to_joints(tool: KeyboardOperator, person: Person) -> None:
    person.press(b"c")
    assert moved(tool, BENT) == [0.0] * 6
    person.press(b"q")
    assert moved(tool, BENT) == [3.0, 0, 0, 0, 0, 0]


def test_several_keys_are_no_faster(tool: KeyboardOperator, person: Person) -> None:
    for _ in range(3):
        person.press(b"waq")
        target = tool.act(seen(BENT))
    assert target is not None
    assert np.linalg.norm(SO101.where(target) - SO101.where(BENT)) < 0.033  # 100 mm/s


def test_without_kinematics_the_key_says_what_is_missing(person: Person) -> None:
    said: list[str] = []
    with KeyboardOperator(SPEC, fd=person.slave, now=person.now, tell=said.append) as operator:
        person.press(b"c")
        operator.act(seen())
        assert not operator.cartesian
    assert "must name its `kinematics`" in said[0]


def test_the_mode_is_said(person: Person) -> None:
    said: list[str] = []
    with KeyboardOperator(SPEC, fd=person.slave, now=person.now, chain=SO101, tell=said.append) as operator:
        for _ in range(2):
            person.press(b"c")
            operator.act(seen(BENT))
    assert said == ["keys move the tool", "keys move joints"]
    assert len(legend(SPEC, tool=True)) > len(legend(SPEC))


def test_tool_keys_need_an_arm_of_that_shape(person: Person) -> None:
    spec = RobotSpec(JOINTS[:5], (), 10.0)
    with pytest.raises(ConfigError, match="kinematics: expected 5 joints in deg and a gripper in percent"):
        KeyboardOperator(spec, fd=person.slave, chain=SO101)
