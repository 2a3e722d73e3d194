"""The fronts of a server, each on an endpoint of its own: opened together, or not at all, and closed together."""

from __future__ import annotations

from contextlib import ExitStack

import zmq

from hotpolicy.runtime.fronts import Front
from hotpolicy.runtime.fronts.gr00t import Gr00t
from hotpolicy.runtime.fronts.openpi import Openpi
from hotpolicy.runtime.fronts.operators import Control, Operators
from hotpolicy.runtime.fronts.robots import Robots
from hotpolicy.runtime.keys import ServerKeys
from hotpolicy.runtime.serving.desk import Desk
from hotpolicy.runtime.serving.doorman import Door, Doorman
from hotpolicy.runtime.serving.reception import Reception
from hotpolicy.runtime.serving.router import Router
from hotpolicy.runtime.wire import COMMAND_CAPS


class FrontDoors:
    """Bound once made. Raises ConfigError, and leaves nothing behind, when an endpoint is taken."""

    def __init__(self, desk: Desk, control: Control, reception: Reception):
        self._config, self._reception = desk.config, reception
        self.gr00t: Gr00t | None = None
        self.openpi: Openpi | None = None
        self.gr00t_endpoint, self.openpi_port = "", 0
        with ExitStack() as stack:
            stack.callback(reception.close)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(context.term)
            doorman = Doorman(context, ServerKeys.load(self._config.keys)) if self._config.keys else None
            if doorman:
                stack.callback(doorman.close)
            self.robots = Robots(self._socket(stack, context, "robots", doorman), desk)
            self.operators = Operators(self._socket(stack, context, "operators", doorman), desk, control)
            self.endpoint = self.robots.router.bind("endpoint", self._config.endpoint)
            self.control_endpoint = self.operators.router.bind("control", self._config.control)
            self.fronts: list[Front] = [self.operators, self.robots]
            if self._config.gr00t:
                self.gr00t = Gr00t(self._socket(stack, context), desk, self._config.gr00t)
                self.gr00t_endpoint = self.gr00t.router.bind("gr00t", self._config.gr00t.endpoint)
                self.fronts.append(self.gr00t)
            if self._config.openpi:
                self.openpi = Openpi(desk, self._config.openpi)
                self.openpi_port = self.openpi.start()
                stack.callback(self.openpi.close)
            reception.open(self.fronts)
            self._cleanup = stack.pop_all()

    def close(self) -> None:
        self._cleanup.close()

    @property
    def unsent(self) -> int:
        """Replies that could not be sent."""
        return sum(front.router.dropped for front in self.fronts)

    def counts(self) -> dict[str, dict[str, int]]:
        """What other runtimes' clients did, by dialect."""
        foreign = {"gr00t": self.gr00t, "openpi": self.openpi}
        return {name: front.meter.counts() for name, front in foreign.items() if front}

    def _socket(
        self,
        stack: ExitStack,
        context: zmq.Context[zmq.Socket[bytes]],
        door: Door = "robots",
        doorman: Doorman | None = None,
    ) -> Router:
        caps = COMMAND_CAPS if door == "operators" else self._config.caps
        router = Router(context, caps, self._reception, door, doorman)
        stack.callback(router.close)
        return router
