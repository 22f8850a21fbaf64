"""A potential in other units of length and energy, for atoms of other species."""

from __future__ import annotations

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


def rescaled(
    potential: Potential,
    *,
    length: float = 1.0,
    energy: float = 1.0,
    species: Mapping[int, int] | None = None,
) -> Potential:
    """``E(R) = energy * E_source(R / length)`` per atom, with the cutoff ``length`` times as long.

    Where two elements differ in nothing but the size and the strength of their bonds, this is
    exact: Stillinger–Weber potentials of equal ``lambda`` are rescalings of each other, and
    their elastic constants are in the ratio ``energy / length**3``. The parameters are those
    of ``potential``, so training goes on from there, and a model file rebuilds the whole.
    Charges, where the source predicts them, are those that it has at ``R / length``.

    Args:
        potential: of the source.
        length: ratio of lengths, target over source, for example of lattice constants.
        energy: ratio of energies, for example of cohesive energies.
        species: which label of the source stands for a label of the target,
            ``{target: source}``; ``None`` leaves species as they are.

    Raises:
        ValueError: for ratios that are not positive, and species that the source lacks.
    """
    for name, ratio in (("length", length), ("energy", energy)):
        if not (ratio > 0.0 and math.isfinite(ratio)):
            raise ValueError(f"`{name}` must be positive and finite, got {ratio}")
    if species is not None and not species:
        raise ValueError("`species` is empty; give {target: source}, or None to keep labels")
    table = {int(target): int(source) for target, source in sorted((species or {}).items())}
    known = potential.species
    if known is not None and (unknown := sorted(set(table.values()) - set(known))):
        raise ValueError(f"`species` maps to {unknown}, which the source, made for {known}, lacks")

    def shrunk(system: System) -> System:
        if table:
            sources = jnp.asarray(list(table.values()), system.species.dtype)
            system = system._replace(species=sources[species_index(list(table), system)])
        return system._replace(positions=system.positions / length, cell=system.cell / length)

    def energies(params: Params, system: System, graph: Graph) -> Array:
        return energy * potential.energy(params, shrunk(system), graph)

    def charges(params: Params, system: System, graph: Graph) -> Array:
        assert potential.charges is not None
        return potential.charges(params, shrunk(system), graph)

    return Potential(
        architecture="rescaled",
        config={
            "architecture": potential.architecture,
            "config": dict(potential.config),
            "length": float(length),
            "energy": float(energy),
            "species": {str(target): source for target, source in table.items()} or None,
        },
        init=potential.init,
        energy=energies,
        cutoff=length * potential.cutoff,
        species=tuple(table) if table else known,
        charges=None if potential.charges is None else charges,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`rescaled` from the configuration in a model file."""
    table = config["species"]
    return rescaled(
        build_potential(config["architecture"], config["config"]),
        length=config["length"],
        energy=config["energy"],
        species=None if table is None else {int(label): to for label, to in table.items()},
    )
