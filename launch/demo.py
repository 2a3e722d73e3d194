"""`hotpolicy demo`: the whole loop on one machine, with a virtual arm behind a real serial protocol.

    virtual arm ── serial ── driver, limits, control loop ── ZeroMQ ── policy server
                                  │ episodes                               ▲ delta, swapped in while it serves
                                  └── dataset ── tuning process ── gate ───┘

This file is the story, step by step; what each step does is in the modules it calls.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and the dataset.")] = Path(
        "demo-report"
    ),
    seed: Annotated[int, typer.Option(help="Of scenes, demonstrations and tuning.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without the hard task, the comparison without replay, and ONNX: 3 minutes.")
    ] = False,
    teleop: Annotated[
        str, typer.Option(help="Who demonstrates: scripted, or keyboard (you, in this terminal).")
    ] = "scripted",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the working folder: store, logs, sockets.")] = False,
) -> None:
    """Teach a virtual SO-101 a new task while it is being served, swap in what it learned, and take it back."""
    from hotpolicy.launch.play import acts, encores
    from hotpolicy.launch.play.play import Play
    from hotpolicy.launch.play.report import write_report
    from hotpolicy.launch.play.results import bars
    from hotpolicy.launch.play.story import Story
    from hotpolicy.runtime.errors import ConfigError

    if teleop not in ("scripted", "keyboard"):
        raise ConfigError(f"--teleop: expected scripted or keyboard, got {teleop!r}")
    story = Story()
    work = Path(tempfile.mkdtemp(prefix="hotpolicy-"))  # short: sockets live in it
    try:
        with Play(work, out, story, seed=seed, quick=quick, teleop=teleop) as play:
            with story.step("start", "a, b   A virtual SO-101 and a policy server"):
                play.start()
            with story.step("before", "c      Before: a task the base policy was never trained on"):
                acts.before(play)
            with story.step("demonstrate", "d      Demonstrations, recorded as a LeRobotDataset v3.0"):
                acts.demonstrate(play)
            with story.step("tune", "e      Fine-tuning the action expert, while the server goes on serving"):
                acts.tune(play)
            with story.step("swap", "f      Gate, then hot swap in the middle of an episode, under load"):
                acts.swap(play)
            with story.step("after", "g      After: the same scenes"):
                acts.after(play)
            if not quick:
                with story.step("without_replay", "       The same tuning without replay of old tasks"):
                    encores.without_replay(play)
                with story.step("hard_task", "h      A cube of a colour never seen: head only, then the whole model"):
                    encores.hard_task(play)
            with story.step("rollback", "i      Back, and forward again, live"):
                acts.back_and_forward(play)
            if not quick:
                with story.step("onnx", "j      The tuned policy as ONNX, served by ONNX Runtime"):
                    encores.onnx(play)
            data = play.results()
            page = write_report(out, data, play.curves, play.strips, play.latency(), play.history())
    finally:
        if keep:
            story.say(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    story.table(bars(data))
    story.say(f"{page} and report.json, in {story.total():.0f} s")
