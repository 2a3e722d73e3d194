"""kill -9 in training, in sealing and in publishing: of the tuning process, and of the server while one publishes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from forked import Forked
from kills_site import Site

from hotpolicy.launch import tuning
from hotpolicy.runtime.store import Store

OPERATIONS = ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "link"), (os, "mkdir"), (shutil, "copyfile"))
IN_A_ROW = 5  # kills of one job, at most, before it may end


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the phases take when nobody is killed."""

    train_s: float
    seal_s: float
    operations: int  # on the disk, from trained to sealed


def measured(site: Site, seed: int) -> tuple[Pace, str]:
    """The run nobody kills, with the version it ends in: what the killed ones have to end in, too."""
    run = Forked(*site.words(seed), before=lambda: count_operations(None))
    assert run.wait() == 0, run.said
    version = site.sealed(run)
    assert version is not None
    (began, _), (trained, _), (ended, _) = (run.events(kind)[0] for kind in ("begin", "trained", "sealed"))
    return Pace(trained - began, ended - trained, len(run.events("operation"))), version


def count_operations(last: int | None, after: bool = False) -> None:
    """In the fork: from the end of training on, say each operation on the disk, and die at number `last`, before it
    or `after` it."""
    count, judged = [0], tuning.judged

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*args, **kwargs)
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            if last is None:
                print(json.dumps({"event": "operation"}), flush=True)
            return found

        return operation

    def begun(*args: Any) -> Any:
        for module, name in OPERATIONS:
            setattr(module, name, counted(getattr(module, name)))
        return judged(*args)

    tuning.judged = begun  # type: ignore[assignment]


def train(site: Site, kills: int, draw: random.Random, note: Callable[..., None]) -> int:
    done = seed = 0
    behind: list[float] = []
    while done < kills:
        seed += 1
        pace, expected = measured(site, seed)
        words = site.words(seed, "--job", f"train-{seed}")
        left, before = 1.0, None  # share of the run; how far the killed one was
        for _ in range(min(draw.randint(3, IN_A_ROW), kills - done)):
            run = Forked(*words)
            assert run.event("begin"), run.wait()
            killed = run.event("trained", timeout_s=draw.uniform(0, left * pace.train_s))
            at = run.kill()
            done += 1
            behind += _resumed(site, run, before)
            site.whole()
            note("kills after the last step", killed)
            before, left = _progress(run, at), max(0.05, 1 - _steps(run) / site.steps)
        run = Forked(*words)
        assert run.wait() == 0, run.said
        behind += _resumed(site, run, before)
        version = site.sealed(run)
        assert version is not None
        assert site.weights(version) == site.weights(expected), "resumed, and not the same run"
        note("runs that ended as the one nobody killed, to the last bit")
    note("runs that went on from a checkpoint", len(behind))
    note("longest time of training lost, ms", round(1000 * max(behind, default=0.0)))
    return done


def _steps(run: Forked) -> int:
    return max((int(event["step"]) for _, event in run.events("step")), default=0)


def _progress(run: Forked, killed: float) -> tuple[dict[int, float], float, float]:
    """Time of each step, that of the kill, and the longest time between two of these."""
    times = {int(event["step"]): at for at, event in run.events("step")}
    marks = [*times.values(), killed]
    return times, killed, max((b - a for a, b in itertools.pairwise(marks)), default=0.0)


def _resumed(site: Site, run: Forked, before: Any) -> list[float]:
    """How much training a kill cost the run that came after it, s. More than an interval and the step (with its
    checkpoint) that was under way must not be lost."""
    if before is None or not before[0] or not run.events("step"):
        return []
    times, killed, step_s = before
    first = next(iter(run.events("resumed")), None)
    began = int(first[1]["step"]) if first else 0
    lost = killed - times.get(began, min(times.values()))
    assert lost <= site.save_s + 2 * step_s, f"went on after step {began}, {lost:.2f} s before the kill"
    return [lost]


def seal(site: Site, kills: int, draw: random.Random, note: Callable[..., None]) -> int:
    done, seed = 0, 100
    while done < kills:
        seed += 1
        pace, expected = measured(site, seed)
        words = site.words(seed, "--job", f"seal-{seed}")
        for _ in range(min(IN_A_ROW, kills - done)):
            if draw.random() < 0.5:  # at an operation on the disk
                last, after = draw.randint(1, pace.operations), draw.random() < 0.5
                run = Forked(*words, before=partial(count_operations, last, after))
                run.wait()
                aimed = run.code == -signal.SIGKILL
            else:
                run, aimed = Forked(*words), False
                if run.event("trained", "sealed"):
                    run.until(timeout_s=draw.uniform(0, pace.seal_s))
                run.kill()
            if run.code != -signal.SIGKILL:
                assert run.code == 0, run.said
            site.whole()
            if not run.events("trained") or run.code == 0:
                site.sealed(run)
                break  # an earlier one had sealed it
            done += 1
            note("kills at an operation on the disk", aimed)
            note("kills before a candidate had its name", not _is_there(site, f"seal-{seed}"))
        run = Forked(*words)
        assert run.wait() == 0, run.said
        version = site.sealed(run)
        assert version is not None
        assert site.weights(version) == site.weights(expected), "sealed again, and not the same"
        site.whole()
        note("jobs that were done by a killed run already", not run.events("trained"))
    left = [*site.store.glob("*/.draft-*"), *site.store.glob("versions/.add-*"), *site.store.glob("*/.seal-*")]
    assert not left, left
    return done


def _is_there(site: Site, job: str) -> bool:
    return tuning.candidate_of(site.store / "candidates", job) is not None


def publish(site: Site, kills: int, draw: random.Random, note: Callable[..., None], server: bool = False) -> int:
    """Three versions in turn, so that each is loaded and checked again, and none is only flipped back to."""
    jobs = {}
    for seed in (201, 202, 203):
        run = Forked(*site.words(seed, "--job", f"publish-{seed}"))
        assert run.wait() == 0, run.said
        jobs[seed] = site.sealed(run)
    longest, done, turn = 0.0, 0, 0
    while done < kills:
        turn += 1
        seed = 201 + turn % 3
        words = site.words(seed, "--job", f"publish-{seed}", "--publish", f"{site.endpoint}.control")
        before, told = Store(site.store).live(), _told(site, jobs[seed])
        if turn <= 3:  # how long does it take?
            run = Forked(*words)
            assert run.wait() == 0, run.said
            longest = max(longest, run.events("live")[0][0] - run.events("sealed")[0][0])
            continue
        run = Forked(*words)
        assert run.event("sealed"), run.wait()
        run.until(timeout_s=draw.uniform(0, longest))
        if server:
            site.server.kill()
            site.server = site.serve()
        else:
            run.kill()
        site.whole()
        assert Store(site.store).live() in (before, jobs[seed])
        note("kills after the pointer had moved", Store(site.store).live() == jobs[seed])
        run.wait(timeout_s=90)
        again = Forked(*words)
        while again.wait() == 2 and ("another process" in again.said or "busy" in again.said):
            note("repeats that met the server at work")
            again = Forked(*words)
        assert again.code == 0, again.said
        assert Store(site.store).live() == jobs[seed]
        assert _told(site, jobs[seed]) == told + 1, "made live more or less than once"
        done += 1
    return done


def _told(site: Site, version: str | None) -> int:
    return sum(change.version == version for change in Store(site.store).history())


def serve(site: Site, kills: int, draw: random.Random, note: Callable[..., None]) -> int:
    return publish(site, kills, draw, note, server=True)
