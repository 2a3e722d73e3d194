"""Neural policies as plain torch modules: one file per family, weights kept apart from code.

Families are chosen from a table and imported late, as engines are: naming one needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hotpolicy.runtime.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from hotpolicy.runtime.model.vla import Vla

FAMILIES = {"pi0": "hotpolicy.runtime.model.pi0:Pi0"}  # pi0.5 and the nano preset are configurations of it
GRAPHS = {"pi0": "hotpolicy.runtime.model.pi0_graph"}  # of families that can be exported: prefix_graph, head_graph


def family(name: object) -> type[Vla]:
    """Raises BundleError for a name that is not in the table."""
    if name not in FAMILIES:
        raise BundleError(f"model.family: expected {' or '.join(map(repr, FAMILIES))}, got {name!r}")
    module, _, attribute = FAMILIES[str(name)].partition(":")
    found: type[Vla] = getattr(import_module(module), attribute)
    return found


def graphs(name: str) -> Any:
    """The module that writes this family as ONNX. Raises ConfigError for a family without one."""
    if name not in GRAPHS:
        raise ConfigError(f"model.family: expected {' or '.join(map(repr, GRAPHS))} to export, got {name!r}")
    return import_module(GRAPHS[name])
