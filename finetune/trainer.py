"""One tuning run: a parent's weights, lessons and a strategy in; averaged weights and their curves out.

A generator, so that whoever drives it draws the progress, pauses it beside a busy server, or simply stops asking.
It knows nothing of files, versions or robots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from hotpolicy.finetune.batches import Batches
from hotpolicy.finetune.cache import ComputedPrefixes
from hotpolicy.finetune.curves import ByTask, Curves, Evaluation
from hotpolicy.finetune.frames import Frames, concatenate
from hotpolicy.finetune.heap import leave_no_holes
from hotpolicy.finetune.held_out import HeldOut
from hotpolicy.finetune.keeper import Keeper
from hotpolicy.finetune.learner import computing
from hotpolicy.finetune.lessons import Lessons
from hotpolicy.finetune.outcome import Outcome, Progress
from hotpolicy.finetune.ranks import ALONE, Ranks
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.shards import learner_of
from hotpolicy.finetune.snapshot import Snapshot
from hotpolicy.finetune.sources import PrefixHome, Sources, choose
from hotpolicy.finetune.strategy import Stage, strategy
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import TuningError
from hotpolicy.runtime.messages import RobotSpec
from hotpolicy.runtime.model.vla import Vla
from hotpolicy.runtime.transforms import Transforms


class Trainer:
    """`for progress in trainer.run(): ...`, then `trainer.outcome`."""

    def __init__(
        self,
        parent: Vla,
        transforms: Transforms,
        spec: RobotSpec,
        lessons: Lessons,
        config: TuneConfig,
        home: PrefixHome | None = None,
        ranks: Ranks = ALONE,
        moments: Mapping[str, Tensor] | None = None,
    ):
        """`home` keeps prefixes from run to run; `ranks` are the processes of the run; `moments` are what the optimiser
        of the run that made the parent remembered. Raises ConfigError for an unknown strategy, DatasetError for samples
        that are not this model's."""
        self.config, self.ranks = config, ranks
        self.strategy = strategy(config.strategy, parent)
        self.peak = config.rate or self.strategy.rate
        if config.recompute:  # memory is short
            leave_no_holes()
        self.learner = learner_of(parent, self.strategy, config, ranks)
        parts = [Frames.encode(part, transforms) for part in (lessons.new, lessons.old) if part is not None]
        self.frames = concatenate(parts)
        self._batches = Batches(self.frames, len(parts[0]), lessons.fresh, config)
        self.watched = {  # its draws do not depend on the run: figures of different runs and versions compare
            side: HeldOut(samples.spread(config.watched), transforms, spec, draw)
            for side, samples, draw in (
                ("new", lessons.new_held_out, 0),
                ("old", lessons.old_held_out, 1),
            )
            if samples is not None
        }
        self.notes: list[str] = []
        if moments is not None:
            carried = self.learner.carry(moments)
            self.notes.append(f"optimiser state carried on for {carried} of {len(self.learner.free())} tensors")
        self.curves = Curves()
        self.done = 0  # steps
        self.stage = self.strategy.stages[0]
        self._entered = [[0, 0]]  # stages, by index, and the step before which each was
        self._seconds = 0.0
        self._gradient = math.nan  # norm, of the last step
        self._outcome: Outcome | None = None
        self._home, self._sources = home, Sources(ComputedPrefixes(self.learner.model, self.frames))
        self._check_data()

    @property
    def outcome(self) -> Outcome:
        """Raises TuningError when the run has not ended by itself."""
        if self._outcome is None:
            raise TuningError("the tuning run has not finished")
        return self._outcome

    def run(self, begin: Snapshot | None = None) -> Iterator[Progress]:
        """One Progress per step, and one before the first. With a snapshot of this same run it goes on after that,
        and ends as it would have ended. Raises TuningError when the loss is not finite."""
        config, started, stopped = self.config, now(), "steps"
        if begin:
            self._restore(begin)
            started -= begin.facts["seconds"]
        else:
            self._choose_prefixes()
            self._keeper = Keeper(config.patience, self._keeps, self._evaluate(0))
        yield self._progress(math.nan, started, self.curves.evaluations[-1])
        while self.done < config.steps:
            stage = self.strategy.stage_at(self.done / config.steps)
            if stage is not self.stage:
                if not self._keeper.earned_next_stage():
                    stopped = "stage"
                    self.notes.append(f"{self.stage.name} made nothing better: {stage.name} was not entered")
                    break
                self._enter(stage, self.done)
                self._choose_prefixes()
            loss = self._step(self.done)
            self.done += 1
            self.curves.train.append(loss)
            evaluation = self._evaluate(self.done) if self._due(self.done) else None
            if evaluation:
                self._keeper.see(evaluation, self.learner.averages())
            self._seconds = now() - started
            yield self._progress(loss, started, evaluation)
            if self._keeper.exhausted:
                stopped = "patience"
                break
            if config.seconds is not None and self._seconds > config.seconds and self.done < config.steps:
                stopped = "seconds"
                self.notes.append(f"stopped after {config.seconds:g} s, {self.done} of {config.steps} steps done")
                break
        self._finish(stopped, now() - started)

    def snapshot(self) -> Snapshot:
        """All that the rest of the run depends on; between two steps."""
        facts = {
            "step": self.done,
            "seconds": self._seconds,
            "entered": self._entered,
            "notes": self.notes,
            "keeper": self._keeper.facts(),
            "train": self.curves.train,
            "evaluations": [evaluation.exactly() for evaluation in self.curves.evaluations],
        }
        tensors = {"random": self._batches.random.get_state()}
        tensors |= {f"learner/{name}": value for name, value in self.learner.state().items()}
        kept = self.learner.gather(self._keeper.weights)
        tensors |= {f"kept/{name}": value for name, value in kept.items()}
        return Snapshot(facts, tensors)

    def _restore(self, snapshot: Snapshot) -> None:
        facts, tensors = snapshot.facts, snapshot.tensors
        try:
            for index, step in facts["entered"][1:]:
                self._enter(self.strategy.stages[index], step)
            self.learner.restore(_under("learner/", tensors))
            self._batches.random.set_state(tensors["random"])
            self.curves.train = list(facts["train"])
            self.curves.evaluations = [Evaluation.read(data) for data in facts["evaluations"]]
            first = self.curves.evaluations[0]
            kept = self.learner.scatter(_under("kept/", tensors))
            self._keeper = Keeper(self.config.patience, self._keeps, first, weights=kept, **facts["keeper"])
            self.done, self._seconds, notes = snapshot.step, facts["seconds"], list(facts["notes"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TuningError(f"training checkpoint: expected what a run of these settings wrote: {error}") from error
        self._choose_prefixes()
        self.notes = notes

    def _enter(self, stage: Stage, step: int) -> None:
        self.stage = stage
        self.learner.enter(stage, step)
        self._entered.append([self.strategy.stages.index(stage), step])

    @property
    def cache_mb(self) -> float:
        """Of K/V kept in this stage, in memory or on disk."""
        return self._sources.kept_bytes / 1e6

    @property
    def _keeps(self) -> bool:
        """Whether the run may end with weights that are not its last."""
        return self.config.patience is not None or len(self.strategy.stages) > 1

    def _due(self, done: int) -> bool:
        """Whether to evaluate after so many steps: now and then, at the end, and where a stage ends."""
        if done % self.config.evaluate_every == 0 or done == self.config.steps:
            return True
        return self.strategy.stage_at(done / self.config.steps) is not self.stage

    def _choose_prefixes(self) -> None:
        self._sources.close()
        watched = {side: held.frames for side, held in self.watched.items()}
        with computing(self.config):
            self._sources = choose(
                self.learner.model, self.frames, watched, self.stage.frozen_prefix, self.config, self._home
            )
        if self._sources.note:
            self.notes.append(self._sources.note)

    def _step(self, step: int) -> float:
        batch, value = self._batches.draw(), 0.0
        size = len(batch.rows)
        for chosen in self.ranks.part(size).tensor_split(self.config.accumulate):
            if not len(chosen):
                continue
            with computing(self.config):
                loss = self.learner.loss(self.frames, batch.part(chosen), self._sources.train)
            share = loss.float().mean() * (len(chosen) / size)
            share.backward()
            value += share.item()
        value = self.ranks.total(value)
        if not math.isfinite(value):
            raise TuningError(f"step {step + 1}: expected a finite loss, got {value:g}")
        self._gradient = self.learner.update(step, self._rate(step))
        return value

    def _rate(self, step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / self.config.steps)) / 2
        return self.peak * (self.config.floor + (1 - self.config.floor) * cosine)

    def _evaluate(self, step: int) -> Evaluation:
        """Of the averaged weights, which are what would be published."""
        model = self.learner.averaged
        with computing(self.config):
            sides: dict[str, ByTask] = {
                side: held.measure(
                    model, self._sources.watched.get(side) or ComputedPrefixes(model, held.frames), self.config.at_once
                )
                for side, held in self.watched.items()
            }
        evaluation = Evaluation(step, sides.get("new", {}), sides.get("old", {}))
        self.curves.evaluations.append(evaluation)
        return evaluation

    def _progress(self, loss: float, started: float, evaluation: Evaluation | None) -> Progress:
        step, note = self.done, "; ".join(self.notes) if math.isnan(loss) else ""
        rate = self._rate(max(0, step - 1))
        seconds, name = now() - started, self.stage.name
        return Progress(step, self.config.steps, name, loss, rate, seconds, self._gradient, evaluation, note)

    def _finish(self, stopped: str, seconds: float) -> None:
        keeper, done = self._keeper, self.done
        step, chosen_by, weights = done, "the last step", None
        if (self.config.patience is not None and "new" in self.watched) or stopped == "stage":
            step, chosen_by = keeper.step, "held-out loss and action error, new and old tasks in equal parts"
            weights = keeper.weights if step < done else None
        model, learned = self.learner.finish(weights)
        self._sources.close()
        self.curves.chosen = step
        self._outcome = Outcome(
            model=model,
            learned=learned,
            curves=self.curves,
            step=step,
            chosen_by=chosen_by,
            steps=done,
            stopped=stopped,
            seconds=seconds,
            cache_mb=self.cache_mb,
            notes=tuple(self.notes),
        )

    def _check_data(self) -> None:
        if self.config.patience is not None and "new" not in self.watched:
            self.notes.append("no held-out episodes to watch: all steps are taken, and the last weights kept")
        if self.config.replay > 0 and not self._batches.replayed:
            self.notes.append("nothing to replay: old tasks may be forgotten")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
