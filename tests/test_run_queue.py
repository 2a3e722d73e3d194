"""What other processes cost is told apart from what a computation costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from hotpolicy.runtime.serving.run_queue import OwnQueue, RunQueue

CPU = min(os.sched_getaffinity(0))
BURN = "while True: pass"


def worked(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_thread_that_shares_a_processor_has_waited_for_it() -> None:
    """Two others on one processor: of what it takes, this thread waits for most, whichever thread it is."""
    queue = RunQueue()
    took, waited = [0.0], [0.0]

    def compute() -> None:
        os.sched_setaffinity(0, {CPU})  # this thread's own
        others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
        try:
            time.sleep(0.3)
            queue.follow()
            looked, began = queue.look(), time.monotonic()
            worked(0.1)
            took[0] = time.monotonic() - began
            waited[0] = queue.waited_ms(looked) / 1000
        finally:
            for other in others:
                other.kill()
                other.wait()

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join(60)
    queue.close()
    assert took[0] > 0.15
    assert took[0] - waited[0] < 0.6 * took[0]
    assert waited[0] <= took[0] + 0.05


def test_threads_come_and_go() -> None:
    queue = RunQueue()
    assert queue.look() == {}
    queue.follow()
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, daemon=True)
    thread.start()
    name = str(thread.native_id)
    assert name not in queue.look()
    queue.follow()
    during = queue.look()
    assert name in during
    leave.set()
    thread.join()
    while name in os.listdir("/proc/self/task"):
        time.sleep(0.001)  # joined a moment before the kernel lets it go
    assert name not in queue.look()  # before anybody followed
    assert queue.waited_ms(during) >= 0
    queue.follow()
    assert name not in queue.look()
    queue.close()
    assert queue.look() == {}


def test_files_do_not_pile_up() -> None:
    """However many threads begin and end, and whatever ids they get."""
    queue = RunQueue()
    queue.follow()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        leave = threading.Event()
        threads = [threading.Thread(target=leave.wait, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        queue.follow()
        leave.set()
        for thread in threads:
            thread.join()
    queue.follow()
    queue.follow()
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # one or the other has not quite ended
    queue.close()


def test_looking_does_not_give_the_interpreter_away() -> None:
    """Beside a thread that does not let go of it, every system call that did so would cost a whole interval."""
    queue, leave, interval = RunQueue(), threading.Event(), sys.getswitchinterval()
    threads = [threading.Thread(target=leave.wait, daemon=True) for _ in range(20)]

    def burn() -> None:
        while not leave.is_set():
            sum(range(1000))

    threads.append(threading.Thread(target=burn, daemon=True))
    for thread in threads:
        thread.start()
    queue.follow()
    sys.setswitchinterval(0.1)
    try:
        began = time.monotonic()
        looked = queue.look()
        took = time.monotonic() - began
    finally:
        sys.setswitchinterval(interval)
        leave.set()
        for thread in threads:
            thread.join()
        queue.close()
    assert len(looked) > 20
    assert took < 1  # of twenty intervals; it may begin in the middle of one


def test_a_threads_own_waiting_is_its_own() -> None:
    found: dict[str, float] = {}

    def compute() -> None:
        os.sched_setaffinity(0, {CPU})
        others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
        queue = OwnQueue()
        try:
            time.sleep(0.3)
            asleep = queue.waited_ms()
            worked(0.1)
            found.update(asleep=asleep, computing=queue.waited_ms() - asleep)
        finally:
            queue.close()
            for other in others:
                other.kill()
                other.wait()

    beside = OwnQueue()
    before = beside.waited_ms()
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert found["computing"] > 50 > found["asleep"]
    assert beside.waited_ms() - before < found["computing"]
    beside.close()
    assert beside.waited_ms() == 0
