"""Control: fields are validated by name, a repeated request is harmless, phases are timed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.bundle import seal
from hotpolicy.runtime.engine.echo_engine import EchoPolicy, seal_echo
from hotpolicy.runtime.errors import BadRequest, Busy, SwapRefused, UnknownVersion
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store
from hotpolicy.runtime.versions.checks import Checks


class Desk:
    """A control with a base (level 0) live, and deltas of levels 1 and 2 and a wild one in the store."""

    def __init__(self, folder: Path):
        self.store = Store(folder / "store", lock_timeout_s=0.05)
        base = seal_echo(folder / "made", 0)
        self.base = self.store.add(base.folder)
        self.first, self.second, self.wild = (
            self.store.add(seal_echo(folder / "made", level, parent=base).folder) for level in (1, 2, 1e9)
        )
        self.stopped = 0
        self.restart()

    def restart(self) -> None:
        self.slot = Slot(self.store, EchoPolicy.load, Checks())
        self.control = Control(self.slot, self.store, self._stop)

    def _stop(self) -> None:
        self.stopped += 1

    def ask(self, kind: str, **fields: object) -> dict:
        reply = self.control.handle({"kind": kind, **fields})
        json.dumps(reply)  # plain data, as the wire needs it
        return reply


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_swap_tells_its_phases(desk: Desk) -> None:
    reply = desk.ask("swap", version=desk.first[:12], request_id="r1", by="ann")
    assert (reply["kind"], reply["request_id"], reply["changed"]) == ("swap", "r1", True)
    assert (reply["version"], reply["before"], reply["previous"]) == (desk.first, desk.base, desk.base)
    assert reply["verdict"]["drift"] == pytest.approx(1 / 20_000)
    phases = [reply[name] for name in ("load_ms", "verify_ms", "promote_ms", "flip_ms")]
    assert all(phase >= 0 for phase in phases)
    assert sum(phases[:3]) <= reply["total_ms"]
    assert desk.slot.live.version == desk.first


def test_a_tuned_version_is_listed_without_its_curves(desk: Desk, tmp_path: Path) -> None:
    """As `finetune` seals one: deeper than the wire takes, and then nobody could list the versions any more."""
    rows: dict[str, object] = {"new": {"hover": {"loss": 0.1}}}
    curves = {"train": [[3, 0.5], [6, 0.4]], "held_out": [rows]}
    provenance = {
        "made_by": "hotpolicy finetune",
        "config": {"steps": 350},
        "curves": curves,
        "datasets": [{"at": [1]}],
    }
    verdict = {"passed": True, "figures": {"drift": 0.1, "held_out": {"before": rows}}}
    base = desk.store.open(desk.base)
    tuned = seal(
        tmp_path / "tuned", kind="delta", parent=base.id, model=base.manifest.model,
        tensors={"level": np.ones(1, np.float32)}, spec=base.manifest.spec, transforms={}, provenance=provenance,
        verdict=verdict,
    )  # fmt: skip
    desk.store.add(tuned.folder)
    reply = desk.ask("versions")
    listed = next(version for version in reply["versions"] if version["id"] == tuned.id)
    assert listed["provenance"] == {"made_by": "hotpolicy finetune", "config": {"steps": 350}}
    assert listed["verdict"] == {"passed": True, "figures": {"drift": 0.1}}
    wire.decode(wire.encode(envelope.message("control", 1, result=reply)))


def test_stage_promote_rollback(desk: Desk) -> None:
    assert desk.ask("stage", version=desk.first, request_id="r1")["verdict"]["against"] == desk.base
    assert desk.ask("status")["staged"] == desk.first
    assert desk.ask("promote", version=desk.first, request_id="r2")["version"] == desk.first
    assert desk.ask("rollback", request_id="r3")["version"] == desk.base
    assert desk.ask("swap", version="previous", request_id="r4")["version"] == desk.first
    assert [c["action"] for c in desk.ask("history")["changes"]] == ["promote", "rollback", "promote"]
    assert [c["by"] for c in desk.ask("history", limit=1)["changes"]] == ["unknown"]


def test_versions_and_status(desk: Desk) -> None:
    desk.ask("swap", version=desk.first, request_id="r1")
    listed = {version["id"]: version for version in desk.ask("versions")["versions"]}
    assert {id: version["role"] for id, version in listed.items()} == {
        desk.base: "previous", desk.first: "live", desk.second: None, desk.wild: None,
    }  # fmt: skip
    assert (listed[desk.first]["kind"], listed[desk.first]["parent"]) == ("delta", desk.base)
    status = desk.ask("status")
    assert (status["live"], status["previous"], status["previous_warm"]) == (desk.first, desk.base, True)
    assert status["digest"].startswith(desk.first)


def test_swapping_to_what_is_live_is_no_change(desk: Desk) -> None:
    reply = desk.ask("swap", version=desk.base, request_id="r1")
    assert (reply["version"], reply["changed"]) == (desk.base, False)
    assert desk.store.history() == []


def test_a_repeated_request_gives_the_same_reply(desk: Desk) -> None:
    once = desk.ask("swap", version=desk.first, request_id="r1")
    desk.ask("swap", version=desk.second, request_id="r2")
    assert desk.ask("swap", version=desk.first, request_id="r1") == once
    back = desk.ask("rollback", request_id="r3")
    assert desk.ask("rollback", request_id="r3") == back
    assert desk.slot.live.version == desk.first
    assert len(desk.store.history()) == 3


def test_a_repeated_request_is_harmless_after_a_restart(desk: Desk) -> None:
    once = desk.ask("swap", version=desk.first, request_id="r1")
    desk.ask("swap", version=desk.second, request_id="r2")
    desk.restart()
    again = desk.ask("swap", version=desk.first, request_id="r1")
    assert {name: again[name] for name in ("version", "before", "previous", "verdict")} == {
        name: once[name] for name in ("version", "before", "previous", "verdict")
    }
    assert desk.slot.live.version == desk.second


def test_a_repeated_refusal_is_the_same_refusal(desk: Desk) -> None:
    for _ in range(2):
        with pytest.raises(SwapRefused, match=f"{desk.wild}: beyond limits"):
            desk.ask("swap", version=desk.wild, request_id="r1")
    assert (desk.slot.live.version, desk.store.history()) == (desk.base, [])


def test_a_request_id_has_one_meaning(desk: Desk) -> None:
    desk.ask("swap", version=desk.first, request_id="r1")
    for other in ({"kind": "swap", "version": desk.second}, {"kind": "rollback"}, {"kind": "stage", "version": "live"}):
        with pytest.raises(BadRequest, match=f"request_id: 'r1' was used to swap {desk.first}"):
            desk.control.handle({**other, "request_id": "r1"})


def test_busy_may_be_tried_again(desk: Desk) -> None:
    with desk.store._locked("pointer"), pytest.raises(Busy):
        desk.ask("swap", version=desk.first, request_id="r1")
    assert desk.slot.live.version == desk.base
    assert desk.ask("swap", version=desk.first, request_id="r1")["version"] == desk.first


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({}, "kind: expected one of stage, swap"),
        ({"kind": 3}, "kind: expected one of"),
        ({"kind": ["swap"]}, "kind: expected one of"),
        ({"kind": "eat"}, "kind: expected one of .* got 'eat'"),
        ({"kind": "swap", "version": "live"}, "request_id: expected a text"),
        ({"kind": "swap", "version": "live", "request_id": 3}, "request_id: expected a text"),
        ({"kind": "swap", "version": "live", "request_id": ""}, "request_id: expected a text"),
        ({"kind": "swap", "version": "live", "request_id": "r" * 201}, "request_id: expected a text"),
        ({"kind": "swap", "version": "live", "request_id": "r\n"}, "request_id: expected a text"),
        ({"kind": "swap", "request_id": "r"}, "version: expected a text"),
        ({"kind": "promote", "version": b"v", "request_id": "r"}, "version: expected a text"),
        ({"kind": "rollback", "request_id": "r", "by": None}, "by: expected a text"),
        ({"kind": "history", "limit": 0}, "limit: expected 1 to 10000"),
        ({"kind": "history", "limit": True}, "limit: expected 1 to 10000"),
    ],
)
def test_wrong_fields_are_named(desk: Desk, message: dict, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        desk.control.handle(message)
    assert desk.store.history() == []


def test_unknown_version_lists_what_is_here(desk: Desk) -> None:
    with pytest.raises(UnknownVersion, match=desk.second):
        desk.ask("swap", version="0000", request_id="r1")


def test_shutdown(desk: Desk) -> None:
    for _ in range(2):
        assert desk.ask("shutdown", request_id="r1")["stopping"] is True
    assert desk.stopped == 1
    with pytest.raises(BadRequest, match="shutdown"):
        Control(desk.slot, desk.store).handle({"kind": "shutdown", "request_id": "r2"})
