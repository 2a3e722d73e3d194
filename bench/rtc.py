"""What a late answer does to a moving arm: sync, async and real-time chunking, with a policy that was made slow.

    python bench/rtc.py                                         # 3 delays x 5 ways x 50 episodes, about 10 min
    python bench/rtc.py --delays 300 --episodes 4 --plot ""     # a look
    python bench/rtc.py --out rtc.json --plot docs/rtc.png      # with the figures and the plot

The shipped nano policy (8 actions at 10 Hz) lifts cubes with the virtual arm, by the clock: servo bytes on a
pseudo-terminal, a real socket to the server, and a real sleep before each answer. All ways see the same scenes, in
turn, through the same policy, its noise drawn anew from the scene's number. An episode ends when the cube is lifted, or
after 8 s.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from scipy.stats import binomtest

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.nano import SHIPPED
from hotpolicy.launch.processes import Child
from hotpolicy.launch.rig import Rig
from hotpolicy.launch.virtual_arm import virtual_profile
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.loop import ControlLoop
from hotpolicy.robots.sim.kinematics import NAMES
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.robots.sources import PolicySource, Wish
from hotpolicy.runtime.chunks import ChunkBuffer, Guiding
from hotpolicy.runtime.client import PolicyClient
from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.engine.torch_engine import TorchEngine
from hotpolicy.runtime.messages import ActionChunk, Observation, Step
from hotpolicy.runtime.policy import Policy
from hotpolicy.runtime.server import PolicyServer
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.serving.epochs import Guide
from hotpolicy.runtime.slot import Slot
from hotpolicy.runtime.store import Store


class Misled(ChunkBuffer):
    """Tells the server that there is no delay: what an estimate gone wrong costs."""

    def delay(self) -> int:
        return 0


WAYS: dict[str, dict[str, Any]] = {
    "sync, whole chunk": {"chunking": "sync"},
    "async, replace": {"chunking": "async", "replan": 4},
    "async, blend over 3": {"chunking": "async", "replan": 4, "blend": 3},
    "rtc": {"chunking": "rtc", "replan": 4},
    "rtc, maximum weight 5": {"chunking": "rtc", "replan": 4, "guiding": Guiding(max_weight=5.0)},
    "rtc, maximum weight 10": {"chunking": "rtc", "replan": 4, "guiding": Guiding(max_weight=10.0)},
    "rtc, weight 5, told no delay": {"chunking": "rtc", "replan": 4, "guiding": Guiding(max_weight=5.0)},
}
COLOURS = {
    "sync, whole chunk": "#999999",
    "async, replace": "#c0392b",
    "async, blend over 3": "#e08e0b",
    "rtc": "#2471a3",
}
BODY = slice(0, 5)  # the joints in degrees; the gripper is in percent
RATE = 10.0  # Hz
LONGEST = 80  # ticks, twice what the task allows by itself
SCENES = 40_000_000  # seeds that nothing was trained or examined on


class Slow(Policy):
    """One version, late: it sleeps before it computes."""

    delay_s = 0.0
    rng = np.random.default_rng(0)

    def infer(
        self,
        observations: Sequence[Observation],
        noise: np.ndarray | None = None,
        guides: Sequence[Guide | None] | None = None,
    ) -> np.ndarray:
        sleep(self.delay_s)
        start = self.transforms.noise(self.rng, len(observations)) if noise is None else noise
        return super().infer(observations, start, guides)


class Noted(PolicySource):
    """Notes where each tick's action comes from."""

    def begin(self, task: str) -> None:
        super().begin(task)
        self.chunks: list[ActionChunk | None] = []  # None where the arm held
        self.places: list[int] = []  # of the action in its chunk

    def act(self, observation: Observation) -> Wish:
        wish = super().act(observation)
        self.chunks.append(None if wish.action is None else self.buffer.chunk)
        self.places.append(self.buffer.index - 1)
        return wish

    def jumps(self, wished: np.ndarray) -> list[float]:
        """Where one chunk takes over from another: by how much the goals move otherwise than the new chunk would move
        them, had it been in use before; rms over the joints, deg."""
        found = []
        for k in range(1, len(wished)):
            old, new, place = self.chunks[k - 1], self.chunks[k], self.places[k]
            if old is not None and new is not None and new is not old:
                step = new.actions[place, BODY] - new.actions[place - 1, BODY]
                found.append(_rms(wished[k] - wished[k - 1] - step))
        return found


class Take:
    """The goals asked for, those sent after the limits, and the positions read in each tick of one episode, deg."""

    def begin(self, task: str) -> None:
        self.wished: list[np.ndarray] = []
        self.sent: list[np.ndarray] = []
        self.seen: list[np.ndarray] = []

    def step(self, step: Step) -> None:
        self.wished.append(step.requested[BODY])
        self.sent.append(step.action[BODY])
        self.seen.append(step.observation.state[BODY])

    def save(self, success: bool | None = None) -> None: ...

    def discard(self) -> None: ...


