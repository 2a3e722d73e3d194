"""The plan for a board: what is drawn on paper is what a real model keeps, sums are sums, and names are checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from calling import call
from test_tuning_training import LESSONS, SHORT
from tuning_parts import TRANSFORMS, parent_model

from hotpolicy.finetune.blueprint import Blueprint, Scene
from hotpolicy.finetune.budget import COPIES, FP32, MOMENTS
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.gauge import Gauge
from hotpolicy.launch.board_plan import DEMONSTRATED, GB, PUBLISHED, SERVED, SLOTS, Subject, chosen, rows
from hotpolicy.launch.planning import names
from hotpolicy.runtime.versions.boards import BOARDS
from hotpolicy.runtime.versions.footprint import FROZEN_BYTES, HELD, PROCESS_GB, SYSTEM_GB, TUNED_BYTES, WIDTHS

FRAMES = Frames.encode(LESSONS.new, TRANSFORMS)
CONFIG = dataclasses.replace(SHORT, lora_rank=2)


@pytest.fixture(scope="module")
def paper() -> Blueprint:
    model = parent_model()
    cameras, pixels = FRAMES.images.shape[1:3]
    scene = Scene(cameras, pixels, int(FRAMES.token_mask.sum(1).max()))
    return Blueprint({"family": model.family, "config": model.config.to_dict()}, scene)


def test_shapes_alone_keep_what_a_real_model_keeps(paper: Blueprint) -> None:
    model = parent_model()
    assert paper.parameters == sum(parameter.numel() for parameter in model.parameters())
    for name in names(model):
        drawn = paper.draw(name, CONFIG)
        gauge = Gauge(model, FRAMES, dataclasses.replace(CONFIG, strategy=name))
        for stage, cost in zip(drawn.strategy.stages, drawn.costs, strict=True):
            real = gauge.measure(stage)
            assert (cost.trained, cost.cache) == (real.trained, real.cache)
            assert cost.kept == pytest.approx(real.kept, rel=0.03), (name, stage.name)
            assert cost.kept_recomputing == pytest.approx(real.kept_recomputing, rel=0.03)


def test_adapters_change_the_layers_they_are_folded_into(paper: Blueprint) -> None:
    lora, expert, full = (paper.draw(name, CONFIG) for name in ("lora-expert", "expert", "full"))
    assert lora.costs[0].trained < lora.changed <= expert.changed < full.changed


def test_a_row_is_a_sum(paper: Blueprint) -> None:
    model = parent_model()
    subject = Subject("toy", {"family": model.family, "config": model.config.to_dict()}, paper.scene, 2.0)
    drawn = paper.draw("expert", CONFIG)
    (row,) = rows(paper, subject, [drawn], CONFIG, BOARDS["orin-nano-8"])
    count = paper.parameters
    assert row.server == int(PROCESS_GB * GB + 2 * (count + (HELD - 1) * drawn.changed))
    assert row.plan.memory.loaded == int(PROCESS_GB * GB + 4 * count)
    assert row.plan.memory.cache == DEMONSTRATED * drawn.costs[0].cache
    assert row.plan.available == pytest.approx(8 * GB - SYSTEM_GB * GB - row.server, abs=1)
    assert row.plan.fits
    assert chosen([row]) is row.plan
    small = dataclasses.replace(BOARDS["orin-nano-8"], memory_gb=1.0)
    (row,) = rows(paper, subject, [drawn], CONFIG, small)
    assert (row.plan.fits, row.instead, chosen([row])) == (False, None, None)


def test_the_list_of_boards_counts_as_the_plan_does() -> None:
    assert (FROZEN_BYTES, TUNED_BYTES) == (FP32, (COPIES + 1 + MOMENTS) * FP32)


def test_a_published_model_of_real_size_needs_no_memory() -> None:
    config, words = PUBLISHED["pi0"]
    paper = Blueprint({"family": "pi0", "config": config.to_dict()}, Scene(SLOTS, config.vision.image_size, words))
    assert paper.parameters == 3_238_048_528
    assert all(type(parameter.data) is not torch.Tensor for parameter in paper.model.parameters())
    drawn = paper.draw("heads", CONFIG)
    assert drawn.costs[0].cache == 2 * 18 * (3 * 256 + 48) * 256 * FP32  # K/V, layers, tokens, width of a head
    subject = Subject("pi0", {}, paper.scene, WIDTHS[SERVED])
    fits = {name: rows(paper, subject, [drawn], CONFIG, board)[0].plan.fits for name, board in BOARDS.items()}
    assert fits == {"orin-nano-8": False, "orin-nx-16": False, "agx-orin-64": True, "agx-thor-128": True}


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_plans_a_bundle_for_every_board(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("finetune", "--plan", "--board", "all", "--base", "nano", "--store", tmp_path)
    found = json.loads(call(capsys, monkeypatch, *options, "--json")[1])
    assert {row["board"] for row in found} == set(BOARDS)
    assert {row["strategy"] for row in found if row["chosen"]} == {"expert"}
    code, out, _ = call(capsys, monkeypatch, *options)
    assert code == 0
    assert "nothing was run on a board, and no time is promised" in " ".join(out.split())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--plan", "--board", "jetson"), "board: expected one of orin-nano-8, orin-nx-16, agx-orin-64, agx-thor-128"),
        (("--board", "orin-nx-16"), "board: expected --plan too"),
        (("--plan",), "datasets: expected at least one folder"),
    ],
)
def test_what_is_asked_wrongly_is_said(
    options: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(capsys, monkeypatch, "finetune", *options)
    assert code == 2
    assert err.startswith(f"hotpolicy: {complaint}")
