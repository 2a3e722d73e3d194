"""One openpi client's connection: metadata, then question and answer in turn, until one of both ends it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
from typing import TYPE_CHECKING, Any

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.envelope import one_line
from hotpolicy.runtime.errors import BadRequest, Busy, EngineFault, HotpolicyError
from hotpolicy.runtime.fronts import openpi_codec as codec
from hotpolicy.runtime.fronts.keymap import Fitting
from hotpolicy.runtime.messages import ActionChunk, InferRequest
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.scheduler import Outcome
from hotpolicy.runtime.serving.desk import Desk

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

logger = logging.getLogger(__name__)

FRAGMENTS = 65_536  # of one message: a client that writes 4 kB at a time is still understood
INTERNAL_ERROR, GOING_AWAY = 1011, 1001  # why a connection is closed


class Talk:
    """`run` is the connection's thread; `stop` is called by another."""

    def __init__(
        self, connection: ServerConnection, desk: Desk, meter: Meter, fitting: Fitting, name: str, deadline_ms: float
    ):
        self.session = (b"openpi:" + name.encode(), f"openpi:{name}")
        self._connection, self._desk, self._meter, self._fitting = connection, desk, meter, fitting
        self._deadline_ms = deadline_ms
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def run(self) -> None:
        """Until the client goes, or something goes wrong: that it is told in a text frame, as openpi's server does."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._converse()
        except ConnectionClosed:
            return
        except HotpolicyError as error:
            fault = error
        except Exception as error:
            logger.exception("a conversation ended")
            fault = EngineFault(f"server: {type(error).__name__}")
        self._meter.count(fault.code)
        with contextlib.suppress(ConnectionClosed):
            self._connection.send(one_line(str(fault)))
        self._connection.close(INTERNAL_ERROR, "Internal server error. The frame before says which.")

    def stop(self) -> None:
        self._outcomes.put(Busy("the server is stopping"))  # a model may compute for longer than anybody waits
        self._connection.close(GOING_AWAY)

    def _converse(self) -> None:
        self._connection.send(codec.encode(metadata(self._desk, self._fitting)))
        timing: dict[str, float] = {}
        for id in itertools.count(1):
            body = self._receive()
            began = now()
            reply = self._reply_to(id, body)
            reply["server_timing"] |= timing
            self._connection.send(codec.encode(reply))
            timing = {"prev_total_ms": 1000 * (now() - began)}

    def _receive(self) -> bytes:
        parts: list[bytes] = []
        for part in self._connection.recv_streaming():
            if isinstance(part, str):
                raise BadRequest("message: expected a binary frame of msgpack, got text")
            if len(parts) == FRAGMENTS:
                raise BadRequest(f"message: expected at most {FRAGMENTS} fragments")
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _reply_to(self, id: int, body: bytes) -> dict[str, Any]:
        self._meter.count("asked")
        began = now()
        fit = self._fitting.fit(self._desk.policy.spec)
        observation = fit.observation(codec.decode(body, self._desk.config.caps))
        request = InferRequest(id, self.session[1], observation, observed_at=0.0, deadline_ms=self._deadline_ms)
        try:
            self._desk.admit(request, self.session[0], self._outcomes.put)
        except HotpolicyError as error:
            raise fit.in_their_words(error) from error
        chunk = self._chunk()
        self._meter.count("answered")
        return {
            **fit.split(chunk.actions),  # (horizon, ...) each: their broker slices every array there is
            "version": chunk.version,
            "digest": chunk.digest,
            "policy_timing": {"infer_ms": chunk.timings_ms["infer"]},
            "server_timing": {"infer_ms": 1000 * (now() - began)},
        }

    def _chunk(self) -> ActionChunk:
        outcome = self._outcomes.get()
        if isinstance(outcome, HotpolicyError):
            raise outcome
        return outcome


def metadata(desk: Desk, fitting: Fitting) -> dict[str, Any]:
    """What a client is told first: plain values."""
    policy = desk.policy
    keys = fitting.fit(policy.spec).keymap
    return {
        "spec": policy.spec.to_dict(),
        "version": policy.version,
        "digest": policy.digest,
        "cameras": [camera.name for camera in policy.spec.cameras],
        "horizon": policy.horizon,
        "rate_hz": policy.spec.rate_hz,
        "keys": {
            "images": dict(keys.images),
            "state": {key: list(joints) for key, joints in keys.state.items()},
            "task": list(keys.task),
        },
    }
