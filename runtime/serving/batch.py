"""One batch: observations through a policy, and what each robot is told of it. No threads, no queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from hotpolicy.runtime.contracts import Policy
from hotpolicy.runtime.envelope import finite, one_line
from hotpolicy.runtime.errors import BadRequest, EngineFault, Expired
from hotpolicy.runtime.messages import ActionChunk, Observation, RobotSpec
from hotpolicy.runtime.scheduler import Outcome, Ticket
from hotpolicy.runtime.serving.epochs import Guide

logger = logging.getLogger(__name__)


class Raised(EngineFault):
    """The policy raised instead of answering."""


def outcome(
    ticket: Ticket, policy: Policy, actions: np.ndarray | EngineFault, guided: bool, started: float, ended: float
) -> Outcome:
    if isinstance(actions, EngineFault):
        return actions
    if ended >= ticket.expires:
        return Expired(f"computed in {1000 * (ended - started):.0f} ms, which ended after its deadline")
    return ActionChunk(
        actions=actions,
        rate_hz=policy.spec.rate_hz,
        observed_at=ticket.request.observed_at,
        request_id=ticket.request.id,
        version=policy.version,
        digest=policy.digest,
        timings_ms={
            "queue": 1000 * (started - ticket.arrived),
            "infer": 1000 * (ended - started),
            "total": 1000 * (ended - ticket.arrived),
        },
        guided=guided,
    )


def compute(
    policy: Policy, observations: list[Observation], guides: list[Guide | None] | None = None
) -> Sequence[np.ndarray | EngineFault]:
    """One action array or one fault for each observation. A policy may fail in any way; the server goes on."""
    expected = (len(observations), policy.horizon, len(policy.spec.joints))
    try:
        actions = policy.infer(observations) if guides is None else policy.infer(observations, guides=guides)
    except Exception as error:
        logger.exception("policy %s failed", policy.version)
        return [Raised(f"policy {policy.version}: {described(error)}")] * len(observations)
    if not isinstance(actions, np.ndarray) or actions.shape != expected or actions.dtype != np.float32:
        got = f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
        fault = EngineFault(f"policy {policy.version}: expected float32 actions {expected}, got {got}")
        return [fault] * len(observations)
    if finite(actions):
        return list(actions)
    fault = EngineFault(f"policy {policy.version}: computed actions that are not finite; they were not sent")
    return [row if finite(row) else fault for row in actions]


def blank(spec: RobotSpec) -> Observation:
    images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in spec.cameras}
    state = np.array([(joint.low + joint.high) / 2 for joint in spec.joints], np.float32)
    return Observation(images=images, state=state, task="warm up")


def described(error: Exception) -> str:
    """A BadRequest's own words; of any other error its type and first words."""
    return str(error) if isinstance(error, BadRequest) else one_line(f"{type(error).__name__}: {error}")
