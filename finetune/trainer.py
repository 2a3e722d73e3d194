"""One tuning run: a parent's weights, lessons and a strategy in; averaged weights and their curves out.

A generator, so that whoever drives it draws the progress, pauses it beside a busy server, or simply stops asking.
It knows nothing of files, versions or robots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hotpolicy.finetune.cache import CachedPrefixes, ComputedPrefixes, Prefixes, cache_bytes
from hotpolicy.finetune.curves import ByTask, Curves, Evaluation
from hotpolicy.finetune.ema import Ema
from hotpolicy.finetune.frames import Frames, concatenate
from hotpolicy.finetune.held_out import HeldOut, badness
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import Stage, strategy
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.engine.torch_weights import apply_delta
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.vla import Vla, sample_times
from hotpolicy.runtime.transforms import Transforms


@dataclass(frozen=True, slots=True)
class Progress:
    step: int  # done
    steps: int  # planned
    stage: str
    loss: float  # flow loss of the batch
    rate: float
    seconds: float  # since the run began
    evaluation: Evaluation | None = None
    note: str = ""  # something a person should know, e.g. that the cache did not fit


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished run leaves. `model` shares what it did not train with the parent."""

    model: Vla
    learned: tuple[str, ...]  # names of the tensors that were trained
    curves: Curves
    step: int  # whose weights these are
    chosen_by: str
    steps: int  # done
    stopped: str  # "steps", "patience" or "seconds"
    seconds: float
    cache_mb: float  # of K/V kept; 0: none
    notes: tuple[str, ...]


