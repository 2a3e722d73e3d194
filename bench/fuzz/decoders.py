"""The pure half of every front: from frames to a checked request. What leaves here is HotpolicyError, or a bug."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from serving import SPEC, LevelPolicy

from hotpolicy.runtime import envelope, pictures, wire
from hotpolicy.runtime.envelope import Fields
from hotpolicy.runtime.errors import BadRequest, BundleError, UnknownVersion
from hotpolicy.runtime.fronts import gr00t_action, gr00t_codec, keymap, openpi_codec
from hotpolicy.runtime.fronts.native import KIND_LENGTH
from hotpolicy.runtime.serving.control import Control
from hotpolicy.runtime.serving.loan import Loans
from hotpolicy.runtime.wire import CAPS, COMMAND_CAPS, Message

POLICY = LevelPolicy()


def decoders() -> Mapping[str, Callable[[list[bytes]], object]]:
    return {"native": _native(), "control": _control(), "gr00t": _gr00t(), "openpi": _openpi()}


def _native() -> Callable[[list[bytes]], object]:
    loans = Loans(8, CAPS.message_bytes)

    def lend(message: Message) -> Any:
        session = Fields(message, BadRequest).text("session", envelope.SESSION_LENGTH)
        return loans.take((b"", session), message.get(wire.RING))

    def decode(frames: list[bytes]) -> object:
        wire.peek_id(frames, CAPS)
        message = wire.decode(frames, CAPS, lender=lend)
        Fields(message, BadRequest).integer("id")
        if Fields(message, BadRequest).text("kind", KIND_LENGTH) != "infer":
            return Fields(message, BadRequest).text("session", envelope.SESSION_LENGTH)
        pictures.unpack(message, SPEC)
        request = envelope.to_request(message)
        POLICY.check(request.observation)
        return request

    return decode


def _control() -> Callable[[list[bytes]], object]:
    live = SimpleNamespace(version="v1", digest="0")
    slot = SimpleNamespace(live=live, previous=None, staged=None, pinned=0, faults=0, retreats=0, flip_ms=0.0)
    store = SimpleNamespace(
        find=_raising(UnknownVersion("version: there is none")),
        add=_raising(BundleError("no bundle")),
        recall=lambda request_id: None,
        versions=lambda: (),
        previous=lambda: None,
        history=lambda limit: (),
    )
    slot.stage = slot.promote = slot.rollback = _raising(UnknownVersion("there is none"))
    control = Control(slot, store)  # type: ignore[arg-type]

    def decode(frames: list[bytes]) -> object:
        message = wire.decode(frames, COMMAND_CAPS)
        Fields(message, BadRequest).integer("id")
        Fields(message, BadRequest).text("kind", KIND_LENGTH)
        return wire.encode(envelope.message("control", message["id"], result=control.handle(message)))

    return decode


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*given: object, **named: object) -> Any:
        raise error

    return call


def _gr00t() -> Callable[[list[bytes]], object]:
    fit = keymap.gr00t_default(SPEC).fit(SPEC)

    def decode(frames: list[bytes]) -> object:
        call = gr00t_codec.decode(frames[-1] if frames else b"", CAPS)
        asked = gr00t_action.asked(call.data)
        observations = [fit.observation(row) for row in asked.rows]
        for observation in observations:
            POLICY.check(observation)
        return observations

    return decode


def _openpi() -> Callable[[list[bytes]], object]:
    fit = keymap.openpi_default(SPEC).fit(SPEC)

    def decode(frames: list[bytes]) -> object:
        observation = fit.observation(openpi_codec.decode(b"".join(frames), CAPS))
        POLICY.check(observation)
        return observation

    return decode
