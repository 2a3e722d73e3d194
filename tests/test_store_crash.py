"""Whatever the moment of a crash, the store opens again on a version that was good."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotpolicy.runtime import durable
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.store import Store

STEPS = ("open", "write", "fsync", "rename", "replace")  # what a durable write is made of


class Crash(BaseException):
    """Not an Exception, so that no handler can carry on as if the process lived."""


class CrashAt:
    """Dies at the n-th durable step, before or after it was done; from then on no step works: the process is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n: int, after: bool):
        self.left = n
        self.dead = False
        self.after = after
        for name in STEPS:
            monkeypatch.setattr(durable.os, name, self._step(getattr(os, name)))
        monkeypatch.setattr(durable.shutil, "copyfile", self._step(durable.shutil.copyfile))
        monkeypatch.setattr(durable.shutil, "rmtree", self._removal(durable.shutil.rmtree))

    def _step(self, real):  # type: ignore[no-untyped-def]
        def step(*args, **kwargs):  # type: ignore[no-untyped-def]
            if self.dead:
                raise Crash
            if self.left == 0:
                self.dead = True
                if self.after:
                    real(*args, **kwargs)
                raise Crash
            self.left -= 1
            return real(*args, **kwargs)

        return step

    def _removal(self, real):  # type: ignore[no-untyped-def]
        return lambda *args, **kwargs: None if self.dead else real(*args, **kwargs)


@pytest.fixture
def made(tmp_path: Path) -> list[Bundle]:
    base = seal_echo(tmp_path / "made", 0)
    return [base, seal_echo(tmp_path / "made", 1, parent=base), seal_echo(tmp_path / "made", 2, parent=base)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", ["promote", "rollback", "add"])
def test_every_step_of_a_change_may_be_the_last(
    tmp_path: Path, made: list[Bundle], verb: str, after: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    survived = 0
    for n in range(60):
        root = tmp_path / f"{n}"
        store = Store(root)
        store.add(made[0].folder)
        store.add(made[1].folder)
        store.promote(made[0].id, "ann", "r0")
        store.promote(made[1].id, "ann", "r1")
        crashed = False
        with pytest.MonkeyPatch.context() as patch:
            CrashAt(patch, n, after)
            try:
                if verb == "promote":
                    store.promote(made[0].id, "ann", "r2")
                elif verb == "rollback":
                    store.rollback("ann", "r2")
                else:
                    store.add(made[2].folder)
            except Crash:
                crashed = True
        again = Store(root)
        assert again.live() in ({made[1].id} if verb == "add" else {made[0].id, made[1].id})
        assert [bundle.verify() for bundle in again.versions()][:2] == [None, None]
        told = [change.version for change in again.history()]
        assert told[:2] == [made[0].id, made[1].id]
        assert told[-1] == again.live()  # the history tells of what happened, and of nothing else
        # and the same request, sent again, ends where it should
        if verb == "promote":
            again.promote(made[0].id, "ann", "r2")
        elif verb == "rollback":
            again.rollback("ann", "r2")
        else:
            again.open(again.add(made[2].folder)).verify()
            assert not list((root / "versions").glob(".add-*"))
        assert again.live() == (made[1].id if verb == "add" else made[0].id)
        assert len(again.history()) == (2 if verb == "add" else 3)
        if not crashed:
            survived = n
            break
    assert survived > 5  # every step had its turn


WRITER = """
import itertools, sys
from hotpolicy.runtime.engine.echo_engine import seal_echo
from hotpolicy.runtime.store import Store
store, made, start = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for n in itertools.count(start):
    version = store.add(seal_echo(made, n).folder)
    store.promote(version, "writer", f"p{n}")
    print(version, flush=True)  # acknowledged: from here on it must never be lost
"""


@pytest.mark.slow
def test_sigkill_at_random_times(tmp_path: Path) -> None:
    """A writer adds and promotes as fast as it can and is killed at a random moment, again and again."""
    randomness = random.Random(7)
    root = tmp_path / "store"
    acknowledged: list[str] = []
    for round_ in range(8):
        command = [sys.executable, "-c", WRITER, str(root), str(tmp_path / "made"), str(round_ * 1000)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        heard = "".join(writer.stdout.readline() for _ in range(randomness.randrange(4)))  # on a slow machine too
        time.sleep(randomness.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        lines = (heard + writer.stdout.read()).split("\n")
        writer.stdout.close()
        writer.wait()
        acknowledged += [line for line in lines[:-1] if line]  # a line without its end was not acknowledged
        store = Store(root)
        if not acknowledged:
            continue
        promoted = [change.version for change in store.history()]
        assert [version for version in promoted if version in acknowledged] == acknowledged
        assert store.live() == promoted[-1]
        assert len(promoted) <= len(acknowledged) + round_ + 1  # at most one unacknowledged change a kill
        for bundle in store.versions()[-3:]:
            bundle.verify()
    assert len(acknowledged) >= 8
