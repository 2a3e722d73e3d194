"""A gamepad by SDL: any pad SDL has a mapping for, with the names of an Xbox pad. Opens no window and no sound."""

from __future__ import annotations

import os

from hotpolicy.robots.teleop.pad import Axis, Button, Event, Plugged, Unplugged
from hotpolicy.runtime.errors import ConfigError

# SDL reads its events only with a video driver; without a handler of its own it leaves SIGTERM to end the program.
# Standard output is for data, not for a greeting.
SETTINGS = {
    "SDL_VIDEODRIVER": "dummy",
    "SDL_AUDIODRIVER": "dummy",
    "SDL_NO_SIGNAL_HANDLERS": "1",
    "SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS": "1",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

import pygame  # noqa: E402
from pygame._sdl2 import controller  # noqa: E402

FULL = 32767  # an axis at its end

# In the order of SDL's numbers.
AXES = ("leftx", "lefty", "rightx", "righty", "lefttrigger", "righttrigger")
BUTTONS = ["a", "b", "x", "y", "back", "guide", "start", "leftstick", "rightstick", "leftshoulder", "rightshoulder"]
BUTTONS += ["dpup", "dpdown", "dpleft", "dpright"]

HOW_TO_CHECK = "`ls -l /dev/input/js*` shows those the kernel knows; reading their event devices takes group `input`"


class SdlGamepad:
    """The first gamepad there is. Implements robots.teleop.pad.Gamepad; for one thread."""

    def __init__(self) -> None:
        """Raises ConfigError when there is none."""
        pygame.display.init()
        controller.init()
        self._controller: controller.Controller | None = None
        self._instance = -1  # SDL's number of this connection; plugged in again it is another
        if self._open() is None:
            others = [pygame.joystick.Joystick(index).get_name() for index in range(pygame.joystick.get_count())]
            self.close()
            if others:
                raise ConfigError(
                    f"gamepad: expected one that SDL knows, got {', '.join(others)}: "
                    "give its mapping in SDL_GAMECONTROLLERCONFIG"
                )
            raise ConfigError(f"gamepad: expected one, found none: {HOW_TO_CHECK}")

    def events(self) -> list[Event]:
        """What happened since the last call, in order; never waits."""
        return [ours for event in pygame.event.get() if (ours := self._translate(event)) is not None]

    def close(self) -> None:
        """Let go of the gamepad and of SDL; more than once is harmless."""
        if self._controller is not None:
            self._controller.quit()
            self._controller = None
        controller.quit()
        pygame.joystick.quit()
        pygame.display.quit()

    def _translate(self, event: pygame.Event) -> Event | None:
        if event.type == pygame.CONTROLLERDEVICEADDED:
            return self._open() if self._controller is None else None
        if getattr(event, "instance_id", None) != self._instance or self._controller is None:
            return None  # of another device, or another connection
        if event.type == pygame.CONTROLLERAXISMOTION and event.axis < len(AXES):
            return Axis(AXES[event.axis], max(event.value / FULL, -1.0))
        if event.type in (pygame.CONTROLLERBUTTONDOWN, pygame.CONTROLLERBUTTONUP) and event.button < len(BUTTONS):
            return Button(BUTTONS[event.button], event.type == pygame.CONTROLLERBUTTONDOWN)
        if event.type == pygame.CONTROLLERDEVICEREMOVED:
            self._controller.quit()
            self._controller = None
            return Unplugged()
        return None

    def _open(self) -> Plugged | None:
        """The first one there is; None when there is none."""
        for index in range(controller.get_count()):
            if controller.is_controller(index):
                self._controller = controller.Controller(index)
                self._instance = self._controller.as_joystick().get_instance_id()
                return Plugged(self._controller.name)
        return None
