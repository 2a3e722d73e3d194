"""What is found in demonstrations before training, and what is advised."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tuning_parts import NEW, SPEC, TRANSFORMS, episode, full_bundle, parent_model, samples
from typer.testing import CliRunner

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.episodes import Episode
from hotpolicy.finetune.findings import Finding, look_through
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.relevance import Relevance, assess
from hotpolicy.finetune.replay import rehearsal_of
from hotpolicy.finetune.samples import Samples, chunks, join
from hotpolicy.launch.cli import app
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.robots.sim.demonstrations import demonstrate
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.robots.sim.world import World
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.messages import CameraSpec, RobotSpec
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.store import Store


def recorded(root: Path, episodes: list[Episode], spec: RobotSpec = SPEC) -> Dataset:
    with Recorder.open(root, spec) as recorder:
        for one in episodes:
            recorder.begin(one.task)
            for step in one.steps():
                recorder.step(step)
            recorder.save(success=one.success)
    return Dataset.open(root)


def found(root: Path, episodes: list[Episode], spec: RobotSpec = SPEC) -> dict[str, Finding]:
    return {finding.kind: finding for finding in look_through(recorded(root, episodes), spec)}


def good(count: int = 8) -> list[Episode]:
    """Episodes that begin at once, differ, and come to rest."""
    draw = np.random.default_rng(0)
    return [slowing(one, draw.uniform(0.5, 1.0)) for one in (episode(seed) for seed in range(count))]


def slowing(one: Episode, pace: float) -> Episode:
    way = 1 - (1 - np.linspace(0, 1, len(one))[:, None]) ** 2
    towards = (one.state[-1] - one.state[0]) * pace
    state = (one.state[0] + towards * way).astype(np.float32)
    return dataclasses.replace(one, state=state, action=state, requested=state)


def test_good_demonstrations_have_nothing_odd(tmp_path: Path) -> None:
    assert found(tmp_path, good()) == {}


@pytest.mark.parametrize("end", ["begin", "end"])
def test_standing_still_at_an_end_is_found(tmp_path: Path, end: str) -> None:
    one = good(1)[0]
    rest = np.repeat(one.state[:1] if end == "begin" else one.state[-1:], 15, 0)
    parts = [rest, one.state] if end == "begin" else [one.state, rest]
    state = np.concatenate(parts)
    frames = len(state)
    idle = dataclasses.replace(
        one, state=state, action=state, requested=state, intervention=np.zeros(frames, bool), versions=(None,) * frames,
        images={"front": np.zeros((frames, 16, 16, 3), np.uint8)},
    )  # fmt: skip
    findings = [of for of in look_through(recorded(tmp_path, [*good(6), idle]), SPEC) if of.kind == "idle"]
    ends = [of for of in findings if f"episodes {end} with" in of.text]
    assert [of.episodes for of in ends] == [(6,)]


def test_copies_are_found(tmp_path: Path) -> None:
    episodes = good()
    assert found(tmp_path, [*episodes, episodes[3]])["duplicate"].episodes == (3, 8)


def test_an_episode_that_was_cut_is_found(tmp_path: Path) -> None:
    episodes = good()
    whole = episodes[0]
    cut = dataclasses.replace(
        whole, state=whole.state[:4], action=whole.action[:4], requested=whole.requested[:4],
        intervention=whole.intervention[:4], versions=whole.versions[:4], images={"front": whole.images["front"][:4]},
    )  # fmt: skip
    finding = found(tmp_path, [*episodes, cut])["truncated"]
    assert finding.episodes == (8,)
    assert "less than 40% as long as usual (12 frames)" in finding.text


@pytest.mark.parametrize(
    ("task", "weight", "text"),
    [
        ("Wave  once.", "warn", "'Wave  once.' and 'wave once' are one instruction written in two ways"),
        ("wave onec", "note", "nearly the same, and one of them was said only once"),
    ],
)
def test_labels_that_do_not_agree_are_found(tmp_path: Path, task: str, weight: str, text: str) -> None:
    episodes = good()
    episodes[2] = dataclasses.replace(episodes[2], task=task)
    finding = found(tmp_path, episodes)["label"]
    assert (finding.weight, text in finding.text) == (weight, True), finding.text


@pytest.mark.parametrize(
    ("spec", "kind", "text"),
    [
        (dataclasses.replace(SPEC, rate_hz=30), "rate", "expected 30 Hz, got 10 Hz"),
        (dataclasses.replace(SPEC, joints=SPEC.joints[:2]), "joints", "expected pan.pos, elbow.pos, got pan.pos"),
        (dataclasses.replace(SPEC, cameras=(CameraSpec("wrist", 16, 16),)), "camera", "wrist: not in the dataset"),
        (
            dataclasses.replace(SPEC, cameras=(CameraSpec("front", 32, 24),)),
            "camera",
            "front: expected 24x32, got 16x16",
        ),
    ],
)
def test_another_robots_dataset_stops(tmp_path: Path, spec: RobotSpec, kind: str, text: str) -> None:
    findings = [of for of in look_through(recorded(tmp_path, good(2)), spec) if of.weight == "stop"]
    assert [of.kind for of in findings] == [kind]
    assert text in findings[0].text


def judged(new: Samples, **given: object) -> Relevance:
    return assess(parent_model(), TRANSFORMS, SPEC, new, samples(range(100, 104), "stay there"), **given)  # type: ignore[arg-type]


def test_numbers_outside_the_statistics_are_counted_by_joint() -> None:
    plain = samples(range(6))
    middle = np.array([0, 0, 50], np.float32)  # so that all are about the statistics' mean
    plain = dataclasses.replace(plain, state=plain.state - middle, actions=plain.actions - middle)
    state = plain.state.copy()
    state[:, 1] += 20 * 4  # of a standard deviation of 20
    report = judged(dataclasses.replace(plain, state=state))
    beyond = {joint.name: joint.beyond for joint in report.state}
    assert beyond["elbow.pos"] > 0.9
    assert beyond["pan.pos"] == 0
    assert any(line.startswith("statistics: elbow.pos is outside") for line in report.advice)
    assert "keep the parent's" in judged(plain).advice[0]


def test_a_frame_far_away_is_an_outlier_with_its_row() -> None:
    plain = samples(range(6))
    state = plain.state.copy()
    state[17, 0] = 20 * 12
    report = judged(dataclasses.replace(plain, state=state))
    assert report.state[0].wild == (17,)
    assert any(finding.kind == "outlier" and "pan.pos" in finding.text for finding in report.findings)


def test_words_that_are_new_are_named_and_what_stops_is_not_trained() -> None:
    assert judged(samples(range(4))).words == ("once", "wave")
    stop = Finding("rate", "stop", "expected 30 Hz")
    report = judged(samples(range(4)), findings=[stop])
    assert (report.strategy, report.advice) == (None, ("do not train on this as it is: expected 30 Hz",))


# ── the shipped policy ────────────────────────────────────────────────────────────────────────────────────────────────


def shown(tasks: list[Task], count: int) -> Samples:
    world, parts, seed = World(), [], 5000
    while len(parts) < count:
        demo = demonstrate(world, tasks[len(parts) % len(tasks)], seed, wide=False, perturb=False)
        seed += 1
        if demo is not None:
            names = np.array([demo.task.instruction] * len(demo.state))
            parts.append(Samples(demo.images[:, None], demo.state, chunks(demo.action, 8), names))
    return join(parts)


@pytest.mark.slow
def test_a_colour_never_seen_is_new_to_the_eyes_and_a_new_motion_is_not() -> None:
    base = Bundle.open(SHIPPED)
    policy, old = load_policy([base], threads=1), rehearsal_of([base])

    def report(verb: str, *colours: str) -> Relevance:
        new = shown([Task(verb, colour) for colour in colours], 6)
        return assess(policy.engine.model, policy.transforms, policy.spec, new, old)  # type: ignore[attr-defined]

    known, motion, colour = report("touch", *KNOWN_COLOURS), report("hover", *KNOWN_COLOURS), report("touch", "purple")
    assert known.novelty is not None
    assert known.novelty < 1.5
    assert any(line.startswith("little to learn") for line in known.advice)
    assert (motion.strategy, motion.words) == ("expert", ("hover", "over"))
    assert motion.novelty is not None
    assert motion.novelty < 1.5
    assert colour.novelty is not None
    assert colour.novelty > 2
    assert colour.strategy == "progressive"


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_report_on_a_terminal_and_as_json(tmp_path: Path) -> None:
    Store(tmp_path / "store").add(full_bundle(tmp_path / "sealed").folder)
    recorded(tmp_path / "data", [*good(8), good(1)[0]])
    command = ["relevance", str(tmp_path / "data"), "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for text in ("pan.pos", f"{NEW}: loss", "stay there (rehearsed)", "warn: duplicate", "statistics:"):
        assert text in result.output
    report = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert report["findings"][0]["kind"] == "duplicate"
    assert set(report["new"]) == {NEW}


def test_another_robots_dataset_is_refused_with_what_differs(tmp_path: Path) -> None:
    Store(tmp_path / "store").add(full_bundle(tmp_path / "sealed").folder)
    slower = dataclasses.replace(SPEC, rate_hz=5)
    recorded(tmp_path / "data", good(2), slower)
    result = CliRunner().invoke(app, ["relevance", str(tmp_path / "data"), "--store", str(tmp_path / "store")])
    assert result.exit_code == 2
    assert "stop: rate: expected 10 Hz, got 5 Hz" in result.output
