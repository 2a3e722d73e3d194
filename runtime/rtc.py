"""Real-time chunking's numbers: how firmly the next chunk keeps to what the last one promised, action by action.

While a policy computes, the arm goes on with the chunk it has. The next chunk has to begin where that one will be: so
the sampler (`model/guided.py`) is pulled towards what was promised, fully for the actions that are executed before the
answer is in use, and less and less up to the execution horizon (Black et al. 2025, arXiv 2506.07339). Needs numpy only.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from hotpolicy.runtime.errors import BadRequest

Schedule = Literal["zeros", "ones", "linear", "exp"]  # how the pull goes from 1 at `delay` to 0 at `execution_horizon`
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def weights(schedule: Schedule, delay: int, execution_horizon: int, horizon: int) -> np.ndarray:
    """Share of the full pull for each action of the next chunk, (horizon,) float32 in 0..1.

    The first `delay` actions are executed before the chunk is in use: 1. From `execution_horizon` on the chunk is free:
    0. Between them "zeros" is 0, "ones" is 1, "linear" falls evenly and "exp" faster. Counted from the first action of
    the next chunk; an execution horizon should end where the promise does. Raises BadRequest naming the field."""
    if schedule not in SCHEDULES:
        raise BadRequest(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    _check_count("delay", delay, 0)
    _check_count("execution_horizon", execution_horizon, 0)
    _check_count("horizon", horizon, 1)
    end = min(execution_horizon, horizon)
    start = min(delay, end)
    between = np.linspace(1, 0, end - start + 2)[1:-1]  # neither 1 nor 0
    if schedule == "zeros":
        between = np.zeros_like(between)
    elif schedule == "ones":
        between = np.ones_like(between)
    elif schedule == "exp":
        between = between * np.expm1(between) / np.expm1(1)
    return np.concatenate([np.ones(start), between, np.zeros(horizon - end)]).astype(np.float32)


def pad(actions: np.ndarray, horizon: int) -> np.ndarray:
    """What is left of a chunk, (actions, width), at the length of the next one, (horizon, width): by repeating the last
    action, because the arm would stay there. Zeros are the middle of the training data and would pull towards that.
    Raises BadRequest when nothing is left, or where a number is not finite."""
    _check_count("horizon", horizon, 1)
    if actions.ndim != 2 or not len(actions):
        raise BadRequest(f"actions: expected (at least 1, width), got {actions.shape}")
    if not np.isfinite(actions).all():
        raise BadRequest("actions: expected finite numbers")
    last = np.repeat(actions[-1:], max(horizon - len(actions), 0), axis=0)
    return np.concatenate([actions[:horizon], last]).astype(np.float32)


def _check_count(field: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise BadRequest(f"{field}: expected a whole number from {least}, got {value!r}")
