"""New demonstrations against what a policy knows already, before anything is trained: ranges, error, eyes, words.

The numbers say how far the demonstrations are from what the policy was made for; the advice says what follows for its
statistics and for the choice of a strategy. The rules are plain, and each names the number it rests on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hotpolicy.finetune.cache import ComputedPrefixes
from hotpolicy.finetune.findings import Finding
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.held_out import Figures, HeldOut
from hotpolicy.finetune.samples import Samples
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.vla import Vla
from hotpolicy.runtime.transforms import Transforms

UNUSUAL = {"mean_std": 3.0, "quantile": 1.5}  # normalised units, by kind: beyond lies almost nothing that was seen
WILD = 3.0  # times that: an outlier, which may be a fault of the recording
LOOKED_AT = 96  # frames of either side, spread over tasks
NOVEL = 2.0  # times as far from what is known as that is from itself: new to the eyes
KNOWN = 1.2  # times the old tasks' own held-out loss: the policy can do it already


@dataclass(frozen=True, slots=True)
class JointRange:
    """One joint's numbers in the demonstrations, in normalised units of the policy's statistics."""

    name: str
    low: float
    high: float
    beyond: float  # part of the numbers that are unusual
    wild: tuple[int, ...]  # rows of samples that are outliers


@dataclass(frozen=True, slots=True)
class Relevance:
    state: tuple[JointRange, ...]
    action: tuple[JointRange, ...]  # as the model must answer: relative where it is, over the whole chunk
    new: dict[str, Figures]  # per task, of the policy as it is
    old: dict[str, Figures]  # the tasks it rehearses; empty: it has no set of them
    novelty: float | None  # distance of what is seen from what is known; None: nothing to compare with
    words: tuple[str, ...]  # in the new instructions and in no old one
    findings: tuple[Finding, ...]
    advice: tuple[str, ...]
    strategy: str | None  # what the advice comes to; None: do not train on this as it is


def assess(
    model: Vla,
    transforms: Transforms,
    spec: RobotSpec,
    new: Samples,
    old: Samples | None,
    findings: Sequence[Finding] = (),
) -> Relevance:
    """`old` is what the version rehearses; `findings` are those of the data by themselves."""
    few, known = new.spread(LOOKED_AT), None if old is None else old.spread(LOOKED_AT)
    frames = Frames.encode(new, transforms)
    limit = UNUSUAL[transforms.state.kind]
    names = [joint.name for joint in spec.joints]
    state = tuple(_ranges(names, frames.state.numpy()[:, : len(names)], limit))
    action = tuple(_ranges(names, frames.actions.numpy()[..., : len(names)], limit))
    figures = _figures(model, transforms, spec, few)
    before = _figures(model, transforms, spec, known) if known else {}
    novelty = _novelty(model, Frames.encode(few, transforms), Frames.encode(known, transforms)) if known else None
    words = tuple(sorted(_words(new) - (_words(old) if old else set())))
    found = (*findings, *_outliers("state", state), *_outliers("action", action))
    strategy, advice = _advise(state, action, figures, before, novelty, words, found)
    return Relevance(state, action, figures, before, novelty, words, found, advice, strategy)


def _ranges(names: Sequence[str], values: np.ndarray, limit: float) -> Iterator[JointRange]:
    """values (frames, ..., joints) normalised."""
    for j, name in enumerate(names):
        of = values[..., j].reshape(len(values), -1)
        wild = np.flatnonzero((np.abs(of) > WILD * limit).any(1))
        yield JointRange(
            name, float(of.min()), float(of.max()), float((np.abs(of) > limit).mean()), tuple(map(int, wild))
        )


def _outliers(kind: str, ranges: Sequence[JointRange]) -> Iterator[Finding]:
    for joint in ranges:
        if joint.wild:
            text = (
                f"{kind} of {joint.name}: {len(joint.wild)} frames, up to {max(abs(joint.low), abs(joint.high)):.0f} "
            )
            yield Finding("outlier", "warn", f"{text}units of its statistics away: a slipped joint, or a new range?")


def _figures(model: Vla, transforms: Transforms, spec: RobotSpec, samples: Samples) -> dict[str, Figures]:
    held = HeldOut(samples, transforms, spec)
    return held.measure(model, ComputedPrefixes(model, held.frames))


@torch.no_grad()
def _novelty(model: Vla, new: Frames, old: Frames) -> float:
    """How far a new frame is from the nearest known one, beside how far the known ones are from each other: the
    medians' ratio, over what the expert reads of a frame (the mean of its last layer's values)."""
    seen, known = _read(model, new), _read(model, old)
    apart = torch.cdist(known, known).fill_diagonal_(torch.inf).min(1).values.median()
    return float(torch.cdist(seen, known).min(1).values.median() / apart.clamp_min(1e-9))


def _read(model: Vla, frames: Frames) -> Tensor:
    parts = []
    for rows in torch.arange(len(frames)).split(16):
        prefix = frames.prefix(model, rows)
        mask = prefix.mask[:, None, :, None].float()
        parts.append(((prefix.values[-1].float() * mask).sum(2) / mask.sum(2)).flatten(1))
    return torch.cat(parts)


def _words(samples: Samples) -> set[str]:
    return {word for task in samples.task_names() for word in task.lower().split()}


def _advise(
    state: Sequence[JointRange],
    action: Sequence[JointRange],
    new: dict[str, Figures],
    old: dict[str, Figures],
    novelty: float | None,
    words: Sequence[str],
    findings: Sequence[Finding],
) -> tuple[str | None, tuple[str, ...]]:
    stops = [finding.text for finding in findings if finding.weight == "stop"]
    if stops:
        return None, (f"do not train on this as it is: {stops[0]}",)
    advice = []
    outside = max(state, key=lambda joint: joint.beyond), max(action, key=lambda joint: joint.beyond)
    if outside[0].beyond > 0.05 or outside[1].beyond > 0.2:
        worst = max(outside, key=lambda joint: joint.beyond)
        advice.append(
            f"statistics: {worst.name} is outside the policy's range in {worst.beyond:.0%} of the numbers. Tuning "
            "keeps its parent's statistics; if it learns badly, import the base again with statistics of this robot"
        )
    else:
        advice.append("statistics: keep the parent's, the demonstrations lie within them")
    loss = float(np.mean([of.loss for of in new.values()]))
    usual = float(np.mean([of.loss for of in old.values()])) if old else None
    if usual is not None and loss < KNOWN * usual:
        advice.append(f"little to learn: its held-out loss is {loss:.3f} on these and {usual:.3f} on its own tasks")
    if novelty is not None and novelty > NOVEL:
        advice.append(
            f"eyes: what is seen is {novelty:.1f} times as far from what it knows as that is from itself. A frozen "
            "backbone may not tell it apart: progressive or full, with replay"
        )
        return "progressive", tuple(advice)
    if words:
        advice.append(f"words: {', '.join(words)} in no task it rehearses; the expert learns what to do for them")
    advice.append("strategy: expert. What is seen is known, what is new is the motion; K/V are computed once")
    return "expert", tuple(advice)
