"""What happens in each step of the demo that no run leaves out, in the order of `demo`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from hotpolicy.launch.play import classroom
from hotpolicy.launch.play.examiner import NEW, OLD, counts, p99
from hotpolicy.launch.play.fleet import Station
from hotpolicy.launch.play.play import BY, Play
from hotpolicy.launch.rollouts import Score
from hotpolicy.robots.sim.tasks import PHRASES
from hotpolicy.runtime.clock import now

STEPS = 350  # of tuning the action expert
QUIET_S = 4.0  # of load before the swap, to compare with
SETTLE_S = 2.0  # of load after it


def before(play: Play) -> None:
    """What the base policy does, in the new task and the old ones."""
    play.found["new_task"] = {"name": PHRASES["hover"].format("COLOUR"), "before": counts(play.exam.new("yellow"))}
    play.strips.append(play.exam.film(NEW[0], play.exam.scene(1), "before"))
    play.found["old_tasks"] = {"before": by_task(play.exam.old()), "after_without_replay": None}


def demonstrate(play: Play) -> None:
    """The new task, by a script or by hand."""
    rig, by_hand = play.fleet.stations[0].rig, play.teleop == "keyboard"
    play.dataset = play.out / ("demonstrations-by-hand" if by_hand else "demonstrations")
    play.episodes = classroom.demonstrate(rig, play.dataset, NEW, play.exam.scene(3), play.story, by_hand)
    play.last_demonstration = now()
    play.story.say(f"{play.episodes} episodes in {play.dataset}, sealed one by one")


def tune(play: Play) -> None:
    """The action expert on what was demonstrated, while one arm goes on being served."""
    play.lesson = play.new_lesson()
    robot = play.fleet.stations[0]
    with play.fleet.busy([robot], [task.instruction for task in OLD], pause_s=2.0):
        play.lesson.start(
            "hover", play.base, play.dataset, "expert", steps=STEPS, seed=play.seed, threads=2, success=0.9
        )


def swap(play: Play) -> None:
    """The gate's word, then the new version in the middle of an episode, with the other arms asking."""
    version = play.passed(play.lesson)
    first, *others = play.fleet.stations
    with play.fleet.busy(others, [task.instruction for task in OLD]):
        _episodes(play, first, QUIET_S)
        began = now()
        play.control.stage(version)
        versions = _promote_during_episode(play, first, version)
        serving = now()
        _episodes(play, first, SETTLE_S)
    status = play.control.status()["server"]["swap_stall_ms"]
    before = [a for a in play.fleet.answers if began - QUIET_S <= a.sent_at < began]
    during = [a for a in play.fleet.answers if began <= a.sent_at]
    play.found["swap"] = {
        "stall_ms": round(status["last"], 3),
        "p99_ms_before": p99(before),
        "p99_ms_during": p99(during),
    }
    play.found["tuning"] = {
        "strategy": "expert",
        "seconds": round(play.lesson.taught.seconds, 2),
        "steps": play.lesson.taught.steps,
        "episodes": play.episodes,
        "frames": play.lesson.taught.frames,
        "demo_to_serving_s": round(serving - play.last_demonstration, 2),
    }
    play.tuned = version
    play.story.say(f"one episode was served by {' and then '.join(v[:8] for v in versions)}; {len(during)} requests")
    play.story.say(
        f"the serving thread was held for {status['last']:.3f} ms; p99 {p99(before):.0f} ms before, "
        f"{p99(during):.0f} ms from staging to {SETTLE_S:.0f} s after"
    )


def _promote_during_episode(play: Play, station: Station, version: str) -> Sequence[str]:
    """Make `version` live between two chunks of a running episode; returns the versions that served it."""
    seed = play.exam.scene(5)
    with ThreadPoolExecutor(1) as pool:
        while True:
            asked = station.asked
            episode = pool.submit(station.attempt, NEW[1].instruction, seed)
            while station.asked < asked + 2 and not episode.done():
                time.sleep(0.001)
            play.control.promote(version, by=BY)
            play.mark(f"swap to {version[:8]}")
            if len(versions := episode.result().versions) > 1:
                return versions
            play.control.rollback(by=BY)  # the episode was over too soon to show it: once more
            seed += 1


def _episodes(play: Play, station: Station, seconds: float) -> None:
    until, seed = now() + seconds, play.exam.scene(6)
    while now() < until:
        station.attempt(OLD[seed % len(OLD)].instruction, seed)
        seed += 1


def after(play: Play) -> None:
    """The same scenes as before."""
    play.found["new_task"]["after"] = counts(play.exam.new("green"))
    play.strips.append(play.exam.film(NEW[0], play.exam.scene(1), "after"))
    play.found["old_tasks"]["after"] = by_task(play.exam.old())


def back_and_forward(play: Play) -> None:
    """Two rollbacks under load: the version before, and the new one again."""
    first, *others = play.fleet.stations
    with play.fleet.busy(others, [task.instruction for task in OLD]):
        for direction in ("back", "forward"):
            play.control.rollback(by=BY)
            live = play.control.status()["live"]
            play.mark(f"{direction} to {live[:8]}")
            report = first.attempt(OLD[0].instruction, play.exam.scene(10))
            served = ", ".join(version[:8] for version in report.versions)
            play.story.say(f"{direction}: version {live[:8]}, and the next episode was served by {served}")
            assert report.versions == (live,), f"expected {live}, got {report.versions}"


def by_task(scores: Mapping[str, Score]) -> dict[str, dict[str, int]]:
    return {task: counts(score) for task, score in scores.items()}
