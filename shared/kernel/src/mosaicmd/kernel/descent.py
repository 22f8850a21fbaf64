"""Gradient descent on a loss by optax: the simplest `Algorithm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from mosaicmd.kernel.training import Algorithm

Array = jax.Array
Params = Any


class DescentState(NamedTuple):
    """State of :func:`descent`."""

    params: Params
    optimizer: Any


def descent(
    loss: Callable[[Params, Any], Array], optimizer: optax.GradientTransformation
) -> Algorithm:
    """Gradient steps of ``loss(params, batch)`` by optax; metric ``loss``, before the step.

    Two losses on one optimiser, each with half of the steps::

        alternate(a=descent(a, adam), b=descent(b, adam), shared="optimizer")
    """

    @jax.jit
    def move(state: DescentState, batch: Any) -> tuple[DescentState, Array]:
        value, slope = jax.value_and_grad(loss)(state.params, batch)
        change, optimizer_state = optimizer.update(slope, state.optimizer, state.params)
        params: Any = optax.apply_updates(state.params, change)
        return DescentState(params, optimizer_state), value

    def init(params: Params) -> DescentState:
        return DescentState(params, optimizer.init(params))

    def step(state: DescentState, batch: Any = None) -> tuple[DescentState, dict[str, float]]:
        state, value = move(state, batch)
        return state, {"loss": float(value)}

    return Algorithm(init, step)
