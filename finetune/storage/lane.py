"""One camera's way to disk while an episode lasts: a thread that compresses, and a spill for when it is behind."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

import numpy as np

from hotpolicy.finetune.storage.images import to_png
from hotpolicy.finetune.storage.spill import Spill
from hotpolicy.finetune.storage.stats import ImageStats


class Sink(Protocol):
    """Takes (height, width, 3) uint8 frames in order: a VideoWriter, or Pngs."""

    def add(self, image: np.ndarray) -> None: ...

    def close(self) -> None: ...  # whatever it makes is whole now

    def abandon(self) -> None: ...  # nothing of it is wanted; harmless after `close`


class Pngs:
    """A sink that keeps frames as PNG in memory: for small cameras."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def add(self, image: np.ndarray) -> None:
        self.contents.append(to_png(image))

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class Lane:
    """Feeds a sink from a thread of its own. `add` never waits for the sink: beyond `room` bytes in memory, frames
    go to the spill, and none is ever dropped."""

    def __init__(self, column: str, sink: Sink, spill: Spill, room: float):
        self.sink = sink
        self.levels = ImageStats()
        self.spilled = 0  # frames that waited on disk
        self._spill = spill
        self._room = room
        self._waiting: deque[np.ndarray | None] = deque()  # None: the next one of the spill
        self._held = 0  # bytes waiting in memory
        self._ended = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"lane-{column}", daemon=True)
        self._thread.start()

    def add(self, image: np.ndarray) -> bool:
        """Take one frame, the lane's to keep; True when it went to the spill. Raises OSError or FFmpegError when the
        disk has refused this frame or an earlier one."""
        with self._changed:
            self._raise_failure()
            crowded = self._waiting and self._held + image.nbytes > self._room
        if crowded:
            self._spill.put(image)
            self.spilled += 1
        with self._changed:
            self._waiting.append(None if crowded else image)
            self._held += 0 if crowded else image.nbytes
            self._changed.notify_all()
        return bool(crowded)

    def finish(self) -> None:
        """Return once every frame is in the sink and that is whole. Raises as `add` does."""
        self._end()
        self._spill.close()
        self._raise_failure()
        self.sink.close()

    def abandon(self) -> None:
        """Let go of everything; harmless after `finish`."""
        with self._changed:
            self._waiting.clear()
        self._end()
        self._spill.close()
        self.sink.abandon()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                image = self._waiting.popleft()
                self._held -= 0 if image is None else image.nbytes
            try:
                image = self._spill.get() if image is None else image
                self.levels.add(image)
                self.sink.add(image)
            except Exception as error:  # noqa: BLE001  # of whatever kind: it belongs to the thread that waits for us
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
                return
