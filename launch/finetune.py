"""`hotpolicy finetune`: demonstrations in, a judged and sealed version out, beside a server that goes on serving."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hotpolicy.launch.ending import TERMINATED, end_on_sigterm, end_with_parent
from hotpolicy.launch.options import STORE, Key, ServerKey, StoreFolder
from hotpolicy.launch.tuning_lines import draw
from hotpolicy.runtime.errors import ConfigError, SwapRefused


def finetune(
    datasets: Annotated[
        list[Path] | None, typer.Argument(help="Dataset folders with the new demonstrations; with --board, none.")
    ] = None,
    store: StoreFolder = STORE,
    base: Annotated[
        str | None,
        typer.Option(
            help="Version to start from: an id, or live, the default. With --board also pi0, pi0.5 or a folder; "
            "default: both of these."
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="What learns: heads, expert, lora, lora-expert, top-N, full, progressive; or auto.")
    ] = "expert",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 350,
    batch: Annotated[int, typer.Option(min=1, help="Frames of an optimiser step.")] = 32,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts a batch is computed in, one after another, where memory is short.")
    ] = 1,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations again on the way back instead of keeping them.")
    ] = False,
    precision: Annotated[str, typer.Option(help="Of matrix products: fp32 or bf16.")] = "fp32",
    cache_mb: Annotated[int, typer.Option(min=0, help="Memory for K/V of frames whose prefix is frozen, MB.")] = 1024,
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank of adapters.")] = 8,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate. Default: the strategy's.")] = None,
    replay: Annotated[float, typer.Option(help="Share of each batch taken from old tasks, 0 to 0.95.")] = 0.5,
    replay_from: Annotated[
        list[Path] | None, typer.Option(help="Dataset of older tasks to replay, beside what the version rehearses.")
    ] = None,
    until: Annotated[
        int | None, typer.Option(min=1, help="Learn from so many episodes of the first dataset. Default: all.")
    ] = None,
    since: Annotated[
        int, typer.Option(min=0, help="Its episodes from this one on are fresh: no earlier run has seen them.")
    ] = 0,
    fresh: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each batch's new demonstrations taken from fresh episodes.")
    ] = 0.5,
    carry: Annotated[
        bool, typer.Option("--carry", help="Take up the optimiser's state of the run that made the base, and keep it.")
    ] = False,
    job: Annotated[
        str | None, typer.Option(help="Name of this job: one that was done already is not done again.")
    ] = None,
    attached: Annotated[
        bool, typer.Option("--attached", help="End when standard input does: whoever started this is gone.")
    ] = False,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help="Stop after so many evaluations (five a run) in which held-out episodes were not handled better, and "
            "keep the best weights; 0: take all steps, and keep the last.",
        ),
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of batches and noise.")] = 0,
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
    save_every: Annotated[
        float,
        typer.Option(min=0, help="Seconds between training checkpoints, from which a killed run goes on. 0: none."),
    ] = 60.0,
    gate: Annotated[
        bool,
        typer.Option("--gate/--no-gate", help="Judge the candidate; without, it is sealed but not put in the store."),
    ] = True,
    control: Annotated[
        str | None, typer.Option("--publish", help="Control socket of a server to swap a passed version into.")
    ] = None,
    key: Key = None,
    server_key: ServerKey = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what each strategy would take on this machine, now.")
    ] = False,
    board: Annotated[
        str | None,
        typer.Option(help="With --plan: memory on this robot computer, or on all, from published sizes."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Time for all steps, where auto or --plan chooses a strategy.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write the curves here, too, as TensorBoard reads them, while it trains.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Progress as JSON lines on stdout.")] = False,
) -> None:
    """Tune a version on new demonstrations, judge it against the one it would replace, and seal it as a delta.

    A version that passes the gate is added to the store. Exit code 2 when it does not pass. The same command after a
    kill goes on from the last training checkpoint. On several processes or machines:
    torchrun --no-python --nproc-per-node 2 hotpolicy finetune ...
    """
    from hotpolicy.finetune.gate import Bounds
    from hotpolicy.finetune.lessons import Span
    from hotpolicy.finetune.settings import TuneConfig
    from hotpolicy.launch import board_plan
    from hotpolicy.launch.choice import survey_of
    from hotpolicy.launch.job import Job
    from hotpolicy.launch.planning import show
    from hotpolicy.launch.tuning import tune

    if board is not None and not plan:
        raise ConfigError("board: expected --plan too: nothing is trained here for another machine")
    if board is None and not datasets:
        raise ConfigError("datasets: expected at least one folder with demonstrations, got none")
    config = TuneConfig.from_dict(
        {
            "strategy": strategy, "steps": steps, "batch": batch, "accumulate": accumulate, "recompute": recompute,
            "precision": precision, "cache_bytes": cache_mb * 1_000_000, "lora_rank": lora_rank, "rate": rate,
            "replay": replay, "fresh": fresh, "patience": patience or None, "seed": seed,
            "evaluate_every": max(1, steps // 5),
        }
    )  # fmt: skip
    if board is not None:
        board_plan.show(board, base, store, config, as_json)
        return
    asked = end_on_sigterm()
    if attached:
        end_with_parent()
    os.nice(nice)
    bounds = Bounds(success=success, old_error=old_error)
    seconds = None if minutes is None else 60 * minutes
    work = Job(
        store, base or "live", tuple(datasets or ()), config, threads, gate, trials, bounds, save_every, seconds,
        replayed=tuple(replay_from or ()), span=Span(until, since), carry=carry, name=job,
    )  # fmt: skip
    if plan:
        show(survey_of(work), seconds, as_json)
        return
    speaks = first_of_all()
    events = tune(work)
    if tensorboard is not None and speaks:
        from hotpolicy.launch.tensorboard import written

        events = written(tensorboard, events)
    for event in draw(events) if speaks and not as_json else events:
        if speaks and as_json:
            typer.echo(json.dumps(event))
        if asked.is_set():
            sys.exit(TERMINATED)  # by way of every `finally`: nothing half written stays
    if not (gate and speaks):
        return
    if not event["passed"]:
        raise SwapRefused(f"{event['version']}: refused by the gate: {'; '.join(event['reasons'])}")
    if control is not None:
        from hotpolicy.launch.versions import connect

        with connect(control, key, server_key) as client:
            client.swap(event["version"])
        typer.echo(json.dumps({**event, "event": "live"}) if as_json else f"{event['version']} is live")


def first_of_all() -> bool:
    """Whether this process speaks and publishes for a run on several: torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"
