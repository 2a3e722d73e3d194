"""What a policy makes of episodes it was not trained on, measured so that two measurements can be compared.

The flow loss takes the same noise and times every time. It can rise while the arm does its task as well as ever,
so beside it stands the action error: how far the mean predicted action is from the demonstrated one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from hotpolicy.finetune.cache import Prefixes
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.samples import Samples
from hotpolicy.runtime.messages import Joint, RobotSpec
from hotpolicy.runtime.model.vla import Prefix, Vla
from hotpolicy.runtime.transforms import Transforms

LOSS_DRAWS = 8  # of noise and time per frame
ACTION_DRAWS = 4  # of noise per frame, flowed to an action and averaged
EXECUTED = 4  # first actions of a chunk that count: a robot asks again before it needs the others
TURNS = {"deg": 1.0, "rad": 180 / np.pi}  # units of joints that turn -> degrees in one


@dataclass(frozen=True, slots=True)
class Figures:
    """One task, held out."""

    loss: float  # flow loss, in normalised units
    error_deg: float  # mean |predicted - demonstrated| of the joints that turn; 0: there is none
    error_percent: float  # the same of the others, of grippers above all, in percent of their range; 0: there is none
    frames: int

    def to_dict(self) -> dict[str, float | int]:
        return {name: round(value, 5) for name, value in asdict(self).items()}


class HeldOut:
    """Held-out frames with their own, unchanging noise and times. Times are spread evenly over what training draws,
    and noise is drawn frame by frame: as a dataset grows, the frames before keep theirs."""

    def __init__(self, samples: Samples, transforms: Transforms, spec: RobotSpec, seed: int = 0):
        self.frames = Frames.encode(samples, transforms)
        self._samples, self._transforms = samples, transforms
        shape = (len(samples), LOSS_DRAWS + ACTION_DRAWS, transforms.horizon, transforms.width)
        noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))
        self._loss_noise, self._action_noise = noise[:, :LOSS_DRAWS], noise[:, LOSS_DRAWS:]
        even = (torch.arange(LOSS_DRAWS) + 0.5) / LOSS_DRAWS
        self._times = even.pow(1 / 1.5) * 0.999 + 0.001  # as sample_times makes them of uniform numbers
        self._turns = np.array([joint.unit in TURNS for joint in spec.joints])
        scale = [_scale(joint) for joint in spec.joints]  # to degrees, or to percent of the range
        self._scale = np.array(scale, np.float32)

    @torch.no_grad()
    def measure(self, model: Vla, prefixes: Prefixes, at_once: int = 64) -> dict[str, Figures]:
        """Figures per task, computed `at_once` frames at a time. `prefixes` are this model's, of these frames."""
        losses, errors = [], []
        for start in range(0, len(self.frames), at_once):
            rows = torch.arange(start, min(start + at_once, len(self.frames)))
            prefix = prefixes.take(rows)
            losses.append(self._loss(model, prefix, rows))
            errors.append(self._errors(model, prefix, rows))
        loss, error = np.concatenate(losses), np.concatenate(errors)
        tasks = np.array(self.frames.tasks)
        return {str(name): self._figures(loss[tasks == name], error[tasks == name]) for name in np.unique(tasks)}

    def _loss(self, model: Vla, prefix: Prefix, rows: Tensor) -> np.ndarray:
        times = self._times.expand(len(rows), -1)
        state, actions = self.frames.state[rows], self.frames.actions[rows]
        return np.asarray(model.flow_loss(prefix, state, actions, self._loss_noise[rows], times).mean(1).numpy())

    def _errors(self, model: Vla, prefix: Prefix, rows: Tensor) -> np.ndarray:
        """(batch, joints) in degrees or percent."""
        x, count = self._action_noise[rows], model.config.steps
        for index in range(count):  # as `flow`, for several draws that share a prefix
            times = torch.full(x.shape[:2], 1 - index / count)
            x = x - model.velocity(prefix, self.frames.state[rows], x, times) / count
        chosen = rows.numpy()
        predicted = self._transforms.decode(x.mean(1).numpy(), self._samples.state[chosen])
        return np.asarray(np.abs(predicted - self._samples.actions[chosen])[:, :EXECUTED].mean(1) * self._scale)

    def _figures(self, loss: np.ndarray, error: np.ndarray) -> Figures:
        def of(joints: np.ndarray) -> float:
            return float(error[:, joints].mean()) if joints.any() else 0.0

        return Figures(float(loss.mean()), of(self._turns), of(~self._turns), len(loss))


def _scale(joint: Joint) -> float:
    if joint.unit in TURNS:
        return TURNS[joint.unit]
    return 1.0 if joint.unit == "percent" else 100 / (joint.high - joint.low)


def badness(before: Mapping[str, Figures], now: Mapping[str, Figures]) -> float:
    """One number to choose between steps of a run: mean over tasks of log loss and log action error against what
    they were before tuning, in equal parts. Lower is better; neither can throw a step away alone."""
    return float(np.mean([_worse(before[task], now[task]) for task in now]))


def _worse(before: Figures, now: Figures) -> float:
    errors = [
        _log_ratio(new, old)
        for new, old in ((now.error_deg, before.error_deg), (now.error_percent, before.error_percent))
        if old > 0  # a robot without a gripper
    ]
    return _log_ratio(now.loss, before.loss) / 2 + (float(np.mean(errors)) / 2 if errors else 0.0)


def _log_ratio(new: float, old: float) -> float:
    return float(np.log(max(new, 1e-9) / max(old, 1e-9)))
