"""`hotpolicy dataset check` names every kind of damage with its file and episode, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from calling import call
from damages import (  # noqa: F401  some are fixtures
    DAMAGE,
    DATA,
    a_copy_of_it,
    a_whole_one,
    record,
    rewrite,
    tear,
)
from made_up import episode

from hotpolicy.finetune.storage.inspection import check

LEROBOT = Path(__file__).parent / "golden/lerobot_dataset"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(tmp_path: Path, root: Path, damage: str) -> None:
    harm, file, number, what = DAMAGE[damage]
    harm(root)
    damages = check(root)[1]
    assert any((d.file, d.episode) == (file, number) and what in d.what for d in damages), damages
    assert {d.episode for d in damages} <= {None, number}  # nobody else is accused
    assert not any(str(tmp_path) in d.what or "\n" in d.what for d in damages)


def test_pictures_within_the_rows_are_looked_at(tmp_path: Path) -> None:
    record(tmp_path, "image")
    assert check(tmp_path)[1] == []
    tear_one = rewrite(DATA, "observation.images.wrist", lambda v: [{**v[0], "bytes": v[0]["bytes"][:60]}, *v[1:]])
    tear_one(tmp_path)
    assert any("wrist: image: png of 60 bytes" in damage.what and damage.episode == 1 for damage in check(tmp_path)[1])


def test_lerobots_own_are_whole_and_what_never_ended_is_no_damage(tmp_path: Path) -> None:
    assert check(LEROBOT)[1] == []
    record(tmp_path)
    (tmp_path / ".recording/observation.images.front.mp4").write_bytes(b"half of")
    found, damages = check(tmp_path)
    assert (damages, found.leftovers) == ([], [".recording/observation.images.front.mp4"])


def test_the_verb_says_so_by_its_exit_code(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dataset(verb: str, *options: str) -> tuple[int, str]:
        return call(capsys, monkeypatch, "dataset", verb, root, *options)[:2]

    assert dataset("check") == (0, "3 episodes, all whole\n")
    shown = json.loads(dataset("show", "--json")[1])
    assert [row["task"] for row in shown["episodes"]] == ["touch", "lift", "touch"]
    assert (shown["totals"]["frames"], shown["cameras"]) == (21, {"front": "32x24 h264", "wrist": "16x16 h264"})
    states = np.concatenate([episode(seed).state for seed in range(3)])
    assert shown["joints"][0]["highest"] == pytest.approx(states[:, 0].max())
    assert "lift" in dataset("show")[1]
    (root / "meta/hotpolicy.json").rename(tmp_path / "names")
    assert json.loads(dataset("show", "--json")[1])["episodes"][0]["versions"] == "unknown 0, unknown 1"
    (tmp_path / "names").rename(root / "meta/hotpolicy.json")
    tear(DATA)(root)
    code, text = dataset("check")
    assert code == 2
    assert text.splitlines()[0] == "episode 1"
    assert f"  {DATA}: altered since it was recorded" in text
    assert text.splitlines()[-2:] == [
        "2 damages in 3 episodes", f"what can be done: hotpolicy dataset repair --dry-run {root}",
    ]  # fmt: skip
    code, text = dataset("check", "--json")
    assert code == 2
    assert [json.loads(text)["damages"][0][name] for name in ("file", "episode")] == [DATA, 1]
