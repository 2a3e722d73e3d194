"""A robot's joints in a model that was built for more of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Width:
    """Zeros behind the joints, after normalising, as openpi and LeRobot do; and their removal."""

    joints: int
    padded: int  # the model's; at least `joints`

    def forward(self, values: np.ndarray) -> np.ndarray:
        """(..., joints) -> (..., padded)."""
        if self.padded == self.joints:
            return values
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, self.padded - self.joints)])

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return values[..., : self.joints]
