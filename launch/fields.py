"""A YAML file read strictly: every key is asked for by name, type and range, and what nobody asked for is an error.

Knows nothing of robots or servers; those who do call it field by field, so that each error names file and field.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hotpolicy.runtime.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: of two limits the second would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Fields:
    """One mapping of a file. Reading removes a key; `done` complains about the rest. All methods raise ConfigError."""

    def __init__(self, file: Path, data: object, where: str = "", lines: Mapping[str, int] | None = None):
        """`lines`: of every key, by its full name, for errors."""
        self.file, self.where, self._lines = file, where, lines or {}
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: {where or 'file'}: expected a mapping of keys to values, got {_kind(data)}")
        if wrong := [key for key in data if not isinstance(key, str)]:
            raise ConfigError(f"{file}: {where or 'file'}: expected keys to be text, got {wrong[0]!r}")
        self._left: dict[str, Any] = dict(data)

    @classmethod
    def read(cls, file: Path) -> Fields:
        try:
            loader = _StrictLoader(file.read_text(encoding="utf-8"))
            node = loader.get_single_node()
            data = None if node is None else loader.construct_document(node)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: expected UTF-8 text") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f"line {mark.line + 1}: " if mark else ""
            raise ConfigError(f"{file}: {line}{getattr(error, 'problem', None) or 'not YAML'}") from error
        return cls(file, data, lines=dict(_lines(node, "")))

    def error(self, key: str, expected: str, got: object) -> ConfigError:
        name = f"{self.where}.{key}" if self.where else key
        line = f" (line {self._lines[name]})" if name in self._lines else ""
        return ConfigError(f"{self.file}: {name}: expected {expected}, got {got!r}{line}")

    def _take(self, key: str, expected: str) -> Any:
        if key not in self._left:
            name = f"{self.where}.{key}" if self.where else key
            raise ConfigError(f"{self.file}: {name}: missing, expected {expected}")
        return self._left.pop(key)

    def has(self, key: str) -> bool:
        return key in self._left

    def is_flag(self, key: str) -> bool:
        return isinstance(self._left.get(key), bool)

    def is_list(self, key: str) -> bool:
        return isinstance(self._left.get(key), list)

    def text(self, key: str, *, choices: tuple[str, ...] = ()) -> str:
        expected = f"one of {', '.join(choices)}" if choices else "text"
        value = self._take(key, expected)
        if not isinstance(value, str) or not value.strip() or (choices and value not in choices):
            raise self.error(key, expected, value)
        return value

    def number(self, key: str, *, above: float = -math.inf, at_most: float = math.inf, unit: str = "") -> float:
        expected = f"a number{_range(above, at_most)}{' ' + unit if unit else ''}"
        value = self._take(key, expected)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(key, expected, value)
        if not above < value <= at_most:
            raise self.error(key, expected, value)
        return float(value)

    def whole(self, key: str, *, above: int = 0, at_most: int = 2**31 - 1) -> int:
        expected = f"a whole number{_range(above, at_most)}"
        value = self._take(key, expected)
        if isinstance(value, bool) or not isinstance(value, int) or not above < value <= at_most:
            raise self.error(key, expected, value)
        return value

    def flag(self, key: str) -> bool:
        value = self._take(key, "true or false")
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def texts(self, key: str, *, choices: tuple[str, ...] = ()) -> tuple[str, ...]:
        expected = f"a list of {', '.join(choices) or 'texts'}"
        value = self._take(key, expected)
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self.error(key, expected, value)
        if choices and not {*value} <= {*choices}:
            raise self.error(key, expected, value)
        return tuple(value)

    def options(self, key: str) -> dict[str, Any]:
        """A section that somebody else reads: taken as it is, and empty when it is not there."""
        if not self.has(key):
            return {}
        value = self._take(key, "a section")
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.error(key, "a mapping of names to values", value)
        return value

    def left(self) -> tuple[str, ...]:
        """Those not read yet, in the order of the file."""
        return tuple(self._left)

    def section(self, key: str) -> Fields:
        value = self._take(key, "a section")
        return Fields(self.file, value, f"{self.where}.{key}" if self.where else key, self._lines)

    def sections(self) -> Iterator[tuple[str, Fields]]:
        """Every remaining key as a section, in the order of the file."""
        for key in list(self._left):
            yield key, self.section(key)

    def done(self) -> None:
        if self._left:
            keys = ", ".join(self._left)
            raise ConfigError(f"{self.file}: {self.where or 'file'}: unknown {keys}; expected only known keys")


def _lines(node: yaml.Node | None, where: str) -> Iterator[tuple[str, int]]:
    """Full name and line of every key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{where}.{key.value}" if where else str(key.value)
            yield name, key.start_mark.line + 1
            yield from _lines(value, name)


def _range(above: float, at_most: float) -> str:
    bounds = [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"at most {at_most:g}"] if at_most < 2**31 - 1 else []
    return " " + " and ".join(bounds) if bounds else ""


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
