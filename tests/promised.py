"""Made-up promises for made-up batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hotpolicy.runtime import rtc
from hotpolicy.runtime.engine import Batch, Guidance


def promised(batch: Batch, rows: tuple[int, ...], limit: float = 10.0, seed: int = 0) -> Batch:
    """The batch with noise promised in some rows, which keep to it in different ways."""
    horizon = batch.noise.shape[1]
    guidance = Guidance.none(*batch.noise.shape)
    guidance.previous[list(rows)] = np.random.default_rng(seed).standard_normal(batch.noise[list(rows)].shape)
    for row in rows:
        schedule = rtc.SCHEDULES[row % len(rtc.SCHEDULES)]
        guidance.weight[row] = rtc.weights(schedule, 1 + row % horizon, horizon - 1, horizon)
        guidance.limit[row] = limit
    return replace(batch, guidance=guidance)
