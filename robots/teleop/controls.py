"""What a person at a terminal decides, whatever moves the arm: how an episode ends, who acts, emergency stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hotpolicy.robots.teleop.terminal import Terminal
from hotpolicy.runtime import clock

if TYPE_CHECKING:
    from hotpolicy.robots.operators import Decision

ENDINGS: dict[str, Decision] = {"escape": "stop", "left": "again", "right": "done"}  # the first one pressed holds
TAKE_OVER = ("space", "tab")
PAUSE = "p"
STOP = "x"  # the emergency stop
LEGEND = [
    ("space, tab", "take over, hand back"),
    (PAUSE, "pause, go on"),
    ("right", "episode done"),
    ("left", "discard, again"),
    ("escape", "discard, stop"),
    (STOP, "EMERGENCY STOP: torque off"),
]

# A key that is held repeats after up to this long. Handing back and going on need a key apart from the one before;
# taking over needs none, and so a key held too long ends with the person in control, never with the policy.
HAND_BACK_S = 1.0


class Controls:
    """Keys as in LeRobot's recorder, and a few more. Without a terminal nobody decides, and time ends the episodes."""

    def __init__(
        self,
        terminal: Terminal | None,
        now: Callable[[], float] = clock.now,
        on_stop: Callable[[str], None] | None = None,
    ):
        """`on_stop`: called with the reason when the key of the emergency stop is pressed."""
        self.decision: Decision = "done"
        self.in_control = False  # took over from a policy; of no meaning where nobody else acts
        self.paused = False  # nobody acts, the arm holds
        self._terminal = terminal
        self._now = now
        self._on_stop = on_stop
        self._stop = False  # asked for between episodes
        self._others: Mapping[str, Callable[[], object]] = {}  # keys that mean something to somebody else
        self._toggled_at = float("-inf")  # s, when the last key of TAKE_OVER or PAUSE came

    def begin(self, buttons: Sequence[str] = ()) -> None:
        """A new episode: keys pressed since the last one are void, but for escape and the emergency stop."""
        keys = self._pressed()
        self._stop = "escape" in keys or "escape" in buttons
        self.in_control, self.paused, self.decision = False, False, "done"

    def press(self, buttons: Sequence[str] = ()) -> list[str] | None:
        """The keys that were pressed since the last call; None when one has ended the episode (`decision`), or the
        terminal is gone: then nobody is there, and it is a stop. `buttons`: keys that came from another device, which
        does not repeat them; their emergency stop is the device's own."""
        keys = self._pressed()
        if self._stop or (self._terminal is not None and self._terminal.gone):
            keys.append("escape")
        for key, decision in ENDINGS.items():
            if key in keys or key in buttons:
                self.decision = decision
                return None
        for key in keys:
            if key in TAKE_OVER:
                self._take_over(self._repeated())
            elif key == PAUSE:
                self._pause(self._repeated())
        for button in buttons:
            if button in TAKE_OVER:
                self._take_over(repeated=False)
            elif button == PAUSE:
                self._pause(repeated=False)
        return keys

    def listen(self, keys: Mapping[str, Callable[[], object]]) -> None:
        """Call these too, whenever their key is found pressed."""
        self._others = keys

    def glance(self) -> None:
        """Look at the keys while no episode runs; what they would say of one is void."""
        self._pressed()

    def close(self) -> None:
        """Give the terminal its settings back."""
        if self._terminal is not None:
            self._terminal.close()

    def _pressed(self) -> list[str]:
        keys = [] if self._terminal is None else self._terminal.pressed()
        if STOP in keys and self._on_stop is not None:
            self._on_stop(f"key {STOP}")  # before anything else these keys may say
        for key in keys:
            if key in self._others:
                self._others[key]()
        return keys

    def _take_over(self, repeated: bool) -> None:
        if not (self.in_control and repeated):
            self.in_control, self.paused = not self.in_control, False

    def _pause(self, repeated: bool) -> None:
        if not (self.paused and repeated):
            self.paused, self.in_control = not self.paused, False

    def _repeated(self) -> bool:
        before, self._toggled_at = self._toggled_at, self._now()
        return self._toggled_at - before < HAND_BACK_S


class Controlled:
    """What robots.operators asks of one, answered by its controls."""

    _controls: Controls

    def listen(self, keys: Mapping[str, Callable[[], object]]) -> None:
        self._controls.listen(keys)

    def glance(self) -> None:
        self._controls.glance()

    @property
    def decision(self) -> Decision:
        return self._controls.decision

    @property
    def in_control(self) -> bool:
        return self._controls.in_control

    @property
    def paused(self) -> bool:
        return self._controls.paused
