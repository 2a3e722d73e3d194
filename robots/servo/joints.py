"""An arm's servos in the arm's own terms: joints by name, positions in their units, whole turns, the ticks they may be
sent. Pure: no bus, no clock."""

from __future__ import annotations

from collections.abc import Mapping

from hotpolicy.robots.calibration import Calibration, JointCalibration
from hotpolicy.robots.servo.axes import disagreements, forgotten_turns
from hotpolicy.robots.servo.stored import as_counted, select_calibration
from hotpolicy.robots.servo.tables import ArmTable
from hotpolicy.runtime.errors import ConfigError
from hotpolicy.runtime.messages import Joint, RobotSpec

# A joint may rest this far outside of its range, against its end stop; further out, switching on would be a jump.
REST_TOLERANCE = 30  # ticks, 2.6 deg
DEFAULT_RATE_HZ = 30.0  # of an arm whose profile says nothing


class Joints:
    """Of one arm. A servo is named by its id; ticks are those of its calibration, which may be whole turns away from
    what the servo itself `said`."""

    def __init__(self, table: ArmTable, calibration: Calibration):
        """Raises CalibrationError when `calibration` is not one of this table's servos."""
        self.filed = select_calibration(table, calibration)  # as the file says, to compare the servos with
        self.ids = tuple(row.id for row in table.servos)
        self.driven = tuple(row.id for row in table.joints)  # who is sent goals; shadows take their joint's
        self._table = table
        self._goal = table.family.registers["goal_position"]
        self._rows = {row.id: row for row in table.servos}
        self._limits = as_counted(table, self.filed)
        self._turns: dict[int, int] = {}  # ticks to add to what a servo says

    def name(self, servo: int) -> str:
        return self._rows[servo].name

    def label(self, servo: int) -> str:
        """The joint a servo moves, as states and actions name it."""
        row = self._rows[servo]
        return f"{row.follows or row.name}.pos"

    def limit(self, servo: int) -> JointCalibration:
        return self._limits[self.name(servo)]

    # Ticks ------------------------------------------------------------------------------------------------------------

    def count_turns(self, said: Mapping[int, int]) -> None:
        """Servos that count over several turns may have forgotten how many: take it from where they say they are."""
        for servo, ticks in said.items():
            if self._rows[servo].turns:
                self._turns[servo] = forgotten_turns(self.limit(servo), ticks, REST_TOLERANCE)

    def ticks(self, servo: int, said: int) -> int:
        return said + self._turns.get(servo, 0)

    def said(self, servo: int, ticks: int) -> int:
        """A position as the servo itself counts it."""
        return ticks - self._turns.get(servo, 0)

    def disagreements(self, ticks: Mapping[int, int]) -> dict[str, str]:
        """Joints whose two servos do not say the same, by name; see `axes.disagreements`."""
        if not self._table.shadows:
            return {}
        return disagreements(self._table, {servo: self.said(servo, at) for servo, at in ticks.items()})

    # Values and goals -------------------------------------------------------------------------------------------------

    def value(self, servo: int, ticks: int) -> float:
        """deg or percent."""
        return self.limit(servo).to_value(ticks, self._rows[servo].unit)

    def from_value(self, servo: int, value: float) -> int:
        return self.limit(servo).to_ticks(value, self._rows[servo].unit)

    def goal(self, servo: int, ticks: int) -> int:
        """A goal as the servo counts, cut to the calibrated ticks."""
        return self.said(servo, self.limit(servo).clamp(ticks))

    def goal_bytes(self, servo: int, ticks: int) -> bytes:
        """The same as its register takes it."""
        return self._goal.encode(self.goal(servo, ticks))

    # Spec -------------------------------------------------------------------------------------------------------------

    def spec(self) -> RobotSpec:
        """As wide as the calibration allows."""
        joints = []
        for row in self._table.joints:
            limit = self.limit(row.id)
            low, high = sorted(self.value(row.id, ticks) for ticks in (limit.range_min, limit.range_max))
            joints.append(Joint(f"{row.name}.pos", row.unit, low, high))
        return RobotSpec(tuple(joints), cameras=(), rate_hz=DEFAULT_RATE_HZ)

    def check(self, spec: RobotSpec) -> None:
        """Raises ConfigError when `spec` has other joints than this arm."""
        expected = [(f"{joint.name}.pos", joint.unit) for joint in self._table.joints]
        got = [(joint.name, joint.unit) for joint in spec.joints]
        if got != expected:
            raise ConfigError(f"joints of a {self._table.name}: expected {expected}, got {got}")
