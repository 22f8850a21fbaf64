"""What a run evaluates once per stored frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.momenta import kinetic_tensor
from mosaicmd.kernel.observables import Observable
from mosaicmd.kernel.potentials import EnergyFn, Params, evaluate
from mosaicmd.kernel.systems import System, volume

Array = jax.Array
Observe = Callable[[Params, System, Graph, Array], dict[str, Array]]
"""``(params, system, graph, momenta) -> {name: value}`` of one frame of one system."""


def pressure_observer(energy_fn: EnergyFn) -> Observe:
    """An ``observe`` function for the instantaneous pressure of a periodic system.

    It returns ``pressure_tensor``, kinetic part plus virial, ``[3, 3]``, and its mean
    diagonal ``pressure``, both in eV/Å³. Where the total momentum is conserved at zero,
    the kinetic part is that of ``N - 1`` atoms.
    """

    def observe(params: Params, system: System, graph: Graph, momenta: Array) -> dict[str, Array]:
        stress = evaluate(energy_fn, params, system, graph, stress=True).stress
        assert stress is not None
        tensor = kinetic_tensor(system, momenta) / volume(system) - stress
        return {"pressure_tensor": tensor, "pressure": jnp.trace(tensor) / 3.0}

    return observe


def observe_all(
    observe: Observe | Observable | Sequence[Observable] | None, cutoff: float
) -> Observe | None:
    """One function for whatever was asked to be observed."""
    if isinstance(observe, Observable):
        observe = [observe]
    if observe is None or not isinstance(observe, Sequence):
        return observe
    for one in observe:
        if one.cutoff is not None and one.cutoff > cutoff:
            raise ValueError(
                f"observable {one.name!r} needs neighbors to {one.cutoff} Å but the run lists "
                f"them to {cutoff} Å; raise `cutoff`, or compute it from the trajectory"
            )

    def together(params: Params, system: System, graph: Graph, momenta: Array) -> dict[str, Array]:
        return {one.name: one.per_frame(params, system, graph, momenta) for one in observe}

    return together
