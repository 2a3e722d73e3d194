"""A peer that misbehaves for as long as it lives. A program of its own: `python flood.py ENDPOINT HOW`."""

from __future__ import annotations

import itertools
import socket
import sys
import time

import zmq
from serving import observation

from hotpolicy.runtime import envelope, wire
from hotpolicy.runtime.messages import InferRequest

HALF_OPEN = 200


def dealer(endpoint: str) -> zmq.Socket[bytes]:
    peer = zmq.Context.instance().socket(zmq.DEALER)
    peer.linger = 0
    peer.connect(endpoint)
    return peer


def requests(endpoint: str) -> None:
    """Right ones, in many sessions' names, always the most urgent, as fast as they are taken; no answer is read."""
    peer = dealer(endpoint)
    for id in itertools.count(1):
        request = InferRequest(id, f"s{id % 40}", observation(), 0.0, deadline_ms=150.0)
        peer.send_multipart(wire.encode(envelope.from_request(request)))


def unread(endpoint: str) -> None:
    """The longest answers there are, asked for as fast as can be and never read."""
    peer = dealer(endpoint)
    for id in itertools.count(1):
        peer.send_multipart(wire.encode(envelope.message("stats", id)))


def garbage(endpoint: str) -> None:
    peer = dealer(endpoint)
    for _ in itertools.count(1):
        peer.send_multipart([b"\xc1" * 64, b"x" * 300_000])


def frames(endpoint: str) -> None:
    """Messages of a great many frames."""
    peer = dealer(endpoint)
    for _ in itertools.count(1):
        peer.send_multipart([b"x"] * 2000, copy=True)


def half_open(endpoint: str) -> None:
    """Connections that begin a greeting, and say no more; again when they are closed."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    while True:
        held = []
        for _ in range(HALF_OPEN):
            held.append(socket.create_connection((host, int(port))))
            held[-1].send(b"\xff\0\0\0\0")
        time.sleep(0.5)
        for one in held:
            one.close()


def connected(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(endpoint.removeprefix("ipc://"))
        return peer
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


def endless(endpoint: str, frame: bytes, pause_s: float = 0.0) -> int:
    """One message of frames like this one, without end, 64 KiB or a frame at a time. Returns how many bytes
    were taken before the server hung up."""
    long = len(frame) > 255
    size = len(frame).to_bytes(8 if long else 1, "big")
    piece = (bytes([3 if long else 1]) + size + frame) * max(1, 65536 // (len(frame) + 2))
    with connected(endpoint) as peer:
        peer.settimeout(20)
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        peer.recv(64, socket.MSG_WAITALL)
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
        peer.recv(1024)
        taken = 0
        try:
            while True:
                peer.sendall(piece)
                taken += len(piece)
                time.sleep(pause_s)
        except (BrokenPipeError, ConnectionResetError):
            return taken


WAYS = {way.__name__: way for way in (requests, unread, garbage, frames, half_open)}

if __name__ == "__main__":
    WAYS[sys.argv[2]](sys.argv[1])
