"""What a session has written down: its state, on disk before anything follows from it, and what it shows of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hotpolicy.launch.sessions import file as session_file
from hotpolicy.launch.sessions.events import Event, advance
from hotpolicy.launch.sessions.progress import save_plot, show_round
from hotpolicy.launch.sessions.state import State


class Journal:
    def __init__(self, folder: Path, state: State):
        self.folder, self.state = folder, state

    def note(self, happening: Event) -> None:
        """It happened: on disk before anything follows from it."""
        self.state = advance(self.state, happening)
        session_file.save(self.folder, self.state)

    def show(self, number: int | None) -> None:
        """A round's line, and the plot of all of them."""
        for entry in self.state.rounds:
            if entry.number == number:
                show_round(entry)
        if importlib.util.find_spec("matplotlib") is not None:
            save_plot(self.folder, self.state.rounds)
