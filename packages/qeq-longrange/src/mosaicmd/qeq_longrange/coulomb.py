"""The Coulomb potential of fixed charges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System
from mosaicmd.qeq_longrange.electrostatics import coulomb_potentials
from mosaicmd.qeq_longrange.plans import CoulombPlan
from mosaicmd.qeq_longrange.short_range import Exclusions

Array = jax.Array

NO_EDGES = 0.1
"""Cutoff of a sum over all pairs, which looks at no graph, Å."""


class CoulombConfig(Config):
    """Settings of :func:`coulomb`.

    ``widths`` (Å) make the charges of each of ``species`` Gaussian with that standard deviation.
    ``excluded_pairs`` are indices of atoms that do not interact at their nearest images, such as
    bonded ones; of the ``scaled_pairs`` the fraction ``pair_scale`` of the interaction remains.
    """

    plan: CoulombPlan
    species: tuple[int, ...] | None = None
    widths: tuple[Length, ...] | None = None
    excluded_pairs: tuple[tuple[int, int], ...] = ()
    scaled_pairs: tuple[tuple[int, int], ...] = ()
    pair_scale: float = Field(default=0.5, ge=0.0)

    @model_validator(mode="after")
    def _check(self) -> CoulombConfig:
        species = self.species
        if species is not None:
            check_species(species)
        if self.widths is not None:
            if species is None or len(self.widths) != len(species):
                raise ValueError(
                    f"`widths` {list(self.widths)} must be one for each of `species`, "
                    f"which are {species}"
                )
            if min(self.widths) < 0.0:
                raise ValueError(f"`widths` must not be negative, got {list(self.widths)}")
        pairs = [tuple(sorted(pair)) for pair in self.excluded_pairs + self.scaled_pairs]
        wrong = [pair for pair in pairs if pair[0] < 0 or pair[0] == pair[1]]
        if wrong or len(set(pairs)) < len(pairs):
            again = next((pair for pair in pairs if pairs.count(pair) > 1), None)
            raise ValueError(
                "`excluded_pairs` and `scaled_pairs` must be pairs of different atoms, each once, "
                f"got {wrong[0] if wrong else again}"
            )
        return self


def coulomb(config: CoulombConfig) -> Potential:
    """Coulomb energy of the charges in ``system.charges``, e, half of each pair per atom.

    There are no parameters. The graph is one for ``plan.cutoff``; a direct sum over all pairs
    looks at no graph. What a plan truncates leaves jumps of the size of its accuracy at the
    cutoff. A plan stays valid while the cell and the number of atoms change little.

    Raises:
        ValueError: on evaluation, for a system without charges or with fewer atoms than
            ``excluded_pairs`` speak of.
    """
    excluded = [*config.excluded_pairs, *config.scaled_pairs]
    removed = [1.0] * len(config.excluded_pairs)
    removed += [1.0 - config.pair_scale] * len(config.scaled_pairs)

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        del params
        charges = system.charges
        if charges is None:
            raise ValueError(
                "`charges` of the system are missing; give them to make_system(..., charges=...)"
            )
        exclusions = None
        if excluded:
            if (last := max(map(max, excluded))) >= system.n_atoms:
                raise ValueError(
                    f"`excluded_pairs` speak of atom {last} of a system of {system.n_atoms} atoms"
                )
            exclusions = Exclusions(jnp.asarray(excluded, jnp.int32), jnp.asarray(removed))
        potentials = coulomb_potentials(
            charges,
            system,
            graph,
            config.plan,
            widths=_widths(config, system),
            exclusions=exclusions,
        )
        return 0.5 * jnp.where(system.mask, charges, 0.0) * potentials

    return Potential(
        architecture="coulomb",
        config=config.model_dump(mode="json"),
        init=lambda key: {},
        energy=energy,
        cutoff=NO_EDGES if config.plan.cutoff is None else config.plan.cutoff,
        species=config.species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`coulomb` from the configuration in a model file."""
    return coulomb(load_config(CoulombConfig, config))


def check_species(species: Sequence[int]) -> None:
    """Raise a ``ValueError`` for labels that repeat or are below 1."""
    if not species or min(species) < 1 or len(set(species)) < len(species):
        raise ValueError(f"`species` must be distinct positive labels, got {list(species)}")


def per_species(species: Sequence[int], system: System) -> Array:
    """Index into ``species`` of every atom, ``[n_atoms]``; some valid one for others."""
    order = np.argsort(species)
    found = jnp.searchsorted(jnp.asarray(np.asarray(species)[order], jnp.int32), system.species)
    return jnp.asarray(order, jnp.int32)[jnp.minimum(found, len(order) - 1)]


def _widths(config: CoulombConfig, system: System) -> Array | None:
    """Width of the charge of every atom, Å."""
    if config.widths is None or config.species is None:
        return None
    values = jnp.asarray(config.widths, system.positions.dtype)
    return values[per_species(config.species, system)]
