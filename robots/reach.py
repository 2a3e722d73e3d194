"""What a goal may become: decided from numbers alone, before anything is sent. Knows no arm, no clock and no bus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hotpolicy.robots.bounds import Limits
from hotpolicy.runtime.errors import LimitViolation
from hotpolicy.runtime.messages import Joint


class Reach:
    """Where the limits let `joints` go from where they are. Its arrays are (joints,), deg or percent."""

    def __init__(self, joints: Sequence[Joint], limits: Limits):
        self._joints = joints
        # Rounded inward, so that no float32 action can lie outside by its last bit.
        self._low = _inward([joint.low for joint in limits.joints], up=True)
        self._high = _inward([joint.high for joint in limits.joints], up=False)
        self._step = np.array([joint.max_step for joint in limits.joints])
        self._lead = np.array([np.inf if joint.max_lead is None else joint.max_lead for joint in limits.joints])
        self._tool_step = limits.tool_step
        degrees = [joint.unit == "deg" for joint in joints]
        self._lever = np.where(degrees, np.radians([joint.lever for joint in limits.joints]), 0.0)  # mm per degree

    @property
    def needs_present(self) -> bool:
        """Whether it matters where the arm is, beside the goal it was sent last."""
        return bool(np.isfinite(self._lead).any())

    def checked(self, action: np.ndarray) -> np.ndarray:
        """`action` as float64, as wide as it came. Raises LimitViolation for a wrong shape and for what is not a finite
        number."""
        joints = len(self._joints)
        try:
            array = np.asarray(action)
        except ValueError as error:
            raise LimitViolation(f"action: expected shape ({joints},), got ragged lists; nothing was sent") from error
        if array.shape != (joints,):
            raise LimitViolation(f"action: expected shape ({joints},), got {array.shape}; nothing was sent")
        if array.dtype.kind not in "fiu":
            raise LimitViolation(f"action: expected numbers, got {array.dtype}; nothing was sent")
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
            wanted = array.astype(np.float64)
        for joint, value in zip(self._joints, wanted, strict=True):
            if not np.isfinite(value):
                raise LimitViolation(f"action of {joint.name}: expected a finite number, got {value}; nothing was sent")
        return wanted

    def inside(self, present: np.ndarray) -> np.ndarray:
        """`present` in the range, float64: the goal that the servos of a held arm have."""
        return np.clip(present, self._low, self._high).astype(np.float64)

    def cut(self, wanted: np.ndarray, start: np.ndarray, present: np.ndarray) -> np.ndarray:
        """The goal to send for a `checked` one, float32. `start`: the goal before it; `present`: where the joints are.

        First no further from `present` than each joint's lead, then no further from `start` than its step and than the
        tool's, and last, whatever came before, within the range.
        """
        wanted = np.clip(wanted, present - self._lead, present + self._lead)
        wanted = np.clip(wanted, start - self._step, start + self._step)
        wanted = start + (wanted - start) * self._share(wanted - start)
        return np.clip(wanted.astype(np.float32), self._low, self._high)

    def _share(self, moves: np.ndarray) -> float:
        """How much of a step keeps the tool within its speed. No joint moves it further than its angle times its
        lever, so their sum is a bound on the whole."""
        travel = float(np.abs(moves) @ self._lever)
        return 1.0 if travel <= self._tool_step else self._tool_step / travel


def _inward(bounds: Sequence[float], up: bool) -> np.ndarray:
    """The nearest float32 that is not outside of each bound."""
    exact = np.array(bounds, dtype=np.float64)
    rounded = exact.astype(np.float32)
    outside = rounded < exact if up else rounded > exact
    inward = np.nextafter(rounded, np.float32(np.inf if up else -np.inf))
    return np.where(outside, inward, rounded)
