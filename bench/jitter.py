"""How steady the control loop is: 50 Hz on the virtual arm with a policy client, a camera and a recorder's feed.

    python bench/jitter.py                  # 60 s
    python bench/jitter.py --seconds 10 --hertz 100

The virtual arm (physics by the clock, servo bytes on a pseudo-terminal) and the policy server (the shipped nano policy)
are processes of their own, on the same cores. Measured in the loop: the time between two ticks less the period, the
time a tick's work takes, and the lag that the loop itself reports.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from hotpolicy.launch.processes import Child
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.versions import SHIPPED
from hotpolicy.launch.virtual_arm import virtual_profile
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.loop import ControlLoop, EpisodeReport
from hotpolicy.robots.sources import PolicySource
from hotpolicy.runtime.chunks import ChunkBuffer
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.clock import Rate, now
from hotpolicy.runtime.messages import Step
from hotpolicy.runtime.store import Store

TASK = "touch the red cube"


class Watched:
    """A pacer that notes when each tick begins, and when its work was done."""

    def __init__(self, hertz: float):
        self._rate = Rate(hertz)
        self.done: list[float] = []  # s
        self.began: list[float] = [now()]

    def wait(self) -> float:
        self.done.append(now())
        lag = self._rate.wait()
        self.began.append(now())
        return lag


class Viewer:
    """A subscriber that is far too slow, as viewers are."""

    def begin(self, task: str) -> None: ...

    def step(self, step: Step) -> None:
        sum(image.sum() for image in step.observation.images.values())

    def save(self, success: bool | None = None) -> None: ...

    def discard(self) -> None: ...


def measure(hertz: float, seconds: float) -> tuple[Watched, EpisodeReport]:
    with tempfile.TemporaryDirectory(prefix="jitter") as name, ExitStack() as stack:
        folder = Path(name)
        profile = virtual_profile(folder, 0, f"ipc://{folder}/p", f"ipc://{folder}/c")
        profile = replace(profile, rate_hz=hertz)
        Store(folder / "policies").add(SHIPPED / "nano")
        arm = ["virtual-arm", "--port-link", profile.arms[0].port, "--world", str(profile.world), "--realtime"]
        serve = ["serve", "--store", str(folder / "policies"), "--endpoint", profile.endpoint]
        for title, arguments in (("virtual arm", arm), ("policy server", [*serve, "--control", profile.control])):
            child = Child(title, arguments, folder / f"{title}.log")
            stack.callback(child.stop)
            child.wait_ready()
        client = stack.enter_context(PolicyClient(profile.endpoint))
        rig = stack.enter_context(Rig.open(profile))
        rig.arm.torque(True)
        feed = Feed(Viewer(), when_full="drop")
        pacer = Watched(hertz)
        loop = ControlLoop(rig.arm, rig.cameras, pacer, [feed])
        report = loop.run(TASK, PolicySource(client, ChunkBuffer(hertz)), round(seconds * hertz))
        feed.close()
    return pacer, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hertz", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    pacer, report = measure(options.hertz, options.seconds)
    periods = np.diff(pacer.began[1:])  # the first tick waits for everything to be warm
    error = np.abs(periods - 1 / options.hertz) * 1000
    work = (np.array(pacer.done[1:]) - np.array(pacer.began[1:-1])) * 1000
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load {load:.1f}, Python {platform.python_version()}")
    print(f"{report.ticks} ticks at {options.hertz:g} Hz; held {report.held}; versions {', '.join(report.versions)}")
    for title, values in (("period error, ms", error), ("work in a tick, ms", work)):
        p50, p99, most = np.percentile(values, (50, 99, 100))
        print(f"{title:20} p50 {p50:.3f}  p99 {p99:.3f}  max {most:.3f}")
    print(f"late ticks {report.late}, longest lag {1000 * report.longest_lag_s:.2f} ms")


if __name__ == "__main__":
    main()
