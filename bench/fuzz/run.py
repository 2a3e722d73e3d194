"""Mutated messages against every front: in process against the decoders, and over real sockets against a server.

    PYTHONPATH=$PYTHONPATH:tests python bench/fuzz/run.py          # a million for each front
    PYTHONPATH=$PYTHONPATH:tests python bench/fuzz/run.py --fronts native --decoded 10000 --sent 1000 --seed 7

Prints a table, and ends with exit code 1 when anything but a refusal came out of a decoder, a thread of the server
raised or died, or a right client beside the fuzzer was not answered. A message that did it is kept in bench/fuzz/found.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq
from corpus import CORPUS
from decoders import decoders
from mutate import Mutator
from served import Served, right_clients, serve, served
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hotpolicy.runtime.errors import HotpolicyError

CONTEXT = multiprocessing.get_context("spawn")
FOUND = Path(__file__).parent / "found"
LOOKS = (0.1, 0.4, 0.7)  # shares of the messages after which the server's memory is looked at, and at the end
SLOW_S = 1.0  # a decoder that takes longer over one message hangs


@dataclass(frozen=True, slots=True)
class Decoded:
    messages: int
    accepted: int
    broken: int  # messages that raised what nobody expects, or took too long
    seconds: float


@dataclass(frozen=True, slots=True)
class Sent:
    resident_mb: tuple[float, ...]
    seconds: float


def decode(front: str, messages: int, seed: int) -> Decoded:
    decoder, mutator = decoders()[front], Mutator(CORPUS[front](), seed)
    accepted = broken = 0
    began = time.monotonic()
    for _ in range(messages):
        frames = mutator.next()
        started = time.thread_time()
        try:
            decoder(frames)
            accepted += 1
        except HotpolicyError:
            pass
        except Exception as error:  # noqa: BLE001, what this looks for
            broken += 1
            _keep(front, frames, f"{type(error).__name__}: {error}")
        if time.thread_time() - started > SLOW_S:
            broken += 1
            _keep(front, frames, f"took {time.thread_time() - started:.1f} s of CPU")
    return Decoded(messages, accepted, broken, time.monotonic() - began)


def _keep(front: str, frames: Sequence[bytes], why: str) -> None:
    FOUND.mkdir(exist_ok=True)
    file = FOUND / f"{front}-{len(list(FOUND.iterdir()))}.txt"
    file.write_text("\n".join([why, *(frame.hex() for frame in frames)]) + "\n")
    print(f"{front}: {why} ({file})", flush=True)


def send(front: str, server: Served, messages: int, seed: int) -> Sent:
    mutator = Mutator(CORPUS[front](), seed)
    way = _to_websocket if front == "openpi" else _to_router
    began, resident = time.monotonic(), []
    looks = [int(share * messages) for share in LOOKS]
    with way(server.endpoints[front]) as put:
        for number in range(messages):
            put(mutator.next())
            if number in looks:
                resident.append(server.resident_mb())
    return Sent((*resident, server.resident_mb()), time.monotonic() - began)


@contextlib.contextmanager
def _to_router(endpoint: str) -> Iterator[Callable[[list[bytes]], None]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = peer.sndtimeo = 10_000
        peer.sndhwm = 8
        peer.connect(endpoint)

        def put(frames: list[bytes]) -> None:
            peer.send_multipart(frames or [b""])
            while peer.poll(0):
                peer.recv_multipart()

        yield put
        while peer.poll(1000):  # until all is answered that is: to close sooner would lose what is on its way
            peer.recv_multipart()


@contextlib.contextmanager
def _to_websocket(endpoint: str) -> Iterator[Callable[[list[bytes]], None]]:
    with contextlib.ExitStack() as stack:
        connection: ClientConnection | None = None

        def put(frames: list[bytes]) -> None:
            nonlocal connection
            try:
                if connection is None:
                    way = connect(endpoint, compression=None, max_size=None, proxy=None, close_timeout=0.1)
                    connection = stack.enter_context(way)
                    connection.recv(timeout=10)
                connection.send(b"".join(frames))
                refused = isinstance(connection.recv(timeout=10), str)
            except ConnectionClosed:
                refused = True
            if refused:  # their server ends the connection then
                connection = None
                stack.close()

        yield put


def fuzz(front: str, decoded: int, sent: int, seed: int) -> tuple[str, bool]:
    """A row of the table, and whether all is well."""
    inside = decode(front, decoded, seed)
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder, served(Path(folder)) as server:
        pipe, end = CONTEXT.Pipe()
        right = CONTEXT.Process(target=right_clients, args=(server.endpoints, end), daemon=True)
        right.start()
        pipe.recv()
        received = server.settled(front)
        outside = send(front, server, sent, seed + 1)
        pipe.send("end")
        calls = pipe.recv()
        right.join()
        rightly = sum(len(took) for name, (took, _) in calls.items() if (name == "openpi") == (front == "openpi"))
        handled = server.settled(front) - received - rightly
        faults, state, alive = server.faults(), server.state(), server.process.poll() is None
    failed = sum(len(failures) for _, failures in calls.values())
    for name, (_, failures) in calls.items():
        for failure in failures[:3]:
            print(f"{front}: a right {name} client: {failure}", flush=True)
    took = np.concatenate([took for took, _ in calls.values()])
    each = 1e6 * inside.seconds / max(1, inside.messages)
    cells = (
        front,
        *(f"{count:,}" for count in (inside.messages, inside.accepted, inside.broken)),
        f"{each:.0f}",
        *(f"{count:,}" for count in (handled, faults)),
        " ".join(f"{mb:.1f}" for mb in outside.resident_mb),
        f"{len(took):,} of which {failed} failed",
        f"{np.quantile(took, 0.5):.1f}",
        f"{np.quantile(took, 0.99):.0f}",
        f"{took.max():.0f}",
    )
    well = alive and state == "ready" and handled > 0.98 * sent and not (inside.broken or faults or failed)
    return f"| {' | '.join(cells)} |", well


HEAD = (
    "front",
    "decoded",
    "taken",
    "broken",
    "us each",
    "received",
    "server's faults",
    "RSS, MB",
    "right calls",
    "p50, ms",
    "p99",
    "worst",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fronts", nargs="+", default=list(CORPUS), choices=CORPUS)
    parser.add_argument("--decoded", type=int, default=900_000)
    parser.add_argument("--sent", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    logging.disable()
    warnings.simplefilter("error")  # a numpy warning is a case not thought of
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    well = True
    for front in options.fronts:
        row, good = fuzz(front, options.decoded, options.sent, options.seed)
        print(row, flush=True)
        well &= good
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
