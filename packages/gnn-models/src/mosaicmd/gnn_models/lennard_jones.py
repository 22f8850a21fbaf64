"""Lennard-Jones potential with learnable well depth and diameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import model_validator

from mosaicmd.gnn_models.cutoffs import TruncatedConfig, truncated
from mosaicmd.gnn_models.pairs import check_species, pair_index, per_pair
from mosaicmd.kernel.config import Energy, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components, sum_edges
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class LennardJonesConfig(TruncatedConfig):
    """Settings and initial parameters of :func:`lennard_jones`.

    ``epsilon`` in eV, ``sigma``, ``cutoff`` and ``onset`` (of the switch, 0.9 cutoffs by
    default) in Å. With ``species`` every unordered pair of labels has its own ``epsilon``
    and ``sigma``, given as one value for all or one per pair in the order of
    :func:`~mosaicmd.gnn_models.pairs.species_pairs`.
    """

    epsilon: Energy | tuple[Energy, ...]
    sigma: Length | tuple[Length, ...]
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> LennardJonesConfig:
        check_species(self.species)
        per_pair("epsilon", self.epsilon, self.species)
        per_pair("sigma", self.sigma, self.species)
        return self


class TailCorrection(NamedTuple):
    """What a uniform fluid beyond the cutoff would add."""

    energy: float  # eV
    virial: float  # eV: sum over pairs of -r u'(r); a third of it per volume is a pressure


def lennard_jones(config: LennardJonesConfig) -> Potential:
    r"""Lennard-Jones potential ``u(r) = 4 epsilon ((sigma/r)^12 - (sigma/r)^6)``.

    It ends at the cutoff as :func:`~mosaicmd.gnn_models.cutoffs.truncated` says.

    Parameters: ``{"epsilon": [] or [n_pairs], eV, "sigma": likewise, Å}``,
    stored as they are; both must stay positive.

    References:
        Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), sec. 1.3.
    """
    species = config.species

    def init(key: Array) -> dict[str, Array]:
        del key
        return {
            "epsilon": jnp.asarray(per_pair("epsilon", config.epsilon, species)),
            "sigma": jnp.asarray(per_pair("sigma", config.sigma, species)),
        }

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        epsilon = jnp.asarray(params["epsilon"], distances.dtype)
        sigma = jnp.asarray(params["sigma"], distances.dtype)
        if species is not None:
            index = pair_index(species, system, graph)
            epsilon, sigma = epsilon[index], sigma[index]

        def shape(r: Array) -> Array:
            sixth = (sigma / r) ** 6
            return sixth * (sixth - 1.0)

        # half of 4 epsilon: each atom of a pair has half of its energy
        values = 2.0 * epsilon * truncated(shape, distances, config)
        return sum_edges(values, graph, system.n_atoms)

    return Potential(
        architecture="lennard_jones",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=config.cutoff,
        species=species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`lennard_jones` from the configuration in a model file."""
    return lennard_jones(load_config(LennardJonesConfig, config))


def tail_correction(
    epsilon: float, sigma: float, cutoff: float, n_atoms: int, volume: float
) -> TailCorrection:
    """Energy and virial beyond a plain cutoff of one species with ``g(r) = 1`` there.

    ``E = 8/3 pi N rho epsilon sigma^3 (s^9 / 3 - s^3)`` with ``s = sigma / r_c``.

    Args:
        epsilon: eV.
        sigma: Å.
        cutoff: ``r_c``, Å.
        n_atoms: ``N``.
        volume: Å³.

    References:
        Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), sec. 2.8.
    """
    s = sigma / cutoff
    factor = 8.0 / 3.0 * math.pi * n_atoms**2 / volume * epsilon * sigma**3
    return TailCorrection(
        energy=factor * (s**9 / 3.0 - s**3), virial=factor * (4.0 * s**9 - 6.0 * s**3)
    )
