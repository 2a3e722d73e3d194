"""At the robot in a session, one episode at a time: a person shows, the policy tries, a person corrects."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from hotpolicy.launch.driving import policy_source
from hotpolicy.launch.teleop import BY_SIGHT, LINGER, LONGEST_S, Picture, operator
from hotpolicy.robots.feed import Feed
from hotpolicy.robots.sources import OperatorSource, SharedSource
from hotpolicy.robots.teleop.controls import Controlled
from hotpolicy.robots.teleop.stop_key import StopKey
from hotpolicy.runtime.client import PolicyClient

if TYPE_CHECKING:
    from hotpolicy.finetune.recorder import Recorder
    from hotpolicy.launch.rig import Rig
    from hotpolicy.launch.sessions.plan import SessionPlan
    from hotpolicy.robots.loop import EpisodeReport
    from hotpolicy.robots.robot import Operator
    from hotpolicy.robots.sources import Source
    from hotpolicy.runtime.keys import ClientKeys
    from hotpolicy.runtime.messages import Step

REPLAN = 4  # actions of a chunk that are carried out before the next is used
TRY_SEED = 500_000  # from here on are the scenes of tries: the same ones after every round, so that rounds compare
GLANCE_S = 0.1  # between two looks at the keys while nothing moves


class Practice:
    """A context manager. One operator at a time has the terminal; without one its keys are watched all the same."""

    def __init__(
        self,
        rig: Rig,
        recorder: Recorder,
        plan: SessionPlan,
        client_keys: ClientKeys | None,
        keys: Mapping[str, Callable[[], object]],
    ):
        """`keys`: those of the session, and what to call; from another thread, perhaps."""
        self.rig, self.recorder, self.plan = rig, recorder, plan
        self._client_keys, self._keys = client_keys, keys
        self._pacer = rig.pacer
        self._who: str | None = None
        self._person: Operator | None = None
        self._seat = ExitStack()
        self._again = 0  # episodes since the last one that was kept

    def demonstrate(self) -> EpisodeReport:
        """The next task in turn, by the one who demonstrates; recorded if it is worth keeping."""
        person = self._sit(self.plan.teleop)
        assert person is not None
        return self._collected(OperatorSource(person), self.recorder, self.plan.teleop)

    def correct(self) -> EpisodeReport:
        """The next task in turn, by the policy, with a person beside it; recorded if they took over."""
        return self._by_policy(lambda source: self._collected(source, Corrections(self.recorder), self.plan.take_over))

    def attempt(self, number: int) -> tuple[EpisodeReport, bool]:
        """Try number `number` of the policy, and whether it had to be corrected: then it is recorded."""
        task, corrections = self.plan.tasks[number % len(self.plan.tasks)], Corrections(self.recorder)

        def episode(source: Source) -> EpisodeReport:
            self.rig.set_scene(task, self.plan.seed + TRY_SEED + number)
            return self._episode(task, source, corrections if self.plan.take_over else None, self.plan.take_over)

        return self._by_policy(episode), corrections.corrected

    def wait(self, collecting: str) -> None:
        """A moment in which nothing moves; keys are read, of who is there for what is collected."""
        self._sit(self.plan.teleop if collecting == "demonstrate" else self.plan.take_over)
        if isinstance(self._person, Controlled):
            self._person.glance()
        time.sleep(GLANCE_S)

    def close(self) -> None:
        self._seat.close()

    def __enter__(self) -> Practice:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _by_policy(self, episode: Callable[[Source], EpisodeReport]) -> EpisodeReport:
        person = self._sit(self.plan.take_over)
        # Between two episodes, never within one, the robot moves to a version that was swapped in.
        with PolicyClient(self.rig.profile.endpoints, keys=self._client_keys, boundary="episode") as client:
            source = policy_source(self.rig, client, REPLAN)
            return episode(source if person is None else SharedSource(source, person))

    def _collected(self, source: Source, recorder: Recorder | Corrections, who: str | None) -> EpisodeReport:
        before = len(self.recorder)
        # A demonstration that failed is given again; a policy that needed nobody has its turn at the next task.
        turn = before + (self._again if isinstance(recorder, Corrections) else 0)
        task = self.plan.tasks[turn % len(self.plan.tasks)]
        self.rig.set_scene(task, self.plan.seed + 1000 * before + self._again)
        report = self._episode(task, source, recorder, who, LINGER)
        self._again = 0 if len(self.recorder) > before else self._again + 1
        return report

    def _episode(
        self,
        task: str,
        source: Source,
        recorder: Recorder | Corrections | None,
        who: str | None,
        linger: int = 0,
    ) -> EpisodeReport:
        by_sight = who in BY_SIGHT and self.rig.world is not None
        feeds: list[Feed] = []
        with ExitStack() as open_feeds:
            if recorder is not None:
                feeds.append(Feed(recorder, when_full="wait" if self.rig.stepped else "fail"))
                open_feeds.callback(feeds[-1].close)
            if by_sight:
                feeds.append(Feed(Picture(self.rig.profile.spec), when_full="drop"))
                open_feeds.callback(feeds[-1].close)
            return self.rig.episode(task, source, feeds, LONGEST_S if by_sight else None, linger)

    def _sit(self, who: str | None) -> Operator | None:
        """This one has the robot and the terminal now; None: nobody, and the terminal is only watched."""
        if who == self._who and (self._person is not None or who is None):
            return self._person
        self._seat.close()
        self._who, self._person = who, None
        with ExitStack() as seat:
            if who is not None:
                self._person = seat.enter_context(closing(operator(self.rig, who)))
                seat.callback(self._leave)
            if isinstance(self._person, Controlled):
                self._person.listen(self._keys)
            elif who in (None, "scripted") and sys.stdin.isatty():
                seat.enter_context(StopKey(self.rig.arm.stop, others=self._keys))
            self._seat = seat.pop_all()
        return self._person

    def _leave(self) -> None:
        self.rig.pacer = self._pacer  # a person's was slower
        self._who, self._person = None, None


class Corrections:
    """Records the episodes of a policy in which a person took over, and no other. A robots.feed.Subscriber."""

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self.corrected = False  # the last episode

    def begin(self, task: str) -> None:
        self.corrected = False
        self._recorder.begin(task)

    def step(self, step: Step) -> None:
        self.corrected |= step.intervention
        self._recorder.step(step)

    def save(self, success: bool | None = None) -> None:
        if self.corrected:
            self._recorder.save(success)
        else:
            self._recorder.discard()

    def discard(self) -> None:
        self._recorder.discard()


def legend(plan: SessionPlan) -> Sequence[tuple[str, str]]:
    """Keys of the session, beside those of who acts: (key, meaning)."""
    keys = plan.keys
    back = (keys.back, "roll back to the version before, from the next episode on")
    if plan.promote == "auto":
        return [back]
    return [back, (keys.live, "make the version that passed live"), (keys.leave, "leave it")]
