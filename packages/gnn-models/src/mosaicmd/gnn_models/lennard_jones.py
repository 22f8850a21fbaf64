"""Lennard-Jones potential with learnable well depth and diameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

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


class LennardJonesConfig(Config):
    """Settings and initial parameters of :func:`lennard_jones`.

    ``epsilon`` in eV, ``sigma``, ``cutoff`` and ``onset`` (of the switch, 0.9 cutoffs by
    default) in Å. With ``species`` every unordered pair of labels has its own ``epsilon``
    and ``sigma``, given as one value for all or one per pair in the order of
    :func:`~mosaicmd.gnn_models.pairs.species_pairs`.
    """

    epsilon: Energy | tuple[Energy, ...]
    sigma: Length | tuple[Length, ...]
    cutoff: Length = Field(gt=0.0)
    truncation: Literal["plain", "energy_shift", "force_shift", "switch"] = "switch"
    onset: Length | None = None
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> LennardJonesConfig:
        check_species(self.species)
        per_pair("epsilon", self.epsilon, self.species)
        per_pair("sigma", self.sigma, self.species)
        if self.onset is not None and self.truncation != "switch":
            raise ValueError(f'`onset` has no meaning with truncation "{self.truncation}"')
        if self.onset is not None and not 0.0 <= self.onset < self.cutoff:
            raise ValueError(f"`onset` {self.onset} must lie in [0, cutoff={self.cutoff}) Å")
        return self


class TailCorrection(NamedTuple):
    """What a uniform fluid beyond the cutoff would add."""

    energy: float  # eV
    virial: float  # eV: sum over pairs of -r u'(r); a third of it per volume is a pressure


def lennard_jones(config: LennardJonesConfig) -> Potential:
    r"""Lennard-Jones potential ``u(r) = 4 epsilon ((sigma/r)^12 - (sigma/r)^6)``.

    Below the cutoff ``r_c``, by ``truncation``,

    - ``"plain"``: ``u(r)``, which jumps at ``r_c``;
    - ``"energy_shift"``: ``u(r) - u(r_c)``, continuous;
    - ``"force_shift"``: ``u(r) - u(r_c) - (r - r_c) u'(r_c)``, with continuous forces;
    - ``"switch"``: ``u(r) S(r)`` with :func:`~mosaicmd.gnn_models.cutoffs.polynomial_switch`,
      with two continuous derivatives;

    and zero beyond. Parameters: ``{"epsilon": [] or [n_pairs], eV, "sigma": likewise, Å}``,
    stored as they are; both must stay positive.

    References:
        Allen & Tildesley, Computer Simulation of Liquids, 2nd ed. (2017), secs. 1.3, 5.2.
    """
    cutoff, species = config.cutoff, config.species
    onset = 0.9 * cutoff if config.onset is None else config.onset

    def init(key: Array) -> dict[str, Array]:
        del key
        return {
            "epsilon": jnp.asarray(per_pair("epsilon", config.epsilon, species)),
            "sigma": jnp.asarray(per_pair("sigma", config.sigma, species)),
        }

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        inside = distances < cutoff
        distances = jnp.where(inside, distances, cutoff)
        epsilon = jnp.asarray(params["epsilon"], distances.dtype)
        sigma = jnp.asarray(params["sigma"], distances.dtype)
        if species is not None:
            index = pair_index(species, system, graph)
            epsilon, sigma = epsilon[index], sigma[index]
        sixth = (sigma / distances) ** 6
        values = sixth * (sixth - 1.0)  # u / (4 epsilon)
        at_cutoff = (sigma / cutoff) ** 6
        if config.truncation in ("energy_shift", "force_shift"):
            values = values - at_cutoff * (at_cutoff - 1.0)
        if config.truncation == "force_shift":
            slope = -6.0 / cutoff * at_cutoff * (2.0 * at_cutoff - 1.0)
            values = values - (distances - cutoff) * slope
        if config.truncation == "switch":
            values = values * polynomial_switch(distances, onset, cutoff)
        # half of 4 epsilon: each atom of a pair has half of its energy
        return sum_edges(jnp.where(inside, 2.0 * epsilon * values, 0.0), graph, system.n_atoms)

    return Potential(
        architecture="lennard_jones",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=cutoff,
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
