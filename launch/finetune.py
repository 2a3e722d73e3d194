"""`hotpolicy finetune`: demonstrations in, a judged and sealed version out, beside a server that goes on serving."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotpolicy.launch.options import STORE, StoreFolder
from hotpolicy.runtime.errors import SwapRefused

if TYPE_CHECKING:
    from hotpolicy.finetune.settings import TuneConfig

Event = dict[str, Any]
TERMINATED = 128 + signal.SIGTERM  # exit code, as a shell reports it


def finetune(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders with the new demonstrations.")],
    store: StoreFolder = STORE,
    base: Annotated[str, typer.Option(help="Version to start from: an id, or live.")] = "live",
    strategy: Annotated[str, typer.Option(help="What learns: heads, expert, top-N, full or progressive.")] = "expert",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps, 32 frames each.")] = 350,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate. Default: the strategy's.")] = None,
    replay: Annotated[float, typer.Option(help="Share of each batch taken from old tasks, 0 to 0.95.")] = 0.5,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without improvement. Default: all steps.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of batches, noise and the split into training and held-out.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Lower priority, so that serving comes first.")] = 5,
    trials: Annotated[
        int,
        typer.Option(
            min=0,
            help="Episodes of a success check on the simulated table, for tasks it knows by their words; 0: none, and "
            "held-out episodes decide. For demonstrations of the virtual arm only.",
        ),
    ] = 0,
    success: Annotated[float, typer.Option(help="Success rate the new tasks must reach in it, 0 to 1.")] = 0.8,
    old_error: Annotated[
        float, typer.Option(min=1, help="Where old tasks are not tried, their held-out error may grow so many times.")
    ] = 1.5,
    gate: Annotated[
        bool,
        typer.Option("--gate/--no-gate", help="Judge the candidate; without, it is sealed but not put in the store."),
    ] = True,
    control: Annotated[
        str | None, typer.Option("--publish", help="Control socket of a server to swap a passed version into.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Progress as JSON lines on stdout.")] = False,
) -> None:
    """Tune a version on new demonstrations, judge it against the one it would replace, and seal it as a delta.

    A version that passes the gate is added to the store. Exit code 2 when it does not pass.
    """
    from hotpolicy.finetune.gate import Bounds
    from hotpolicy.finetune.settings import TuneConfig

    asked = _end_on_sigterm()
    os.nice(nice)
    config = TuneConfig(
        strategy=strategy, steps=steps, rate=rate, replay=replay, patience=patience, seed=seed,
        evaluate_every=max(1, steps // 5),
    )  # fmt: skip
    events = tune(store, base, datasets, config, threads, gate, trials, Bounds(success=success, old_error=old_error))
    for event in events if as_json else draw(events):
        if as_json:
            typer.echo(json.dumps(event))
        if asked.is_set():
            sys.exit(TERMINATED)  # by way of every `finally`: nothing half written stays
    if not gate:
        return
    if not event["passed"]:
        raise SwapRefused(f"{event['version']}: refused by the gate: {'; '.join(event['reasons'])}")
    if control is not None:
        from hotpolicy.runtime.client import ControlClient

        with ControlClient(control) as client:
            client.swap(event["version"])
        typer.echo(json.dumps({"event": "live", **event}) if as_json else f"{event['version']} is live")


def _end_on_sigterm() -> threading.Event:
    """Set by the first SIGTERM; a second one ends the process at once. An exception thrown out of a signal handler
    would be lost whenever the signal met a callback, so the run looks at this between steps instead."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ask)
    return asked


