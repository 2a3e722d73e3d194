"""What a session should do: a YAML file, and options of the command line over it, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotpolicy.launch.fields import Fields
from hotpolicy.launch.options import CONTROL, ROBOT, STORE
from hotpolicy.runtime.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "configs" / "sessions"
COLLECT, PROMOTE = ("demonstrate", "correct"), ("ask", "auto")
# Keys of a terminal that no operator uses: joints have q to o and a to l, c x p and the arrows are taken as well.
FREE_KEYS = tuple("zvbnm0123456789")


@dataclass(frozen=True, slots=True)
class Tuning:
    """How every job learns. The names are options of `hotpolicy finetune`."""

    strategy: str = "expert"
    steps: int = 350  # 32 frames each
    rate: float | None = None  # None: the strategy's
    replay: float = 0.5  # share of each batch from old tasks
    replay_from: tuple[Path, ...] = ()  # datasets of old tasks, beside what the version rehearses
    fresh: float = 0.5  # share of the rest from episodes that no earlier job has seen
    carry: bool = True  # the optimiser's state from the job that made the version it starts from
    minutes: float | None = None  # for strategy auto
    threads: int = 1
    save_every: float = 20.0  # s between training checkpoints


@dataclass(frozen=True, slots=True)
class Gate:
    trials: int | None = None  # episodes of the success check; None: 20 with a virtual arm, else none
    success: float = 0.8
    old_error: float = 1.5


@dataclass(frozen=True, slots=True)
class Keys:
    """Of the terminal, while a person is at it."""

    back: str = "b"  # roll back to the version before
    live: str = "m"  # make the version that is asked about live
    leave: str = "n"  # do not


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Raises ConfigError naming the field when a value is not allowed."""

    folder: Path  # dataset, state, plot; a session goes on where it was
    tasks: tuple[str, ...]  # instructions, in turn
    robot: str = ROBOT
    teleop: str = "scripted"  # who demonstrates
    take_over: str | None = None  # who may correct the policy while it acts
    # demonstrate, or correct: the policy acts, and what a person corrects is what is collected. Of several the first is
    # for the policy as it was, the next for when a version of this session is live, and so on; the last for all after.
    collect: tuple[str, ...] = ("demonstrate",)
    store: Path = STORE
    control: str = CONTROL
    key: Path | None = None
    server_key: Path | None = None
    rounds: int = 1  # in all, those of earlier runs included
    episodes: int = 24  # new demonstrations for each round
    uncorrected: int = 20  # where corrections are collected: so many in a row that need nobody end it
    tries: int = 8  # episodes of the policy after each round, over all tasks
    baseline: bool = False  # as many before the first
    promote: str = "ask"
    seed: int = 0
    tuning: Tuning = Tuning()
    gate: Gate = Gate()
    keys: Keys = Keys()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks: expected at least one instruction: --task, or `tasks` in the session's file")
        if not self.collect or not {*self.collect} <= {*COLLECT}:
            raise ConfigError(f"collect: expected {' or '.join(COLLECT)}, or several in turn, got {[*self.collect]}")
        if self.promote not in PROMOTE:
            raise ConfigError(f"promote: expected one of {', '.join(PROMOTE)}, got {self.promote!r}")
        if "correct" in self.collect and self.take_over is None:
            raise ConfigError("take_over: expected who corrects the policy, because `collect` is correct")
        chosen = (self.keys.back, self.keys.live, self.keys.leave)
        if len({*chosen}) < len(chosen) or not {*chosen} <= {*FREE_KEYS}:
            raise ConfigError(f"keys: expected three of {' '.join(FREE_KEYS)}, got {' '.join(chosen)}")
        for path in self.tuning.replay_from:
            if not path.is_dir():
                raise ConfigError(f"tuning.replay_from: expected a dataset folder, {path} is none")

    def collecting(self, taught: int) -> str:
        """What is collected while so many versions of this session are live or were, and were not rolled back."""
        return self.collect[min(taught, len(self.collect) - 1)]


