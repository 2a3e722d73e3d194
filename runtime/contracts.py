"""What the server asks of a policy version in memory, and of the slot that holds the versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hotpolicy.runtime.messages import Boundary, Observation, RobotSpec
from hotpolicy.runtime.serving.epochs import Guide


class Policy(Protocol):
    """One policy version in memory, as the server sees it."""

    version: str
    digest: str
    spec: RobotSpec
    horizon: int
    guidable: bool  # whether `infer` takes guides=; one that does not say is not given any

    def check(self, observation: Observation) -> None: ...  # raises BadRequest naming the field

    def infer(
        self,
        observations: Sequence[Observation],
        noise: np.ndarray | None = None,
        guides: Sequence[Guide | None] | None = None,
    ) -> np.ndarray: ...


class Slot(Protocol):
    """The versions in memory, as the server sees them."""

    @property
    def live(self) -> Any: ...  # Policy

    @property
    def previous(self) -> Any: ...  # Policy or None

    @property
    def staged(self) -> Any: ...  # Policy or None

    # None of these may wait for a disk or a model, but for `reload`.

    def policy_for(self, session: str, boundary: Boundary, episode: int) -> Any: ...  # Policy

    def report_batch(self, version: str, actions: np.ndarray, ms: float, waited_ms: float) -> None:
        """This version answered a batch with these (n, horizon, joints) actions, all finite. It took so long, of
        which it waited for a processor so long."""

    def report_fault(self, version: str) -> None: ...  # this version failed to compute a batch

    def reload(self) -> str: ...  # load the live version afresh; raises HotpolicyError

    def forget(self, session: str) -> None: ...  # its episode holds no version any more

    def figures(self) -> dict[str, Any]: ...  # what happened to the versions: plain values
