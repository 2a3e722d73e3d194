"""What a quick run of the demo leaves out: tuning without replay, a task too hard for the head, and ONNX."""

from __future__ import annotations

import shutil

from hotpolicy.launch.play.acts import STEPS, by_task
from hotpolicy.launch.play.classroom import demonstrate
from hotpolicy.launch.play.examiner import HARD, NEW, counts, total
from hotpolicy.launch.play.fleet import Exam
from hotpolicy.launch.play.play import BY, Play

FULL_STEPS = 260  # of tuning the whole model


def without_replay(play: Play) -> None:
    """The same tuning without replay, to show what is forgotten then."""
    lesson = play.new_lesson()
    lesson.start(
        "hover, no replay", play.base, play.dataset, "expert",
        steps=STEPS, seed=play.seed, threads=2, replay=0.0, trials=0,
    )  # fmt: skip
    play.curves.append(lesson.finish().curve)
    scores = play.exam.tell_old(lesson.examine(play.exam.old_exams()), "no replay", "red")
    play.found["old_tasks"]["after_without_replay"] = by_task(scores)


def hard_task(play: Play) -> None:
    """A colour never seen: the head alone is not enough, the whole model is."""
    exam = play.exam.hard_exam()
    before = total(play.exam.examine(exam))
    play.story.score(f"{HARD.instruction}, before", before, "yellow")
    play.strips.append(play.exam.film(HARD, play.exam.scene(7), "before"))
    folder = play.out / "demonstrations-purple"
    demonstrate(play.fleet.stations[0].rig, folder, [HARD], play.exam.scene(8), play.story)
    head = play.new_lesson()
    head.start("purple, head only", play.tuned, folder, "expert", steps=STEPS, seed=play.seed, threads=2)
    play.curves.append(head.finish().curve)
    if not head.taught.passed:
        play.story.say(f"refused by the gate: {'; '.join(head.taught.reasons)}")
    head_score = total(head.examine(exam))
    play.story.score(f"{HARD.instruction}, head only", head_score, "red")
    full = play.new_lesson()
    full.start("purple, whole model", play.tuned, folder, "full", steps=FULL_STEPS, seed=play.seed, threads=2)
    play.control.swap(version := play.passed(full), by=BY)
    play.mark(f"swap to {version[:8]}")
    after = total(play.exam.examine(exam))
    play.story.score(f"{HARD.instruction}, whole model", after, "green")
    play.exam.old()
    play.strips.append(play.exam.film(HARD, play.exam.scene(7), "after"))
    play.found["hard_task"] = {
        "name": HARD.instruction,
        "before": counts(before),
        "after_head": counts(head_score),
        "after_full": counts(after),
        "full_tuning_seconds": full.taught.seconds,
    }


def onnx(play: Play) -> None:
    """The live version exported, and served by ONNX Runtime to the same arms."""
    from hotpolicy.runtime.export import export

    live = play.control.status()["live"]
    shutil.rmtree(play.out / "onnx", ignore_errors=True)
    error = float(export(play.store.chain(live), play.out / "onnx").certificate["max_abs_error"])
    play.story.say(f"version {live[:8]} in {play.out / 'onnx'}: at most {error:.1e} from torch, normalised units")
    play.server.stop()
    play.server = play.serve("onnx")  # on the same socket; the arms' clients find it again by themselves
    play.server.wait_ready()
    score = total(play.exam.examine([Exam(t, 5, play.exam.scene(11, i)) for i, t in enumerate(NEW)]))
    play.story.score("hover, by ONNX Runtime", score, "green")
    play.found["onnx"] = {"max_abs_error": error, **counts(score)}
