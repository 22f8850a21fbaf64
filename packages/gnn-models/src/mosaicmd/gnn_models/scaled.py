"""A potential times a constant, so that a network may work with numbers of order one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mosaicmd.gnn_models.pairs import species_index
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Params, Potential, build_potential
from mosaicmd.kernel.systems import System

Array = jax.Array


def scaled(potential: Potential, scale: float | Mapping[int, float]) -> Potential:
    """``potential`` with every per-atom energy multiplied by a constant.

    A usual choice is the root mean square of the forces to be learned. Energies per atom
    that are shifted as well are a sum: ``sum_potentials(scaled(network, scale),
    atomic_energies(energies))``. Its parameters are those of ``potential``, so a model file
    rebuilds it like any other.

    Args:
        potential: what is multiplied.
        scale: a pure number, or one for each species label.

    Raises:
        ValueError: for scales that are not positive, or species that ``potential`` does not
            know.
    """
    by_species = isinstance(scale, Mapping)
    table = {int(k): float(v) for k, v in sorted(scale.items())} if by_species else {}
    values = list(table.values()) if by_species else [float(scale)]
    if not values or not all(value > 0.0 and math.isfinite(value) for value in values):
        raise ValueError(f"`scale` must be positive and finite, got {scale}")
    missing = sorted(set(potential.species or ()) - set(table))
    if by_species and missing:
        raise ValueError(f"`scale` lacks species {missing} of the potential; add them")

    def energy(params: Params, system: System, graph: Graph) -> Array:
        energies = potential.energy(params, system, graph)
        factors = jnp.asarray(values, energies.dtype)
        index = species_index(list(table), system) if by_species else 0
        return jnp.where(system.mask, energies * factors[index], 0.0)

    record = {str(label): value for label, value in table.items()} if by_species else values[0]
    config = {
        "architecture": potential.architecture,
        "config": dict(potential.config),
        "scale": record,
    }
    return dataclasses.replace(
        potential,
        architecture="scaled",
        config=config,
        energy=energy,
        species=tuple(table) if by_species and potential.species is None else potential.species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`scaled` from the configuration in a model file."""
    scale = config["scale"]
    if isinstance(scale, Mapping):
        scale = {int(label): value for label, value in scale.items()}
    return scaled(build_potential(config["architecture"], config["config"]), scale)
