"""Who demonstrates: a table of operators, and what a person at a terminal needs to see and to keep up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from hotpolicy.runtime.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.rig import Rig
    from hotpolicy.robots.loop import Pacer
    from hotpolicy.robots.robot import Operator
    from hotpolicy.runtime.messages import RobotSpec, Step

LINGER = 2  # ticks recorded after success: the end of a demonstration is to stand still there
WIDEST = 64  # characters across a picture in the terminal
FOLLOW_S = 0.3  # of its joints' ranges a leader moves in a second while it follows
LONGEST_S = 60.0  # of a person's episode
BY_SIGHT = ("keyboard", "gamepad")  # a person who has to see a virtual arm to move it

Teleop = Annotated[
    str,
    typer.Option(
        help="Who acts: scripted (virtual arm only), keyboard (you, in this terminal), gamepad, leader, or a plug-in."
    ),
]


def operator(rig: Rig, teleop: str) -> Operator:
    """Raises ConfigError for one that there is not, not for this robot, or without a terminal."""
    if teleop == "scripted":
        if rig.world is None:
            raise ConfigError(f"teleop: scripted is for virtual arms, {rig.profile.name} is one of metal")
        from hotpolicy.robots.teleop.scripted import ScriptedOperator

        return ScriptedOperator(rig.world)
    if teleop == "keyboard":
        from hotpolicy.robots.kinematics import CHAINS
        from hotpolicy.robots.teleop.keyboard import KeyboardOperator, legend

        chain = CHAINS[rig.profile.kinematics] if rig.profile.kinematics else None
        person = KeyboardOperator(rig.profile.spec, on_stop=rig.arm.stop, chain=chain)
        if rig.stepped:
            rig.pacer = Paced(rig.pacer, rig.profile.rate_hz)
        for keys, meaning in legend(rig.profile.spec, chain is not None):
            typer.echo(f"  {keys:<10}  {meaning}", err=True)
        return person
    if teleop == "gamepad":
        return _gamepad(rig)
    if teleop == "leader":
        return _leader(rig)
    from hotpolicy.robots.plugins import PluginUse, available, make_operator

    if teleop in available("teleoperators"):
        return make_operator(rig.profile.teleoperators.get(teleop, PluginUse(teleop, {})), rig.profile.spec)
    others = "".join(f", {name}" for name in available("teleoperators"))
    raise ConfigError(f"teleop: expected scripted, keyboard, gamepad, leader{others}, got {teleop!r}")


def _gamepad(rig: Rig) -> Operator:
    """The first gamepad there is, with keys where there is a terminal. Raises ConfigError when there is none."""
    from hotpolicy.robots.teleop.controls import Controls
    from hotpolicy.robots.teleop.gamepad import GamepadOperator, legend
    from hotpolicy.robots.teleop.sdl import SdlGamepad
    from hotpolicy.robots.teleop.terminal import Terminal

    with ExitStack() as undo:
        pad = undo.enter_context(closing(SdlGamepad()))
        controls = Controls(Terminal() if sys.stdin.isatty() else None, on_stop=rig.arm.stop)
        undo.callback(controls.close)
        person = GamepadOperator(rig.profile.spec, pad, controls, on_stop=rig.arm.stop)
        undo.pop_all()
    if rig.stepped:
        rig.pacer = Paced(rig.pacer, rig.profile.rate_hz)
    for inputs, meaning in legend(rig.profile.spec):
        typer.echo(f"  {inputs:<30}  {meaning}", err=True)
    return person


def _leader(rig: Rig) -> Operator:
    """The profile's leader arm, with keys where there is a terminal. Raises ConfigError when the profile has none."""
    from hotpolicy.launch.devices import connect_arms
    from hotpolicy.robots.limits import LimitedArm, Limits
    from hotpolicy.robots.teleop.controls import LEGEND, Controls
    from hotpolicy.robots.teleop.leader import LeaderOperator
    from hotpolicy.robots.teleop.terminal import Terminal

    profile = rig.profile
    if not profile.leader:
        raise ConfigError(f"{profile.file}: leader: missing, expected kind, port, baudrate and calibration of one")
    with ExitStack() as undo:
        bare = connect_arms(profile.leader, None, undo)
        # It follows no faster than a hand can stop it.
        steps = [FOLLOW_S * (joint.high - joint.low) / profile.rate_hz for joint in bare.spec.joints]
        leader = LimitedArm(bare, Limits.of(bare.spec, steps))
        terminal = Terminal() if sys.stdin.isatty() else None
        person = LeaderOperator(leader, profile.spec, Controls(terminal, on_stop=rig.arm.stop))
        undo.pop_all()
    for keys, meaning in LEGEND if terminal else ():
        typer.echo(f"  {keys:<10}  {meaning}", err=True)
    return person


