"""GR00T's ZeroMQ clients, unmodified: their REQ sockets on a ROUTER, which answers while a model runs.

Each peer is one robot, and is answered in the dialect it last spoke. What their server has no words for (versions,
timings) travels in the info map of the nested envelope; a flat reply holds arrays and nothing else.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hotpolicy.runtime.envelope import BOUNDARIES, one_line
from hotpolicy.runtime.errors import BadRequest, Busy, EngineFault, HotpolicyError
from hotpolicy.runtime.fronts import gr00t_action, keymap
from hotpolicy.runtime.fronts import gr00t_codec as codec
from hotpolicy.runtime.fronts.gr00t_action import Asked
from hotpolicy.runtime.fronts.gr00t_codec import Call, Modality, Speech
from hotpolicy.runtime.fronts.keymap import Fit, Fitting
from hotpolicy.runtime.fronts.rows import Rows
from hotpolicy.runtime.fronts.settings import Gr00tSettings, same
from hotpolicy.runtime.messages import Boundary, InferRequest
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.scheduler import Outcome
from hotpolicy.runtime.serving.desk import Desk
from hotpolicy.runtime.serving.router import Router
from hotpolicy.runtime.wire import Buffer

logger = logging.getLogger(__name__)

PEERS = 1024  # remembered; beyond, the one silent for longest is a stranger at its next request
HEAD_FRAMES = 8  # of a REQ socket's envelope: empty, a request's number, what proxies put before it
HEAD_BYTES = 255

Send = Callable[[Speech, Any], None]  # a reply on its way, from any thread


@dataclass(slots=True)
class _Peer:
    """What is remembered of a client. For whoever receives, one thread at a time."""

    address: bytes  # unlike that of any other front's peer
    name: str  # of its session
    speech: Speech = field(default_factory=Speech)
    episode: int = 0
    boundary: Boundary = "chunk"


class Gr00t:
    """Raises ConfigError when the key map does not fit the live policy's robot."""

    def __init__(self, router: Router, desk: Desk, settings: Gr00tSettings):
        self.router, self._desk, self._settings = router, desk, settings
        self.meter = Meter()
        self._fitting = Fitting(settings.keymap, keymap.gr00t_default)
        self._fitting.fit(desk.policy.spec)
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()
        self._ids = itertools.count(1)

    def handle(self, id: bytes, frames: Sequence[Buffer]) -> None:
        head = _head(frames)
        if head is None:  # not a REQ socket: there is no way to answer it that it would understand
            self._fault(BadRequest("frames: expected an empty one before the message"))
            return
        peer = self._peer(id)
        send = functools.partial(self._send, id, head)
        try:
            self._reply_to(peer, frames[len(head) :], send)
        except HotpolicyError as error:
            send(peer.speech, self._fault(error))
        except Exception as error:  # a fault of ours must not silence the socket for everybody
            logger.exception("a message could not be handled")
            send(peer.speech, self._fault(EngineFault(f"server: {type(error).__name__}")))

    def _send(self, id: bytes, head: Sequence[bytes], speech: Speech, reply: Any) -> None:
        self.router.send(id, [*head, codec.encode(reply, speech)])

    def _peer(self, id: bytes) -> _Peer:
        peer = self._peers.setdefault(id, _Peer(b"gr00t:" + id, f"gr00t:{id.hex()}"))
        self._peers.move_to_end(id)
        if len(self._peers) > PEERS:
            self._peers.popitem(last=False)
        return peer

    def _reply_to(self, peer: _Peer, body: Sequence[Buffer], send: Send) -> None:
        if len(body) != 1:
            raise BadRequest(f"message: expected one frame, got {len(body)}")
        call = codec.decode(body[0], self._desk.config.caps)
        if call.arrays:
            peer.speech = Speech(call.arrays, peer.speech.envelope)
        if self._settings.token and not same(call.token or "", self._settings.token):
            raise BadRequest("Unauthorized: Invalid API token")  # their words: clients may look for them
        match call.endpoint:
            case "get_action":
                self._get_action(peer, call, send)
            case "ping":
                send(peer.speech, self._ping())
            case "reset":
                send(peer.speech, self._reset(peer, call))
            case "get_modality_config":
                send(peer.speech, self._modality_config())
            case "kill":
                self._check_kill()
                send(peer.speech, None)
                self._desk.life.ended.set()
            case other:
                raise BadRequest(f"Unknown endpoint: {other}")

    def _ping(self) -> dict[str, str]:
        """Their server answers once its model is loaded, so one that is not ready answers with an error."""
        state = self._desk.life.state
        if state != "ready":
            raise Busy(f"the server is {state}")
        self.meter.count("pings")
        return {"status": "ok", "message": "Server is running"}

    def _reset(self, peer: _Peer, call: Call) -> dict[str, Any]:
        """A new episode. Their clients can hand options on: {"boundary": "episode"} keeps one version for all of it."""
        options = call.data.get("options") if type(call.data) is dict else None
        boundary = options.get("boundary", "chunk") if type(options) is dict else "chunk"
        if type(boundary) is not str or boundary not in BOUNDARIES:
            raise BadRequest(f"options.boundary: expected one of {', '.join(BOUNDARIES)}")
        peer.episode, peer.boundary = peer.episode + 1, cast(Boundary, boundary)
        self.meter.count("resets")
        return {"episode": peer.episode}

    def _modality_config(self) -> dict[str, Modality]:
        policy = self._desk.policy
        keys = self._fitting.fit(policy.spec).keymap
        return {
            "video": Modality((0,), tuple(keys.images)),
            "state": Modality((0,), tuple(keys.state)),
            "action": Modality(tuple(range(policy.horizon)), tuple(keys.actions)),
            "language": Modality((0,), keys.task[:1]),
        }

    def _check_kill(self) -> None:
        if not self._settings.kill:
            raise BadRequest("kill: refused; whoever started the server can allow it with --gr00t-kill")
        logger.warning("a GR00T client ends the server")

    def _get_action(self, peer: _Peer, call: Call, send: Send) -> None:
        self.meter.count("asked")
        asked = gr00t_action.asked(call.data)
        peer.speech = Speech(peer.speech.arrays, asked.envelope)
        fit = self._fitting.fit(self._desk.policy.spec)
        observations = [fit.observation(row) for row in asked.rows]
        reply = functools.partial(send, peer.speech)
        rows = Rows(len(observations), lambda outcomes: self._answer(outcomes, asked, fit, reply))
        for n, observation in enumerate(observations):
            request = InferRequest(
                id=next(self._ids),
                session=f"{peer.name}:{n}",
                observation=observation,
                observed_at=0.0,
                deadline_ms=self._settings.deadline_ms,
                boundary=peer.boundary,
                episode=peer.episode,
            )
            try:
                self._desk.admit(request, peer.address, rows.taker(n))
            except HotpolicyError as error:
                rows.take(n, fit.in_their_words(error))

    def _answer(self, outcomes: Sequence[Outcome], asked: Asked, fit: Fit, reply: Callable[[Any], None]) -> None:
        """Any thread: every row of a request has become something."""
        try:
            chunks = []
            for outcome in outcomes:
                if isinstance(outcome, HotpolicyError):
                    raise outcome
                chunks.append(outcome)
            info = {
                "version": _one_or_all([chunk.version for chunk in chunks]),
                "digest": _one_or_all([chunk.digest for chunk in chunks]),
                "rate_hz": chunks[0].rate_hz,
                "timings_ms": dict(chunks[0].timings_ms),
            }
            answer = gr00t_action.answer([fit.split(chunk.actions) for chunk in chunks], info, asked)
            self.meter.count("answered")
            reply(answer)
        except HotpolicyError as error:
            reply(self._fault(error))
        except Exception as error:  # the thread is the model's: it goes on
            logger.exception("an answer could not be sent")
            reply(self._fault(EngineFault(f"server: {type(error).__name__}")))

    def _fault(self, error: HotpolicyError) -> dict[str, str]:
        self.meter.count(error.code)
        return {"error": one_line(str(error))}


def _one_or_all(names: list[str]) -> str | list[str]:
    """A batch may be computed in parts, and a swap may come between them."""
    return names[0] if len(set(names)) == 1 else names


def _head(frames: Sequence[Buffer]) -> list[bytes] | None:
    """What a reply begins with, up to and with the empty frame: b"", or with REQ_CORRELATE a number and b""."""
    for count, frame in enumerate(frames[:HEAD_FRAMES], 1):
        if not len(frame):
            return [bytes(frame) for frame in frames[:count]]
        if len(frame) > HEAD_BYTES:
            return None
    return None
