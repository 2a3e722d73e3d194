"""The thread an engine runs in: begun, watched, and begun anew once when it died or got stuck."""

from __future__ import annotations

import logging
import threading

from hotpolicy.runtime.config import ServeConfig
from hotpolicy.runtime.contracts import Slot
from hotpolicy.runtime.envelope import one_line
from hotpolicy.runtime.errors import EngineFault, ServerFailed
from hotpolicy.runtime.serving.inference import Inference
from hotpolicy.runtime.serving.life import Life
from hotpolicy.runtime.serving.pulse import Pulse

logger = logging.getLogger(__name__)


class EngineThread:
    """Whatever ends it is a crash of the engine: a policy that fails for a request does not."""

    def __init__(self, config: ServeConfig, slot: Slot, inference: Inference, life: Life):
        self._config, self._slot, self._inference, self._life = config, slot, inference, life
        self._pulse = Pulse()
        self._crashing = threading.Lock()
        self._turn = 0  # threads that crashed
        self._left_behind: list[threading.Thread] = []

    @property
    def stuck(self) -> bool:
        """Whether a thread was left behind in a computation: then the process may not be able to end by itself."""
        return any(thread.is_alive() for thread in self._left_behind)

    def start(self) -> None:
        name = f"hotpolicy-infer-{self._turn}" if self._turn else "hotpolicy-infer"
        self._thread = threading.Thread(target=self._run, args=(self._turn,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """A model that computes for longer than a second is left behind: its thread is a daemon."""
        self._inference.stop()
        self._thread.join(1.0)
        self._left_behind.append(self._thread)

    def look(self, now: float) -> None:
        """Whether it goes on; for a thread that looks often. If not, it is begun anew, or the server fails."""
        turn, computing = self._turn, self._life.state in ("ready", "draining")
        longest_s = self._config.longest_inference_s if computing else self._config.longest_load_s
        if self._pulse.look(self._inference.progress, now) > longest_s:
            what = "one batch computed" if computing else "the version loaded or warmed up"
            self._crashed(turn, f"{what} for longer than {longest_s:g} s")

    def _run(self, turn: int) -> None:
        try:
            if turn:
                logger.warning("the engine is restarted: version %s is loaded", self._slot.reload())
            else:
                self._life.enter("warming", self._slot.live.version)
            self._inference.progress += 1
            self._inference.warm_up()
            self._inference.progress += 1
            if turn == self._turn:
                self._life.enter("ready")
                self._inference.run()
        except BaseException as error:
            if turn == self._turn:
                logger.exception("the inference thread ended")
            self._crashed(turn, one_line(f"{type(error).__name__}: {error}"))

    def _crashed(self, turn: int, reason: str) -> None:
        """Any thread: the inference thread of this turn is dead or stuck. One that is stuck cannot be ended in a living
        process: it is left behind with its memory, what it may still compute is dropped, and a new one begins with
        the version loaded anew. That is done once; what crashes again is broken deeper, and ends the process."""
        with self._crashing:
            if turn != self._turn:
                return
            self._turn += 1
            self._left_behind.append(self._thread)
            again = self._life.restart(reason)
            if not again:
                self._life.fail(f"the engine crashed: {reason}")
            fault = EngineFault if again else ServerFailed
            self._inference.abandon(fault(f"the engine crashed: {reason}"))
            if again:
                logger.error("the engine crashed and is restarted: %s", reason)
                self._pulse = Pulse()
                self.start()