def collect(rig: Rig, recorder: Recorder, teleop: str, tasks: Sequence[str], wanted: int, seed: int) -> bool:
    """Record the tasks in turn until the dataset has `wanted` episodes, those it has already included; scenes count up
    from `seed`. False when the operator stops before. Raises ConfigError as `operator` does.

    A virtual arm cannot be looked at: a person gets its camera's picture in the terminal, and `LONGEST_S` instead of
    the task's own limit, which is a policy's."""
    from hotpolicy.robots.feed import Feed
    from hotpolicy.robots.sources import OperatorSource

    pacer, by_sight = rig.pacer, teleop in BY_SIGHT and rig.world is not None
    with closing(operator(rig, teleop)) as person:
        feeds = [Feed(recorder, when_full="wait" if rig.stepped else "fail")]
        if by_sight:
            feeds.append(Feed(Picture(rig.profile.spec), when_full="drop"))
        try:
            while len(recorder) < wanted:
                task = tasks[len(recorder) % len(tasks)]
                rig.set_scene(task, seed)
                seed += 1
                longest = LONGEST_S if by_sight else None
                if rig.episode(task, OperatorSource(person), feeds, longest, LINGER).end == "stop":
                    return False
        finally:
            rig.pacer = pacer  # a person's was slower
            for feed in feeds:
                feed.close()
    return True


class Paced:
    """A simulation in lock-step that waits for its person: time passes no faster than it does."""

    def __init__(self, steps: Pacer, rate_hz: float):
        from hotpolicy.runtime.clock import Rate

        self._steps, self._rate = steps, Rate(rate_hz)

    def wait(self) -> float:
        self._steps.wait()
        return self._rate.wait()


class Picture:
    """What the first camera sees, drawn in the terminal with half blocks: two pixels per character. A Subscriber."""

    def __init__(self, spec: RobotSpec, out: TextIO | None = None):
        self._camera = spec.cameras[0].name if spec.cameras else None
        self._out = out or sys.stderr

    def begin(self, task: str) -> None:
        self._out.write(f"\x1b[2J\x1b[H{task}\n")

    def step(self, step: Step) -> None:
        if self._camera is not None:
            self._out.write(f"\x1b[2;1H{half_blocks(step.observation.images[self._camera])}\n")
            self._out.flush()

    def save(self, success: bool | None = None) -> None:
        self._out.write(f"saved{'' if success is None else ': success' if success else ': no success'}\x1b[K\n")

    def discard(self) -> None:
        self._out.write("discarded\x1b[K\n")


def half_blocks(image: np.ndarray) -> str:
    """(height, width, 3) uint8 -> lines of coloured characters, at most `WIDEST` across."""
    stride = -(-image.shape[1] // WIDEST)
    small = image[::stride, ::stride]
    rows = []
    for upper, lower in zip(small[::2], small[1::2], strict=False):
        cells = (f"\x1b[38;2;{r};{g};{b};48;2;{x};{y};{z}m▀" for (r, g, b), (x, y, z) in zip(upper, lower, strict=True))
        rows.append("".join(cells) + "\x1b[0m")
    return "\n".join(rows)
