"""`hotpolicy pretrain-nano`: make the base policy that ships with hotpolicy, from nothing, in one command."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def pretrain_nano(
    out: Annotated[Path, typer.Option(help="Folder in which the sealed bundle is put, under its id.")] = Path("nano"),
    seed: Annotated[int, typer.Option(help="Of weights, batches and the choice of rehearsal frames.")] = 0,
    steps: Annotated[int, typer.Option(min=10, help="Optimiser steps in all, 64 frames each.")] = 2200,
    touch_episodes: Annotated[int, typer.Option(min=1, help="Demonstrations of touch per colour.")] = 900,
    lift_episodes: Annotated[int, typer.Option(min=1, help="Demonstrations of lift per colour.")] = 700,
    check_episodes: Annotated[int, typer.Option(min=1, help="Episodes per skill, colour and control.")] = 25,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 2,
) -> None:
    """Collect scripted demonstrations, pretrain a nano policy, check it with blind controls and seal it.

    About 17 minutes on two cores. The same seed and thread count on the same kind of processor give the same bundle.
    """
    import torch
    from rich.progress import Progress as Bar

    from hotpolicy.finetune.pretrainer import PretrainConfig, Progress
    from hotpolicy.launch import nano
    from hotpolicy.launch.console import show
    from hotpolicy.launch.success import interval
    from hotpolicy.robots.sim.tasks import KNOWN_COLOURS

    torch.set_num_threads(threads)
    usual = PretrainConfig().looking_steps
    looking = usual if steps > 2 * usual else steps // 5
    config = nano.NanoConfig(
        touch_episodes,
        lift_episodes,
        check_episodes=check_episodes,
        training=PretrainConfig(looking_steps=looking, steps=steps, seed=seed),
    )
    with Bar() as bars:
        total = (touch_episodes + lift_episodes) * len(KNOWN_COLOURS)
        bar = bars.add_task("demonstrations", total=total)
        demos = []
        for number, (verb, count) in enumerate((("touch", touch_episodes), ("lift", lift_episodes))):
            for demo in nano.collect(verb, count, number):
                demos.append(demo)
                bars.advance(bar)
        frames = nano.stack(demos)
        transforms = nano.nano_transforms(frames)
        bar = bars.add_task("pretraining", total=steps)

        def watch(progress: Progress) -> None:
            text = f"pretraining: flow loss {progress.flow:.3f}, object found within {progress.error * 8:.1f} px"
            bars.update(bar, advance=1, description=text)

        model = nano.train(config.training, frames, transforms, watch)
        bar = bars.add_task("checks", total=len(nano.CONTROLS) * len(nano.VERBS) * len(KNOWN_COLOURS))
        with tempfile.TemporaryDirectory() as scratch:
            draft = nano.seal_base(Path(scratch), model, frames, transforms, config)
            scores = nano.check(draft, check_episodes, lambda: bars.advance(bar))
    checks = {control: {verb: asdict(score) for verb, score in skills.items()} for control, skills in scores.items()}
    bundle = nano.seal_base(out, model, frames, transforms, config, checks)
    rows = []
    for control, skills in scores.items():
        for verb, score in skills.items():
            low, high = interval(asdict(score))
            rows.append({"policy": control, "skill": verb, "success": score.rate, "95 %": f"{low:.2f} to {high:.2f}"})
    show(rows, ("policy", "skill", "success", "95 %"), as_json=False)
    typer.echo(str(bundle.folder))
