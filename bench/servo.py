"""Our bus against the vendors' own SDKs: the positions of six servos read and six goals written, per cycle.

    python bench/servo.py [--rounds 30] [--cycles 100]

The servos are virtual, behind a pseudo-terminal, in a process of their own; both sides talk to the same ones, in turn,
round after round, each with the port to itself. The CPU time is that of the client's process alone. The SDKs keep their
group objects from cycle to cycle, which is their quickest way. Then the wire is given its pace, 1 Mbaud, and our rate
is compared with what the bytes of a cycle alone would allow: nothing is waited for but the wire and us.

Two processes that wake one another are quicker on one core than on a core each, so both are measured. And real servos
never sleep, while a process that sleeps on an idle core wakes late: so a third row has servos that wait by spinning.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.dynamixel import DYNAMIXEL
from hotpolicy.robots.servo.dynamixel_registers import Mode
from hotpolicy.robots.servo.feetech import FEETECH
from hotpolicy.robots.sim.dynamixel import VirtualDynamixel, VirtualDynamixels
from hotpolicy.robots.sim.pty import VirtualPort
from hotpolicy.robots.sim.servos import VirtualBus, VirtualServo
from hotpolicy.robots.sim.wire import BITS_PER_BYTE, VirtualWire
from hotpolicy.runtime.clock import now

SIX = tuple(range(1, 7))
BAUD = 1_000_000
PATIENCE_MS = 1000.0  # for both sides: a pause of the machine is not to be counted as a lost answer
WARM_UP = 20  # cycles of each round that are not counted


class Side(Protocol):
    """One driver. `cycle` reads all positions and writes all goals; it raises when anything is missing."""

    def __init__(self, port: str): ...

    def cycle(self, goal: int) -> None: ...

    def close(self) -> None: ...


class Ours:
    family = FEETECH

    def __init__(self, port: str):
        registers = self.family.registers
        self.present, self.goal = registers["present_position"], registers["goal_position"]
        timing = Timing(baud=BAUD, margin_ms=PATIENCE_MS, budget_ms=2 * PATIENCE_MS)
        self.bus = ServoBus(port, timing, self.family.protocol()).open()

    def cycle(self, goal: int) -> None:
        replies = self.bus.sync_read(SIX, self.present.address, self.present.size)
        positions = {servo: int.from_bytes(data, "little") for servo, (data, _) in replies.by_id.items()}
        if len(positions) != len(SIX):
            raise RuntimeError(f"silent: {replies.missing}")
        self.bus.sync_write(
            self.goal.address, {servo: (goal + servo).to_bytes(self.goal.size, "little") for servo in SIX}
        )

    def close(self) -> None:
        self.bus.close()


class FeetechSdk:
    """feetech-servo-sdk 1.0.0."""

    def __init__(self, port: str):
        import scservo_sdk as sdk

        self.port, self.success = _patient(sdk.PortHandler)(port), sdk.COMM_SUCCESS
        if not (self.port.openPort() and self.port.setBaudRate(BAUD)):
            raise RuntimeError("port not opened")
        handler = sdk.PacketHandler(0)
        self.reader = sdk.GroupSyncRead(self.port, handler, 56, 2)
        self.writer = sdk.GroupSyncWrite(self.port, handler, 42, 2)
        for servo in SIX:
            self.reader.addParam(servo)
            self.writer.addParam(servo, [0, 0])

    def cycle(self, goal: int) -> None:
        if self.reader.txRxPacket() != self.success:
            raise RuntimeError("sync read failed")
        positions = {servo: self.reader.getData(servo, 56, 2) for servo in SIX}
        if len(positions) != len(SIX):
            raise RuntimeError("positions missing")
        for servo in SIX:
            self.writer.changeParam(servo, [(goal + servo) & 0xFF, (goal + servo) >> 8])
        if self.writer.txPacket() != self.success:
            raise RuntimeError("sync write failed")

    def close(self) -> None:
        self.port.closePort()


class OursDynamixel(Ours):
    family = DYNAMIXEL


class DynamixelSdk:
    """dynamixel-sdk 4.1.0, with fast sync reads."""

    def __init__(self, port: str):
        import dynamixel_sdk as sdk

        self.port, self.success = _patient(sdk.PortHandler)(port), sdk.COMM_SUCCESS
        if not (self.port.openPort() and self.port.setBaudRate(BAUD)):
            raise RuntimeError("port not opened")
        handler = sdk.PacketHandler(2.0)
        self.reader = sdk.GroupSyncRead(self.port, handler, 132, 4)
        self.writer = sdk.GroupSyncWrite(self.port, handler, 116, 4)
        for servo in SIX:
            self.reader.addParam(servo)
            self.writer.addParam(servo, [0, 0, 0, 0])
        self.read = self.reader.fastSyncRead

    def cycle(self, goal: int) -> None:
        if self.read() != self.success:
            raise RuntimeError("sync read failed")
        positions = {servo: self.reader.getData(servo, 132, 4) for servo in SIX}
        if len(positions) != len(SIX):
            raise RuntimeError("positions missing")
        for servo in SIX:
            self.writer.changeParam(servo, [*(goal + servo).to_bytes(4, "little")])
        if self.writer.txPacket() != self.success:
            raise RuntimeError("sync write failed")

    def close(self) -> None:
        self.port.closePort()


class DynamixelSdkSync(DynamixelSdk):
    """The same without fast sync reads, as most programs use it, LeRobot among them."""

    def __init__(self, port: str):
        super().__init__(port)
        self.read = self.reader.txRxPacket


def _patient(handler: type) -> type:
    """The SDK's port with our patience instead of its 34 ms, which a busy machine can exceed."""

    class Patient(handler):
        def setPacketTimeout(self, packet_length: int) -> None:
            super().setPacketTimeout(packet_length)
            self.packet_timeout += PATIENCE_MS

    return Patient


