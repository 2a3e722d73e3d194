"""The encoder process: compresses camera frames that a recorder puts into shared memory. `encoders.py` starts it.

It is told by lines of JSON on its standard input, and answers by lines of JSON on its standard output:

    {"open": COLUMN, "path": MP4, "fps": 30, "codec": "h264", "spill": FILE}
    {"slot": COLUMN, "number": 3}     the next frame is in this slot
    {"place": COLUMN, "number": 0}    the next frame is at this place of the spill file
    {"end": COLUMN}                   no more frames
    {"drop": COLUMN}                  nothing of it is wanted
                                      {"ready": PID}       once, first of all
                                      {"done": COLUMN}     a frame is compressed, its slot free
                                      {"ended": COLUMN, "frames": 30, "levels": [[...], ...]}
                                      {"dropped": COLUMN}
                                      {"failed": COLUMN, "errno": 28, "text": "..."}

It ends with its standard input, so with the recorder, however that ended, and then at once: what it was at is lost.
"""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from hotpolicy.finetune.storage.images import VideoWriter, codec_named
from hotpolicy.finetune.storage.slots import Slots
from hotpolicy.finetune.storage.spill import read_image
from hotpolicy.finetune.storage.stats import ImageStats

WATCH_S = 1.0  # how often it looks whether the recorder is still there, beside waiting for its standard input to end
Say = Callable[[dict[str, Any]], None]


class Desk:
    """One camera's: a thread that takes the frames of one episode in order."""

    def __init__(self, column: str, order: dict[str, Any], slots: Slots, say: Say):
        self._column, self._order, self._slots, self._say = column, order, slots, say
        self._work: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._dropped = False
        self._spill: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"desk-{column}", daemon=True)
        self._thread.start()

    def put(self, message: dict[str, Any]) -> None:
        self._dropped |= "drop" in message
        self._work.put(message)

    def join(self) -> None:
        """Wait for the end or the drop that it was told of."""
        self._thread.join()

    def _run(self) -> None:
        levels, writer = ImageStats(), None
        try:
            height, width, _ = self._slots.shape(self._column)
            order = self._order
            writer = VideoWriter(Path(order["path"]), height, width, order["fps"], codec_named(order["codec"]))
            for message in self._frames():
                image = self._image(message)
                levels.add(image)
                writer.add(image)
                self._say({"done": self._column})
            if not self._dropped:
                writer.close()
                self._say({"ended": self._column, "frames": levels.frames, "levels": levels.levels.tolist()})
        except Exception as error:  # noqa: BLE001  # of whatever kind: it belongs to the recorder
            text = " ".join(str(getattr(error, "strerror", None) or error).split())
            self._say({"failed": self._column, "errno": getattr(error, "errno", None), "text": text})
            while not self._dropped:
                self._work.get()
        if self._spill is not None:
            os.close(self._spill)
        if self._dropped:
            if writer is not None:
                writer.abandon()
            self._say({"dropped": self._column})

    def _frames(self) -> Iterator[dict[str, Any]]:
        while True:
            message = self._work.get()
            if "end" in message or "drop" in message:
                return
            if not self._dropped:
                yield message

    def _image(self, message: dict[str, Any]) -> Any:
        if "slot" in message:
            return self._slots.frame(self._column, message["number"])
        if self._spill is None:
            self._spill = os.open(self._order["spill"], os.O_RDONLY)
        return read_image(self._spill, message["number"], self._slots.shape(self._column))


def serve(slots: Slots, lines: Iterator[bytes], say: Say) -> None:
    """Do what the lines say, until there are no more."""
    desks: dict[str, Desk] = {}
    for line in lines:
        message = json.loads(line)
        verb, column = next(iter(message.items()))
        if verb == "open":
            if column in desks:
                desks[column].join()
            desks[column] = Desk(column, message, slots, say)
        else:
            desks[column].put(message)


def _lines(source: int, parent: int) -> Iterator[bytes]:
    """Of the pipe `source`, while the process `parent` lives: some other child of its may hold the pipe open."""
    held = b""
    while os.getppid() == parent:
        if not select.select([source], [], [], WATCH_S)[0]:
            continue
        if not (read := os.read(source, 65536)):
            return
        *whole, held = (held + read).split(b"\n")
        yield from whole


def main(setting: str) -> None:
    """`setting`: JSON, see `encoders.py`."""
    given = json.loads(setting)
    os.nice(given["nice"])
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    slots = Slots.attach(given["file"], given["slots"])
    os.close(given["file"])
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            os.write(answers, json.dumps(message).encode() + b"\n")

    say({"ready": os.getpid()})
    serve(slots, _lines(0, given["parent"]), say)
    os._exit(0)  # desks may be at work: nobody is there any more who wants it
