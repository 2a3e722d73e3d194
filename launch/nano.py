"""The base policy that ships with hotpolicy: its demonstrations, its training, what it must show, its bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotpolicy.finetune.pretrainer import PretrainConfig, PretrainData, Progress, pretrain
from hotpolicy.finetune.replay import rehearsal_bytes
from hotpolicy.finetune.samples import Samples, chunks
from hotpolicy.launch.rollouts import Blind, Score, no_colour, other_images, rollout
from hotpolicy.robots.sim.demonstrations import Demonstration, demonstrate
from hotpolicy.robots.sim.kinematics import units
from hotpolicy.robots.sim.tasks import KNOWN_COLOURS, Task
from hotpolicy.robots.sim.world import World, virtual_spec
from hotpolicy.runtime.bundle import Bundle, seal
from hotpolicy.runtime.model.pi0 import NANO, Pi0
from hotpolicy.runtime.policy import Policy, load_policy
from hotpolicy.runtime.tokenizer import WordTokenizer
from hotpolicy.runtime.transforms import Normalise, Relative, Transforms
from hotpolicy.runtime.versions.golden import Golden

SHIPPED = Path(__file__).parent / "assets" / "nano"
VERBS = ("touch", "lift")
# Smallest spread a joint is given, in rad and m: the wrist roll never moves in these tasks, and would otherwise make
# the first task that uses it look a hundred times as large as it is.
_ACTION_FLOOR = np.array([0.03, 0.03, 0.03, 0.03, 0.2, 0.003])
_STATE_FLOOR = np.array([0.03, 0.03, 0.03, 0.03, 0.3, 0.003])


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """The defaults made the shipped bundle."""

    touch_episodes: int = 900  # per colour
    lift_episodes: int = 700
    rehearsal_frames: int = 990
    check_episodes: int = 25  # per skill and colour
    training: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass(frozen=True)
class Frames:
    """All demonstrations as arrays with one first axis."""

    images: np.ndarray  # (n, 64, 64, 3) uint8
    state: np.ndarray  # (n, 6) float32
    actions: np.ndarray  # (n, horizon, 6) float32
    tasks: np.ndarray  # (n,) unicode
    places: np.ndarray  # (n, colours, 2)
    present: np.ndarray  # (n, colours)
    target: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.state)


def collect(verb: str, episodes: int, seed: int) -> Iterator[Demonstration]:
    """`episodes` successful demonstrations for each colour; 60 % begin anywhere over the table."""
    world = World()
    for index, colour in enumerate(KNOWN_COLOURS):
        attempt = seed + 100_000 * index
        found = 0
        while found < episodes:
            wide = bool(np.random.default_rng(attempt).random() < 0.6)
            demo = demonstrate(world, Task(verb, colour), attempt, wide=wide, perturb=True)
            attempt += 1
            if demo is not None:
                found += 1
                yield demo


def stack(demos: list[Demonstration], horizon: int = NANO.horizon) -> Frames:
    """Demonstrations -> frames with a chunk of the next `horizon` actions each, the last one repeated at the end."""
    lengths = [len(demo.state) for demo in demos]
    return Frames(
        images=np.concatenate([demo.images for demo in demos]),
        state=np.concatenate([demo.state for demo in demos]),
        actions=np.concatenate([chunks(demo.action, horizon) for demo in demos]),
        tasks=np.repeat([demo.task.instruction for demo in demos], lengths),
        places=np.concatenate([demo.places for demo in demos]),
        present=np.repeat([demo.present for demo in demos], lengths, axis=0),
        target=np.repeat([KNOWN_COLOURS.index(demo.task.colour) for demo in demos], lengths),
    )


def nano_transforms(frames: Frames) -> Transforms:
    relative = Relative(np.ones(frames.state.shape[1], bool))

    def in_units(floor: np.ndarray) -> np.ndarray:
        return np.asarray(units(floor) - units(np.zeros(6)))

    return Transforms(
        cameras=("front",),
        state=Normalise.fit(frames.state, in_units(_STATE_FLOOR)),
        action=Normalise.fit(relative.forward(frames.actions, frames.state), in_units(_ACTION_FLOOR)),
        relative=relative,
        tokenizer=WordTokenizer(NANO.vocabulary, max_tokens=8),
    )


def train(config: PretrainConfig, frames: Frames, transforms: Transforms, watch: Callable[[Progress], None]) -> Pi0:
    words = {task: transforms.tokenizer.encode(str(task))[0] for task in np.unique(frames.tasks)}
    data = PretrainData(
        images=frames.images,
        state=frames.state,
        actions=frames.actions,
        tokens=np.stack([words[task] for task in frames.tasks]),
        places=frames.places,
        present=frames.present,
        target=frames.target,
    )
    return pretrain(config, NANO, transforms, KNOWN_COLOURS, data, lambda progress, _: watch(progress))


def seal_base(
    folder: Path,
    model: Pi0,
    frames: Frames,
    transforms: Transforms,
    config: NanoConfig,
    checks: Mapping[str, Any] | None = None,
) -> Bundle:
    """The bundle, with a rehearsal set, golden observations and, once known, the checks it passed."""
    rng = np.random.default_rng(config.training.seed)
    chosen = np.sort(rng.choice(len(frames), min(config.rehearsal_frames, len(frames)), replace=False))
    golden = np.sort(rng.choice(len(frames), 8, replace=False))
    rehearsal = Samples(
        frames.images[chosen][:, None], frames.state[chosen], frames.actions[chosen], frames.tasks[chosen]
    )
    observations = Golden(
        frames.images[golden][:, None],
        frames.state[golden],
        frames.tasks[golden],
        transforms.noise(rng, 8),
    )
    return seal(
        folder,
        kind="full",
        parent=None,
        model={"family": "pi0", "config": NANO.to_dict()},
        tensors={name: tensor.numpy() for name, tensor in model.state_dict().items()},
        spec=virtual_spec(),
        transforms=transforms.to_dict(),
        provenance={**_provenance(config, len(frames)), **({"checks": dict(checks)} if checks else {})},
        files={"rehearsal.npz": rehearsal_bytes(rehearsal), "golden.npz": observations.to_bytes()},
    )


CONTROLS: dict[str, Blind | None] = {
    "as it is": None,
    "with another scene's picture": other_images,
    "without the colour's name": no_colour(KNOWN_COLOURS),
}


def check(bundle: Bundle, episodes: int, done: Callable[[], object]) -> dict[str, dict[str, Score]]:
    """What the base can do, and two controls that show it looks and listens: control -> skill -> score over
    `episodes` scenes of each colour. `done` is called after each skill and colour."""
    policy: Policy = load_policy([bundle])
    found: dict[str, dict[str, Score]] = {}
    for control, blind in CONTROLS.items():
        for verb in VERBS:
            wins = 0
            for index, colour in enumerate(KNOWN_COLOURS):
                wins += rollout(policy, Task(verb, colour), episodes, 500_000 + 1000 * index, blind).successes
                done()
            found.setdefault(control, {})[verb] = Score(verb, wins, episodes * len(KNOWN_COLOURS))
    return found


def _provenance(config: NanoConfig, frames: int) -> dict[str, Any]:
    return {
        "made_by": "hotpolicy pretrain-nano",
        "config": asdict(config),
        "frames": frames,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "data": "scripted demonstrations of touch and lift, four colours, perturbed while executed",
    }
