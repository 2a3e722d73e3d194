"""What a robot's loop feels of a disk that is slow: 30 Hz, three cameras of 640x480, each write and sync made to wait.

    python bench/slow_disk.py            # seconds of an episode: --seconds 8

`syncs`: every fsync takes 2 s. `spills`: the encoder is stopped, so that all frames go to a disk that takes 1 MB/s.
A tick hands a frame over as the loop does; the longest of these hand-overs is what the loop waits for the recorder.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from hotpolicy.finetune.dataset import Dataset
from hotpolicy.finetune.recorder import Recorder
from hotpolicy.robots.feed import Feed
from hotpolicy.runtime.clock import Rate, now
from hotpolicy.runtime.errors import RobotError
from hotpolicy.runtime.messages import CameraSpec, Joint, Observation, RobotSpec, Step

SYNC_S, BYTES_PER_S = 2.0, 1e6
SPEC = RobotSpec(
    tuple(Joint(f"joint_{i}.pos", "deg", -90, 90) for i in range(6)),
    tuple(CameraSpec(name, 480, 640) for name in ("front", "left", "right")),
    rate_hz=30,
)
FSYNC, PWRITE = os.fsync, os.pwrite


def sync(descriptor: int) -> None:
    time.sleep(SYNC_S)
    FSYNC(descriptor)


def write(descriptor: int, data: memoryview, offset: int) -> int:
    time.sleep(len(data) / BYTES_PER_S)
    return PWRITE(descriptor, data, offset)


def pictures(count: int) -> list[dict[str, np.ndarray]]:
    """Smooth, with a little noise, as a camera's are."""
    draw = np.random.default_rng(0)
    ramp = np.linspace(40, 200, 640)[None, :, None] + np.linspace(0, 40, 480)[:, None, None]
    return [
        {camera.name: (ramp + draw.integers(0, 8, (480, 640, 3))).astype(np.uint8) for camera in SPEC.cameras}
        for _ in range(count)
    ]


def row(kind: str, seconds: float, folder: Path) -> str:
    os.fsync = FSYNC
    if kind == "syncs":
        os.fsync = sync  # type: ignore[assignment]
    else:
        os.pwrite = write  # type: ignore[assignment]
    seen, joints, waits, said = pictures(8), np.zeros(6, np.float32), [], "kept"
    with Recorder.open(folder / kind, SPEC, encoding="process") as recorder:
        feed, rate, encoders = Feed(recorder), Rate(SPEC.rate_hz), recorder._encoders
        assert encoders is not None
        feed.begin("touch")
        if kind == "spills":
            feed.flush()
            os.kill(encoders.pid, signal.SIGSTOP)
        began = now()
        try:
            for tick in range(round(seconds * SPEC.rate_hz)):
                images = {name: image.copy() for name, image in seen[tick % len(seen)].items()}
                step = Step(Observation(images, joints, "touch"), joints, joints, None, False)
                handed = now()
                feed.step(step)
                waits.append(now() - handed)
                rate.wait()
            feed.save()
        except RobotError as error:
            said = str(error)
            feed.discard()
        lasted = now() - began
        if kind == "spills":
            os.kill(encoders.pid, signal.SIGCONT)
            os.pwrite = PWRITE
        feed.flush()
        settled = now() - began - lasted
        feed.close()
    sealed = Dataset.open(folder / kind)
    frames = sum(len(sealed.episode(i).state) for i in range(len(sealed)))
    return f"| {kind} | {len(waits)} | {frames} | {1000 * max(waits):.1f} | {lasted:.1f} | {settled:.1f} | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    seconds = parser.parse_args().seconds
    print(
        "| the disk | ticks | frames sealed | longest hand-over, ms | episode, s | until sealed, s | said |", flush=True
    )
    print("|-|-:|-:|-:|-:|-:|-|", flush=True)
    with tempfile.TemporaryDirectory(prefix="slow-disk") as name:
        for kind in ("syncs", "spills"):
            print(row(kind, seconds, Path(name)), flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
