"""Who is on a port: every servo of either family at any baud rate, and how that differs from the arm that should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hotpolicy.robots.servo.bus import ServoBus, Timing
from hotpolicy.robots.servo.dynamixel import DYNAMIXEL
from hotpolicy.robots.servo.family import Family
from hotpolicy.robots.servo.feetech import FEETECH
from hotpolicy.robots.servo.tables import ArmTable

FAMILIES = (FEETECH, DYNAMIXEL)
USUAL = (1_000_000, 57_600)  # bit/s that arms use, and that servos come with: tried first
MARGIN_MS = 20.0  # adapters that are set to wait do so for 16 ms
MEND = "`hotpolicy setup-motors` sets it"

Progress = Callable[[Family, int], object]  # called before each family and baud rate is tried


@dataclass(frozen=True, slots=True)
class Found:
    """One servo that answered."""

    family: Family
    baud: int  # bit/s
    id: int
    model: int

    def __str__(self) -> str:
        return f"servo {self.id}, {self.family.describe(self.model)} at {self.baud} bit/s"


def patience(baud: int, margin_ms: float) -> Timing:
    """Time for all repetitions: nothing here is in a hurry."""
    return Timing(baud, margin_ms=margin_ms, budget_ms=5 * margin_ms)


def baud_rates(family: Family) -> tuple[int, ...]:
    """All that its servos can be set to, the likely ones first."""
    offered = set(family.baud_rates.values())
    usual = tuple(rate for rate in USUAL if rate in offered)
    return usual + tuple(sorted(offered - set(usual), reverse=True))


def scan(
    port: str,
    families: Sequence[Family] = FAMILIES,
    rates: Sequence[int] | None = None,
    *,
    first: bool = False,
    margin_ms: float = MARGIN_MS,
    progress: Progress | None = None,
) -> list[Found]:
    """Ask everybody, at each baud rate. All rates of both families take about 15 s; with `first` it ends where
    somebody has answered. Rates that a family does not have are left out.

    Raises BusBusy when another program holds the port, BusLost when there is none.
    """
    found: list[Found] = []
    for family in families:
        for rate in rates or baud_rates(family):
            if rate not in family.baud_rates.values():
                continue
            if progress is not None:
                progress(family, rate)
            with ServoBus(port, patience(rate, margin_ms), family.protocol()) as bus:
                found += [Found(family, rate, id, model) for id, model in bus.scan().items()]
            if first and found:
                return found
    return found


def compare(table: ArmTable, found: Iterable[Found], baud: int = 1_000_000) -> list[str]:
    """What is not as the arm of `table` needs it at `baud`, a line for each servo; empty when all is well."""
    left = [servo for servo in found if servo.family is table.family]
    strangers = [servo for servo in found if servo.family is not table.family]
    texts = []
    for row in table.servos:
        expected = f"{row.name}: expected servo {row.id}, {table.family.describe(row.model)} at {baud} bit/s"
        here = [servo for servo in left if servo.id == row.id]
        left = [servo for servo in left if servo.id != row.id]
        if not here:
            texts.append(f"{expected}, found nothing: is it plugged in and powered? If it is new, {MEND}")
        for servo in here:
            if servo.model != row.model:
                texts.append(f"{expected}, found {table.family.describe(servo.model)}: another arm, or another servo?")
            elif servo.baud != baud:
                texts.append(f"{expected}, found it at {servo.baud} bit/s: {MEND}")
    texts += [f"{servo}: not part of a {table.name}" for servo in (*left, *strangers)]
    return texts
