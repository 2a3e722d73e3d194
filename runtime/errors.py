"""One tree of errors; each class says what the caller does next.

HotpolicyError
├── ConfigError            a setting or file is wrong: fix it, nothing was started
├── BadRequest             the caller's bug: fix the call, do not retry
│   └── UnknownVersion     no such policy version in the store
├── ServeError             the server's answer was not an action
│   ├── Expired            the deadline passed before it could be computed: send a newer observation
│   ├── Superseded         a newer observation of the same session replaced it: wait for that one
│   ├── ServerLost         no answer before the deadline: hold; the client reconnects by itself
│   │   └── LockedOut      the server is there and does not let this client in: look at the keys; hold
│   ├── BadReply           the peer broke the protocol: the client drops the reply
│   ├── EngineFault        the model failed on this request: the server goes on
│   │   └── ServerFailed   the model is gone, and the server with it: ask another server
│   └── Busy               queue or session table full: back off
│       └── Draining       the server is asked to stop: ask another server
├── BundleError            a policy bundle is incomplete, altered or not a bundle: nothing was loaded
├── SwapRefused            the candidate failed its checks: the live version is untouched
├── DatasetError           a dataset folder is damaged or of another format
├── TuningError            a tuning run cannot start or has diverged
└── RobotError             the arm cannot be driven as asked
    ├── BusLost            the serial port is gone or was never there: reconnect by its stable name
    ├── BusBusy            another process holds the port
    ├── ServoSilent        a servo did not answer in time: its joint is stale, hold
    ├── ServoFault         a servo reports overload, heat, voltage...: stop and look
    ├── WrongServo         a servo answered that is not the one expected
    ├── CalibrationError   calibration is missing or differs from the servo's own: recalibrate or push it
    ├── LimitViolation     an action was refused by the limits and was not sent
    ├── Stopped            the emergency stop is on: look at the arm, then clear it
    ├── StopUnconfirmed    the emergency stop was asked for and torque may still be on: cut the power
    └── CameraLost         no fresh frame from a camera
"""

from __future__ import annotations


class HotpolicyError(Exception):
    """Base of every error hotpolicy raises on purpose. Its text is one line and names what was expected."""

    code = "error"  # the name of the error on the wire


class ConfigError(HotpolicyError):
    code = "config"


class BadRequest(HotpolicyError):
    code = "bad_request"


class UnknownVersion(BadRequest):
    code = "unknown_version"


class ServeError(HotpolicyError):
    code = "serve"


class Expired(ServeError):
    code = "expired"


class Superseded(ServeError):
    code = "superseded"


class ServerLost(ServeError):
    code = "server_lost"


class LockedOut(ServerLost):
    code = "locked_out"


class BadReply(ServeError):
    code = "bad_reply"


class EngineFault(ServeError):
    code = "engine_fault"


class ServerFailed(EngineFault):
    code = "server_failed"


class Busy(ServeError):
    code = "busy"


class Draining(Busy):
    code = "draining"


class BundleError(HotpolicyError):
    code = "bundle"


class SwapRefused(HotpolicyError):
    code = "swap_refused"


class DatasetError(HotpolicyError):
    code = "dataset"


class TuningError(HotpolicyError):
    code = "tuning"


class RobotError(HotpolicyError):
    code = "robot"


class BusLost(RobotError):
    code = "bus_lost"


class BusBusy(RobotError):
    code = "bus_busy"


class ServoSilent(RobotError):
    code = "servo_silent"


class ServoFault(RobotError):
    code = "servo_fault"


class WrongServo(RobotError):
    code = "wrong_servo"


class CalibrationError(RobotError):
    code = "calibration"


class LimitViolation(RobotError):
    code = "limit"


class Stopped(RobotError):
    code = "stopped"


class StopUnconfirmed(RobotError):
    code = "stop_unconfirmed"


class CameraLost(RobotError):
    code = "camera_lost"


def _descendants(cls: type[HotpolicyError]) -> list[type[HotpolicyError]]:
    return [cls] + [leaf for child in cls.__subclasses__() for leaf in _descendants(child)]


BY_CODE: dict[str, type[HotpolicyError]] = {cls.code: cls for cls in _descendants(HotpolicyError)}


def from_code(code: str, text: str) -> HotpolicyError:
    """The error a peer named on the wire; an unknown code becomes a plain ServeError that keeps the name."""
    cls = BY_CODE.get(code)
    return cls(text) if cls else ServeError(f"{code}: {text}")
