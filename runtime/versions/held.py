"""Which versions are in memory, and in which role."""

from __future__ import annotations

from dataclasses import dataclass

from hotpolicy.runtime.errors import SwapRefused
from hotpolicy.runtime.versions.checks import ServedPolicy
from hotpolicy.runtime.versions.loader import Loaded


@dataclass(frozen=True)
class Held:
    """All the pointers; replaced in one step, so a reader never sees half a swap."""

    live: Loaded
    previous: Loaded | None = None
    staged: Loaded | None = None

    def policies(self) -> list[ServedPolicy]:
        """Of every role, after the full versions that they share tensors with."""
        loaded = [part for part in (self.live, self.previous, self.staged) if part]
        return [part.root for part in loaded if part.root] + [part.policy for part in loaded]

    def candidate(self, version: str) -> Loaded:
        """What may be promoted by this id: the staged version, or the one before, still warm. Raises SwapRefused."""
        if self.staged and self.staged.policy.version == version:
            if self.staged.verdict.against != self.live.policy.version:
                raise SwapRefused(
                    f"{version}: was tried against {self.staged.verdict.against}, which is not live now: stage again"
                )
            return self.staged
        if self.previous and self.previous.policy.version == version:
            return self.previous
        live = self.live.policy.version == version
        raise SwapRefused(f"{version}: {'is live already' if live else 'stage it first'}")
