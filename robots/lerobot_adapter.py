"""Any LeRobot robot or teleoperator as one of ours, so that its whole catalogue of arms can be driven and recorded.

LeRobot (Python 3.12) must be installed beside hotpolicy; this file imports it only when a profile asks for it. What
LeRobot does itself stays as it is: its bus code, its calibration, its own limits. Ours come on top, as for every arm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, cast

import numpy as np

from hotpolicy.robots.robot import ArmState, Camera, Frame, Operator
from hotpolicy.runtime.clock import now
from hotpolicy.runtime.errors import BusLost, CalibrationError, CameraLost, ConfigError, LimitViolation
from hotpolicy.runtime.messages import CameraSpec, Observation, RobotSpec

# What LeRobot's drivers raise when a device fails; anything else is a bug and keeps its traceback.
TROUBLE = (OSError, ConnectionError, RuntimeError, TimeoutError)


class LeRobotArm:
    """Implements robots.robot.Arm around a LeRobot `Robot` object. Its joints are the spec's, by name; what else the
    robot measures is left out. One call to LeRobot reads joints and cameras together."""

    def __init__(self, robot: Any, spec: RobotSpec):
        """Connects it, without LeRobot's calibration dialogue. Raises ConfigError for joints the robot does not have,
        CalibrationError when it is not calibrated, BusLost when it cannot be reached."""
        self.robot = robot
        self.spec = spec
        self._seen: dict[str, Frame] = {}
        names = [joint.name for joint in spec.joints]
        for features, what in ((robot.observation_features, "measures"), (robot.action_features, "takes")):
            if missing := [name for name in names if name not in features]:
                raise ConfigError(f"joints: {missing[0]} is none that this robot {what}: {', '.join(features)}")
        _connect(robot)
        self._torque = True  # LeRobot's `connect` switches it on

    def read(self) -> ArmState:
        """Raises BusLost when LeRobot cannot read the robot."""
        try:
            found = self.robot.get_observation()
        except TROUBLE as error:
            raise BusLost(f"{self.robot}: {_line(error)}") from error
        at = now()
        for name, value in found.items():
            if isinstance(value, np.ndarray) and value.ndim == 3:
                self._seen[name] = Frame(value, at)
        positions = np.array([found[joint.name] for joint in self.spec.joints], np.float32)
        if not np.isfinite(positions).all():
            raise BusLost(f"{self.robot}: expected finite positions, got {positions}")
        return ArmState(positions, stale=(), faults={}, read_at=at)

    def send(self, positions: np.ndarray) -> None:
        if not self._torque:
            raise LimitViolation(f"{self.robot}: expected torque on before a goal, it is off; nothing was sent")
        self._send(positions)

    def _send(self, positions: np.ndarray) -> None:
        try:
            self.robot.send_action(
                {joint.name: float(goal) for joint, goal in zip(self.spec.joints, positions, strict=True)}
            )
        except TROUBLE as error:
            raise BusLost(f"{self.robot}: {_line(error)}") from error

    def hold(self) -> None:
        if self._torque:
            self.send(self.read().positions)

    def torque(self, on: bool) -> None:
        """Off needs a robot with a LeRobot motors bus. Raises LimitViolation for one without: only its own
        `disconnect` can release it."""
        bus = getattr(self.robot, "bus", None)
        if bus is None or not hasattr(bus, "enable_torque"):
            if on:
                return
            raise LimitViolation(f"{self.robot}: LeRobot offers no way to release this robot but to disconnect it")
        try:
            if on:
                self._send(self.read().positions)  # goal := present, before anything is switched on
                bus.enable_torque()
            else:
                bus.disable_torque()
        except TROUBLE as error:
            raise BusLost(f"{self.robot}: {_line(error)}") from error
        self._torque = on

    def close(self) -> None:
        """LeRobot's `disconnect`, which may release the arm: that is its own setting."""
        if self.robot.is_connected:
            self.robot.disconnect()

    def camera(self, spec: CameraSpec) -> Camera:
        """One of the robot's own cameras. Raises ConfigError for one it does not have, or of another size."""
        shape = self.robot.observation_features.get(spec.name)
        if shape != (spec.height, spec.width, 3):
            raise ConfigError(f"cameras.{spec.name}: expected {(spec.height, spec.width, 3)}, this robot has {shape}")
        return LeRobotCamera(spec.name, self._seen)


