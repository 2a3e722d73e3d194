"""A store keeps versions whole, finds them by prefix, and remembers what was live."""

from __future__ import annotations

import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.errors import BadRequest, BundleError, Busy, UnknownVersion
from hotpolicy.runtime.store import Store


@pytest.fixture
def made(tmp_path: Path) -> list[Bundle]:
    """A base, a delta on it, and a delta on that."""
    base = seal_echo(tmp_path / "made", 0)
    first = seal_echo(tmp_path / "made", 1, parent=base)
    return [base, first, seal_echo(tmp_path / "made", 2, parent=first)]


@pytest.fixture
def store(tmp_path: Path, made: list[Bundle]) -> Store:
    store = Store(tmp_path / "store")
    for bundle in made:
        assert store.add(bundle.folder) == bundle.id
    return store


def test_added_versions_are_copies(store: Store, made: list[Bundle]) -> None:
    shutil.rmtree(made[0].folder.parent)
    assert [bundle.id for bundle in store.versions()] == [bundle.id for bundle in made]
    store.open(made[1].id).verify()
    assert [bundle.id for bundle in store.chain(made[2].id)] == [bundle.id for bundle in made]


def test_adding_again_is_harmless(store: Store, made: list[Bundle]) -> None:
    assert store.add(made[0].folder) == made[0].id
    assert store.add(store.open(made[0].id).folder) == made[0].id
    assert len(store.versions()) == 3


def test_an_altered_bundle_is_not_added(tmp_path: Path, made: list[Bundle]) -> None:
    save_file(
        {"level": np.ones(1, np.float32), "delay_ms": np.ones(1, np.float32)}, made[0].folder / "model.safetensors"
    )
    store = Store(tmp_path / "store")
    with pytest.raises(BundleError, match="digest mismatch"):
        store.add(made[0].folder)
    assert store.versions() == []
    assert list((tmp_path / "store" / "versions").iterdir()) == []


def test_adding_a_good_copy_heals_a_damaged_version(store: Store, made: list[Bundle]) -> None:
    (store.open(made[0].id).folder / "model.safetensors").write_bytes(b"rot")
    assert store.add(made[0].folder) == made[0].id
    store.open(made[0].id).verify()


def test_unique_beginning(store: Store, made: list[Bundle]) -> None:
    ids = [bundle.id for bundle in made]
    for version in ids:
        short = next(version[:n] for n in range(1, 17) if sum(other.startswith(version[:n]) for other in ids) == 1)
        assert store.find(short) == version
    for wrong in ("", "nothing", "../versions", ids[0] + "0"):
        with pytest.raises(UnknownVersion, match=ids[2]):
            store.find(wrong)


def test_ambiguous_beginning_lists_the_versions(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ids = [store.add(seal_echo(tmp_path / "made", level).folder) for level in range(17)]
    digits = [version[0] for version in ids]
    shared = next(digit for digit in digits if digits.count(digit) > 1)  # 17 ids, 16 digits
    with pytest.raises(UnknownVersion, match="is not unique"):
        store.find(shared)
    with pytest.raises(UnknownVersion, match="and 9 older"):
        store.find("x")


def test_empty_store_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UnknownVersion, match="add a full bundle first"):
        store.live()
    with pytest.raises(UnknownVersion, match="there are: none"):
        store.open("ab")
    assert store.history() == []


def test_before_any_promotion_the_newest_full_version_is_live(store: Store, made: list[Bundle]) -> None:
    assert store.live() == made[0].id
    assert store.previous() is None


def test_promote_and_roll_back(store: Store, made: list[Bundle]) -> None:
    base, first, second = (bundle.id for bundle in made)
    store.promote(base, "ann", "r0")
    assert (store.live(), store.previous()) == (base, None)
    store.promote(first[:12], "ann", "r1", verdict={"drift": 0.1})
    store.promote(second, "bob", "r2")
    assert (store.live(), store.previous()) == (second, first)
    change = store.rollback("ann", "r3")
    assert (change.version, change.before, change.previous) == (first, second, second)
    assert (store.live(), store.find("live"), store.find("previous")) == (first, first, second)
    story = [(c.action, c.by, c.before, c.version, c.request_id) for c in store.history()]
    assert story == [
        ("promote", "ann", base, base, "r0"),
        ("promote", "ann", base, first, "r1"),
        ("promote", "bob", first, second, "r2"),
        ("rollback", "ann", second, first, "r3"),
    ]
    assert store.history()[1].verdict == {"drift": 0.1}
    assert [c.request_id for c in store.history(2)] == ["r2", "r3"]
    reopened = Store(store.root)
    assert (reopened.live(), reopened.previous(), len(reopened.history())) == (first, second, 4)


