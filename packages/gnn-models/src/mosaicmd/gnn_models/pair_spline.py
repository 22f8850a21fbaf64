"""Learnable pair potential: a uniform cubic B-spline in the distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from pydantic import model_validator

from mosaicmd.gnn_models.pairs import check_species, pair_index, species_pairs
from mosaicmd.gnn_models.splines import piecewise_cubic, spline_pieces
from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph, edge_components, sum_edges
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class PairSplineConfig(Config):
    """Settings of :func:`pair_spline`.

    ``r_min`` and ``cutoff`` in Å. Without ``species`` one curve serves every pair of
    atoms; with them each unordered pair of
    labels has its own, in the order of :func:`~mosaicmd.gnn_models.pairs.species_pairs`.
    """

    cutoff: Length
    r_min: Length = 0.0
    n_coefficients: int = 40
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> PairSplineConfig:
        check_species(self.species)
        if not 0.0 <= self.r_min < self.cutoff:
            raise ValueError(f"`r_min` {self.r_min} must lie in [0, cutoff={self.cutoff}) Å")
        if self.n_coefficients < 4:
            raise ValueError(f"`n_coefficients` must be at least 4, got {self.n_coefficients}")
        return self

    @property
    def spacing(self) -> float:
        """Distance between knots, Å."""
        return (self.cutoff - self.r_min) / (self.n_coefficients + 3)


def pair_spline(config: PairSplineConfig) -> Potential:
    r"""Pair potential ``u(r) = sum_k c_k B((r - r_min) / h - k)``.

    ``B`` is the cubic cardinal B-spline with support [0, 4] (de Boor, *A Practical Guide
    to Splines*), so ``u`` and its first two derivatives vanish at ``r_min`` and at the
    cutoff: below ``r_min`` another term, usually a repulsion, has to act. ``u`` is linear
    in its coefficients, which makes it the natural potential for Boltzmann inversion,
    relative entropy and Gauss–Newton steps.

    Parameters: ``{"coefficients": [n_pairs, n_coefficients]}``, eV, initially zero.
    """
    labels = config.species
    n_pairs = 1 if labels is None else len(species_pairs(labels))
    n_intervals = config.n_coefficients + 3

    def init(key: Array) -> dict[str, Array]:
        del key
        return {"coefficients": jnp.zeros((n_pairs, config.n_coefficients))}

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        coefficients = params["coefficients"].astype(distances.dtype)
        # with one empty interval on either side
        pieces = spline_pieces(jnp.pad(coefficients, ((0, 0), (4, 4))))
        # (r - r_min) / h, clipped into the empty intervals at either end of the table
        scaled = (distances - config.r_min) / config.spacing
        scaled = jnp.clip(scaled, -0.5, n_intervals + 0.5)
        interval = jnp.floor(scaled).astype(jnp.int32)
        t = scaled - interval
        row = interval + 1
        if labels is not None:
            row = row + (n_intervals + 2) * pair_index(labels, system, graph)
        values = 0.5 * piecewise_cubic(pieces, row, t)
        return sum_edges(values, graph, system.n_atoms)

    return Potential(
        architecture="pair_spline",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=config.cutoff,
        species=labels,
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`pair_spline` from the configuration in a model file."""
    return pair_spline(load_config(PairSplineConfig, config))


def spline_values(config: PairSplineConfig, coefficients: Array, distances: Array) -> Array:
    """``u(r)``, eV, of one pair's ``coefficients`` at ``distances``, Å."""
    return spline_basis(config, distances) @ coefficients


def spline_basis(config: PairSplineConfig, distances: Array) -> Array:
    """The basis at ``distances``, shape ``[n_distances, n_coefficients]``."""
    x = (jnp.asarray(distances)[:, None] - config.r_min) / config.spacing
    s = jnp.abs(x - jnp.arange(config.n_coefficients)[None] - 2.0)
    inner = (4.0 - 6.0 * s**2 + 3.0 * s**3) / 6.0
    outer = (2.0 - s) ** 3 / 6.0
    return jnp.where(s < 1.0, inner, jnp.where(s < 2.0, outer, 0.0))
