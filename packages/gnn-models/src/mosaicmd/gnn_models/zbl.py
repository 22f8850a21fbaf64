"""Universal screened nuclear repulsion of Ziegler, Biersack and Littmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from pydantic import Field, model_validator

from mosaicmd.gnn_models.pairs import check_species, pair_index, species_pairs
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components, sum_edges
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.units import COULOMB_CONSTANT

Array = jax.Array

SCREENING = np.array(
    [[0.18175, 3.19980], [0.50986, 0.94229], [0.28022, 0.40290], [0.02817, 0.20162]]
)
"""Weights and decays of the universal screening function."""

_HEAVIEST = 118
_LAST_WITH_RADIUS = 96


class ZBLConfig(Config):
    """Settings of :func:`zbl`.

    ``species`` are atomic numbers. The repulsion starts to leave the universal form at
    ``inner`` and ends at ``outer``, Å. Without ``outer`` each pair ends at the sum of its
    covalent radii (Cordero et al., Dalton Trans. 2832 (2008)); without ``inner`` the end
    starts at half of the way.
    """

    species: tuple[int, ...]
    inner: Length | None = Field(default=None, ge=0.0)
    outer: Length | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _check(self) -> ZBLConfig:
        check_species(self.species)
        if max(self.species) > _HEAVIEST:
            raise ValueError(
                f"`species` {max(self.species)} is no element; nuclear repulsion needs atomic "
                "numbers, for beads use soft_repulsion"
            )
        if self.outer is None and max(self.species) > _LAST_WITH_RADIUS:
            raise ValueError(f"element {max(self.species)} has no covalent radius; give `outer`")
        inner, outer = self.ends()
        if not (inner < outer).all():
            raise ValueError(
                f"`inner` {self.inner} must be below `outer`, here {outer.min():.3f} Å"
            )
        return self

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the end of the repulsion starts and ends, Å, each ``[n_pairs]``."""
        first, second = np.array(species_pairs(self.species)).T
        outer = covalent_radii[first] + covalent_radii[second]
        if self.outer is not None:
            outer = np.full(len(first), self.outer)
        return 0.5 * outer if self.inner is None else np.full(len(first), self.inner), outer


def zbl(config: ZBLConfig) -> Potential:
    r"""Nuclear repulsion ``u(r) = Z_i Z_j e² / (4 pi epsilon_0 r) phi(r / a) + S(r)``.

    ``phi(x) = sum_k w_k exp(-d_k x)`` with the universal :data:`SCREENING`, and ``a =
    0.46850 Å / (Z_i^0.23 + Z_j^0.23)``. ``S`` is that of LAMMPS' ``pair_style zbl``:
    constant below ``inner``, and in ``t = r - inner`` ``A t³ / 3 + B t⁴ / 4 + C`` beyond,
    such that ``u`` and two derivatives vanish at ``outer``. Inside, forces are those of
    the universal repulsion exactly.

    It has no parameters: as a prior it keeps atoms apart where a learned potential has
    seen no data.

    References:
        Ziegler, Biersack & Littmark, The Stopping and Range of Ions in Matter (1985).
    """
    first, second = np.array(species_pairs(config.species), float).T
    inner, outer = config.ends()
    charge = COULOMB_CONSTANT * first * second  # eV Å
    length = 0.46850 / (first**0.23 + second**0.23)
    value, slope, curvature = _repulsion(charge, length, outer)
    width = outer - inner
    cubic = (-3.0 * slope + width * curvature) / width**2 / 3.0
    quartic = (2.0 * slope - width * curvature) / width**3 / 4.0
    constant = -value + 0.5 * width * slope - width**2 * curvature / 12.0
    table = np.stack([charge, 1.0 / length, inner, outer, cubic, quartic, constant])

    def energy(params: Any, system: System, graph: Graph) -> Array:
        del params
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        rows = jnp.asarray(table, distances.dtype)
        charge, inverse, inner, outer, cubic, quartic, constant = rows[
            :, pair_index(config.species, system, graph)
        ]
        inside = distances < outer
        distances = jnp.where(inside, distances, outer)
        screening = sum(w * jnp.exp(-d * inverse * distances) for w, d in SCREENING.tolist())
        t = jnp.maximum(distances - inner, 0.0)
        pair_energy = charge / distances * screening + t**3 * (cubic + quartic * t) + constant
        return sum_edges(jnp.where(inside, 0.5 * pair_energy, 0.0), graph, system.n_atoms)

    return Potential(
        architecture="zbl",
        config=config.model_dump(mode="json"),
        init=lambda key: {},
        energy=energy,
        cutoff=float(outer.max()),
        species=config.species,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`zbl` from the configuration in a model file."""
    return zbl(load_config(ZBLConfig, config))


def _repulsion(
    charge: np.ndarray, length: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The universal repulsion and its first two derivatives at ``r``, each ``[n_pairs]``."""
    weights, decays = SCREENING[:, :1], SCREENING[:, 1:] / length
    terms = weights * np.exp(-decays * r)
    value, slope, curvature = (np.sum((-decays) ** k * terms, axis=0) for k in range(3))
    return (
        charge * value / r,
        charge * (slope - value / r) / r,
        charge * (curvature - 2.0 * slope / r + 2.0 * value / r**2) / r,
    )