def read_plan(place: Path, given: Mapping[str, Any]) -> SessionPlan:
    """`place` is a session's file, or its folder where there is no file; `given` are options by the plan's names, over
    the file's. Raises ConfigError, one line, naming file and field."""
    is_file = place.suffix in (".yaml", ".yml")
    values = _file(_find(place)) if is_file else {"folder": place}
    values |= {name: value for name, value in given.items() if name not in ("tuning", "gate") and value is not None}
    plan = SessionPlan(**{"tasks": (), **values})
    over = {
        section: replace(getattr(plan, section), **{k: v for k, v in given[section].items() if v is not None})
        for section in ("tuning", "gate")
        if section in given
    }
    return replace(plan, **over)


def _find(place: Path) -> Path:
    """As given, else one that comes along. Raises ConfigError that lists those."""
    if place.is_file():
        return place
    if len(place.parts) == 1 and (SHIPPED / place).is_file():
        return SHIPPED / place
    known = ", ".join(sorted(file.name for file in SHIPPED.glob("*.yaml")))
    raise ConfigError(f"session: expected a session's file, or one of {known}; {place} is none")


def _file(file: Path) -> dict[str, Any]:
    fields = Fields.read(file)
    found: dict[str, Any] = {"folder": Path(fields.text("folder")) if fields.has("folder") else Path(file.stem)}
    found["tasks"] = fields.texts("tasks")
    for name in ("robot", "teleop", "take_over", "control"):
        if fields.has(name):
            found[name] = fields.text(name)
    for name in ("store", "key", "server_key"):
        if fields.has(name):
            found[name] = Path(fields.text(name)).expanduser()
    if fields.is_list("collect"):
        found["collect"] = fields.texts("collect", choices=COLLECT)
    elif fields.has("collect"):
        found["collect"] = (fields.text("collect", choices=COLLECT),)
    if fields.has("promote"):
        found["promote"] = fields.text("promote", choices=PROMOTE)
    for name, above in (("rounds", 0), ("episodes", 0), ("uncorrected", 0), ("tries", -1), ("seed", -1)):
        if fields.has(name):
            found[name] = fields.whole(name, above=above)
    if fields.has("baseline"):
        found["baseline"] = fields.flag("baseline")
    for name, read in (("tuning", _tuning), ("gate", _gate), ("keys", _keys)):
        if fields.has(name):
            section = fields.section(name)
            found[name] = read(section)
            section.done()
    fields.done()
    return found


def _tuning(fields: Fields) -> Tuning:
    found: dict[str, Any] = {}
    if fields.has("strategy"):
        found["strategy"] = fields.text("strategy")
    for name in ("steps", "threads"):
        if fields.has(name):
            found[name] = fields.whole(name)
    for name, low, high in (("replay", -1e-9, 0.95), ("fresh", -1e-9, 1.0), ("rate", 0.0, 1.0), ("minutes", 0.0, 1e6)):
        if fields.has(name):
            found[name] = fields.number(name, above=low, at_most=high)
    if fields.has("save_every"):
        found["save_every"] = fields.number("save_every", above=0, unit="s")
    if fields.has("carry"):
        found["carry"] = fields.flag("carry")
    if fields.has("replay_from"):
        found["replay_from"] = tuple(Path(name).expanduser() for name in fields.texts("replay_from"))
    return Tuning(**found)


def _gate(fields: Fields) -> Gate:
    found: dict[str, Any] = {}
    if fields.has("trials"):
        found["trials"] = fields.whole("trials", above=-1)
    if fields.has("success"):
        found["success"] = fields.number("success", above=-1e-9, at_most=1)
    if fields.has("old_error"):
        found["old_error"] = fields.number("old_error", above=0.999999)
    return Gate(**found)


def _keys(fields: Fields) -> Keys:
    return Keys(**{name: fields.text(name) for name in ("back", "live", "leave") if fields.has(name)})
