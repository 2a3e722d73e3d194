"""Proof that what was sealed serves: opened again, every digest verified, every parameter of the model covered."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from hotpolicy.runtime.bundle import Bundle
from hotpolicy.runtime.engine import load_engine
from hotpolicy.runtime.errors import BundleError
from hotpolicy.runtime.model.pi0 import Pi0, Pi0Config
from hotpolicy.runtime.policy import load_policy
from hotpolicy.runtime.versions.golden import Golden

LARGE = 500_000_000  # parameters, above which the model is laid out without memory instead of loaded


def certify(bundle: Bundle, try_it: bool = False) -> str:
    """-> what was checked. Raises BundleError naming the first fault."""
    bundle = Bundle.open(bundle.folder, expect=bundle.id)
    bundle.verify()
    checked = ["digests"]
    if sum(prod(info.shape) for info in bundle.manifest.tensors.values()) > LARGE:
        check_coverage(bundle)
        checked.append("coverage")
    else:
        load_engine("torch", bundle)
        checked.append("loaded")
    if try_it:
        _try(bundle)
        checked.append("one chunk of finite actions")
    return ", ".join(checked)


def check_coverage(bundle: Bundle) -> None:
    """The manifest's tensors are the model's parameters, name by name and shape by shape."""
    with torch.device("meta"):
        expected = {
            name: tuple(parameter.shape)
            for name, parameter in Pi0(Pi0Config.from_dict(bundle.manifest.model["config"])).named_parameters()
        }
    found = {name: info.shape for name, info in bundle.manifest.tensors.items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise BundleError(f"{bundle.folder}: {name}: expected {expected.get(name)}, got {found.get(name)}")


def _try(bundle: Bundle) -> None:
    policy = load_policy([bundle])
    golden = Golden.blank(policy.spec, policy.horizon, width=policy.width)
    observations = golden.observations(policy.spec)
    policy.check(observations[0])
    actions = policy.infer(observations, golden.noise)
    expected = (1, policy.horizon, len(policy.spec.joints))
    if actions.shape != expected or not np.isfinite(actions).all():
        raise BundleError(f"{bundle.folder}: tried once: expected finite actions {expected}, got {actions.shape}")
