"""Soft inverse-power repulsion, the prior that keeps learned potentials from overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import Field, model_validator

from mosaicmd.gnn_models.cutoffs import polynomial_switch
from mosaicmd.gnn_models.pairs import check_species, pair_index, per_pair
from mosaicmd.kernel.config import Config, Energy, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components, sum_edges
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class SoftRepulsionConfig(Config):
    """Settings and initial parameters of :func:`soft_repulsion`.

    ``epsilon`` in eV, ``sigma``, ``cutoff`` and ``onset`` (of the switch, 0.9 cutoffs by
    default) in Å; ``exponent`` is a pure number. With ``species`` every unordered pair of
    labels has its own ``epsilon`` and ``sigma``, given as one value for all or one per pair
    in the order of :func:`~mosaicmd.gnn_models.pairs.species_pairs`. Unless ``learnable``,
    the potential has no parameters and training leaves it as it is.
    """

    epsilon: Energy | tuple[Energy, ...]
    sigma: Length | tuple[Length, ...]
    exponent: float = Field(default=12.0, gt=0.0)
    cutoff: Length = Field(gt=0.0)
    onset: Length | None = None
    learnable: bool = False
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> SoftRepulsionConfig:
        check_species(self.species)
        per_pair("epsilon", self.epsilon, self.species)
        per_pair("sigma", self.sigma, self.species)
        if self.onset is not None and not 0.0 <= self.onset < self.cutoff:
            raise ValueError(f"`onset` {self.onset} must lie in [0, cutoff={self.cutoff}) Å")
        return self


def soft_repulsion(config: SoftRepulsionConfig) -> Potential:
    """Repulsion ``u(r) = epsilon (sigma/r)^exponent S(r)``.

    ``S`` is :func:`~mosaicmd.gnn_models.cutoffs.polynomial_switch` from ``onset`` to the
    cutoff, so ``u`` has two continuous derivatives.

    As a prior for coarse-grained water: epsilon 1 kJ/mol, sigma 3.165 Å, exponent 12.

    Parameters: none, or ``{"epsilon": [] or [n_pairs], eV, "sigma": likewise, Å}`` if
    ``learnable``, stored as they are; both must stay positive.

    References:
        Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021): the prior for water.
    """
    cutoff, species = config.cutoff, config.species
    onset = 0.9 * cutoff if config.onset is None else config.onset
    whole = config.exponent.is_integer()  # then a power is a few products
    exponent = int(config.exponent) if whole else config.exponent
    initial = {
        "epsilon": per_pair("epsilon", config.epsilon, species),
        "sigma": per_pair("sigma", config.sigma, species),
    }

    def init(key: Array) -> dict[str, Array]:
        del key
        return {name: jnp.asarray(value) for name, value in initial.items() if config.learnable}

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        inside = distances < cutoff
        distances = jnp.where(inside, distances, cutoff)
        values = params if config.learnable else initial
        epsilon = jnp.asarray(values["epsilon"], distances.dtype)
        sigma = jnp.asarray(values["sigma"], distances.dtype)
        if species is not None:
            index = pair_index(species, system, graph)
            epsilon, sigma = epsilon[index], sigma[index]
        power = (sigma / distances) ** exponent
        pair_energy = epsilon * power * polynomial_switch(distances, onset, cutoff)
        return sum_edges(jnp.where(inside, 0.5 * pair_energy, 0.0), graph, system.n_atoms)

    return Potential(
        architecture="soft_repulsion",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=cutoff,
        species=species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`soft_repulsion` from the configuration in a model file."""
    return soft_repulsion(load_config(SoftRepulsionConfig, config))