class Trainer:
    """`for progress in trainer.run(): ...`, then `trainer.outcome`."""

    def __init__(self, parent: Vla, transforms: Transforms, spec: RobotSpec, lessons: Lessons, config: TuneConfig):
        """Raises ConfigError for an unknown strategy, TuningError for a cache that must fit and does not,
        DatasetError for samples that are not this model's."""
        self.config = config
        self.strategy = strategy(config.strategy, parent)
        self.peak = config.rate or self.strategy.rate
        self.parent, self.model = parent, apply_delta(parent, {})  # frozen parts stay the parent's
        parts = [Frames.encode(part, transforms) for part in (lessons.new, lessons.old) if part is not None]
        self.frames, self.new = concatenate(parts), len(parts[0])
        self.replayed = round(config.batch * config.replay) if len(parts) > 1 else 0
        self.watched = {  # its draws do not depend on the run: figures of different runs and versions compare
            side: HeldOut(samples.spread(config.watched), transforms, spec, draw)
            for side, samples, draw in (
                ("new", lessons.new_held_out, 0),
                ("old", lessons.old_held_out, 1),
            )
            if samples is not None
        }
        self.notes: list[str] = []
        self.curves = Curves()
        self._random = torch.Generator().manual_seed(config.seed)
        self._outcome: Outcome | None = None
        self.cache_mb = 0.0  # of K/V kept in this stage
        self._check_data()

    @property
    def outcome(self) -> Outcome:
        """Raises TuningError when the run has not ended by itself."""
        if self._outcome is None:
            raise TuningError("the tuning run has not finished")
        return self._outcome

    def run(self) -> Iterator[Progress]:
        """One Progress per step, and one before the first. Raises TuningError when the loss is not finite."""
        config, started, stopped, done = self.config, now(), "steps", 0
        self._enter(self.strategy.stage_at(0.0), 0)
        self._ema = Ema(self.model, config.ema)
        best = self._evaluate(0)
        yield self._progress(0, math.nan, started, best)
        keeper = _Keeper(config.patience, best)
        for step in range(config.steps):
            stage = self.strategy.stage_at(step / config.steps)
            if stage is not self.stage:
                self._enter(stage, step)
                self._ema.follow(self.model)
            loss = self._step(step)
            done = step + 1
            self.curves.train.append(loss)
            due = done % config.evaluate_every == 0 or done == config.steps
            evaluation = self._evaluate(done) if due else None
            yield self._progress(done, loss, started, evaluation)
            if evaluation and keeper.exhausted(evaluation, self._averages()):
                stopped = "patience"
                break
            if config.seconds is not None and now() - started > config.seconds and done < config.steps:
                stopped = "seconds"
                self.notes.append(f"stopped after {config.seconds:g} s, {done} of {config.steps} steps done")
                break
        self._finish(keeper, done, stopped, now() - started)

    def _enter(self, stage: Stage, step: int) -> None:
        """Set free what this stage trains, with its own copy of it, and choose where prefixes come from."""
        self.stage = stage
        learning = stage.learning(self.model)
        fresh: dict[float, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            if name in learning and not parameter.requires_grad:
                parameter.data = parameter.data.clone()
                parameter.requires_grad_(True)
                fresh.setdefault(learning[name], []).append(parameter)
        groups = [
            {"params": members, "multiple": multiple, "since": step, "lr": 0.0} for multiple, members in fresh.items()
        ]
        if step == 0:
            self._optimiser = torch.optim.AdamW(groups, weight_decay=self.config.decay, betas=(0.9, 0.95))
        else:
            for group in groups:
                self._optimiser.add_param_group(group)
        self._learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._choose_prefixes()

    def _choose_prefixes(self) -> None:
        self._prefixes: Prefixes = ComputedPrefixes(self.model, self.frames)
        self._kept: dict[str, Prefixes] = {}
        self.cache_mb, config = 0.0, self.config
        if not self.stage.frozen_prefix or config.caching == "off":
            return
        needed = sum(
            cache_bytes(self.model, frames)
            for frames in (self.frames, *(held.frames for held in self.watched.values()))
        )
        if needed > config.cache_bytes:
            text = f"prefix cache: {needed / 1e6:.0f} MB needed, {config.cache_bytes / 1e6:.0f} MB allowed"
            if config.caching == "require":
                raise TuningError(text)
            self.notes.append(f"{text}: prefixes are computed anew at every step")
            return
        self._prefixes = CachedPrefixes(self.model, self.frames)
        self._kept = {side: CachedPrefixes(self.model, held.frames) for side, held in self.watched.items()}
        self.cache_mb = needed / 1e6

    def _step(self, step: int) -> float:
        config = self.config
        rate = self._schedule(step)
        for group in self._optimiser.param_groups:
            warm = min(1.0, (step - group["since"] + 1) / max(1, config.warmup))
            group["lr"] = rate * group["multiple"] * warm
        rows = self._rows()
        state, actions = self.frames.state[rows], self.frames.actions[rows]
        noise = torch.randn((len(rows), config.draws, *actions.shape[1:]), generator=self._random)
        times = sample_times((len(rows), config.draws), self._random)
        loss = self.model.flow_loss(self._prefixes.take(rows), state, actions, noise, times).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._learning, config.clip)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise TuningError(f"step {step + 1}: expected a finite loss and gradient, got {value:g} and {norm:g}")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._ema.update(self.model)
        return value

    def _schedule(self, step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / self.config.steps)) / 2
        return self.peak * (self.config.floor + (1 - self.config.floor) * cosine)

    def _rows(self) -> Tensor:
        new = torch.randint(0, self.new, (self.config.batch - self.replayed,), generator=self._random)
        if not self.replayed:
            return new
        old = torch.randint(self.new, len(self.frames), (self.replayed,), generator=self._random)
        return torch.cat([new, old])

    def _evaluate(self, step: int) -> Evaluation:
        """Of the averaged weights, which are what would be published."""
        model = self._ema.model
        sides: dict[str, ByTask] = {
            side: held.measure(model, self._kept.get(side) or ComputedPrefixes(model, held.frames))
            for side, held in self.watched.items()
        }
        evaluation = Evaluation(step, sides.get("new", {}), sides.get("old", {}))
        self.curves.evaluations.append(evaluation)
        return evaluation

    def _progress(self, step: int, loss: float, started: float, evaluation: Evaluation | None) -> Progress:
        note = "; ".join(self.notes) if step == 0 else ""
        rate = self._schedule(max(0, step - 1))
        return Progress(step, self.config.steps, self.stage.name, loss, rate, now() - started, evaluation, note)

    def _finish(self, keeper: _Keeper, done: int, stopped: str, seconds: float) -> None:
        step, chosen_by = done, "the last step"
        if keeper.patience is not None:
            step, chosen_by = keeper.step, "held-out loss and action error, new and old tasks in equal parts"
            if step < done:
                self._ema.model.load_state_dict(keeper.weights, strict=False)
        self.curves.chosen = step
        self._outcome = Outcome(
            model=self._ema.model,
            learned=tuple(self._averages()),
            curves=self.curves,
            step=step,
            chosen_by=chosen_by,
            steps=done,
            stopped=stopped,
            seconds=seconds,
            cache_mb=self.cache_mb,
            notes=tuple(self.notes),
        )

    def _averages(self) -> dict[str, Tensor]:
        """The averaged weights of what has been trained so far."""
        averages = self._ema.model.state_dict()
        return {name: averages[name] for name, raw in self.model.named_parameters() if raw.requires_grad}

    def _check_data(self) -> None:
        if self.config.patience is not None and "new" not in self.watched:
            raise TuningError("patience: expected held-out episodes to watch, got none")
        if self.config.replay > 0 and not self.replayed:
            self.notes.append("nothing to replay: old tasks may be forgotten")


class _Keeper:
    """Remembers the best weights of a run and how long ago they were."""

    def __init__(self, patience: int | None, first: Evaluation):
        self.patience, self.first = patience, first
        self.score, self.step, self.waited = math.inf, 0, 0
        self.weights: dict[str, Tensor] = {}

    def exhausted(self, evaluation: Evaluation, weights: dict[str, Tensor]) -> bool:
        if self.patience is None:
            return False
        score = badness(self.first.new, evaluation.new)
        if evaluation.old:
            score = (score + badness(self.first.old, evaluation.old)) / 2
        if score < self.score:
            self.score, self.step, self.waited = score, evaluation.step, 0
            self.weights = {name: value.clone() for name, value in weights.items()}
            return False
        self.waited += 1
        return self.waited >= self.patience
