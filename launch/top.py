"""`hotpolicy top`: what a policy server does, live in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hotpolicy.launch.keys import client_keys
from hotpolicy.launch.options import ENDPOINT, Key, ServerKey
from hotpolicy.runtime.errors import LockedOut, ServerLost

if TYPE_CHECKING:
    from hotpolicy.runtime.keys import ClientKeys

NARROW = 60  # columns; below, latencies show their middle and their tail only
COLOURS = {"ready": "green", "draining": "yellow", "failed": "bold red", "lost": "bold red"}
DROPS = ("expired", "superseded", "busy", "draining", "engine_fault", "bad_request")


@dataclass(frozen=True, slots=True)
class Frame:
    """What is known of a server at one moment."""

    endpoint: str
    stats: Mapping[str, Any] = field(default_factory=dict)  # the newest it sent; empty before the first
    rates: Mapping[str, float] = field(default_factory=dict)  # 1/s, of its counts
    lost_s: float | None = None  # how long it has given no answer; None: it did

    @property
    def state(self) -> str:
        return "lost" if self.lost_s is not None else str(self.stats["state"])

    def to_dict(self) -> dict[str, Any]:
        shown = {"endpoint": self.endpoint, "state": self.state, "lost_s": self.lost_s}
        return {**shown, "per_s": dict(self.rates), "stats": dict(self.stats)}


def top(
    endpoint: Annotated[str, typer.Argument(envvar="HOTPOLICY_ENDPOINT", help="The server's data socket.")] = ENDPOINT,
    key: Key = None,
    server_key: ServerKey = None,
    interval_s: Annotated[float, typer.Option(min=0.1, max=60, help="From one look to the next, s.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, a line for each interval; with --once, one document.")
    ] = False,
) -> None:
    """Watch a server: state, versions, requests, latency, drops, sessions, swaps, memory. Ctrl-C ends.

    A server that is gone is said to be lost, and watched again when it is back.
    """
    looks = watch(endpoint, interval_s, client_keys(key, server_key))
    try:
        if once or not (as_json or Console().is_terminal):
            _show_once(looks, as_json)
        elif as_json:
            for frame in looks:
                typer.echo(json.dumps(frame.to_dict()))
        else:
            _show_live(looks)
    except KeyboardInterrupt:
        return
    finally:
        looks.close()


def watch(endpoint: str, interval_s: float, keys: ClientKeys | None = None) -> Generator[Frame, None, None]:
    """A frame for each interval, without end. A server that gives no answer is told of, not raised."""
    from hotpolicy.runtime.client import PolicyClient

    with PolicyClient(endpoint, timeout_s=min(1.0, interval_s), keys=keys) as client:
        seen: Frame | None = None
        looked, heard = time.monotonic(), time.monotonic()
        while True:
            try:
                stats = client.stats()
            except ServerLost as error:
                if isinstance(error, LockedOut) and seen is None:
                    raise  # waiting does not help
                seen = lost(endpoint, seen, time.monotonic() - heard)
            else:
                now = time.monotonic()
                seen, heard = follow(endpoint, seen, stats, now - heard), now
            yield seen
            time.sleep(max(0.0, looked + interval_s - time.monotonic()))
            looked = time.monotonic()


def follow(endpoint: str, before: Frame | None, stats: Mapping[str, Any], passed_s: float) -> Frame:
    """The next frame, `passed_s` after the one that had an answer. Of a server that was started anew meanwhile, the
    rates are those since it began."""
    then, counts = before.stats if before else {}, stats["counts"]
    if not then or stats["uptime_s"] < then["uptime_s"]:
        earlier, seconds = {}, stats["uptime_s"]
    else:
        earlier, seconds = then["counts"], passed_s
    rates = {name: (n - earlier.get(name, 0)) / max(seconds, 1e-3) for name, n in counts.items()}
    return Frame(endpoint, stats, rates)


def lost(endpoint: str, before: Frame | None, since_s: float) -> Frame:
    return Frame(endpoint, before.stats if before else {}, {}, since_s)


def render(frame: Frame, width: int) -> RenderableType:
    """For a terminal of so many columns."""
    head = Text.assemble(("hotpolicy ", "dim"), frame.endpoint, "  ", (frame.state, COLOURS.get(frame.state, "yellow")))
    if frame.lost_s is not None:
        head.append(f" for {_age(frame.lost_s)}", style="bold red")
    if not frame.stats:
        return head
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(frame):
        grid.add_row(name, value)
    parts: list[RenderableType] = [head, grid, _latencies(frame.stats["latency_ms"], width)]
    if retreat := frame.stats["slot"].get("last_retreat"):
        parts.append(Text(f"rolled back by itself: {retreat}", style="bold red"))
    return Group(*parts)


def _rows(frame: Frame) -> Iterator[tuple[str, str]]:
    stats, rates = frame.stats, frame.rates
    counts, slot = stats["counts"], stats["slot"]
    restarts = f", engine restarts {stats['restarts']}" if stats["restarts"] else ""
    yield "up", _age(stats["uptime_s"]) + restarts
    held = {role: version for role, version in stats["versions"].items() if version}
    live = f" for {_age(slot['live_for_s'])}" if slot else ""
    yield "live", f"{held.get('live', '')}{live}"
    for role in ("previous", "staged"):
        if role in held:
            yield role, held[role]
    yield "requests", f"{rates.get('answered', 0):.1f}/s, {counts.get('answered', 0)} answered"
    yield "waiting", f"{stats['waiting']}, sessions {stats['sessions']}"
    for name, front in stats["fronts"].items():
        yield name, f"{front.get('answered', 0)} answered"
    dropped = [f"{name.replace('_', ' ')} {counts[name]}" for name in DROPS if counts.get(name)]
    yield "not answered", ", ".join(dropped) or "none"
    if slot:
        yield "swaps", _swaps(stats)
    yield "memory", f"{stats['resident_bytes'] / 1e6:.0f} MB"


def _swaps(stats: Mapping[str, Any]) -> str:
    slot = stats["slot"]
    parts = [f"{slot['promotions']}, refused {slot['refusals']}"]
    if slot["rollbacks"]:
        parts.append("rolled back " + ", ".join(f"{n} ({cause})" for cause, n in slot["rollbacks"].items()))
    if slot["swap_ms"]:
        parts.append("last: " + ", ".join(f"{name} {ms:.3g} ms" for name, ms in slot["swap_ms"].items()))
        parts.append(f"stall {stats['swap_stall_ms']['last']:.2g} ms")
    return "; ".join(parts)


def _latencies(latency_ms: Mapping[str, Mapping[str, float]], width: int) -> RenderableType:
    columns = ("p50", "p99") if width < NARROW else ("p50", "p95", "p99", "max", "n")
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ms", style="dim", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for phase, summary in latency_ms.items():
        table.add_row(phase, *(f"{summary[name]:.0f}" if name == "n" else f"{summary[name]:.2f}" for name in columns))
    return table


def _age(seconds: float) -> str:
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if days < 2 else f"{days:.1f} days"


def _show_once(looks: Iterator[Frame], as_json: bool) -> None:
    """The second frame: rates need an interval. Raises ServerLost when there is no server."""
    for frame in (next(looks), next(looks)):
        if frame.lost_s is not None:
            raise ServerLost(f"{frame.endpoint}: no answer from a server there")
    if as_json:
        typer.echo(json.dumps(frame.to_dict(), indent=2))
        return
    console = Console()
    console.print(render(frame, console.width))


def _show_live(looks: Iterator[Frame]) -> None:
    console = Console()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        for frame in looks:
            live.update(render(frame, console.width), refresh=True)
