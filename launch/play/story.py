"""How the demo tells what it does: a rule for each step, a bar while it works, a line when it has found something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hotpolicy.launch.play.results import Bar
from hotpolicy.launch.rollouts import Score
from hotpolicy.launch.success import interval
from hotpolicy.runtime.clock import now


class Story:
    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self.wall_s: dict[str, float] = {}  # step -> seconds
        self._began = now()

    @contextmanager
    def step(self, key: str, title: str) -> Iterator[None]:
        """One step; `key` names its time in the report."""
        self.console.rule(f"[bold]{title}", align="left", style="dim")
        began = now()
        yield
        self.wall_s[key] = round(now() - began, 2)

    def total(self) -> float:
        return round(now() - self._began, 2)

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields `advance(text=None, to=None)`."""
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        ) as progress:
            task = progress.add_task(text, total=total)

            def advance(text: str | None = None, to: int | None = None) -> None:
                if to is None:
                    progress.advance(task)
                else:
                    progress.update(task, completed=to)
                if text is not None:
                    progress.update(task, description=text)

            yield advance

    def score(self, label: str, score: Score, colour: str = "") -> None:
        low, high = interval({"successes": score.successes, "episodes": score.episodes})
        rate = f"[bold {colour}]{score.rate:.2f}[/]" if colour else f"[bold]{score.rate:.2f}[/]"
        self.say(f"{label:<36} {rate}  {score.successes}/{score.episodes}, 95 % {low:.2f} to {high:.2f}")

    def table(self, bars: Sequence[Bar]) -> None:
        """The bars this run was measured against."""
        table = Table(box=None, header_style="dim", pad_edge=False, title_justify="left")
        for column in ("", "found", "wanted"):
            table.add_column(column)
        for bar in bars:
            mark = "[green]yes[/]" if bar.met else "[bold red]no[/]"
            table.add_row(bar.name, bar.value, f"{bar.wanted}  {mark}")
        self.console.rule("[bold]What was found", align="left", style="dim")
        self.console.print(table)
