"""The chunks a session was answered last, so that its next one can carry on from what the robot is still executing.

A chunk's epoch ends with its episode, with its policy version, with a goodbye, or when this session has been quiet for
longest of too many. A request that names a chunk whose epoch has ended is answered without guidance, and told so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from hotpolicy.runtime import rtc
from hotpolicy.runtime.messages import InferRequest
from hotpolicy.runtime.scheduler import SessionKey

KEPT = 2  # chunks of a session: the one being executed, and a newer one that the robot may not have got in time


@dataclass(frozen=True, slots=True)
class Guide:
    """What one robot goes on executing, and how firmly its next chunk is held to it."""

    actions: np.ndarray  # (horizon, joints) float32, units of the RobotSpec: from the observation on, the last repeated
    weight: np.ndarray  # (horizon,) float32, 0..1
    limit: float  # the strongest pull


@dataclass(frozen=True, slots=True)
class _Epoch:
    version: str  # of the policy
    episode: int
    chunks: dict[int, np.ndarray]  # request id -> actions, the newest last


class Epochs:
    """Safe to use from several threads."""

    def __init__(self, most: int):
        """`most`: sessions kept; of more, the one that was answered longest ago goes."""
        self._most = most
        self._lock = threading.Lock()
        self._epochs: OrderedDict[SessionKey, _Epoch] = OrderedDict()

    def __len__(self) -> int:
        return len(self._epochs)

    def keep(self, session: SessionKey, request: InferRequest, version: str, actions: np.ndarray) -> None:
        """These actions (horizon, joints), in the robot's units, are the answer to this request."""
        with self._lock:
            epoch = self._epochs.pop(session, None)
            if epoch is None or (epoch.version, epoch.episode) != (version, request.episode):
                epoch = _Epoch(version, request.episode, {})
            epoch.chunks[request.id] = actions
            while len(epoch.chunks) > KEPT:
                del epoch.chunks[next(iter(epoch.chunks))]
            self._epochs[session] = epoch
            while len(self._epochs) > self._most:
                self._epochs.popitem(last=False)

    def guide(self, session: SessionKey, request: InferRequest, version: str) -> Guide | None:
        """What the policy `version` has to carry on from; None when that chunk is not known in this epoch, or has no
        action left."""
        asked = request.rtc
        if asked is None:
            return None
        with self._lock:
            epoch = self._epochs.get(session)
            if epoch is None:
                return None
            if (epoch.version, epoch.episode) != (version, request.episode):
                del self._epochs[session]
                return None
            actions = epoch.chunks.get(asked.previous)
        if actions is None or asked.executed >= len(actions):
            return None
        horizon, left = len(actions), len(actions) - asked.executed
        held = min(asked.delay, left)  # a robot that runs out of actions stands still, and time stands still with it
        end = min(max(asked.execution_horizon, held), left)  # nothing was promised beyond what is left
        weight = rtc.weights(asked.schedule, held, end, horizon)
        return Guide(rtc.pad(actions[asked.executed :], horizon), weight, asked.max_weight)

    def drop(self, session: SessionKey) -> None:
        """The robot has said goodbye."""
        with self._lock:
            self._epochs.pop(session, None)
