"""What is wrong with a dataset, and everything that was found in its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotpolicy.finetune.storage.catalog import EpisodeInfo
from hotpolicy.finetune.storage.layout import Info

FEW = 3  # files of a folder, or columns, that are named one by one


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong."""

    file: str  # relative to the dataset
    what: str
    episode: int | None = None  # None: of the dataset as a whole
    mendable: bool = False  # made again from what is whole, with nothing lost


@dataclass(slots=True)
class Survey:
    """What was found. `episodes` are all that there is a trace of, sealed or not, by number."""

    root: Path
    info: Info
    tasks: list[str]
    extra: Mapping[str, Any]  # meta/hotpolicy.json; {} in datasets of others
    rows: dict[int, Mapping[str, Any]]  # episode -> its row of meta/episodes, where that is whole
    episodes: dict[int, EpisodeInfo] = field(default_factory=dict)
    damages: list[Damage] = field(default_factory=list)  # of the metadata; those of frames are `inspect`'s
    leftovers: list[str] = field(default_factory=list)  # files of recordings that never ended

    @property
    def sealed(self) -> range:
        return range(self.info.total_episodes)

    @property
    def uncounted(self) -> list[int]:
        """Episodes there is a trace of that `info.json` does not count."""
        return [index for index in self.episodes if index not in self.sealed]

    def gathered(self) -> list[str]:
        """The leftovers for people: many in one folder are one line."""
        folders = Counter(str(Path(file).parent) for file in self.leftovers)
        few = [file for file in self.leftovers if folders[str(Path(file).parent)] <= FEW]
        return few + [f"{folder} ({count} files)" for folder, count in folders.items() if count > FEW]

    def note(self, file: str, error: Exception | str, episode: int | None = None) -> None:
        text = str(error).replace(f"{self.root}/", "")
        self.damages.append(Damage(file, text.removeprefix(f"{file}: "), episode))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def some(names: Sequence[str]) -> str:
    """For people: all of a few, else the first ones and how many more."""
    more = len(names) - FEW
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:FEW])} and {more} more"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
