"""Episodes in a row on one robot, whoever drives it: recorded, shown, taken over, and told as a table."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hotpolicy.launch import console
from hotpolicy.runtime.errors import BusLost, DatasetError

if TYPE_CHECKING:
    from hotpolicy.launch.rig import Rig
    from hotpolicy.robots.feed import Feed, Subscriber
    from hotpolicy.robots.loop import EpisodeReport
    from hotpolicy.robots.sources import Source
    from hotpolicy.runtime.chunks import Chunking
    from hotpolicy.runtime.client import PolicyClient

BLEND = 3  # ticks over which a chunk that is not guided takes over from the one before it
GIVE_UP = 3  # episodes in a row that a disk refuses
STEPPED_DEADLINE_S = 10.0  # time stands still meanwhile
COLUMNS = ("episode", "success", "end", "ticks", "held", "late", "seconds", "versions")


def drive(
    rig: Rig,
    task: str,
    source: Source,
    episodes: int,
    seed: int,
    longest_s: float | None,
    *,
    record: Path | None,
    release: bool,
    as_json: bool,
    linger: int = 0,
    viewer: Subscriber | None = None,
) -> list[EpisodeReport]:
    """Episodes until so many were kept or the source says stop; then a table. The arm holds on unless `release`."""
    reports: list[EpisodeReport] = []
    with feeding(rig, record, viewer) as feeds:
        rig.arm.torque(True)
        kept = lost_in_a_row = 0
        while kept < episodes:
            rig.set_scene(task, seed + len(reports))
            try:
                report = rig.episode(task, source, feeds, longest_s, linger)
            except DatasetError as error:  # the disk refused it: the robot goes on, unless it stays so
                if (lost_in_a_row := lost_in_a_row + 1) == GIVE_UP:
                    raise
                console.complain(f"{error}; trying again")
                continue
            except BusLost as lost:  # unplugged: that episode is discarded, and begun again once the arm is back
                rig.recover(lost)
                continue
            lost_in_a_row = 0
            reports.append(report)
            kept += report.kept
            if report.end == "stop":
                break
        if release:
            rig.arm.torque(False)
    rows = [episode_row(index, report) for index, report in enumerate(reports)]
    console.show(rows, COLUMNS, as_json)
    judged = [report.success for report in reports if report.success is not None]
    if judged and not as_json:
        typer.echo(f"{sum(judged)} of {len(judged)} succeeded")
    return reports


@contextmanager
def feeding(rig: Rig, record: Path | None, viewer: Subscriber | None) -> Iterator[Sequence[Feed]]:
    """Feeds for a loop: a recorder of the folder `record` and a viewer, either or none. At the end what the recorder
    still has is written."""
    from hotpolicy.robots.feed import Feed

    with ExitStack() as open_feeds:
        feeds = []
        if record is not None:
            from hotpolicy.finetune.recorder import Recorder

            recorder = open_feeds.enter_context(Recorder.open(record, rig.profile.spec))
            feeds.append(Feed(recorder, when_full="wait" if rig.stepped else "fail"))
        if viewer is not None:
            feeds.append(Feed(viewer, when_full="drop"))
        for feed in feeds:
            open_feeds.callback(feed.close)
        yield feeds


@contextmanager
def taking_over(rig: Rig, policy: Source, teleop: str | None) -> Iterator[Source]:
    """The policy, and a person beside it who can take over, if `teleop` says by what."""
    if teleop is None:
        yield policy
        return
    from hotpolicy.launch.teleop import operator
    from hotpolicy.robots.sources import SharedSource

    with closing(operator(rig, teleop)) as person:
        yield SharedSource(policy, person)


@contextmanager
def stop_key(rig: Rig, teleop: str | None) -> Iterator[None]:
    """Where there is a terminal and nobody else reads it, its key x is the emergency stop."""
    if teleop is not None or not sys.stdin.isatty():
        yield
        return
    from hotpolicy.robots.teleop.stop_key import StopKey

    typer.echo("x: emergency stop; Ctrl-C: park and end", err=True)
    with StopKey(rig.arm.stop):
        yield


def policy_source(rig: Rig, client: PolicyClient, replan: int, chunking: Chunking | None = None) -> Source:
    """`chunking`, or the profile's; in lock-step the loop waits for each answer, so that a run depends on its seed
    alone."""
    from hotpolicy.robots.sources import PolicySource, SteppedPolicySource
    from hotpolicy.runtime.chunks import ChunkBuffer

    if rig.stepped:
        return SteppedPolicySource(client, replan, deadline_ms=STEPPED_DEADLINE_S * 1000)
    way = chunking or rig.profile.chunking
    buffer = ChunkBuffer(rig.profile.rate_hz, replan=replan, blend=BLEND, chunking=way)
    return PolicySource(client, buffer)


def episode_row(index: int, report: EpisodeReport) -> dict[str, Any]:
    return {
        "episode": index,
        "task": report.task,
        "success": report.success,
        "end": report.end,
        "ticks": report.ticks,
        "held": report.held,
        "late": report.late,
        "longest_lag_ms": round(1000 * report.longest_lag_s, 1),
        "seconds": round(report.seconds, 2),
        "versions": ", ".join(report.versions),
    }