@dataclass(frozen=True)
class Episode:
    """What one episode was like; rms is over ticks and the five joints in degrees."""

    seed: int
    success: bool
    ticks: int
    held: int
    late: int  # ticks of the loop
    jerk: float  # rms third difference of the goals sent, deg/s^3
    jerk_seen: float  # of the positions read
    lag: float  # rms distance from a goal sent to where the joint was a tick later, deg
    jumps: list[float]  # at each change of chunk, see Noted.jumps: rms over the joints, deg
    chunks: int
    guided: int
    wished: list[list[float]] = field(repr=False)  # (ticks, 5), deg


@dataclass(frozen=True)
class Row:
    """One way at one delay."""

    delay: str
    way: str
    episodes: list[Episode]

    def of(self, name: str) -> np.ndarray:
        return np.array([getattr(episode, name) for episode in self.episodes], float)

    def mean(self, name: str) -> str:
        """Over the episodes, with its 95 % half-width."""
        values = self.of(name)
        half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return f"{values.mean():,.0f} ± {half:,.0f}" if values.mean() >= 10 else f"{values.mean():.2f} ± {half:.2f}"

    @property
    def jumps(self) -> np.ndarray:
        return np.array([jump for episode in self.episodes for jump in episode.jumps])

    def success(self) -> str:
        wins, n = int(self.of("success").sum()), len(self.episodes)
        low, high = binomtest(wins, n).proportion_ci(0.95, method="wilson")
        return f"{wins}/{n} ({low:.2f} to {high:.2f})"


class Bench:
    """One delay: a server, an arm, and for each way a client and a buffer of its own."""

    def __init__(self, folder: Path, delay_ms: int):
        self.folder, self.delay_ms = folder / str(delay_ms), delay_ms

    def run(self, ways: Sequence[str], episodes: int) -> list[Row]:
        found: dict[str, list[Episode]] = {way: [] for way in ways}
        store = Store(self.folder / "policies")
        store.add(SHIPPED)
        slot = Slot(store, lambda bundle, parent: Slow(bundle, TorchEngine.load(bundle)))
        policy = slot.live
        assert isinstance(policy, Slow)
        policy.delay_s = self.delay_ms / 1000
        with ExitStack() as stack:
            config = ServeConfig(endpoint=f"ipc://{self.folder}/s")
            server = stack.enter_context(PolicyServer(config, slot, Control(slot, store)))
            server.wait_ready()
            profile = virtual_profile(self.folder, 0, server.endpoint, server.control_endpoint)
            arm = ["virtual-arm", "--port-link", profile.arms[0].port, "--world", str(profile.world), "--realtime"]
            child = Child("virtual arm", arm, self.folder / "arm.log")
            stack.callback(child.stop)
            child.wait_ready()
            rig = stack.enter_context(Rig.open(profile))
            rig.arm.torque(True)
            sources = {}
            for way in ways:
                client = stack.enter_context(PolicyClient(server.endpoint, timeout_s=2.0))
                sources[way] = Noted(client, (Misled if "told" in way else ChunkBuffer)(RATE, **WAYS[way]))
            for index in range(-1, episodes):  # the first of each is for warming up: latencies are not known yet
                for way, source in sources.items():
                    policy.rng = np.random.default_rng(index + 1)
                    episode = attempt(rig, source, SCENES + index + 1)
                    if index >= 0:
                        found[way].append(episode)
                print(f"{self.delay_ms} ms, scene {index + 1}: {_progress(found)}", flush=True)
        return [Row(f"{self.delay_ms} ms", way, found[way]) for way in ways]


def attempt(rig: Rig, source: Noted, seed: int) -> Episode:
    take = Take()
    feed = Feed(take, when_full="fail")
    try:
        rig.set_scene(task_of(seed), seed)
        world = rig.world
        assert world is not None
        loop = ControlLoop(rig.arm, rig.cameras, rig.pacer, [feed])
        report = loop.run(task_of(seed), source, LONGEST, judge=lambda: world.look().success or None)
    finally:
        feed.close()
    return measured(seed, take, source, bool(report.success), report.held, report.late)


def task_of(seed: int) -> str:
    return Task("lift", KNOWN_COLOURS[seed % len(KNOWN_COLOURS)]).instruction