def test_rollback_that_forgets_leaves_no_way_back(store: Store, made: list[Bundle]) -> None:
    store.promote(made[1].id, "ann", "r1")
    store.rollback("watch", "r2", forget=True)
    assert (store.live(), store.previous()) == (made[0].id, None)
    with pytest.raises(UnknownVersion, match="no previous version"):
        store.rollback("ann", "r3")


def test_repeated_requests_change_nothing(store: Store, made: list[Bundle]) -> None:
    _, first, second = (bundle.id for bundle in made)
    done = store.promote(first, "ann", "r1")
    store.promote(second, "ann", "r2")
    assert store.promote(first, "ann", "r1") == done
    assert Store(store.root).promote(first, "ann", "r1") == done
    assert store.live() == second
    back = store.rollback("ann", "r3")
    assert store.rollback("ann", "r3") == back
    assert store.live() == first
    for call in (lambda: store.promote(second, "ann", "r1"), lambda: store.rollback("ann", "r1")):
        with pytest.raises(BadRequest, match="request_id: 'r1' was used to promote"):
            call()
    assert len(store.history()) == 3


def test_promoting_the_live_version_keeps_the_way_back(store: Store, made: list[Bundle]) -> None:
    store.promote(made[1].id, "ann", "r1")
    store.promote(made[1].id, "ann", "r2")
    assert store.previous() == made[0].id


def test_a_version_whose_parent_is_not_here(tmp_path: Path, made: list[Bundle]) -> None:
    store = Store(tmp_path / "other")
    store.add(made[0].folder)
    store.add(made[2].folder)
    with pytest.raises(UnknownVersion, match=f"changes {made[1].id}, which is not here"):
        store.promote(made[2].id, "ann", "r1")
    assert (store.live(), store.history()) == (made[0].id, [])


def test_a_damaged_version_is_skipped_and_said(
    store: Store, made: list[Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    store.promote(made[1].id, "ann", "r1")
    store.promote(made[2].id, "ann", "r2")
    (store.root / "versions" / made[2].id / "manifest.json").write_text("{}")
    assert store.live() == made[1].id
    assert [bundle.id for bundle in store.versions()] == [made[0].id, made[1].id]
    assert "cannot be served" in caplog.text
    assert "skipped a damaged version" in caplog.text


@pytest.mark.parametrize("torn", [b"", b"{", b"[1]", b"null", b'{"version": 3}', b"\xff\xfe"])
def test_torn_pointer_is_recovered_from_the_history(
    store: Store, made: list[Bundle], torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.promote(made[1].id, "ann", "r1")
    store.promote(made[2].id, "ann", "r2")
    (store.root / "live.json").write_bytes(torn)
    assert (store.live(), store.previous()) == (made[2].id, made[1].id)
    assert "torn or altered" in caplog.text
    store.rollback("ann", "r3")
    assert Store(store.root).live() == made[1].id


def test_missing_pointer_is_recovered_from_the_history(store: Store, made: list[Bundle]) -> None:
    store.promote(made[2].id, "ann", "r2")
    (store.root / "live.json").unlink()
    assert store.live() == made[2].id


def test_torn_last_line_of_the_history(store: Store, made: list[Bundle], caplog: pytest.LogCaptureFixture) -> None:
    store.promote(made[1].id, "ann", "r1")
    store.promote(made[2].id, "ann", "r2")
    path = store.root / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [c.request_id for c in store.history()] == ["r1", "r2"]  # the pointer knows the last one
    reopened = Store(store.root)
    reopened.rollback("ann", "r3")
    assert [c.request_id for c in reopened.history()] == ["r1", "r2", "r3"]
    assert reopened.recall("r2") is not None
    assert "skipped a line" in caplog.text


def test_writers_take_turns(store: Store, made: list[Bundle]) -> None:
    """Threads with stores of their own, as processes would have: no change is lost, each follows the one before."""

    def promote(worker: int) -> None:
        mine = Store(store.root)
        for n in range(5):
            mine.promote(made[(worker + n) % 3].id, f"w{worker}", f"w{worker}-{n}")

    threads = [threading.Thread(target=promote, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = store.history()
    assert len(changes) == 20
    assert all(after.before == before.version for before, after in pairwise(changes))


def test_a_held_lock_is_busy_not_a_hang(store: Store, made: list[Bundle]) -> None:
    other = Store(store.root, lock_timeout_s=0.05)
    with store._locked("pointer"), pytest.raises(Busy, match="pointer lock"):
        other.promote(made[0].id, "ann", "r1")
    with store._locked("add"):
        other.promote(made[0].id, "ann", "r1")  # a copy in progress does not hold up a change
