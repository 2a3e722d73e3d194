"""The control loop: look, ask, send, tell, wait. Read `_tick` from top to bottom; everything else is bookkeeping."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from hotpolicy.robots.feed import Feed
from hotpolicy.robots.limits import LimitedArm
from hotpolicy.robots.operators import Decision
from hotpolicy.robots.robot import ArmState, Camera
from hotpolicy.robots.sources import Source, Wish
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import RobotError
from hotpolicy.runtime.messages import Observation, Step

log = logging.getLogger(__name__)

End = Literal["judged", "limit", "done", "again", "stop"]
Judge = Callable[[], bool | None]  # True: achieved, False: failed, None: not over


class Pacer(Protocol):
    """Lets the time to the next tick pass: `clock.Rate`, or a simulator in lock-step."""

    def wait(self) -> float: ...  # returns the lag, s: 0 when the tick came on time


@dataclass(frozen=True, slots=True)
class EpisodeReport:
    """What became of one episode."""

    task: str
    end: End  # the judge's word, the tick limit, or the source's decision
    success: bool | None  # None: nobody judged
    ticks: int
    held: int  # ticks without an action fit to send, in which the arm was held
    stale: int  # of those, ticks in which a joint did not answer
    late: int  # ticks that came later than the rate allows
    paused: int  # ticks beside those, in which a person had halted everything
    longest_lag_s: float  # by how much the latest of them came late
    longest_s: float  # from looking to having told everyone, in the slowest tick
    seconds: float  # the whole episode
    versions: tuple[str, ...]  # policy versions that acted, in order of appearance

    @property
    def kept(self) -> bool:
        """Whether subscribers were asked to save it."""
        return _worth_keeping(self.end, self.ticks)


@dataclass(slots=True)
class _Tally:
    held: int = 0
    stale: int = 0
    late: int = 0
    paused: int = 0
    ticks: int = 0
    longest_lag_s: float = 0.0
    longest_s: float = 0.0
    versions: dict[str, None] = field(default_factory=dict)  # an ordered set


class ControlLoop:
    """Drives one arm, one episode at a time. Whatever goes wrong, the arm is held before the error leaves."""

    def __init__(self, arm: LimitedArm, cameras: Sequence[Camera], pacer: Pacer, feeds: Sequence[Feed] = ()):
        self.arm = arm
        self.cameras = cameras
        self.pacer = pacer
        self.feeds = feeds
        self._held_at: np.ndarray | None = None  # where the arm has been held since an earlier tick

    def run(
        self, task: str, source: Source, max_ticks: int, judge: Judge | None = None, linger: int = 0
    ) -> EpisodeReport:
        """One episode: until the source ends it, the judge does (`linger` ticks after success), or `max_ticks` passed.

        Returns once the feeds have saved or discarded it. Raises RobotError (arm, camera, a recorder that falls
        behind), BadRequest (the policy is for another robot) and what a recorder raises; the episode is then discarded.
        """
        tally, started = _Tally(), now()
        self._held_at = None
        try:
            for feed in self.feeds:
                feed.begin(task)
            source.begin(task)
            end, success = self._drive(task, source, max_ticks, judge, linger, tally)
            self.arm.hold()
            self._settle(_worth_keeping(end, tally.ticks), success)
        except BaseException:
            self._abandon()
            raise
        return EpisodeReport(
            task=task, end=end, success=success, ticks=tally.ticks, held=tally.held, stale=tally.stale, late=tally.late,
            paused=tally.paused, longest_lag_s=tally.longest_lag_s, longest_s=tally.longest_s,
            seconds=now() - started, versions=tuple(tally.versions),
        )  # fmt: skip

    def _drive(
        self, task: str, source: Source, max_ticks: int, judge: Judge | None, linger: int, tally: _Tally
    ) -> tuple[End, bool | None]:
        verdict: bool | None = None
        left = max_ticks
        while left > 0:
            paused = tally.paused
            if not self._tick(task, source, tally):
                decision = source.decision()
                return decision, _success(decision) if judge is None else bool(verdict)
            left -= tally.paused == paused
            if verdict is None and judge is not None and (verdict := judge()) is not None:
                left = min(left, linger if verdict else 0)
        return ("limit", None if judge is None else False) if verdict is None else ("judged", verdict)

    def _tick(self, task: str, source: Source, tally: _Tally) -> bool:
        """One tick; False when the source has ended the episode."""
        began = now()
        self.arm.require_clear()
        state = self.arm.read()
        self.arm.watchdog()
        images = {camera.name: camera.read().image for camera in self.cameras}
        observation = Observation(images, state.positions.astype(np.float32), task)
        wish = source.act(observation)
        if wish is None:
            return False
        sent = self._send(wish, state, tally)
        if wish.pause:  # nobody learns from it, and no time of the episode passes
            tally.paused += 1
            self.pacer.wait()
            return True
        requested = sent if wish.action is None else wish.action.astype(np.float32)
        step = Step(observation, requested, sent, wish.version, wish.intervention)
        for feed in self.feeds:
            feed.step(step)
        if wish.version is not None:
            tally.versions[wish.version] = None
        tally.ticks += 1
        tally.longest_s = max(tally.longest_s, now() - began)
        lag = self.pacer.wait()
        tally.late += lag > 0
        tally.longest_lag_s = max(tally.longest_lag_s, lag)
        return True

    def _send(self, wish: Wish, state: ArmState, tally: _Tally) -> np.ndarray:
        """Send the wish within the limits, or hold; returns the goal the joints now have."""
        if wish.action is not None and not state.stale:
            self._held_at = None
            return self.arm.send(wish.action)
        tally.held += not wish.pause
        tally.stale += bool(state.stale)
        if wish.pause and not state.stale:  # on purpose: that is no want of actions
            moved = None
            if self._held_at is None:
                self.arm.hold()
        else:
            moved = self.arm.wait()
        if moved is not None:
            self._held_at = moved
        elif self._held_at is None:  # once: holding anew each tick would follow the arm as it sags
            self._held_at = state.positions.astype(np.float32)
        return self._held_at

    def _settle(self, kept: bool, success: bool | None) -> None:
        for feed in self.feeds:
            if kept:
                feed.save(success)
            else:
                feed.discard()
        for feed in self.feeds:
            if feed.when_full != "drop":  # nobody waits for a viewer
                feed.flush()

    def _abandon(self) -> None:
        """Hold and discard after an error, which stays the one that is reported."""
        try:
            self.arm.hold()
        except RobotError as error:
            log.error("the arm could not be held: %s", error)
        for feed in self.feeds:
            feed.discard()


def _success(decision: Decision) -> bool | None:
    """A person who says "done" says that it went well."""
    return True if decision == "done" else None


def _worth_keeping(end: End, ticks: int) -> bool:
    return ticks > 0 and end not in ("again", "stop")