def measured(seed: int, take: Take, source: Noted, success: bool, held: int, late: int) -> Episode:
    wished, sent, seen = (np.stack(rows).astype(float) for rows in (take.wished, take.sent, take.seen))
    used = {id(chunk): chunk for chunk in source.chunks if chunk is not None}.values()
    return Episode(
        seed=seed,
        success=success,
        ticks=len(sent),
        held=held,
        late=late,
        jerk=_rms(np.diff(sent, 3, axis=0)) * RATE**3,
        jerk_seen=_rms(np.diff(seen, 3, axis=0)) * RATE**3,
        lag=_rms(sent[:-1] - seen[1:]),
        jumps=source.jumps(wished),
        chunks=len(used),
        guided=sum(chunk.guided for chunk in used),
        wished=wished.round(3).tolist(),
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _progress(found: dict[str, list[Episode]]) -> str:
    return ", ".join(f"{way} {sum(e.success for e in done)}/{len(done)}" for way, done in found.items())


def table(rows: Sequence[Row]) -> str:
    heads = (
        "delay", "", "jump at a seam, deg: mean (p95)", "jerk sent, deg/s³", "jerk measured, deg/s³",
        "tracking error, deg", "ticks held", "lifted in 8 s (95 % Wilson)", "ticks to it",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|--:|-{'|--:' * (len(heads) - 2)}|"]
    for row in rows:
        won = [episode.ticks for episode in row.episodes if episode.success]
        jumps = row.jumps
        cells = (
            row.delay,
            row.way,
            f"{jumps.mean():.2f} ({np.percentile(jumps, 95):.2f})" if len(jumps) else "none",
            row.mean("jerk"),
            row.mean("jerk_seen"),
            row.mean("lag"),
            f"{row.of('held').sum() / row.of('ticks').sum():.0%}",
            row.success(),
            f"{np.mean(won):.1f}" if won else "none",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], file: Path) -> None:
    """One joint's goals in the scene, of those that went well in every way, where async jumped most; jumps and jerk
    against the delay."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.3), dpi=90, layout="constrained")
    scene, jump, jerk = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    longest = [row for row in rows if row.delay == rows[-1].delay and row.way in COLOURS]
    worst = next(row for row in longest if row.way == "async, replace")
    well = [all(row.episodes[n].success for row in longest) for n in range(len(worst.episodes))]
    most = [max(episode.jumps, default=0.0) for episode in worst.episodes]
    chosen = max(range(len(most)), key=lambda n: (well[n], most[n]))
    joint = int(np.argmax(np.abs(np.diff(np.array(worst.episodes[chosen].wished), 2, axis=0)).max(0)))
    for row in longest:
        goals = np.array(row.episodes[chosen].wished)[:, joint]
        scene.plot(np.arange(len(goals)) / RATE, goals, color=COLOURS[row.way], linewidth=1.6, label=row.way)
    scene.set(xlabel="s", ylabel=f"{NAMES[joint]}, goal asked for, deg")
    scene.set_title(f"{worst.delay} added: one scene, lifted by all", fontsize=10)
    for way, colour in COLOURS.items():
        line = [row for row in rows if row.way == way]
        delays = [int(row.delay.removesuffix(" ms")) for row in line]
        if not way.startswith("sync"):
            jump.plot(delays, [row.jumps.mean() for row in line], color=colour, marker="o")
        spread = [1.96 * row.of("jerk").std(ddof=1) / np.sqrt(len(row.episodes)) for row in line]
        means = [row.of("jerk").mean() for row in line]
        jerk.errorbar(delays, means, spread, color=colour, marker="o", capsize=3, label=way)
    jump.set(xlabel="delay added, ms", yscale="log", ylim=(0.1, 6))
    jump.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    jump.minorticks_off()
    jump.set_title("jump at a seam, deg, mean", fontsize=10)
    jerk.set(xlabel="delay added, ms", ylim=(0, None))
    jerk.set_title("jerk of the goals sent, deg/s³", fontsize=10)
    jerk.legend(fontsize=8, frameon=False, loc="lower left")
    for axes in (scene, jump, jerk):
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", type=int, nargs="+", default=[150, 200, 300], metavar="MS")
    parser.add_argument("--ways", nargs="+", default=list(WAYS)[:5], choices=WAYS, metavar="WAY")
    parser.add_argument("--episodes", type=int, default=50, help="of each way at each delay")
    parser.add_argument("--plot", default="rtc.png", help="where to draw; empty: nowhere")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rtc") as name, ThreadPoolExecutor(len(options.delays)) as pool:
        benches = [Bench(Path(name), delay) for delay in options.delays]
        rows = [
            row for found in pool.map(lambda bench: bench.run(options.ways, options.episodes), benches) for row in found
        ]
    late = sum(episode.late for row in rows for episode in row.episodes)
    ticks = sum(episode.ticks for row in rows for episode in row.episodes)
    guided = [(e.guided, e.chunks) for row in rows if row.way == "rtc" for e in row.episodes]
    print(f"{describe_machine()}, load {os.getloadavg()[0]:.1f}")
    print(f"late ticks of the loops {late} of {ticks}")
    print(f"of rtc's chunks {sum(g for g, _ in guided)} of {sum(n for _, n in guided)} were guided")
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows]))
    if options.plot:
        plot(rows, Path(options.plot))


if __name__ == "__main__":
    main()
