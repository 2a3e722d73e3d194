"""Making a base policy: the losses that teach it to look, and the command from nothing to a sealed bundle."""

import sys

import numpy as np
import pytest
import torch

from hotpolicy.finetune.localise import Babbler, Localiser
from hotpolicy.launch import cli
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS
from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.tokenizer import WordTokenizer

pytestmark = pytest.mark.slow


def test_babble_always_names_the_colour():
    torch.manual_seed(0)
    tokenizer = WordTokenizer(512, 8)
    target = torch.arange(4).repeat(50)
    tokens, mask = Babbler(tokenizer, KNOWN_COLOURS).speak(target)
    assert (mask == (tokens > 0)).all()
    words = torch.tensor([tokenizer.word(colour) for colour in KNOWN_COLOURS])
    assert (tokens == words[target][:, None]).any(1).all()
    assert len({tuple(row) for row in tokens.tolist()}) > 150


def test_localiser_finds_what_a_feature_points_at():
    """Features that hold a place as plainly as can be: the readouts learn to say it, absent colours do not count."""
    torch.manual_seed(0)
    localiser = Localiser(width=16, tokens=16, colours=2)
    places, present = torch.rand(64, 2, 2), torch.ones(64, 2, dtype=torch.bool)
    target = torch.randint(0, 2, (64,))
    cell = (places * 4).long().clamp(0, 3)
    features = torch.zeros(64, 16, 16)
    for colour in range(2):
        rows, at = torch.arange(64), cell[:, colour, 1] * 4 + cell[:, colour, 0]
        features[rows, at, colour] = 5.0
        features[rows, at, 4 + 2 * colour : 6 + 2 * colour] = places[:, colour] * 4 - cell[:, colour] - 0.5
    rows = torch.arange(64)
    named = features.clone()
    named[rows, cell[rows, target, 1] * 4 + cell[rows, target, 0], 2] = 5.0
    optimiser = torch.optim.Adam(localiser.parameters(), 0.05)
    first = None
    for _ in range(200):
        loss, error = localiser(features, named, places, present, target)
        first = first or loss.item()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.5 * first
    assert error.item() < 0.6  # cells
    gone = present.clone()
    gone[:, 1] = False
    moved = places.clone()
    moved[:, 1] = 0.99
    kept = target * 0
    same = [localiser(features, named, p, gone, kept)[0].item() for p in (places, moved)]
    assert same[0] == pytest.approx(same[1])


@pytest.mark.timeout(300)
def test_the_command_makes_a_bundle_and_the_same_one_again(tmp_path, monkeypatch, capsys):
    def make(folder) -> Bundle:
        arguments = ["--out", folder, "--steps", "12", "--touch-episodes", "1", "--lift-episodes", "1"]
        arguments += ["--check-episodes", "1", "--threads", "1", "--seed", "3"]
        monkeypatch.setattr(sys, "argv", ["hotpolicy", "pretrain-nano", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return Bundle.open(capsys.readouterr().out.strip().splitlines()[-1])

    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    first.verify()
    assert first.id == again.id
    provenance = first.manifest.provenance
    assert provenance["config"]["training"]["steps"] == 12
    assert set(provenance["checks"]["as it is"]) == {"touch", "lift"}
    policy = load_policy([first])
    assert np.isfinite(policy.transforms.action.std).all()
