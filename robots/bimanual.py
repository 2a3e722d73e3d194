"""Two arms as one: joints named left_... and right_..., and what stops one stops the other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np

from hotpolicy.robots.robot import Arm, ArmState
from hotpolicy.runtime.errors import ConfigError, RobotError
from hotpolicy.runtime.messages import RobotSpec

log = logging.getLogger(__name__)

SIDES = ("left_", "right_")


class Half(Arm, Protocol):
    """An arm that can be half of a pair."""

    @property
    def torque_on(self) -> bool: ...  # all joints are known to be energised

    def close(self, release: bool = False) -> None: ...

    def reconnect(self) -> None: ...


class BimanualArm:
    """Implements robots.robot.Arm. Drive it through `limits.LimitedArm` only, one for the pair.

    Raises what its halves raise. Before an error leaves, the other half has been held; a silent joint is in
    `ArmState.stale` as ever, on which the loop holds the pair.
    """

    def __init__(self, left: Half, right: Half, spec: RobotSpec | None = None):
        """`spec` gives narrower ranges, cameras and rate; its joints must be those of both arms, left first."""
        self._halves = (left, right)
        own = pair_specs(left.spec, right.spec)
        self.spec = spec or own
        expected, got = ([(joint.name, joint.unit) for joint in s.joints] for s in (own, self.spec))
        if got != expected:
            raise ConfigError(f"joints of two arms: expected {expected}, got {got}")
        self._split = len(left.spec.joints)

    @property
    def torque_on(self) -> bool:
        return all(half.torque_on for half in self._halves)

    def read(self) -> ArmState:
        left, right = self._together(lambda half: half.read())
        return ArmState(
            positions=np.concatenate((left.positions, right.positions)),
            stale=tuple(side + name for side, state in zip(SIDES, (left, right), strict=True) for name in state.stale),
            faults={
                side + name: texts
                for side, state in zip(SIDES, (left, right), strict=True)
                for name, texts in state.faults.items()
            },
            read_at=min(left.read_at, right.read_at),
        )

    def send(self, positions: np.ndarray) -> None:
        """(joints of both,) absolute targets, left first."""
        goals = iter((positions[: self._split], positions[self._split :]))
        self._together(lambda half: half.send(next(goals)))

    def hold(self) -> None:
        """Both are tried before an error is raised."""
        self._each(self._halves, lambda half: half.hold())

    def torque(self, on: bool) -> None:
        """On: both or neither; when one refuses, what this call switched on is released again. Off: both are tried."""
        if not on:
            self._each(self._halves, lambda half: half.torque(False))
            return
        were_on = [half.torque_on for half in self._halves]
        try:
            for half in self._halves:
                half.torque(True)
        except RobotError:
            fresh = [half for half, was_on in zip(self._halves, were_on, strict=True) if not was_on]
            self._each(fresh, lambda half: half.torque(False), quiet=True)
            raise

    def reconnect(self) -> None:
        """After BusLost: of both, as nobody knows which one lost what."""
        self._each(self._halves, lambda half: half.reconnect())

    def close(self, release: bool = False) -> None:
        self._each(self._halves, lambda half: half.close(release))

    def _together(self, act: Callable[[Half], ArmState | None]) -> list:
        """`act` with one after the other; when one fails the other is held."""
        results = []
        for half in self._halves:
            try:
                results.append(act(half))
            except RobotError:
                others = [other for other in self._halves if other is not half]
                self._each(others, lambda other: other.hold(), quiet=True)
                raise
        return results

    @staticmethod
    def _each(halves: Iterable[Half], act: Callable[[Half], None], quiet: bool = False) -> None:
        """`act` with all of them, whatever happens; then the first error, or with `quiet` only a line in the log."""
        first: RobotError | None = None
        for half in halves:
            try:
                act(half)
            except RobotError as error:
                log.error("%s", error)
                first = first or error
        if first is not None and not quiet:
            raise first


def pair_specs(left: RobotSpec, right: RobotSpec) -> RobotSpec:
    """The joints of both with their side before the name. Raises ConfigError when their rates differ."""
    if left.rate_hz != right.rate_hz:
        raise ConfigError(f"rates of two arms: expected the same, got {left.rate_hz} and {right.rate_hz} Hz")
    joints = tuple(
        replace(joint, name=side + joint.name)
        for side, spec in zip(SIDES, (left, right), strict=True)
        for joint in spec.joints
    )
    return RobotSpec(joints, left.cameras + right.cameras, left.rate_hz)
