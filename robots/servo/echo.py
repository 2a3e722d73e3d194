"""Adapters that repeat what is written: telling a question from the answers to it."""

from __future__ import annotations

from hotpolicy.robots.servo.protocol import Protocol, Question, Reply


def sort_reply(
    raw: bytes, question: Question, protocol: Protocol, echo: bool | None
) -> tuple[dict[int, Reply], int, bool]:
    """Where an adapter echoes, or may (`echo` is None): the answers to `question` in the bytes read so far; how many
    bytes to wait for (0: all is there); whether the adapter echoed the request.

    An echoed Feetech ping is also a valid answer, of a servo with a voltage error. So until an adapter is known bytes
    equal to the request are an echo, and what may become one is waited for.
    """
    request = question.request
    at = raw.find(request)
    if at < 0 and (echo or request.startswith(raw)):
        return {}, max(1, len(request) + question.expected - len(raw)), False
    answers, lacking = protocol.sort(question, raw[at + len(request) :] if at >= 0 else raw)
    return answers, lacking, at >= 0