class LeRobotCamera:
    """What the robot saw when its joints were last read."""

    def __init__(self, name: str, seen: Mapping[str, Frame], max_age_s: float = 0.5):
        self.name = name
        self._seen, self._max_age_s = seen, max_age_s

    def read(self) -> Frame:
        frame = self._seen.get(self.name)
        if frame is None or now() - frame.captured_at > self._max_age_s:
            raise CameraLost(f"camera {self.name}: expected a frame of the last {self._max_age_s:g} s from the robot")
        return frame

    def close(self) -> None:
        """The robot closes its cameras itself."""


class LeRobotOperator:
    """Implements robots.robot.Operator around a LeRobot `Teleoperator` object, such as a leader arm."""

    def __init__(self, teleoperator: Any, spec: RobotSpec):
        """Connects it. Raises as LeRobotArm does."""
        self.teleoperator = teleoperator
        self._names = [joint.name for joint in spec.joints]
        if missing := [name for name in self._names if name not in teleoperator.action_features]:
            known = ", ".join(teleoperator.action_features)
            raise ConfigError(f"joints: {missing[0]} is none that this teleoperator gives: {known}")
        _connect(teleoperator)

    def act(self, observation: Observation) -> np.ndarray | None:
        try:
            action = self.teleoperator.get_action()
        except TROUBLE as error:
            raise BusLost(f"{self.teleoperator}: {_line(error)}") from error
        return np.array([action[name] for name in self._names], np.float32)

    def close(self) -> None:
        if self.teleoperator.is_connected:
            self.teleoperator.disconnect()


def make_robot(spec: RobotSpec, options: Mapping[str, Any]) -> LeRobotArm:
    """`options`: LeRobot's `type` (so101_follower, koch_follower, ...) and the fields of its configuration."""
    return LeRobotArm(_build("robots", "RobotConfig", "make_robot_from_config", options), spec)


def make_teleoperator(spec: RobotSpec, options: Mapping[str, Any]) -> Operator:
    built = _build("teleoperators", "TeleoperatorConfig", "make_teleoperator_from_config", options)
    return LeRobotOperator(built, spec)


def _build(package: str, config_class: str, factory: str, options: Mapping[str, Any]) -> Any:
    try:
        module = import_module(f"lerobot.{package}")
        make = cast("Callable[[Any], Any]", getattr(import_module(f"lerobot.{package}.utils"), factory))
    except ImportError as error:
        raise ConfigError(f"plug-in lerobot: needs LeRobot (Python 3.12): pip install lerobot; {error}") from error
    fields = dict(options)
    kind = fields.pop("type", None)
    if not isinstance(kind, str):
        raise ConfigError("plug-in lerobot: options.type: expected a LeRobot type such as so101_follower")
    configs = getattr(module, config_class)
    _import_all(package)
    if kind not in configs.get_known_choices():
        known = ", ".join(sorted(configs.get_known_choices()))
        raise ConfigError(f"plug-in lerobot: options.type: expected one of {known}, got {kind!r}")
    if isinstance(fields.get("cameras"), Mapping):
        fields["cameras"] = {name: _camera_config(camera) for name, camera in fields["cameras"].items()}
    try:
        return make(configs.get_choice_class(kind)(**fields))
    except TypeError as error:
        raise ConfigError(f"plug-in lerobot: options of a {kind}: {_line(error)}") from error


def _import_all(package: str) -> None:
    """LeRobot knows a type once the module that registers it was imported, and imports none by itself. One that needs
    another SDK than is here cannot be, and is then not among the known types."""
    for module in iter_modules(import_module(f"lerobot.{package}").__path__):
        if module.ispkg:
            with suppress(ImportError):
                import_module(f"lerobot.{package}.{module.name}")


def _camera_config(options: Any) -> Any:
    from lerobot.cameras import CameraConfig

    import_module("lerobot.cameras.opencv")
    fields = dict(options)
    return CameraConfig.get_choice_class(fields.pop("type", "opencv"))(**fields)


def _connect(device: Any) -> None:
    """Never with LeRobot's dialogue: it would wait for a key in a service."""
    try:
        if not device.is_connected:
            device.connect(calibrate=False)
    except TROUBLE as error:
        raise BusLost(f"{device}: {_line(error)}") from error
    if not device.is_calibrated:
        device.disconnect()
        raise CalibrationError(f"{device}: expected a calibrated device: run lerobot-calibrate for it first")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
