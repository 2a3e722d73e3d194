"""Actions as differences from the measured state, for some joints; openpi calls them delta actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Relative:
    """All steps of a chunk are relative to the same state, the one that was measured when it was asked for."""

    mask: np.ndarray  # (joints,) bool: True for a joint whose actions are differences; a gripper is mostly absolute

    def forward(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """actions (batch, horizon, joints), state (batch, joints)."""
        return actions - np.where(self.mask, state, 0.0)[:, None]

    def inverse(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        return actions + np.where(self.mask, state, 0.0)[:, None]
