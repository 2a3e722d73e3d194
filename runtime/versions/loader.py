"""From a version's id to a policy that has been tried: loads what is not in memory and applies the checks."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine import ENGINES, load_engine
from hotpolicy.runtime.errors import BundleError, ConfigError, HotpolicyError, UnknownVersion
from hotpolicy.runtime.policy import Policy
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.checks import (
    Answers,
    Checks,
    ServedPolicy,
    Verdict,
    ask,
    check_actions,
    check_identity,
    compare,
)
from hotpolicy.runtime.versions.golden import Golden

REST_BATCHES, LONGEST_REST_MS = 3, 500.0
log = logging.getLogger(__name__)
Load = Callable[..., ServedPolicy]  # (bundle, parent policy or None) -> policy; a delta is given its parent

# What loading and trying a candidate may raise. Policy: the candidate is refused, whatever it did; live goes on.
CANDIDATE_FAULTS = (HotpolicyError, OSError, MemoryError, RuntimeError, ValueError, TypeError, LookupError)


@dataclass(frozen=True)
class Loaded:
    """A version that can serve at once."""

    policy: ServedPolicy
    root: ServedPolicy | None  # the full version whose tensors it shares: kept so that its next delta loads fast
    answers: Answers
    verdict: Verdict


class Loader:
    def __init__(self, store: Store, load: Load, checks: Checks):
        self.store = store
        self.checks = checks
        self._load = load

    def first(self) -> Loaded:
        """The store's last good version. Raises UnknownVersion for an empty store, BundleError when none can be
        served; a version that cannot is skipped and said so in the log."""
        reasons: list[str] = []
        for version in self.store.candidates():
            try:
                loaded = self.prepare(version, None, {})
            except CANDIDATE_FAULTS as error:
                reasons.append(one_line(error))
                log.warning("version %s cannot be served: %s", version, reasons[-1])
                continue
            self.store.settle(version, by="server", request_id=f"recover-{uuid.uuid4().hex}")
            return loaded
        if reasons:
            raise BundleError(f"{self.store.root}: no version can be served; the best one: {reasons[0]}")
        raise UnknownVersion(f"{self.store.root} has no version that can be served; add a full bundle first")

    def prepare(
        self, version: str, live: Loaded | None, warm: Mapping[str, ServedPolicy], pace: Callable[[], float] = float
    ) -> Loaded:
        """Load and try a version; `warm` are the policies in memory, by id; `pace` tells what live takes while it
        serves, ms, or 0. Raises one of CANDIDATE_FAULTS.

        Live serves meanwhile, on the same processor. Between two questions to the candidate so much time is left as
        live takes for some batches, so that a robot whose request waits for one of them and is computed in the next
        meets hardly more than one question; and before it is loaded, so that whoever waits for the first answer of a
        version just promoted does not wait for the next one to load as well."""

        def rest() -> None:
            time.sleep(min(REST_BATCHES * pace(), LONGEST_REST_MS) / 1000)

        rest()
        started = now()
        policy, root, golden = self._load_chain(version, warm)
        loaded = now()
        check_identity(policy, self.store.open(version), live.policy if live else None)
        own = ask(policy, golden or Golden.blank(policy.spec, policy.horizon, width=policy.width), rest)
        check_actions(policy, own, self.checks.margin)
        live_ms = max(live.answers.latency_ms, pace()) if live else 0.0
        moved = self._compare(policy, own, live, live_ms, rest) if live else None
        verdict = Verdict(
            version=version,
            against=live.policy.version if live else None,
            golden=len(golden) if golden else 0,
            drift=moved,
            latency_ms=own.latency_ms,
            live_latency_ms=live_ms if live else None,
            load_ms=(loaded - started) * 1000,
            verify_ms=(now() - loaded) * 1000,
        )
        return Loaded(policy, root, own, verdict)

    def _compare(
        self, policy: ServedPolicy, own: Answers, live: Loaded, live_ms: float, rest: Callable[[], None]
    ) -> float:
        """On live's observations: a candidate cannot bring easier ones."""
        beside = own if own.golden.same(live.answers.golden) else ask(policy, live.answers.golden, rest)
        check_actions(policy, beside, self.checks.margin)
        return compare(policy, beside, replace(live.answers, latency_ms=live_ms), live.policy.version, self.checks)

    def _load_chain(
        self, version: str, warm: Mapping[str, ServedPolicy]
    ) -> tuple[ServedPolicy, ServedPolicy | None, Golden | None]:
        """Start from the nearest ancestor that is in memory; read only what is not."""
        chain = self.store.chain(version)
        known = [i for i, bundle in enumerate(chain) if bundle.id in warm]
        begin = known[-1] if known else 0
        policy = warm[chain[begin].id] if known else self._load(chain[begin], None)
        root = policy if begin == 0 else warm.get(chain[0].id)
        for bundle in chain[begin + 1 :]:
            policy = self._load(bundle, policy)
        return policy, root, self.store.golden(chain)


def load_with(engine: str, **options: Any) -> Load:
    """What a Slot needs to load versions into an engine: "torch", "onnx" or "echo", with options of the engine's own.
    Raises ConfigError for another."""
    if engine == "echo":
        from hotpolicy.runtime.engine.echo_engine import EchoPolicy

        return EchoPolicy.load
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")

    def load(bundle: Bundle, parent: Policy | None) -> Policy:
        return parent.derive(bundle) if parent else Policy(bundle, load_engine(engine, bundle, **options))

    return load


def one_line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, HotpolicyError) else f"{type(error).__name__}: {text}"
