"""Morse potential with learnable depth, equilibrium distance and width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


class MorseConfig(TruncatedConfig):
    """Settings and initial parameters of :func:`morse`.

    ``depth`` in eV, ``distance`` (of the minimum), ``width``, ``cutoff`` and ``onset`` (of
    the switch, 0.9 cutoffs by default) in Å. With ``species`` every unordered pair of
    labels has its own depth, distance and width, given as one value for all or one per
    pair in the order of :func:`~mosaicmd.gnn_models.pairs.species_pairs`.
    """

    depth: Energy | tuple[Energy, ...]
    distance: Length | tuple[Length, ...]
    width: Length | tuple[Length, ...]
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> MorseConfig:
        check_species(self.species)
        for name in ("depth", "distance", "width"):
            per_pair(name, getattr(self, name), self.species)
        return self


def morse(config: MorseConfig) -> Potential:
    r"""Morse potential ``u(r) = D (exp(-2 (r - r_0) / w) - 2 exp(-(r - r_0) / w))``.

    ``D`` is the depth, ``r_0`` the distance of the minimum and ``w`` the width, ``1 / a``
    in Morse's notation; the curvature at the minimum is ``2 D / w^2``. The energy ends at
    the cutoff as :func:`~mosaicmd.gnn_models.cutoffs.truncated` says.

    Parameters: ``{"depth": [] or [n_pairs], eV, "distance": likewise, Å, "width":
    likewise, Å}``, stored as they are; all must stay positive.

    References:
        Morse, Phys. Rev. 34, 57 (1929), Eq. 4.
    """
    species = config.species

    def init(key: Array) -> dict[str, Array]:
        del key
        names = ("depth", "distance", "width")
        return {name: jnp.asarray(per_pair(name, getattr(config, name), species)) for name in names}

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        values = {name: jnp.asarray(leaf, distances.dtype) for name, leaf in params.items()}
        if species is not None:
            index = pair_index(species, system, graph)
            values = {name: leaf[index] for name, leaf in values.items()}

        def shape(r: Array) -> Array:
            decay = jnp.exp((values["distance"] - r) / values["width"])
            return decay * (decay - 2.0)

        pair_energy = values["depth"] * truncated(shape, distances, config)
        return sum_edges(0.5 * pair_energy, graph, system.n_atoms)

    return Potential(
        architecture="morse",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=config.cutoff,
        species=species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`morse` from the configuration in a model file."""
    return morse(load_config(MorseConfig, config))
