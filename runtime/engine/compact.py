"""A batch without what no row of it uses: absent cameras and padding of short texts cost time, and change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hotpolicy.runtime.engine import Batch


def compact(batch: Batch, bucket: int = 1) -> Batch:
    """The camera slots that are present in some row (at least one slot), and text as long as the multiple of `bucket`
    tokens that holds what is used: the larger it is, the fewer shapes a batch comes in."""
    present: np.ndarray = np.asarray(batch.image_mask.any(0))
    if not present.any():
        present[0] = True  # an image that is masked: no model is given none
    used = np.flatnonzero(batch.token_mask.any(0))
    length = min(batch.tokens.shape[1], -(-(used[-1] + 1 if len(used) else 1) // bucket) * bucket)
    if present.all() and length == batch.tokens.shape[1]:
        return batch
    return replace(
        batch,
        images=batch.images[:, present],
        image_mask=batch.image_mask[:, present],
        tokens=batch.tokens[:, :length],
        token_mask=batch.token_mask[:, :length],
    )
