"""Who receives: the thread that computes while it has nothing to compute, and its deputy while it has.

So a request that finds the server idle is received, checked, computed and answered by one thread: two changes of
threads less, which are a fifth of a small request's time. Once a batch is computed the deputy receives, as long as it
lasts: a greeting, a ping or a new robot is answered meanwhile. It is not woken for a batch that will be over before it
is awake; it looks whether that came true.

Rule 1: messages are taken and handled under one lock, so fronts need none, and a peer's are handled in their order.
Rule 2: whoever begins to receive looks at every socket before it sleeps: the other may have consumed what a
descriptor tells of (see router.py).
"""

from __future__ import annotations

import math
import select
import threading
from collections.abc import Callable, Sequence

from hotpolicy.runtime.clock import now
from hotpolicy.runtime.fronts import Front
from hotpolicy.runtime.metrics import Meter
from hotpolicy.runtime.serving.bell import Bell

QUICK_S = 0.002  # a batch that takes no longer is computed without a deputy
WATCH_S = 0.02  # how often the deputy looks whether such a batch has taken longer after all
CALM = 50  # looks in a row without a batch, after which it sleeps until it is woken


class Reception:
    """Made before the sockets, whose bell it is; opened with their fronts, before any thread begins."""

    _bell: Bell
    _deputys_bell: Bell

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._lock = threading.Lock()  # of whoever handles messages
        self._fronts: dict[int, Front] = {}
        self._awake: set[int] = set()  # descriptors of sockets that may have a message
        self._bells: tuple[Bell, ...] = ()
        self._poller, self._deputys_poller, self._deputys_sleep = select.poll(), select.poll(), select.poll()
        self._clerk = self._deputy = 0  # the two threads
        self._attended = False  # by the clerk, who computes; else by the deputy
        self._since = 0.0  # when the clerk began to compute, monotonic s; 0: he does not
        self._missed = False  # the clerk sent something, and a message may have come in meanwhile
        self._watched = False  # the deputy looks often
        self._batches = self._seen = self._calm = 0

    def open(self, fronts: Sequence[Front]) -> None:
        self._bells = self._bell, self._deputys_bell = Bell(), Bell()
        self._fronts = {front.router.fd: front for front in fronts}
        for bell, poller in ((self._bell, self._poller), (self._deputys_bell, self._deputys_poller)):
            for descriptor in (bell.fd, *self._fronts):
                poller.register(descriptor, select.POLLIN)
        self._deputys_sleep.register(self._deputys_bell.fd, select.POLLIN)

    def close(self) -> None:
        for bell in self._bells:
            bell.close()

    # Any thread.

    def ring(self) -> None:
        """A socket may have a message that its descriptor does not tell of."""
        thread = threading.get_ident()
        if thread == self._clerk:
            self._missed = True
        else:
            self._bell.ring()
        if not self._attended and thread != self._deputy:
            self._deputys_bell.ring()

    def wake(self) -> None:
        """A request was admitted, by whatever thread: it is to be computed, and it expires."""
        thread = threading.get_ident()
        if not self._since and thread != self._clerk:
            self._bell.ring()
        if not self._attended and thread != self._deputy:
            self._deputys_bell.ring()

    def undisturbed(self, act: Callable[[], None]) -> None:
        """While no message is handled."""
        with self._lock:
            act()

    def rouse(self) -> None:
        """Both threads: what they do may be over."""
        self._bell.ring()
        self._deputys_bell.ring()

    # The clerk: the thread that computes.

    def attend(self, longest_s: float) -> None:
        """Handle some messages, at most one of each socket; wait for one if there is none. Call it again and again, and
        between two calls look what there is to compute."""
        if not self._attended:
            self._clerk, self._attended = threading.get_ident(), True
            self._look_at_all()
            self._take()
        elif self._missed:
            self._missed = False
            self._look_at_all()
            self._take()
        elif not self._awake or not self._take():
            self._sleep(self._poller, self._bell, longest_s)
            self._take()

    def begin(self, quick: bool) -> None:
        """He begins to compute; `quick`: it took no longer than QUICK_S the last time."""
        self._since = now()
        self._batches += 1
        if not (quick and self._watched):
            self._attended = False
            self._deputys_bell.ring()

    def end(self) -> None:
        """He has computed. Look for requests after this, not before."""
        self._since = 0.0

    def retire(self) -> None:
        """Any thread: there is no clerk any more, or he is stuck. Another may come."""
        self._attended, self._clerk, self._since = False, 0, 0.0
        self._deputys_bell.ring()

    # The deputy.

    def stand_in(self, longest_s: float) -> None:
        """Handle messages while the clerk cannot; else sleep. Call it again and again: after `longest_s` at most it
        returns, to look at other things."""
        if not self._deputy:
            self._deputy = threading.get_ident()
            self._look_at_all()
        if not self._attended:
            if not self._take():
                self._sleep(self._deputys_poller, self._deputys_bell, longest_s)
        else:
            self._watched = self._stays_awake()
            if self._since and not self._watched:  # he has begun just now, and relies on it
                self._watched = True
            self._sleep(self._deputys_sleep, self._deputys_bell, WATCH_S if self._watched else longest_s)
            since = self._since
            if self._attended and since and now() - since > QUICK_S:
                self._attended = False
            if not self._attended:
                self._look_at_all()

    def _stays_awake(self) -> bool:
        self._calm = self._calm + 1 if self._seen == self._batches else 0
        self._seen = self._batches
        return self._calm < CALM

    # Either.

    def _look_at_all(self) -> None:
        with self._lock:
            self._awake.update(self._fronts)

    def _take(self) -> bool:
        """A message of each socket that may have one. Whether there was any."""
        with self._lock:
            for descriptor in tuple(self._awake):
                front = self._fronts[descriptor]
                received = front.router.receive()
                if received is None:
                    self._awake.discard(descriptor)
                elif received[1]:
                    self._meter.count("received")
                    front.handle(*received)
            return bool(self._awake)

    def _sleep(self, poller: select.poll, bell: Bell, longest_s: float) -> None:
        awake = {descriptor for descriptor, _ in poller.poll(math.ceil(1000 * longest_s))}
        if bell.fd in awake:
            bell.silence()
            self._look_at_all()
        elif awake:
            with self._lock:
                self._awake.update(awake)
