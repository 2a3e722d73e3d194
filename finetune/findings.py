"""What is odd about demonstrations by themselves, before any policy is asked: still frames, copies, cuts, labels."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import median
from typing import Literal

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.episodes import Episode
from hotpolicy.runtime.messages import RobotSpec

Weight = Literal["stop", "warn", "note"]  # cannot be trained on; look at it; good to know

STILL = 2e-3  # of a joint's range: less movement from frame to frame is none
LONG_STILL_S = 1.0  # at the ends of an episode
SHORT = 0.4  # of the median length of its task: an episode that was cut
MOVING = 0.5  # of its own median speed: an episode that ends faster was cut
STILL_SHARE = 0.25  # of all frames
ALIKE = 0.7  # of two words' letters: more, and one of them may have been mistyped


@dataclass(frozen=True, slots=True)
class Finding:
    kind: str  # e.g. "idle"
    weight: Weight
    text: str  # one line
    episodes: tuple[int, ...] = ()  # whose it is


def look_through(dataset: Dataset, spec: RobotSpec) -> Iterator[Finding]:
    """Everything that is odd about the episodes, without decoding a picture."""
    if mismatches := list(_mismatches(dataset, spec)):
        yield from mismatches
        return  # of another robot: its numbers mean something else
    episodes = {info.index: dataset.episode(info.index, ()) for info in dataset.episodes}
    ranges = np.array([max(joint.high - joint.low, 1e-9) for joint in spec.joints], np.float32)
    speeds = {index: _speeds(episode, ranges) for index, episode in episodes.items()}
    yield from _idle(speeds, spec.rate_hz)
    yield from _copies(episodes)
    yield from _cut(episodes, speeds)
    yield from _labels(episodes)


def _mismatches(dataset: Dataset, spec: RobotSpec) -> Iterator[Finding]:
    wanted = tuple(joint.name for joint in spec.joints)
    if dataset.joints != wanted:
        yield Finding("joints", "stop", f"expected {', '.join(wanted)}, got {', '.join(dataset.joints)}")
    if abs(dataset.rate_hz - spec.rate_hz) > 0.01 * spec.rate_hz:
        text = f"expected {spec.rate_hz:g} Hz, got {dataset.rate_hz:g} Hz: a chunk would be played at another speed"
        yield Finding("rate", "stop", text)
    have = {camera.name: camera for camera in dataset.cameras}
    for camera in spec.cameras:
        found = have.pop(camera.name, None)
        if found is None:
            yield Finding("camera", "stop", f"{camera.name}: not in the dataset, which has {', '.join(have) or 'none'}")
        elif found != camera:
            text = f"{camera.name}: expected {camera.width}x{camera.height}, got {found.width}x{found.height}"
            yield Finding("camera", "stop", text)
    for name in have:
        yield Finding("camera", "note", f"{name}: the policy has no such camera and will not see it")


def _speeds(episode: Episode, ranges: np.ndarray) -> np.ndarray:
    """(frames,) the fastest joint's movement, wished or done, as part of its range, per frame."""
    both = np.stack([episode.state, episode.action])
    moved = np.abs(np.diff(both, axis=1, append=both[:, -1:])) / ranges
    return np.asarray(moved.max((0, 2)))


def _idle(speeds: Mapping[int, np.ndarray], rate_hz: float) -> Iterator[Finding]:
    still = sum(int((speed < STILL).sum()) for speed in speeds.values())
    total = sum(map(len, speeds.values()))
    if still > STILL_SHARE * total:
        yield Finding("idle", "warn", f"{still / total:.0%} of all frames are still: the policy would learn to wait")
    for end, step in (("begin", 1), ("end", -1)):
        long = {index: _leading(speed[::step]) / rate_hz for index, speed in speeds.items()}
        found = tuple(index for index, seconds in long.items() if seconds > LONG_STILL_S)
        if found:
            worst = max(long[index] for index in found)
            yield Finding(
                "idle", "warn", f"{len(found)} episodes {end} with up to {worst:.1f} s of standing still", found
            )


def _leading(speed: np.ndarray) -> int:
    moving = np.flatnonzero(speed >= STILL)
    return int(moving[0]) if len(moving) else len(speed)


def _copies(episodes: Mapping[int, Episode]) -> Iterator[Finding]:
    same: dict[str, list[int]] = defaultdict(list)
    for index, episode in episodes.items():
        content = episode.state.tobytes() + episode.action.tobytes() + episode.task.encode()
        same[hashlib.sha256(content).hexdigest()].append(index)
    for group in same.values():
        if len(group) > 1:
            text = f"{len(group)} episodes are the same, to the last number: they count several times"
            yield Finding("duplicate", "warn", text, tuple(group))


def _cut(episodes: Mapping[int, Episode], speeds: Mapping[int, np.ndarray]) -> Iterator[Finding]:
    by_task: dict[str, list[int]] = defaultdict(list)
    for index, episode in episodes.items():
        by_task[episode.task].append(index)
    for task, members in by_task.items():
        usual = median(len(episodes[index]) for index in members)
        short = tuple(index for index in members if len(episodes[index]) < SHORT * usual)
        if short:
            text = f"{len(short)} episodes of {task!r} are less than {SHORT:.0%} as long as usual ({usual:.0f} frames)"
            yield Finding("truncated", "warn", text, short)
    abrupt = tuple(index for index, speed in speeds.items() if len(speed) > 4 and _abrupt(speed))
    if len(abrupt) > 0.1 * len(episodes):
        text = f"{len(abrupt)} episodes end while the arm moves as fast as ever: they may have been cut"
        yield Finding("truncated", "note", text, abrupt)


def _abrupt(speed: np.ndarray) -> bool:
    moving = speed[speed >= STILL]
    return bool(len(moving)) and bool(speed[-4:-1].mean() > MOVING * np.quantile(moving, 0.9))


def _labels(episodes: Mapping[int, Episode]) -> Iterator[Finding]:
    tasks: dict[str, list[int]] = defaultdict(list)
    for index, episode in episodes.items():
        tasks[episode.task].append(index)
    if empty := tuple(index for task, members in tasks.items() if not task.strip() for index in members):
        yield Finding("label", "stop", f"{len(empty)} episodes have no instruction", empty)
    for one, other in _pairs(sorted(task for task in tasks if task.strip())):
        if _plain(one) == _plain(other):
            text = f"{one!r} and {other!r} are one instruction written in two ways"
            yield Finding("label", "warn", text, tuple(tasks[one] + tasks[other]))
        elif _mistyped(one, other) and min(len(tasks[one]), len(tasks[other])) == 1:
            text = f"{one!r} and {other!r} are nearly the same, and one of them was said only once"
            yield Finding("label", "note", text, tuple(tasks[one] + tasks[other]))
    judged = {True: 0, False: 0, None: 0}
    for episode in episodes.values():
        judged[episode.success] += 1
    if judged[False]:
        yield Finding("label", "note", f"{judged[False]} episodes were judged a failure: they are not learned from")


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            yield one, other


def _plain(task: str) -> str:
    """Letters and digits alone, in lower case."""
    return " ".join("".join(sign if sign.isalnum() else " " for sign in task.lower()).split())


def _mistyped(one: str, other: str) -> bool:
    """Whether they differ in one word, and in that by little."""
    words = list(zip(one.split(), other.split(), strict=False))
    differ = [pair for pair in words if pair[0] != pair[1]]
    same_length = len(one.split()) == len(other.split())
    return same_length and len(differ) == 1 and SequenceMatcher(None, *differ[0]).ratio() > ALIKE
