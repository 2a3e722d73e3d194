"""May a candidate be published? Figures of it and of the version it would replace, against bounds; no I/O.

Where a task can be checked by doing it (a simulator, a scripted test), success has the last word: held-out flow loss
can rise while the arm does as well as ever. Where it cannot, held-out action error decides, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from hotpolicy.finetune.curves import ByTask, Curves
from hotpolicy.runtime.errors import SwapRefused
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.policy import Policy
from hotpolicy.runtime.versions.checks import ask, check_actions, drift
from hotpolicy.runtime.versions.golden import Golden

TURNS = 5  # of a candidate that seems slow: on a busy machine any one may be so by chance


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a candidate must keep to."""

    success: float = 0.8  # at least this rate on the new tasks, where they were tried
    old_loss: float = 0.15  # at most this much lower than live on the old tasks, where they were tried
    old_error: float = 1.5  # held-out action error of old tasks as a multiple of live's, at most ...
    old_error_room: float = 1.0  # ... plus this many degrees, or percent for a gripper
    margin: float = 0.05  # actions may leave a joint's range by this part of it
    jerk: float = 3.0  # roughness of chunks as a multiple of live's, at most
    drift: float = 0.25  # mean distance from live on golden observations, as part of the joints' range
    slowdown: float = 2.0  # latency as a multiple of live's, at most ...
    slowdown_room_ms: float = 5.0  # ... plus this many milliseconds


@dataclass(frozen=True, slots=True)
class Trial:
    """A task tried by doing it, by the candidate and, for old tasks, by live."""

    task: str
    successes: int
    episodes: int
    live: float | None = None  # live's rate in the same scenes; None: a new task

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    def to_dict(self) -> dict[str, Any]:
        found = binomtest(self.successes, self.episodes).proportion_ci(0.95, method="wilson")
        interval = [round(float(found.low), 4), round(float(found.high), 4)]
        return {**asdict(self), "rate": round(self.rate, 4), "interval_95": interval}


@dataclass(frozen=True, slots=True)
class GateVerdict:
    passed: bool
    decided_by: str  # "success" or "held-out action error"
    reasons: tuple[str, ...]  # why it did not pass
    figures: Mapping[str, Any] = field(default_factory=dict)  # plain JSON

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reasons": list(self.reasons)}


def judge(
    candidate: Policy, live: Policy, golden: Golden, curves: Curves, trials: Sequence[Trial], bounds: Bounds
) -> GateVerdict:
    """`curves` are the run's that made the candidate from live."""
    reasons, figures = _on_golden(candidate, live, golden, bounds)
    first, last = curves.parent, curves.candidate
    figures["held_out"] = {"before": first.to_dict(), "after": last.to_dict()}
    new = [trial for trial in trials if trial.live is None]
    if not new:
        reasons += _not_better(first.new, last.new)
    reasons += [
        f"{trial.task}: {trial.rate:.2f} of {trial.episodes} episodes, expected at least {bounds.success:.2f}"
        for trial in new
        if trial.rate < bounds.success
    ]
    old = [trial for trial in trials if trial.live is not None]
    reasons += [
        f"{trial.task}: {trial.rate:.2f} of {trial.episodes} episodes, live {trial.live:.2f}: expected to lose at most "
        f"{bounds.old_loss:.2f}"
        for trial in old
        if trial.live is not None and trial.live - trial.rate > bounds.old_loss
    ]
    if not old:
        reasons += _forgotten(first.old, last.old, bounds)
    figures["trials"] = [trial.to_dict() for trial in trials]
    return GateVerdict(not reasons, "success" if new else "held-out action error", tuple(reasons), figures)


def _on_golden(candidate: Policy, live: Policy, golden: Golden, bounds: Bounds) -> tuple[list[str], dict[str, Any]]:
    """Finite, within limits, not far from live, and as smooth."""
    answers, before = ask(candidate, golden), ask(live, golden)
    reasons = []
    try:
        check_actions(candidate, answers, bounds.margin)
    except SwapRefused as refused:
        return [str(refused)], {}
    moved = drift(candidate.spec, answers.actions, before.actions)
    rough, usual = _jerk(candidate.spec, answers.actions), _jerk(live.spec, before.actions)
    if moved > bounds.drift:
        reasons.append(f"drift {moved:.3f} of the joints' range on golden observations, at most {bounds.drift:g}")
    if rough > bounds.jerk * usual + 1e-4:
        reasons.append(f"chunks {rough / usual:.1f} times as rough as live's, at most {bounds.jerk:g}")
    latency, usual_latency, turns = answers.latency_ms, before.latency_ms, 1
    while (slow := latency > bounds.slowdown * usual_latency + bounds.slowdown_room_ms) and turns < TURNS:
        latency = min(latency, ask(candidate, golden).latency_ms)
        usual_latency, turns = min(usual_latency, ask(live, golden).latency_ms), turns + 1
    if slow:
        allowed = f"at most {bounds.slowdown:g} times that"
        reasons.append(f"latency {latency:.1f} ms, live {usual_latency:.1f} ms, {allowed}")
    return reasons, {
        "golden": len(golden),
        "drift": round(moved, 5),
        "jerk": round(rough, 5),
        "live_jerk": round(usual, 5),
        "latency_ms": round(latency, 2),
        "live_latency_ms": round(usual_latency, 2),
    }


def _jerk(spec: RobotSpec, actions: np.ndarray) -> float:
    """Mean size of the third difference along the chunk, as part of each joint's range."""
    spans = np.array([joint.high - joint.low for joint in spec.joints])
    return float(np.abs(np.diff(actions, n=3, axis=1) / spans).mean())


def _not_better(before: ByTask, after: ByTask) -> list[str]:
    if not after:
        return ["no held-out episode and no trial: nothing shows that the new tasks were learned"]
    reasons = []
    for task in after:
        if task not in before:
            continue
        kind, unit = ("error_deg", "deg") if before[task].error_deg else ("error_percent", "percent")  # nothing turns
        now, was = getattr(after[task], kind), getattr(before[task], kind)
        if now >= was:
            reasons.append(f"{task}: held-out action error {now:.2f} {unit}, before tuning {was:.2f}")
    return reasons


def _forgotten(before: ByTask, after: ByTask, bounds: Bounds) -> list[str]:
    reasons = []
    for task in after:
        if task not in before:
            continue
        # A gripper that closes too late loses the object while the arm's path hardly changes: it is judged by itself.
        for kind, unit in (("error_deg", "deg"), ("error_percent", "percent")):
            now, was = getattr(after[task], kind), getattr(before[task], kind)
            if now > bounds.old_error * was + bounds.old_error_room:
                reasons.append(f"{task}: held-out action error {now:.2f} {unit}, live {was:.2f}: forgotten")
    return reasons
