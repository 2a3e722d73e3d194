"""What a slot does when the engine crashed: load the last good version anew, and hold nothing of what crashed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hotpolicy.launch.versions import SHIPPED
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.echo_engine import SPEC, EchoPolicy, seal_echo
from hotpolicy.runtime.errors import BundleError, EngineFault, SwapRefused
from hotpolicy.runtime.messages import Observation
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.golden import FILE, Golden
from hotpolicy.runtime.versions.loader import load_with


class Shop:
    """A base, a delta of it that is live, and another that may be staged."""

    def __init__(self, folder: Path):
        self.store = Store(folder / "store")
        self.base = seal_echo(folder / "made", 0, golden=Golden.blank(SPEC, 8, 2))
        self.store.add(self.base.folder)
        self.first, self.second = (
            self.store.add(seal_echo(folder / "made", level, parent=self.base).folder) for level in (1, 2)
        )
        self.loads: list[str] = []
        self.before_loading = lambda: None
        self.slot = Slot(self.store, self.load)
        self.slot.stage(self.first)
        self.slot.promote(self.first, "first", "ann")

    def load(self, bundle: Bundle, parent: EchoPolicy | None) -> EchoPolicy:
        self.before_loading()
        self.loads.append(bundle.id)
        return EchoPolicy.load(bundle, parent)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_everything_is_read_again_and_nothing_old_is_kept(shop: Shop) -> None:
    slot = shop.slot
    slot.stage(shop.second)
    slot.policy_for("robot", "episode", 1)
    old = [weakref.ref(policy) for policy in (slot.live, slot.previous, slot.staged)]
    shop.loads.clear()
    assert slot.reload() == shop.first
    assert shop.loads == [shop.base.id, shop.first]
    gc.collect()
    assert [policy() for policy in old] == [None, None, None]
    assert (slot.live.version, slot.previous, slot.staged, slot.pinned) == (shop.first, None, None, {})
    assert slot.policy_for("robot", "episode", 1).version == shop.first
    assert len(shop.store.history()) == 1, "the same version is live as before"
    slot.rollback("back", "ann")  # the way back is on disk
    assert slot.live.version == shop.base.id


def test_a_live_version_that_no_longer_loads_makes_way_for_the_one_before(shop: Shop) -> None:
    (shop.store.open(shop.first).folder / "delta.safetensors").write_bytes(b"rot")
    assert shop.slot.reload() == shop.base.id
    last = shop.store.history()[-1]
    assert (last.action, last.version, last.before) == ("recover", shop.base.id, shop.first)


def test_without_any_that_loads_it_says_so(shop: Shop) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    shop.before_loading = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(BundleError, match="no version can be served; the best one: RuntimeError: CUDA error"):
        shop.slot.reload()
    assert shop.slot.live.version == shop.first


def test_what_was_being_staged_meanwhile_is_staged_again(shop: Shop) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        if threading.current_thread().name == "staging":
            entered.set()
            assert leave.wait(10)

    shop.before_loading = wait  # type: ignore[method-assign]
    refused: list[Exception] = []

    def stage() -> None:
        try:
            shop.slot.stage(shop.second)
        except SwapRefused as error:
            refused.append(error)

    staging = threading.Thread(target=stage, name="staging")
    staging.start()
    assert entered.wait(10)
    shop.slot.reload()  # does not wait for it
    leave.set()
    staging.join(10)
    assert [str(error) for error in refused] == [f"{shop.second}: the engine was restarted meanwhile: stage again"]
    assert shop.slot.staged is None
    shop.slot.stage(shop.second)


def test_the_torch_engine_of_a_real_server_is_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    version = store.add(SHIPPED / "nano")
    slot = Slot(store, load_with("torch"))
    server = PolicyServer(ServeConfig(endpoint="tcp://127.0.0.1:0", drain_s=0.5), slot, Control(slot, store))
    seen = Golden.load(store.open(version).file(FILE)).observations(slot.live.spec)[0]
    policy = slot.live

    def dies(observations: Sequence[Observation], noise: np.ndarray | None = None, **rest: object) -> np.ndarray:
        raise SystemExit("killed by its library")

    with server, PolicyClient(server.endpoint, timeout_s=30) as client:
        server.wait_ready(30)
        assert client.infer(seen).version == version
        monkeypatch.setattr(policy, "infer", dies)
        with pytest.raises(EngineFault, match="killed by its library"):
            client.infer(seen)
        assert client.wait_ready(30).version == version
        chunk = client.infer(seen)
        assert (chunk.version, server.stats()["restarts"]) == (version, 1)
        assert slot.live is not policy