def tune(
    store_folder: Path,
    base: str,
    datasets: list[Path],
    config: TuneConfig,
    threads: int,
    gate: bool,
    trials: int,
    bounds: Any,
) -> Iterator[Event]:
    """The run as plain events: `begin`, `step` for every step, `trained`, `trial` for each task tried, and `sealed`
    with the candidate's folder and the verdict."""
    import torch

    from hotpolicy.finetune.candidate import seal_candidate
    from hotpolicy.finetune.gate import judge
    from hotpolicy.finetune.lessons import gather
    from hotpolicy.finetune.trainer import Trainer
    from hotpolicy.launch.trials import try_tasks
    from hotpolicy.launch.versions import open_store
    from hotpolicy.runtime.bundle import seal_verdict
    from hotpolicy.runtime.engine.torch_engine import TorchEngine
    from hotpolicy.runtime.golden import Golden
    from hotpolicy.runtime.policy import Policy, load_policy

    torch.set_num_threads(threads)
    store = open_store(store_folder)
    chain = store.chain(store.live() if base == "live" else base)
    live = load_policy(chain, device="cpu", dtype="fp32", threads=threads)
    engine = live.engine
    assert isinstance(engine, TorchEngine)
    lessons = gather(chain, datasets, seed=config.seed)
    yield {
        "event": "begin",
        "base": chain[-1].id,
        "frames": len(lessons.new),
        "episodes": sum(len(source.episodes) for source in lessons.sources),
        "held_out_episodes": sum(len(source.held_out) for source in lessons.sources),
    }
    trainer = Trainer(engine.model, live.transforms, live.spec, lessons, config)
    for progress in trainer.run():
        yield {
            "event": "step",
            "step": progress.step,
            "steps": progress.steps,
            "stage": progress.stage,
            "loss": None if progress.loss != progress.loss else round(progress.loss, 5),
            "seconds": round(progress.seconds, 2),
            "held_out": progress.evaluation.to_dict() if progress.evaluation else None,
            "note": progress.note,
        }
    outcome = trainer.outcome
    yield {"event": "trained", "seconds": round(outcome.seconds, 2), "steps": outcome.steps, "notes": outcome.notes}
    candidates = store.root / "candidates"
    if not gate:
        sealed = seal_candidate(candidates, chain, outcome, lessons, config)
        yield {"event": "sealed", "version": sealed.id, "folder": str(sealed.folder), "passed": None, "reasons": []}
        return
    candidates.mkdir(parents=True, exist_ok=True)
    # A policy is made of a bundle, and the bundle to keep has the verdict in it: the draft lies beside it, so that its
    # weights need only another name.
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=candidates) as scratch:
        draft = seal_candidate(Path(scratch), chain, outcome, lessons, config)
        candidate = Policy(draft, TorchEngine(outcome.model.eval(), place=engine.place), live.files, live.transforms)
        tried = []
        if trials:
            old = lessons.old.task_names() if lessons.old is not None else ()
            for trial in try_tasks(candidate, live, lessons.new.task_names(), old, trials):
                tried.append(trial)
                yield {"event": "trial", **trial.to_dict()}
        golden = Golden.of_chain(chain) or Golden.blank(live.spec, live.horizon, width=live.width)
        verdict = judge(candidate, live, golden, outcome.curves, tried, bounds)
        final = seal_verdict(draft, candidates, verdict.to_dict())
    if verdict.passed:
        store.add(final.folder)
    yield {
        "event": "sealed",
        "version": final.id,
        "folder": str(final.folder),
        "passed": verdict.passed,
        "decided_by": verdict.decided_by,
        "reasons": list(verdict.reasons),
    }


def draw(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, with a progress bar and a few lines on the terminal."""
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        bar = bars.add_task("tuning", total=None)
        for event in events:
            match event["event"]:
                case "begin":
                    bars.console.print(
                        f"{event['episodes']} episodes, {event['frames']} frames, "
                        f"{event['held_out_episodes']} episodes held out; from {event['base']}"
                    )
                case "step":
                    loss = "" if event["loss"] is None else f"loss {event['loss']:.3f}"
                    bars.update(bar, total=event["steps"], completed=event["step"], description=f"tuning  {loss}")
                    if event["held_out"]:
                        bars.console.print(held_out_line(event), highlight=False)
                    if event["note"]:
                        bars.console.print(f"note: {event['note']}")
                case "trial":
                    bars.console.print(f"{event['task']}: {event['successes']}/{event['episodes']}", highlight=False)
                case "sealed":
                    word = {True: "passed the gate", False: "refused by the gate", None: "sealed, not judged"}
                    bars.console.print(f"{event['version']}: {word[event['passed']]}; {event['folder']}")
            yield event


def held_out_line(event: Event) -> str:
    """Held-out figures of one evaluation, the mean over tasks."""
    parts = []
    for side, figures in event["held_out"].items():
        if isinstance(figures, dict) and figures:
            loss, error = mean_over_tasks(figures, "loss"), mean_over_tasks(figures, "error_deg")
            parts.append(f"{side} tasks: held-out loss {loss:.3f}, action error {error:.2f} deg")
    return f"step {event['step']:>4}  " + "; ".join(parts)


def mean_over_tasks(figures: Mapping[str, Mapping[str, float]], name: str) -> float:
    """Of one held-out figure; every task counts the same. `figures` holds at least one task."""
    return sum(of[name] for of in figures.values()) / len(figures)
