"""What a candidate must show before it may serve: pure measurements against bounds, no disk, no threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import SwapRefused
from hotpolicy.runtime.messages import Observation, RobotSpec
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.watch import Guard

BLANK_MARGIN = 1.0  # at least this margin on a blank picture: what a good policy answers to it may be a little wild
TIMED = 5  # calls at least; the fastest counts, because the machine is serving meanwhile


class ServedPolicy(Protocol):
    """One policy version in memory, as a slot and a server need it. `infer` is called by one thread at a time."""

    @property
    def version(self) -> str: ...  # bundle id

    @property
    def digest(self) -> str: ...  # hex

    @property
    def spec(self) -> RobotSpec: ...

    @property
    def horizon(self) -> int: ...  # actions per answer

    @property
    def width(self) -> int: ...  # of the model's own actions, where answers start from noise; at least the joints

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        """(batch, horizon, joints) float32, units of the spec; noise is (batch, horizon, width)."""

    def derive(self, bundle: Bundle) -> ServedPolicy:
        """A delta on this version, sharing what did not change. Raises BundleError."""

    def check(self, observation: Observation) -> None:
        """Raises BadRequest naming the field of an observation that does not fit."""


@dataclass(frozen=True, slots=True)
class Checks:
    """The bounds. A candidate beyond one is refused and the live version goes on."""

    margin: float = 0.05  # actions may leave a joint's range by this part of it; the limits clamp them later
    max_drift: float | None = 0.25  # mean distance from live's actions, as part of each joint's range; None: any
    max_slowdown: float | None = 3.0  # latency as a multiple of live's; None: any
    grace_ms: float = 5.0  # added to that bound, so that very fast policies are not refused for noise
    max_faults: int = 3  # faults of a version, since its promotion, that roll it back; 0: never
    guard: Guard = field(default_factory=Guard)  # what else rolls back a version that serves


@dataclass(frozen=True)
class Answers:
    """What a policy answered to golden observations."""

    golden: Golden
    actions: np.ndarray  # (n, horizon, joints) float32
    latency_ms: float  # of one observation, fastest of several


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured of a candidate that passed."""

    version: str
    against: str | None  # the version that was live, or None at start
    golden: int  # observations it was tried on; 0: the version has no golden file, a blank one was used
    drift: float | None  # mean distance from live, as part of each joint's range
    latency_ms: float
    live_latency_ms: float | None
    load_ms: float
    verify_ms: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ask(policy: ServedPolicy, golden: Golden, rest: Callable[[], None] | None = None) -> Answers:
    """Ask one observation at a time; also warms the policy at its real shapes. `rest` is called between questions.
    Raises SwapRefused when the golden observations are not for this policy, BadRequest and what the engine raises."""
    if golden.noise.shape[1] != policy.horizon:
        raise SwapRefused(
            f"{policy.version}: horizon: golden noise is for {golden.noise.shape[1]} actions, "
            f"the policy gives {policy.horizon}"
        )
    if golden.noise.shape[2] != policy.width:
        raise SwapRefused(
            f"{policy.version}: width: golden noise is {golden.noise.shape[2]} wide, the model takes {policy.width}"
        )
    observations = golden.observations(policy.spec)
    answers, times = [], []
    policy.infer([observations[0]], golden.noise[:1])  # the first call pays for caches
    for n in range(max(len(observations), TIMED)):
        i = n % len(observations)
        policy.check(observations[i])
        if rest:
            rest()
        started = now()
        actions = policy.infer([observations[i]], golden.noise[i : i + 1])
        times.append(now() - started)
        if actions.shape != (1, policy.horizon, len(policy.spec.joints)):
            raise SwapRefused(f"{policy.version}: actions: expected (1, horizon, joints), got {actions.shape}")
        answers.append(np.asarray(actions[0], np.float32))
    return Answers(golden, np.stack(answers[: len(observations)]), min(times) * 1000)


def check_identity(policy: ServedPolicy, bundle: Bundle, live: ServedPolicy | None) -> None:
    """Raises SwapRefused when a policy is not the bundle it was loaded from, or not for live's robot."""
    if (policy.version, policy.digest) != (bundle.id, bundle.digest):
        raise SwapRefused(f"{bundle.id}: digest: the loaded policy says it is {policy.version} {policy.digest[:16]}")
    if live is None:
        return
    if policy.spec != live.spec:
        raise SwapRefused(f"{bundle.id}: spec: made for another robot than live {live.version}")
    if policy.horizon != live.horizon:
        raise SwapRefused(f"{bundle.id}: horizon: live gives {live.horizon} actions, this {policy.horizon}")


def check_actions(policy: ServedPolicy, answers: Answers, margin: float) -> None:
    """Raises SwapRefused naming the observation (and joint) of an action that is not finite or out of range."""
    finite = np.isfinite(answers.actions).all(axis=(1, 2))
    if not finite.all():
        i = int(np.argmin(finite))
        raise SwapRefused(
            f"{policy.version}: NaN or infinity on golden observation {i} ({str(answers.golden.tasks[i])!r})"
        )
    if answers.golden.is_blank:
        margin = max(margin, BLANK_MARGIN)
    low, high = _range(policy.spec)
    room = (high - low) * margin
    beyond = np.maximum(low - room - answers.actions, answers.actions - high - room)
    if beyond.max() > 0:
        worst, step, j = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
        joint = policy.spec.joints[j]
        raise SwapRefused(
            f"{policy.version}: beyond limits on golden observation {worst}: {joint.name} "
            f"{answers.actions[worst, step, j]:g} {joint.unit}, "
            f"expected {joint.low:g} to {joint.high:g} and a margin of {margin:.0%}"
        )


def drift(spec: RobotSpec, actions: np.ndarray, live: np.ndarray) -> float:
    """Mean distance between answers to the same observations and noise, as part of each joint's range."""
    low, high = _range(spec)
    return float(np.mean(np.abs(actions - live) / np.maximum(high - low, 1e-9), dtype=np.float64))


def compare(policy: ServedPolicy, answers: Answers, live: Answers, against: str, checks: Checks) -> float:
    """The drift. Raises SwapRefused when it, or the latency, is beyond its bound relative to live."""
    moved = drift(policy.spec, answers.actions, live.actions)
    if checks.max_drift is not None and moved > checks.max_drift:
        raise SwapRefused(
            f"{policy.version}: drift {moved:.3f} from live {against}, expected at most {checks.max_drift:g}"
        )
    if checks.max_slowdown is not None:
        bound = live.latency_ms * checks.max_slowdown + checks.grace_ms
        if answers.latency_ms > bound:
            raise SwapRefused(
                f"{policy.version}: latency {answers.latency_ms:.1f} ms, live {against} takes "
                f"{live.latency_ms:.1f} ms, expected at most {bound:.1f} ms"
            )
    return moved


def _range(spec: RobotSpec) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([joint.low for joint in spec.joints], np.float32)
    return low, np.array([joint.high for joint in spec.joints], np.float32)
