"""A run on two processes learns what it learns on one; one that is left alone says so."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_tuning_process import place  # noqa: F401  a fixture
from test_tuning_training import LESSONS, SHORT
from tuning_parts import SPEC, TRANSFORMS, parent_model

from hotpolicy.finetune.ranks import ALONE, Ranks
from hotpolicy.finetune.trainer import Trainer
from hotpolicy.runtime.errors import ConfigError

RUN = """
import dataclasses, json, sys
sys.path.insert(0, "tests")
from hotpolicy.finetune.ranks import Ranks
from test_tuning_ranks import learned
print(json.dumps(learned(sys.argv[1], int(sys.argv[2]), Ranks.join())))
"""


def learned(strategy: str, accumulate: int, ranks: Ranks = ALONE) -> dict[str, object]:
    config = dataclasses.replace(SHORT, strategy=strategy, batch=7, accumulate=accumulate, lora_rank=2, rate=5e-3)
    trainer = Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, config, ranks=ranks)
    for _ in trainer.run():
        pass
    outcome = trainer.outcome
    weights = {name: value.double().sum().item() for name, value in outcome.model.named_parameters()}
    held_out = [evaluation.to_dict() for evaluation in outcome.curves.evaluations]
    return {"train": outcome.curves.train, "held_out": held_out, "weights": weights}


def group(command: list[str], size: int) -> list[subprocess.Popen[str]]:
    """As torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        names = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(
            subprocess.Popen(
                command, env={**os.environ, **names}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return processes


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "accumulate"), [("expert", 1), ("lora", 2), ("full", 2)])
def test_two_processes_learn_what_one_learns(strategy: str, accumulate: int) -> None:
    alone = learned(strategy, accumulate)
    both = []
    for process in group([sys.executable, "-c", RUN, strategy, str(accumulate)], 2):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        both.append(json.loads(out.splitlines()[-1]))
    first, second = both
    assert first == second  # to the last bit
    assert first["train"] == pytest.approx(alone["train"], rel=1e-4)
    for name, value in first["weights"].items():
        assert value == pytest.approx(alone["weights"][name], rel=1e-3, abs=1e-3), name  # type: ignore[index]


RESUMED = """
import sys
sys.path.insert(0, "tests")
from test_tuning_ranks import resumed
resumed()
"""


def resumed() -> None:
    """On two processes: the first half of a run, and the rest by another trainer; then the whole run at once."""
    ranks = Ranks.join()

    def trainer(ranks: Ranks) -> Trainer:
        return Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, HALVES, ranks=ranks)

    whole, half = trainer(ranks), trainer(ranks)
    own = sum(value.to_local().numel() for value in half.learner.averages().values())  # type: ignore[attr-defined]
    everything = sum(value.numel() for value in half.learner.free().values())
    assert own < 0.6 * everything, (own, everything)
    for _ in whole.run():
        pass
    for _ in itertools.islice(half.run(), 6):
        pass
    snapshot = half.snapshot()
    rest, alone = trainer(ranks), trainer(ALONE)
    for later in (rest, alone):
        for _ in later.run(snapshot):
            pass
    for (name, mine), theirs, single in zip(
        rest.outcome.model.named_parameters(),
        whole.outcome.model.parameters(),
        alone.outcome.model.parameters(),
        strict=True,
    ):
        assert torch.equal(mine, theirs), name
        torch.testing.assert_close(mine, single, atol=1e-4, rtol=1e-3)
    assert rest.outcome.curves.train == whole.outcome.curves.train
    assert rest.outcome.step == whole.outcome.step


HALVES = dataclasses.replace(SHORT, strategy="full", patience=50, evaluate_every=4, recompute=True)


@pytest.mark.slow
def test_what_two_hold_in_parts_goes_on_to_the_last_bit_and_on_one_too() -> None:
    for process in group([sys.executable, "-c", RESUMED], 2):
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err


def test_a_batch_too_small_to_be_cut_is_refused() -> None:
    config = dataclasses.replace(SHORT, strategy="full", batch=3, accumulate=2)
    with pytest.raises(ConfigError, match="batch: expected at least 4, a frame for each of 2 processes"):
        Trainer(parent_model(), TRANSFORMS, SPEC, LESSONS, config, ranks=Ranks(0, 2))


@pytest.mark.slow
def test_one_that_loses_the_other_ends_with_an_error(place: Path) -> None:  # noqa: F811
    arguments = ["finetune", str(place / "data"), "--store", str(place / "store"), "--trials", "0", "--json"]
    command = [sys.executable, "-c", "from hotpolicy.launch.cli import main; main()", *arguments, "--steps", "100000"]
    first, second = group(command, 2)
    assert first.stdout is not None
    for line in first.stdout:
        if json.loads(line).get("step") == 3:
            break
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, err = first.communicate(timeout=60)
    assert first.returncode not in (0, -signal.SIGKILL)
    assert "another one is lost" in err, err


@pytest.mark.slow
def test_the_first_seals_for_all(place: Path) -> None:  # noqa: F811
    arguments = ["finetune", str(place / "data"), "--store", str(place / "store"), "--no-gate", "--json"]
    command = [sys.executable, "-c", "from hotpolicy.launch.cli import main; main()", *arguments, "--steps", "4"]
    command += ["--strategy", "full", "--save-every", "0.001", "--carry"]  # what all must do together
    outs = []
    for process in group(command, 2):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        outs.append([json.loads(line)["event"] for line in out.splitlines()])
    assert outs[0][-1] == "sealed"
    assert outs[1] == []
    assert len(list((place / "store" / "candidates").iterdir())) == 1


def test_parts_of_a_batch_are_all_of_it() -> None:
    rows = [Ranks(rank, 3).part(7).tolist() for rank in range(3)]
    assert sorted(row for part in rows for row in part) == list(range(7))
    assert ALONE.part(7).tolist() == list(range(7))
    assert ALONE.total(2.5) == 2.5
