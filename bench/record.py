"""What recording costs the control loop: three moving 640x480 cameras at 30 Hz, the recorder behind its feed.

    python bench/record.py                     # 60 s each: nobody listens, h264 in a process and in threads
    python bench/record.py --rounds 5 --seconds 20          # in turn, five times, and the sums
    python bench/record.py --only av1          # or png, or av1-thread
    python bench/record.py --load 2            # beside two processes that never rest

The loop, its feed and the recorder are the real ones; the bare arm only remembers its goal, and the cameras hand out
pictures made beforehand (blocks and sensor noise that move), so that what is measured is the recorder. An overrun is a
tick that came late, by the loop's own count; those of the row "none" are the machine's, and beside other work only
several rounds in turn can tell them from the recorder's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.finetune.storage import layout
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.limits import LimitedArm, Limits
from hotpolicy.robots.loop import ControlLoop
from hotpolicy.robots.robot import ArmState, Frame
from hotpolicy.robots.sources import HOLD, Wish
from hotpolicy.runtime.clock import Rate, now
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec, Step

HERTZ, TASK = 30, "move the blocks"
SPEC = RobotSpec(
    joints=tuple(Joint(f"joint_{i}.pos", "deg", -90, 90) for i in range(6)),
    cameras=tuple(CameraSpec(name, 480, 640) for name in ("front", "wrist", "side")),
    rate_hz=HERTZ,
)
KINDS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "h264": {"storage": "video", "codec": "h264", "encoding": "process"},
    "h264-thread": {"storage": "video", "codec": "h264", "encoding": "thread"},
    "av1": {"storage": "video", "codec": "av1", "encoding": "process"},
    "av1-thread": {"storage": "video", "codec": "av1", "encoding": "thread"},
    "png": {"storage": "image"},
}
USUAL = ("none", "h264", "h264-thread")


def pictures(seed: int, count: int = 45) -> list[np.ndarray]:
    """Blocks that move over a background, with the noise of a sensor: (480, 640, 3) uint8 each."""
    draw = np.random.default_rng(seed)
    ground = draw.integers(40, 200, (12, 16, 3)).repeat(40, 0).repeat(40, 1)
    block = draw.integers(0, 255, (8, 8, 3)).repeat(15, 0).repeat(15, 1)
    made = []
    for i in range(count):
        image = ground + draw.normal(0, 3, ground.shape)
        for k in range(3):
            top, left = (40 + 110 * k + 3 * i) % 360, (60 + 170 * k + 5 * i) % 520
            image[top : top + 120, left : left + 120] = block
        made.append(image.clip(0, 255).astype(np.uint8))
    return made


class Camera:
    """Hands out the pictures in turn, each in an array of its own, as a driver does."""

    def __init__(self, spec: CameraSpec, seed: int):
        self.name = spec.name
        self._made, self._next = pictures(seed), 0

    def read(self) -> Frame:
        self._next += 1
        return Frame(self._made[self._next % len(self._made)].copy(), now())

    def close(self) -> None: ...


class Arm:
    """Remembers its goal."""

    spec = SPEC

    def __init__(self) -> None:
        self._goal = np.zeros(6, np.float32)

    def read(self) -> ArmState:
        return ArmState(self._goal.copy(), (), {}, now())

    def send(self, positions: np.ndarray) -> None:
        self._goal = positions.astype(np.float32)

    def hold(self) -> None: ...

    def torque(self, on: bool) -> None: ...

    def close(self) -> None: ...


class Wave:
    """A source that never rests."""

    def begin(self, task: str) -> None: ...

    def act(self, observation: Observation) -> Wish:
        return Wish(np.full(6, 30 * np.sin(2 * now()), np.float32)) if observation.task else HOLD

    def decision(self) -> Any:
        return "done"


class TimedFeed(Feed):
    """Notes how long the loop spends in handing over a step."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.took: list[float] = []  # s

    def step(self, step: Step) -> None:
        began = now()
        super().step(step)
        self.took.append(now() - began)


