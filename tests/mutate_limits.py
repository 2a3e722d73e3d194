"""Plant one fault after another in robots/limits.py and in what it decides by, and see whether its tests notice. Prints
each that they do not.

`python tests/mutate_limits.py` exits with the number of survivors. Each runs in a fork, to pay imports once.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

import hotpolicy.robots.limits as limits

FOLDER = Path(limits.__file__).parent
TESTS = Path(__file__).with_name("test_robot_limits.py")

# By file: what is there, and what a tired hand might make of it.
FAULTS = {
    "bounds": [
        ("not self.low < self.high", "not self.low <= self.high"),
        ("or self.max_step <= 0", "or self.max_step < 0"),
        ("if not np.isfinite([self.low, self.high, self.max_step]).all() or", "if"),
        ("not 0 < self.max_lead < np.inf", "not 0 <= self.max_lead < np.inf"),
        ("not 0 < self.watchdog_s < np.inf", "self.watchdog_s <= 0"),
        ("if len(steps) != len(spec.joints)", "if False"),
        ("not 0 <= self.lever < np.inf", "self.lever < 0"),
        ("if not self.tool_step > 0", "if self.tool_step < 0"),
        ('if self.fallback not in ("hold", "safe_pose", "release")', "if False"),
        ("if not 0 < self.fallback_s < np.inf", "if self.fallback_s < 0"),
        ("if not 0 <= self.tick_s < np.inf", "if False"),
        ('if self.fallback == "safe_pose" and self.safe_pose is None', "if False"),
        ("_check_pose(self.safe_pose, self.joints)", "pass"),
        ("if len(pose) != len(joints)", "if False"),
        ("if not joint.low <= value <= joint.high", "if not joint.low <= value"),
        ("if not joint.low <= value <= joint.high", "if value > joint.high"),
    ],
    "reach": [
        ("limits.joints], up=True)", "limits.joints], up=False)"),
        ("limits.joints], up=False)", "limits.joints], up=True)"),
        ("[joint.max_step for joint in limits.joints]", "[limits.joints[0].max_step for joint in limits.joints]"),
        ("np.inf if joint.max_lead is None else joint.max_lead", "np.inf"),
        ("present - self._lead, present + self._lead", "start - self._lead, start + self._lead"),
        ("wanted = np.clip(wanted, present - self._lead, present + self._lead)", "pass"),
        ("wanted = np.clip(wanted, start - self._step, start + self._step)", "pass"),
        ("start - self._step, start + self._step", "present - self._step, present + self._step"),
        ("start - self._step, start + self._step", "start - self._step, start + 2 * self._step"),
        ("start - self._step, start + self._step", "start - 2 * self._step, start + self._step"),
        ("np.clip(wanted.astype(np.float32), self._low, self._high)", "wanted.astype(np.float32)"),
        (
            "np.clip(wanted.astype(np.float32), self._low, self._high)",
            "np.maximum(wanted.astype(np.float32), self._low)",
        ),
        (
            "np.clip(wanted.astype(np.float32), self._low, self._high)",
            "np.minimum(wanted.astype(np.float32), self._high)",
        ),
        ("return np.clip(present, self._low, self._high).astype(np.float64)", "return present"),
        ("bool(np.isfinite(self._lead).any())", "False"),
        ("bool(np.isfinite(self._lead).any())", "bool(np.isfinite(self._lead).all())"),
        ("if array.shape != (joints,)", "if array.size != joints"),
        ("if array.shape != (joints,)", "if array.ndim != 1"),
        ('not in "fiu"', 'not in "fiub"'),
        ('if array.dtype.kind not in "fiu"', "if False"),
        ("if not np.isfinite(value)", "if np.isinf(value)"),
        ("if not np.isfinite(value)", "if np.isnan(value)"),
        ("zip(self._joints, wanted, strict=True)", "zip(self._joints[:1], wanted[:1], strict=True)"),
        ("np.where(outside, inward, rounded)", "rounded"),
        ("np.where(degrees, np.radians([joint.lever for joint in limits.joints]), 0.0)", "0 * self._step"),
        (
            "np.where(degrees, np.radians([joint.lever for joint in limits.joints]), 0.0)",
            "np.radians([joint.lever for joint in limits.joints])",
        ),
        ("np.radians([joint.lever for joint in limits.joints])", "np.array([joint.lever for joint in limits.joints])"),
        ("wanted = start + (wanted - start) * self._share(wanted - start)", "pass"),
        ("np.abs(moves) @ self._lever", "abs(moves @ self._lever)"),
        ("np.abs(moves) @ self._lever", "np.max(np.abs(moves) * self._lever)"),
        ("1.0 if travel <= self._tool_step", "1.0 if travel <= 2 * self._tool_step"),
        ("self._tool_step / travel", "2 * self._tool_step / travel"),
        ("self._tool_step = limits.tool_step", "self._tool_step = np.inf"),
    ],
    "patience": [
        ("self._accepted_at = self._now()", "self._accepted_at = self._accepted_at or self._now()"),
        ("self._accepted_at = self._now()\n        self.holding = False", "self._accepted_at = self._now()"),
        ("> self._limits.watchdog_s\n", ">= self._limits.watchdog_s\n"),
        ("self.holding, self._held_at = True, self._now()", "self._held_at = self._now()"),
        ("self._accepted_at, self.holding = None, False", "self.holding = False"),
        ("> self._limits.watchdog_s\n", "> 2 * self._limits.watchdog_s\n"),
        ("return self.holding or late", "return late"),
        ("self.holding, self._held_at = True, self._now()", "self.holding, self._held_at = True, 0.0"),
        ("self._now() - self._held_at <= self._limits.fallback_s", "False"),
        ("self._now() - self._held_at <= self._limits.fallback_s", "True"),
        ("self._accepted_at, self.holding = None, False", "self._accepted_at = None"),
        ("< self._limits.tick_s", "> self._limits.tick_s"),
        ("self._stepped_at = self._now()\n", "pass\n"),
        ("self._accepted_at = None\n\n    @property", "pass\n\n    @property"),
        ("            self._stepped_at = self._now()\n", "            self._stepped_at = 0.0\n"),
        ("return self._limits.fallback\n", 'return "hold"\n'),
        ("<= self._limits.fallback_s", "< self._limits.fallback_s"),
    ],
    "limits": [
        ("if len(limits.joints) != len(arm.spec.joints)", "if False"),
        ("self._goal = self._present = None  # whatever", "pass  # whatever"),
        ("wanted = self._reach.checked(action)", "wanted = np.asarray(action, dtype=np.float64)"),
        ("self._goal = self._present = None  # until", "pass  # until"),
        ("self._arm.send(sent)\n", "self._arm.send(np.asarray(action))\n"),
        ("self._goal = sent.astype(np.float64)", "self._goal = np.asarray(action, dtype=np.float64)"),
        ("self._patience.accept()", "pass"),
        ("                self.hold()\n                self._patience", "                self._patience"),
        ("self._goal = self._present = None\n            self._arm.hold()", "self._arm.hold()"),
        ("        self._arm.hold()\n", "        pass\n"),
        ("self._patience.start_over()  # only now", "self._patience.holding = False"),
        (
            "self._goal = self._present = None\n            self._carried = False\n            self._arm.torque(on)",
            "self._arm.torque(on)",
        ),
        ("self._arm.torque(on)", "self._arm.torque(True)"),
        (
            "self._goal = self._present = None\n        self._patience.end()\n        self._arm.close()",
            "self._arm.close()",
        ),
        ("        self._arm.close()\n", ""),
        ("if state.stale:", "if False:"),
        ("return self._reach.inside(present), present", "return present, present"),
        ("if self._present is None and self._reach.needs_present", "if False"),
        ("if self._present is None and self._reach.needs_present", "if self._present is None"),
        ("elif self.latch.reason is None:", "else:"),
        ("if on:\n                self.require_clear()", "if False:\n                self.require_clear()"),
        ("self._carried, self.rest_pose = on, None", "self._carried = on"),
        ("self._carried, self.rest_pose = on, None", "self.rest_pose = None"),
        ("if (reason := self.latch.reason) is not None", "if (reason := None)"),
        ("lambda: self._arm.torque(False))\n        self._carried = False", "lambda: self._arm.torque(False))"),
        ("lambda: self._arm.torque(False))", "self._arm.hold)"),
        ("self._arm.hold)", "lambda: self._arm.torque(False))"),
        ("self.latch.set(reason)\n", "pass\n"),
        ("reversed(range(STOP_ATTEMPTS))", "range(STOP_ATTEMPTS)"),
        ("STOP_ATTEMPTS = 3", "STOP_ATTEMPTS = 1"),
        (
            "                    if not left:\n                        raise StopUnconfirmed",
            "                    if False:\n                        raise StopUnconfirmed",
        ),
        ("self.require_clear()  # within the turn", "pass  # within the turn"),
        ('case "release" if self._carried:', 'case "release":'),
        ("self._arm.torque(False)\n                self._carried = False", "self._carried = False"),
        ("self.rest_pose = start if self.rest_pose is None else self.rest_pose", "self.rest_pose = start"),
        ("self.rest_pose = start if self.rest_pose is None else self.rest_pose", "pass"),
        ("self._patience.start_over()  # only now", "pass"),
        (
            "self._carried, self.rest_pose = on, None\n            self._patience.start_over()",
            "self._carried, self.rest_pose = on, None",
        ),
        ("self._carried = False\n            self._patience.start_over()", "self._carried = False"),
        ("self._patience.end()\n            for left", "for left"),
        ("self._patience.end()\n        self._arm.close()", "self._arm.close()"),
        ("                self._patience.hold()\n", "                pass\n"),
        ("self._reach.cut(wanted, start, present)", "self._reach.cut(wanted, start, start)"),
        ("self._reach.cut(wanted, start, present)", "self._reach.cut(wanted, present, present)"),
        ("self._reach.cut(wanted, start, present)", "wanted.astype(np.float32)"),
        ("if self._patience.over:", "if self.holding:"),
    ],
}


def notices(file: str, source: str) -> bool:
    """Whether the tests fail on this version of one file. Runs in a fork: the answer is the child's exit status."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        for name in FAULTS:  # so that each is imported anew, by the tests, with the mutant among them
            del sys.modules[f"hotpolicy.robots.{name}"]
        module = types.ModuleType(f"hotpolicy.robots.{file}")
        sys.modules[module.__name__] = module
        exec(compile(source, "mutant", "exec"), module.__dict__)
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", str(TESTS)])))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == pytest.ExitCode.TESTS_FAILED


def main() -> int:
    survivors = planted = 0
    for file, faults in FAULTS.items():
        source = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
        if notices(file, source):
            sys.exit(f"the tests fail on {file}.py as it is")
        for old, new in faults:
            planted += 1
            if old not in source:
                sys.exit(f"fault {planted}: no longer in {file}.py: {old!r}")
            if not notices(file, source.replace(old, new, 1)):
                survivors += 1
                print(f"survived in {file}.py: {old!r} -> {new!r}", flush=True)
    print(f"{planted - survivors} of {planted} planted faults were caught")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
