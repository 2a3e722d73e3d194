"""The plan: what it counts, what it chooses, and that what does not fit never starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_tuning_process import events, place, tuning  # noqa: F401  a fixture
from test_tuning_training import LESSONS, SHORT
from tuning_parts import TRANSFORMS, parent_model

from hotpolicy.finetune.budget import Situation, available_bytes, choose, plan, relief, resident_bytes
from hotpolicy.finetune.cache import frame_bytes, longest
from hotpolicy.finetune.frames import Frames
from hotpolicy.finetune.gauge import Cost, Gauge
from hotpolicy.finetune.settings import TuneConfig
from hotpolicy.finetune.strategy import strategy
from hotpolicy.launch.planning import Option, check, names, survey
from hotpolicy.runtime.errors import TuningError

FRAMES = Frames.encode(LESSONS.new, TRANSFORMS)
COST = Cost(
    seconds=0.1,
    there_seconds=0.02,
    prefix_seconds=0.06,
    kept=1000,
    kept_recomputing=300,
    widest=100,
    cache=50,
    trained=2000,
    folded=0,
)
GIVEN = Situation(frames=100, loaded=10_000, available=200_000)
CONFIG = TuneConfig(strategy="expert", steps=10, batch=4)


def test_the_memory_is_what_is_loaded_and_five_numbers_for_each_that_learns() -> None:
    memory = plan([COST], [1.0], CONFIG, GIVEN).memory
    assert (memory.loaded, memory.weights, memory.gradients, memory.optimiser) == (10_000, 16_000, 8_000, 16_000)
    assert (memory.best, memory.cache, memory.activations) == (0, 50 * 100, 4 * (1000 + 2 * 100))
    assert memory.holes == 0  # more gradients come than activations leave holes
    assert memory.total == 10_000 + 16_000 + 8_000 + 16_000 + 5_000 + 4_800


def test_holes_of_freed_activations_count_where_few_gradients_fill_them() -> None:
    few = plan([dataclasses.replace(COST, trained=100)], [1.0], CONFIG, GIVEN).memory
    assert (few.activations, few.gradients, few.holes) == (4800, 400, 2400 - 400)
    assert few.total == 10_000 + 800 + 400 + 800 + 4800 + 2000 + 5000


def test_what_saves_memory_is_counted() -> None:
    def total(**changes: object) -> int:
        return plan([COST], [1.0], dataclasses.replace(CONFIG, **changes), GIVEN).memory.total  # type: ignore[arg-type]

    plain = total()
    assert total(accumulate=4) == plain - 3 * 1200
    assert total(recompute=True) == plain - 4 * 700
    assert total(cache_bytes=0) == plain - 5000
    assert total(patience=2) == plain + 8000
    assert total(strategy="progressive") == plain + 8000


def test_folding_adapters_takes_what_training_has_given_back_and_more() -> None:
    lora = dataclasses.replace(COST, trained=100, folded=9000)
    memory = plan([lora], [1.0], CONFIG, GIVEN).memory
    assert (memory.holes, memory.folding) == (2000, 9000 - 4800 - 2000 - 400)
    assert plan([dataclasses.replace(lora, folded=7000)], [1.0], CONFIG, GIVEN).memory.folding == 0


def test_layers_computed_again_take_the_way_there_twice() -> None:
    again = plan([COST], [1.0], dataclasses.replace(CONFIG, recompute=True), GIVEN)
    assert again.step_s == pytest.approx(4 * (0.1 - 0.06 + 0.02), rel=1e-3)


def test_kept_prefixes_save_time_and_are_read_once() -> None:
    kept = plan([COST], [1.0], CONFIG, GIVEN)
    assert kept.kept == "memory"
    assert kept.step_s == pytest.approx(4 * 0.04, rel=1e-3)
    assert kept.total_s == pytest.approx(10 * 0.16 + 100 * 0.06, rel=1e-3)
    on_disk = plan([COST], [1.0], dataclasses.replace(CONFIG, cache_bytes=10), GIVEN)
    assert on_disk.kept == "disk"
    nowhere = plan([COST], [1.0], dataclasses.replace(CONFIG, caching="off"), GIVEN)
    assert (nowhere.kept, nowhere.step_s) == ("no", pytest.approx(0.4, rel=1e-3))


def test_the_heaviest_stage_decides_the_memory_and_each_its_share_of_the_time() -> None:
    heavy = dataclasses.replace(COST, trained=9000, cache=0, prefix_seconds=0.0, seconds=0.3)
    both = plan([COST, heavy], [0.25, 0.75], CONFIG, GIVEN)
    assert both.trained == 9000
    assert both.memory.cache == 0
    assert both.step_s == pytest.approx(0.25 * 0.16 + 0.75 * 1.2, rel=1e-3)


def test_relief_is_the_mildest_change_that_helps() -> None:
    need = plan([COST], [1.0], CONFIG, GIVEN).memory.total
    for available, expected in (
        (need - 1, {"accumulate": 2}),
        (need - 3 * 1200, {"accumulate": 4}),
        (need - 3 * 1200 - 700, {"accumulate": 4, "recompute": True}),
        (need - 3 * 1200 - 5000, {"cache_bytes": 0, "accumulate": 4, "recompute": True}),
    ):
        found = relief([COST], [1.0], CONFIG, dataclasses.replace(GIVEN, available=available))
        assert found is not None
        assert found.config == dataclasses.replace(CONFIG, **expected)  # type: ignore[arg-type]
    assert relief([COST], [1.0], CONFIG, dataclasses.replace(GIVEN, available=20_000)) is None


def test_it_chooses_the_expert_where_it_fits_memory_and_time_and_else_less() -> None:
    plans = [
        plan([COST], [1.0], dataclasses.replace(CONFIG, strategy=name), GIVEN) for name in ("full", "heads", "expert")
    ]
    chosen = choose(plans)
    assert chosen is not None
    assert chosen.config.strategy == "expert"
    assert choose(plans, seconds=0.1) is None
    small = [dataclasses.replace(one, available=1) if one.config.strategy != "heads" else one for one in plans]
    least = choose(small)
    assert least is not None
    assert least.config.strategy == "heads"


def test_what_does_not_fit_says_what_would() -> None:
    tight = dataclasses.replace(GIVEN, available=50_600)
    found = plan([COST], [1.0], CONFIG, tight)
    with pytest.raises(TuningError, match=r"expert: about 0 MB needed.* with --accumulate 4 .*--cache-mb 0"):
        check(Option(found, relief([COST], [1.0], CONFIG, tight)))
    with pytest.raises(TuningError, match="no smaller batch helps: choose heads"):
        check(Option(found, None))


def test_available_memory_counts_a_containers_limit(tmp_path: Path) -> None:
    everything = available_bytes(0, tmp_path / "none")
    assert everything > 0
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert available_bytes(0, tmp_path) > 1 << 20
    (tmp_path / "memory.max").write_text("1005\n")
    assert available_bytes(70, tmp_path) == 70 + 900  # nine tenths of what is left
    assert resident_bytes() > 1 << 20


# ── measured ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(name: str, **changes: object) -> Cost:
    model = parent_model()
    config = dataclasses.replace(SHORT, strategy=name, lora_rank=2, **changes)  # type: ignore[arg-type]
    return Gauge(model, FRAMES, config).measure(strategy(name, model).stages[-1])


def test_a_gauge_measures_what_autograd_keeps() -> None:
    """Against a plain sum over the graph's own tensors."""
    cost, model = measured("full"), parent_model()
    learning = strategy("full", model).stages[0].learning(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    stores: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rows = FRAMES.token_mask.sum(1).argsort(descending=True)[:2]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prefix = FRAMES.prefix(model, rows)
        noise, times = torch.randn(2, 2, 4, 3), torch.rand(2, 2)
        model.flow_loss(prefix, FRAMES.state[rows], FRAMES.actions[rows], noise, times).mean()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert cost.kept == pytest.approx(sum(size for at, size in stores.items() if at not in weights) / 2, rel=0.02)
    assert cost.trained == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert cost.cache == 0


def test_what_is_frozen_costs_no_activations() -> None:
    full, expert, heads = measured("full"), measured("expert"), measured("heads")
    assert heads.trained < expert.trained < full.trained
    assert heads.kept <= expert.kept < full.kept
    assert full.kept_recomputing < full.kept
    assert expert.cache == frame_bytes(longest(parent_model(), FRAMES))
    assert expert.prefix_seconds > 0 == full.prefix_seconds


def test_a_gauge_leaves_the_parent_as_it_was() -> None:
    model = parent_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for option in survey(model, FRAMES, 100, dataclasses.replace(SHORT, lora_rank=2), names(model)):
        assert option.plan.fits
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) and after[name].grad is None for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_plan_is_printed_and_nothing_is_trained(place: Path) -> None:  # noqa: F811
    with tuning(place, "--plan", "--lora-rank", "2") as child:
        assert child.wait(timeout_s=60) == 0, child.last_words()
    rows = events(child)
    assert [row["strategy"] for row in rows] == [
        "heads",
        "lora-expert",
        "expert",
        "lora",
        "top-1",
        "progressive",
        "full",
    ]
    assert [row["strategy"] for row in rows if row["chosen"]] == ["expert"]
    assert not (place / "store" / "candidates").exists()


def test_auto_trains_what_was_chosen_and_says_so(place: Path) -> None:  # noqa: F811
    options = ("--strategy", "auto", "--steps", "2", "--lora-rank", "2", "--no-gate")
    with tuning(place, *options) as child:
        assert child.wait(timeout_s=60) == 0, child.last_words()
    said = events(child)
    (chosen,) = [row["strategy"] for row in said if row["event"] == "plan" and row["chosen"]]
    sealed = said[-1]
    manifest = json.loads((Path(str(sealed["folder"])) / "manifest.json").read_text())
    assert manifest["provenance"]["strategy"] == chosen
    assert any(
        "eyes:" in line or "strategy: expert" in line
        for row in said
        if row["event"] == "advice"
        for line in row["lines"]
    )  # type: ignore[attr-defined]


def test_a_time_that_nothing_fits_is_said_before_anything_starts(place: Path) -> None:  # noqa: F811
    with tuning(place, "--strategy", "auto", "--steps", "10000000", "--minutes", "0.1") as child:
        assert child.wait(timeout_s=60) == 2
    assert "none fits the memory, or the time" in child.last_words()