@dataclass(frozen=True)
class Row:
    """One family of servos: both drivers, the virtual bus between them, and the bytes of one cycle on the wire."""

    ours: type[Side]
    sdk: type[Side]
    wire: Callable[[], VirtualWire]
    cycle_bytes: int  # question, answers and goals


def _dynamixel(servo: int) -> VirtualDynamixel:
    virtual = VirtualDynamixel(servo, mode=Mode.EXTENDED)
    virtual.poke("return_delay", 0)  # as an arm sets both; the Feetech servos come so
    return virtual


def _dynamixels() -> VirtualDynamixels:
    return VirtualDynamixels(map(_dynamixel, SIX))


ROWS = {
    "feetech": Row(
        Ours, FeetechSdk, lambda: VirtualBus(VirtualServo(servo) for servo in SIX), cycle_bytes=14 + 6 * 8 + 26
    ),
    "dynamixel": Row(OursDynamixel, DynamixelSdk, _dynamixels, cycle_bytes=20 + 56 + 44),
    "dynamixel-sync": Row(OursDynamixel, DynamixelSdkSync, _dynamixels, cycle_bytes=20 + 56 + 44),
}


def serve(row: Row, link: Path, baud: int | None, awake: bool) -> None:
    """The device's process: answer until killed. `awake`: it spins, so that nobody waits for it to wake up."""
    wire = row.wire()
    wire.baud = baud
    with VirtualPort(link) as port:
        asked = select.poll()
        asked.register(port.master, select.POLLIN)
        print("ready", flush=True)
        while True:
            if not awake:
                asked.poll()
            port.pump(wire)


@contextmanager
def device(name: str, baud: int | None, core: int, awake: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "arm"
        command = [sys.executable, __file__, "--serve", name, str(link), str(baud or 0), str(core), str(int(awake))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield str(link)
            finally:
                process.kill()


def measure(port: str, sides: list[type[Side]], rounds: int, cycles: int) -> tuple[np.ndarray, np.ndarray]:
    """(sides, rounds * cycles) seconds of each cycle, and (sides, rounds) CPU seconds per cycle."""
    taken = np.zeros((len(sides), rounds, cycles))
    cpu = np.zeros((len(sides), rounds))
    for turn in range(rounds):
        for i, kind in enumerate(sides):
            side = kind(port)
            try:
                for cycle in range(WARM_UP):
                    side.cycle(1000 + cycle)
                used = time.process_time()
                for cycle in range(cycles):
                    begun = now()
                    side.cycle(1000 + cycle)
                    taken[i, turn, cycle] = now() - begun
                cpu[i, turn] = (time.process_time() - used) / cycles
            finally:
                side.close()
    return taken.reshape(len(sides), -1), cpu


def show(name: str, taken: np.ndarray, cpu: np.ndarray) -> float:
    """One line of the table; the median cycle, s."""
    p10, p50, p99 = np.percentile(taken, (10, 50, 99))
    cells = "".join(f"{value * 1e6:>9.0f}" for value in (p10, p50, p99, np.median(cpu)))
    print(f"{name:34}{cells}{1 / p50:>9.0f}")
    return float(p50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=ROWS)
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, link, baud, core, awake = options.serve
        os.sched_setaffinity(0, {int(core)})
        serve(ROWS[name], Path(link), int(baud) or None, awake == "1")
        return
    print(f"{options.rounds} rounds of {options.cycles} cycles, in turn\n")
    print(f"{'us per cycle':34}{'p10':>9}{'p50':>9}{'p99':>9}{'CPU p50':>9}{'Hz':>9}")
    for name in options.only or ROWS:
        compare(name, ROWS[name], options)


def compare(name: str, row: Row, options: argparse.Namespace) -> None:
    """All lines of one family: by where the two processes run, then with a wire that takes its time."""
    cores = sorted(os.sched_getaffinity(0))
    places = [("one core", cores[0], False), ("a core each", cores[-1], False), ("servos awake", cores[-1], True)]
    for place, theirs, awake in places:
        with device(name, None, theirs, awake) as port, pinned(cores[0]):
            taken, cpu = measure(port, [row.ours, row.sdk], options.rounds, options.cycles)
        ours, sdk = show(f"{name}, ours, {place}", taken[0], cpu[0]), show(f"{name}, SDK, {place}", taken[1], cpu[1])
        print(f"    rate {sdk / ours:.2f} x the SDK's, CPU {np.median(cpu[0]) / np.median(cpu[1]):.2f} of the SDK's")
    with device(name, BAUD, cores[-1], True) as port, pinned(cores[0]):
        taken, cpu = measure(port, [row.ours, row.sdk], max(options.rounds // 3, 1), options.cycles)
    paced = show(f"{name}, ours, 1 Mbaud", taken[0], cpu[0])
    show(f"{name}, SDK, 1 Mbaud", taken[1], cpu[1])
    limit, spared = row.cycle_bytes * BITS_PER_BYTE / BAUD, np.median(cpu[0]) / np.median(cpu[1])
    print(f"    {limit / paced:.0%} of the wire's {1 / limit:.0f} Hz, CPU {spared:.2f} of the SDK's\n")


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This process on one core: where the scheduler puts two processes that wake each other decides half the time."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    main()
