"""A version that turns bad in service is rolled back by a real server, which says why; one that does not stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import ControlClient, PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import SPEC, EchoPolicy, seal_echo
from hotpolicy.runtime.errors import EngineFault
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.checks import Checks
from hotpolicy.runtime.versions.golden import Golden
from hotpolicy.runtime.versions.watch import ANSWERS, OFF, WINDOW, WINDOWS, Guard

SLOW_S = 0.04


class Moody(EchoPolicy):
    """Passes every check, and then does what the task names."""

    def infer(self, observations: Sequence[Observation], noise: np.ndarray | None = None) -> np.ndarray:
        actions = super().infer(observations, noise)
        for row, observation in zip(actions, observations, strict=True):
            if observation.task == "nan":
                row[0, 0] = np.nan
            if observation.task == "beyond":
                row[:, 2] = 30_000
            if observation.task == "jump":
                row[::2] = -9_000
                row[1::2] = 9_000
            if observation.task == "slow":
                time.sleep(SLOW_S)
        return actions


def load(bundle: Bundle, parent: EchoPolicy | None) -> EchoPolicy:
    policy = EchoPolicy.load(bundle, parent)
    if policy.engine.level == 0:
        return policy
    return Moody(policy.version, policy.digest, policy.spec, policy.horizon, policy.engine)


class Site:
    """A base (level 0) that was asked for a while, and a fresh version (level 1) just promoted."""

    def __init__(self, folder: Path, guard: Guard, asked: int = ANSWERS):
        self.store = Store(folder / "store")
        base = seal_echo(folder / "made", 0, delay_ms=1, golden=Golden.blank(SPEC, 8, 2))
        self.base, self.fresh = self.store.add(base.folder), ""
        self.slot = Slot(self.store, load, Checks(guard=guard))
        config = ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.5)
        self.server = PolicyServer(config, self.slot, Control(self.slot, self.store))
        self.server.start()
        self.server.wait_ready(10)
        self.control = ControlClient(self.server.control_endpoint)
        self.client = PolicyClient(self.server.endpoint, timeout_s=20)
        self.ask(asked)
        self.fresh = self.store.add(seal_echo(folder / "made", 1, parent=base).folder)
        self.control.swap(self.fresh, request_id="fresh", by="ann")

    def ask(self, times: int, task: str = "") -> list[str]:
        """Versions that answered; "" for a fault."""
        image = np.zeros((64, 64, 3), np.uint8)
        heard = []
        for _ in range(times):
            try:
                heard.append(self.client.infer(Observation({"front": image}, np.zeros(6, np.float32), task)).version)
            except EngineFault:
                heard.append("")
        return heard

    def close(self) -> None:
        self.client.close()
        self.control.close()
        self.server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def begin(guard: Guard = Guard(slowdown=None), **options: int) -> Site:  # noqa: B008  frozen
        sites.append(Site(tmp_path, guard, **options))
        return sites[-1]

    yield begin
    for site in sites:
        site.close()


@pytest.mark.parametrize(
    ("task", "cause", "reason"),
    [
        ("nan", "faults", "gave 3 faulty answers"),
        ("beyond", "limits", "actions left a joint's range by up to 100% of it"),
        ("jump", "steps", "one action moved the joints on by up to 90% of their ranges"),
    ],
)
def test_a_version_that_turns_bad_goes_and_the_reason_is_kept(
    start: Callable[..., Site], caplog: pytest.LogCaptureFixture, task: str, cause: str, reason: str
) -> None:
    site = start()
    assert site.ask(5) == [site.fresh] * 5
    heard = site.ask(10, task)
    site.slot.close()  # the rollback is a side thread's
    assert site.ask(3, task) == [site.base] * 3
    assert 3 <= len([version for version in heard if version != site.base]) <= 8
    last = site.control.history()["changes"][-1]
    assert (last["action"], last["by"], last["version"]) == ("rollback", "automatic", site.base)
    assert last["previous"] is None  # it is not kept as a way back
    assert (last["verdict"]["cause"], last["verdict"]["of"]) == (cause, site.fresh)
    assert last["verdict"]["reason"].startswith(reason)
    slot = site.control.status()["server"]["slot"]
    assert (slot["rollbacks"], slot["promotions"]) == ({cause: 1}, 1)
    assert slot["last_retreat"].startswith(f"{site.fresh}: {reason}")
    assert reason in caplog.text
    assert Slot(Store(site.store.root), load).live.version == site.base


def test_a_version_that_turns_slow_goes(start: Callable[..., Site]) -> None:
    site = start(Guard(slowdown=2.0))
    assert set(site.ask(WINDOW)) == {site.fresh}
    heard = site.ask(WINDOW * (WINDOWS + 2), "slow")
    assert site.fresh in heard
    assert heard[-1] == site.base
    assert site.control.history()["changes"][-1]["verdict"]["cause"] == "latency"


def test_a_healthy_version_stays(start: Callable[..., Site]) -> None:
    """A wild answer, a fault and a slow moment now and then are no reason."""
    site = start(Guard())
    for task in ("nan", "beyond", "jump", "slow", "nan"):
        assert set(site.ask(25)) == {site.fresh}
        site.ask(1, task)
    assert set(site.ask(25)) == {site.fresh}
    assert site.control.status()["retreats"] == 0


def test_what_is_not_watched_stays(start: Callable[..., Site]) -> None:
    site = start(OFF)
    assert set(site.ask(20, "beyond") + site.ask(20, "jump")) == {site.fresh}


def test_nothing_is_decided_where_there_is_no_way_back(start: Callable[..., Site]) -> None:
    site = start()
    site.ask(10, "nan")
    site.slot.close()
    again = site.ask(1)
    assert again == [site.base]
    assert set(site.ask(20, "beyond")) == {site.base}
    assert site.control.status()["retreats"] == 1


def test_after_a_rollback_by_hand_the_other_version_is_watched(start: Callable[..., Site]) -> None:
    site = start()
    site.ask(30)
    site.control.rollback(request_id="back")
    site.ask(ANSWERS)
    site.control.swap(site.fresh, request_id="again")
    site.ask(20, "jump")
    site.slot.close()
    assert site.ask(1) == [site.base]
    assert site.control.status()["server"]["slot"]["rollbacks"] == {"command": 1, "steps": 1}
