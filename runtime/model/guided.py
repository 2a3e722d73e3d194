"""Real-time chunking inside a sampler, in closed form: between the steps of any `Vla`, never inside its network.

At time t (1 is noise, 0 is actions) a step's velocity v says where the flow is heading: ahead = x_t - t * v. Where that
is not what was promised, the velocity is bent by

    v - g(t) * weight * (promised - ahead)        g(t) = (t^2 + (1 - t)^2) / (t * (1 - t))

with g at most the limit (Black et al. 2025, arXiv 2506.07339). Like LeRobot, it takes d ahead / d x_t for the identity:
what this drops would need the gradient of the network. g is without bound at t = 1, where the first of n steps begins.
There it is n at most, whatever the limit: a step of 1/n then goes all the way to the promise and not beyond it, which
would throw the flow out of all that the network has seen. At later steps g is no more than n by itself.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Promise(NamedTuple):
    """`engine.Guidance` as tensors. It holds for the padding of actions too, promised as zeros: a network that was
    trained on its padding heads there by itself, and one that was not has at least always been shown them."""

    previous: Tensor  # (batch, horizon, action_dim) float32
    weight: Tensor  # (batch, horizon) float32; where it is 0, nothing changes, to the last bit
    limit: Tensor  # (batch,) float32


class Guide:
    """One chunk's promise over a number of steps. What it needs of time is made before the first."""

    def __init__(self, promise: Promise, steps: int):
        self._previous = promise.previous[:, None]  # one draw
        weight, limit = promise.weight[:, None, :, None], promise.limit[:, None, None, None]
        self._pulls = [limit.clamp(max=most) * weight for most in strengths(steps)]
        self._steps = steps

    def bend(self, velocity: Tensor, x_t: Tensor, step: int) -> Tensor:
        """Velocity and x_t (batch, 1, horizon, action_dim) at t = 1 - step / steps."""
        missing = (self._previous - x_t).add_(velocity, alpha=1 - step / self._steps)  # from where it is heading
        return velocity.addcmul(self._pulls[step], missing, value=-1)


def strengths(steps: int) -> list[float]:
    """g at the beginning of every step, before the limit: t = (steps - i) / steps."""
    return [((steps - i) ** 2 + i**2) / ((steps - i) * max(i, 1)) for i in range(steps)]  # the first is `steps`
