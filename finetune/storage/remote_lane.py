"""One camera's way to the encoder process while an episode lasts: shared memory, and a spill for when that is full."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hotpolicy.finetune.storage.encoders import EncoderProcess
from hotpolicy.finetune.storage.images import Codec
from hotpolicy.finetune.storage.spill import Spill
from hotpolicy.finetune.storage.stats import ImageStats

STALL_S = 30.0  # without a frame compressed, while we wait for it, and the process is taken for hung
Entry = tuple[str, int]  # ("slot", number) or ("place", number in the spill)
END: Entry = ("end", 0)


class RemoteLane:
    """As `lane.Lane`: `add` never waits for the encoder, and none is ever dropped. Of its messages no more are under
    way than there are slots, so that a process that is behind, or stopped, never fills the pipe."""

    def __init__(self, process: EncoderProcess, column: str, path: Path, fps: int, codec: Codec, spill: Spill):
        self.levels = ImageStats()  # complete after `finish`
        self.spilled = 0  # frames that waited on disk
        self._process, self._column, self._path, self._spill = process, column, path, spill
        self._slots = process.slots.counts[column]
        self._free = list(range(self._slots))  # a heap: the lowest is the one most likely still in a cache
        self._waiting: deque[Entry] = deque()  # the process does not know of them yet
        self._under_way: deque[Entry] = deque()
        self._done = 0  # frames compressed
        self._over = False  # ended or dropped
        self._failure: OSError | None = None
        self._changed = threading.Condition()
        process.listen(column, self)
        process.say(open=column, path=str(path), fps=fps, codec=codec.name, spill=str(spill.path))

    def add(self, image: np.ndarray) -> bool:
        """Take one frame; True when it went to the spill. Raises OSError when the disk has refused this frame or an
        earlier one, or the process is over."""
        with self._changed:
            self._raise_failure()
            slot = heapq.heappop(self._free) if self._free else None
        if slot is None:
            entry = "place", self._spill.put(image)
            self.spilled += 1
        else:
            entry = "slot", slot
            np.copyto(self._process.slots.frame(self._column, slot), image)
        with self._changed:
            self._waiting.append(entry)
            self._tell()
        return slot is None

    def finish(self) -> None:
        """Return once every frame is in the video and that is whole. Raises as `add` does."""
        with self._changed:
            self._raise_failure()
            self._waiting.append(END)
            self._tell()
            self._wait(lambda: self._over or self._failure is not None)
            self._raise_failure()
        self._let_go()

    def abandon(self) -> None:
        """Let go of everything; harmless after `finish`."""
        with self._changed:
            self._waiting.clear()
            if not self._over:
                self._process.say(drop=self._column)
                self._wait(lambda: self._over)
        self._let_go()
        self._path.unlink(missing_ok=True)

    def hear(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            if "done" in message:
                kind, number = self._under_way.popleft()
                if kind == "slot":
                    heapq.heappush(self._free, number)
                else:
                    self._spill.taken()
                self._done += 1
                self._tell()
            elif "failed" in message:  # it waits to be dropped
                code, text = message["errno"], message["text"]
                self._failure = OSError(code, text) if code else OSError(text)
            else:
                if "ended" in message:
                    self.levels = ImageStats(np.array(message["levels"]), message["frames"])
                self._over = True
            self._changed.notify_all()

    def lost(self, error: OSError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._over = True
            self._changed.notify_all()

    def _tell(self) -> None:
        while self._waiting and len(self._under_way) < self._slots:
            kind, number = entry = self._waiting.popleft()
            if entry != END:
                self._under_way.append(entry)
            self._process.say(**{kind: self._column, "number": number})

    def _wait(self, satisfied: Callable[[], bool]) -> None:
        while not satisfied():
            before = self._done
            if not self._changed.wait_for(lambda: satisfied() or self._done != before, STALL_S):  # noqa: B023
                self._process.kill(f"it did nothing for {STALL_S:g} s and was killed")

    def _let_go(self) -> None:
        self._process.listen(self._column, None)
        self._spill.close()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
