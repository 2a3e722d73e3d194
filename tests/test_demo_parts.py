"""Parts of the demo that a run of it would not show when they break."""

from collections import deque

import numpy as np
import pytest

from hotpolicy.launch.machine import describe_machine
from hotpolicy.launch.play.examiner import NEW, OLD, p99
from hotpolicy.launch.play.film import Film
from hotpolicy.launch.play.fleet import Answer, by_verb
from hotpolicy.launch.play.lesson import follow
from hotpolicy.launch.processes import Child
from hotpolicy.launch.rollouts import Score, no_colour, other_images, share
from hotpolicy.launch.trials import simulated
from hotpolicy.runtime.errors import ConfigError, TuningError
from hotpolicy.runtime.messages import Observation, Step


def test_fifty_episodes_are_shared_evenly():
    shared = share(NEW, 50)
    assert [count for _, count in shared] == [13, 13, 12, 12]
    assert sum(count for _, count in share(OLD, 3)) == 3


def test_scores_add_up_under_their_verb():
    scores = {f"touch the {c} cube": Score(f"touch the {c} cube", n, 25) for c, n in (("red", 25), ("blue", 20))}
    assert by_verb(scores) == {"touch": Score("touch", 45, 50)}


def test_the_slowest_percent_leaves_out_what_was_not_answered():
    answers = [Answer(0.0, float(ms), "v", None) for ms in range(101)] + [Answer(0.0, float("nan"), None, "expired")]
    assert p99(answers) == 99.0


def test_controls_take_away_what_they_say():
    def seen(value: int, task: str = "touch the red cube") -> Observation:
        return Observation({"front": np.full((2, 2, 3), value, np.uint8)}, np.zeros(6, np.float32), task)

    assert [one.images["front"].max() for one in other_images([seen(1), seen(2), seen(3)])] == [2, 3, 1]
    assert other_images([seen(9)])[0].images["front"].max() == 0
    assert no_colour(("red",))([seen(1)])[0].task == "touch the thing cube"


def test_a_film_keeps_the_last_episode_only():
    film, zeros = Film(), np.zeros(6, np.float32)
    for frames in (3, 2):
        film.begin("x")
        for value in range(frames):
            image = np.full((2, 2, 3), value, np.uint8)
            film.step(Step(Observation({"front": image}, zeros, "x"), zeros, zeros))
        film.save(True)
    assert [frame.max() for frame in film.frames] == [0, 1]


def test_only_tasks_of_the_table_are_tried():
    assert [task.instruction for task in simulated(["fold the towel", "lift the red cube"])] == ["lift the red cube"]


def test_the_machine_is_described():
    found = describe_machine()
    assert int(found["cores"]) >= 1
    assert found["torch"] != "not installed"


def test_a_tuning_process_that_fails_gives_its_reason(tmp_path):
    with (
        Child(
            "tuning", ["finetune", str(tmp_path / "none"), "--store", str(tmp_path / "s"), "--json"], tmp_path / "log"
        ) as child,
        pytest.raises(TuningError, match="tuning ended early: hotpolicy: "),
    ):
        list(follow(child))


def test_a_child_that_is_never_ready_is_given_up(tmp_path):
    from hotpolicy.launch.virtual_arm import virtual_profile

    profile = virtual_profile(tmp_path, 0, "ipc:///x", "ipc:///x.c")
    arguments = ["virtual-arm", "--port-link", profile.arms[0].port, "--world", str(profile.world)]
    with Child("arm", arguments, tmp_path / "log") as child:
        child.lines = deque(maxlen=0)  # whatever it says is not heard, however quick it is
        with pytest.raises(ConfigError, match=r"not ready after 0 s"):
            child.wait_ready(timeout_s=0.01)


@pytest.mark.parametrize("arguments", [["--teleop", "telepathy"], ["--seed", "x"]])
def test_bad_options_of_the_demo(tmp_path, arguments):
    with Child("demo", ["demo", *arguments, "--out", str(tmp_path / "r")], tmp_path / "log") as child:
        assert child.wait(60) == 2
    assert not (tmp_path / "r").exists()
