"""How often something succeeded, and within what the true rate lies: of {"successes": ..., "episodes": ...}."""

from __future__ import annotations

from collections.abc import Mapping


def rate(result: Mapping[str, int]) -> float:
    """In 0..1; there must be an episode."""
    return result["successes"] / result["episodes"]


def interval(result: Mapping[str, int]) -> tuple[float, float]:
    """95 % Wilson interval of a success rate, both ends in 0..1."""
    from scipy.stats import binomtest  # half a second to import, and only reports need it

    found = binomtest(result["successes"], result["episodes"]).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
