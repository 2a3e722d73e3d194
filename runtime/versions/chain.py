"""A version as a chain: a full bundle and then deltas, each changing some tensors of the one before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.errors import BundleError


class Shaped(Protocol):
    """A tensor, or what a manifest says of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> object: ...


def check_delta(parent: Mapping[str, Shaped], delta: Mapping[str, Shaped]) -> None:
    """Raises BundleError naming a delta's tensor that its parent lacks, or has in another shape or dtype."""
    for name, tensor in delta.items():
        if name not in parent:
            raise BundleError(f"tensor {name}: not in the parent, so a delta cannot change it")
        was = parent[name]
        if (was.shape, was.dtype) != (tensor.shape, tensor.dtype):
            raise BundleError(f"tensor {name}: parent has {was.dtype} {was.shape}, delta {tensor.dtype} {tensor.shape}")


def check_chain(chain: Sequence[Bundle]) -> None:
    """A chain is a full bundle and then deltas, each on the one before. Raises BundleError when it is not."""
    if not chain or chain[0].manifest.kind != "full":
        raise BundleError("chain: expected a full bundle first")
    for before, bundle in pairwise(chain):
        if bundle.manifest.kind != "delta" or bundle.manifest.parent != before.id:
            raise BundleError(f"{bundle.id}: expected a delta on {before.id}")
        if bundle.manifest.model != chain[0].manifest.model:
            raise BundleError(f"{bundle.id}: model: a delta keeps its parent's family and config")
        try:
            check_delta(chain[0].manifest.tensors, bundle.manifest.tensors)
        except BundleError as error:
            raise BundleError(f"{bundle.id}: {error}") from error


def resolve(chain: Sequence[Bundle], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """All tensors of the version at the end of a chain, or those of `names`, verified. One that a later delta changes
    is not read. Raises BundleError."""
    check_chain(chain)
    last = {name: bundle for bundle in chain for name in bundle.manifest.tensors}
    tensors: dict[str, np.ndarray] = {}
    for bundle in chain:
        mine = [name for name, where in last.items() if where is bundle and (names is None or name in names)]
        tensors.update(bundle.tensors(mine) if mine else {})
    return {name: tensors[name] for name in last if name in tensors}