@dataclass(frozen=True, slots=True)
class Result:
    late: int  # ticks
    longest_lag_ms: float
    handing_p99_ms: float
    handing_max_ms: float
    dropped: int  # ticks that are not in the dataset
    spilled: int  # camera frames
    cpu: float  # of one core, of the loop's process, while the episode lasted and was sealed
    encoder_cpu: float  # of one core, of the encoder process
    memory_mb: float  # most the loop's process has held since it began
    encoder_mb: float  # most any encoder process has held
    sealing_s: float  # after the last tick
    mb_per_min: float


def measure(kind: str, cameras: list[Camera], seconds: float) -> Result:
    ticks = round(seconds * HERTZ)
    with tempfile.TemporaryDirectory(prefix="record") as name, ExitStack() as stack:
        root, feeds = Path(name) / "set", []
        if storage := KINDS[kind]:
            recorder = stack.enter_context(Recorder.open(root, SPEC, **storage))
            feeds = [TimedFeed(recorder)]
        arm = LimitedArm(Arm(), Limits.of(SPEC, 90.0))
        arm.torque(True)
        loop = ControlLoop(arm, cameras, Rate(HERTZ), feeds)
        began, cpu, others = now(), time.process_time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        report = loop.run(TASK, Wave(), ticks)
        cpu = (time.process_time() - cpu) / (now() - began)
        kept, spilled, size = ticks, 0, 0
        took = [0.0]
        if feeds:
            feeds[0].close()
            recorder.close()  # what its process used is known when that is over
            took = feeds[0].took
            dataset = Dataset.open(root)
            dataset.verify()
            kept = dataset.episodes[0].length
            spilled = layout.load_record(root / dataset.episodes[0].file)["spilled"]
            size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    p99, most = np.percentile(took, (99, 100)) * 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    held = after.ru_maxrss / 1e3 if storage and storage.get("encoding") == "process" else 0.0
    encoder = (after.ru_utime + after.ru_stime - others.ru_utime - others.ru_stime) / report.seconds
    return Result(
        report.late, 1000 * report.longest_lag_s, p99, most, ticks - kept, spilled, cpu, encoder, peak, held,
        max(0.0, report.seconds - seconds), size / 1e6 / seconds * 60,
    )  # fmt: skip


def burn() -> None:
    while True:
        sum(range(1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--load", type=int, default=0, help="processes beside it that never rest")
    options = parser.parse_args()
    cameras = [Camera(spec, seed) for seed, spec in enumerate(SPEC.cameras)]
    others = [multiprocessing.get_context("fork").Process(target=burn, daemon=True) for _ in range(options.load)]
    for other in others:
        other.start()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load {load:.1f} at the start, Python {platform.python_version()}")
    print(f"3 cameras 640x480, {HERTZ} Hz, {options.seconds:g} s each, {options.load} processes beside it")
    print("| kind | late ticks | longest lag, ms | handing over, ms p99 (max) | dropped | spilled | cores | encoder | "
          "MB held | by the encoder | sealing, s | MB/min |")  # fmt: skip
    print("|-|-:|-:|-:|-:|-:|-:|-:|-:|-:|-:|-:|")
    late: dict[str, list[int]] = {}
    for _ in range(options.rounds):
        for kind in options.only or USUAL:
            r = measure(kind, cameras, options.seconds)
            late.setdefault(kind, []).append(r.late)
            print(f"| {kind} | {r.late} | {r.longest_lag_ms:.1f} | {r.handing_p99_ms:.2f} ({r.handing_max_ms:.2f}) | "
                  f"{r.dropped} | {r.spilled} | {r.cpu:.2f} | {abs(r.encoder_cpu):.2f} | {r.memory_mb:.0f} | "
                  f"{r.encoder_mb:.0f} | {r.sealing_s:.1f} | {r.mb_per_min:.0f} |", flush=True)  # fmt: skip
    ticks = round(options.seconds * HERTZ) * options.rounds
    for kind, counts in late.items():
        print(f"late ticks of {ticks}, {kind}: {sum(counts)} ({', '.join(map(str, counts))})")
    for other in others:
        other.terminate()


if __name__ == "__main__":
    main()
