"""Embedding energies ``F(rho)`` of the embedded-atom method, learned or in closed form.

The pair energy of an embedded-atom potential is a term of its own:
``sum_potentials(pair_spline(...), spline_embedding(...))``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.gnn_models.cutoffs import polynomial_switch
from mosaicmd.gnn_models.pairs import check_species, pair_index, per_pair, species_index
from mosaicmd.gnn_models.soft_repulsion import SoftRepulsionConfig, soft_repulsion
from mosaicmd.gnn_models.splines import piecewise_cubic, spline_pieces
from mosaicmd.kernel.config import Config, Energy, Length, load_config
from mosaicmd.kernel.graphs import (
    Graph,
    edge_components,
    gather_receivers,
    sum_edges,
)
from mosaicmd.kernel.potentials import Potential, sum_potentials
from mosaicmd.kernel.systems import System

Array = jax.Array


class SplineEmbeddingConfig(Config):
    """Settings and initial parameters of :func:`spline_embedding`.

    ``cutoff`` and ``r_min`` (first knot of the amplitude) in Å. At first the amplitude is
    ``((cutoff - r) / (cutoff - distance))³``, one at ``distance`` (Å), say that of nearest
    neighbors; so the root density ``s`` of a crystal is about the square root of its
    coordination number. ``s_max`` is the last knot of the embedding, which at first is
    ``-strength s`` (eV). Without ``species`` all atoms have the same two curves.
    """

    cutoff: Length = Field(gt=0.0)
    distance: Length = Field(gt=0.0)
    strength: Energy
    r_min: Length = Field(default=0.0, ge=0.0)
    n_amplitude: int = Field(default=20, ge=4)
    n_embedding: int = Field(default=16, ge=4)
    s_max: float = Field(default=8.0, gt=0.0)
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> SplineEmbeddingConfig:
        check_species(self.species)
        for name in ("r_min", "distance"):
            if not getattr(self, name) < self.cutoff:
                raise ValueError(
                    f"`{name}` {getattr(self, name)} must be below cutoff={self.cutoff} Å"
                )
        return self


class PowerEmbeddingConfig(Config):
    """Settings and initial parameters of :func:`power_embedding`.

    ``strength`` in eV; ``distance``, ``cutoff`` and ``onset`` (of the switch, 0.9 cutoffs by
    default) in Å; ``exponent`` is a pure number. With ``species`` the strength is one value
    for all or one per label, and the distance one for all or one per pair in the order of
    :func:`~mosaicmd.gnn_models.pairs.species_pairs`.
    """

    strength: Energy | tuple[Energy, ...]
    distance: Length | tuple[Length, ...]
    exponent: float = Field(gt=0.0)
    cutoff: Length = Field(gt=0.0)
    onset: Length | None = None
    species: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> PowerEmbeddingConfig:
        check_species(self.species)
        per_pair("distance", self.distance, self.species)
        if isinstance(self.strength, tuple) and len(self.strength) != len(self.species or ()):
            raise ValueError(
                f"`strength` has {len(self.strength)} values for species {self.species}; give one "
                "for all, or one for each"
            )
        if self.onset is not None and not 0.0 <= self.onset < self.cutoff:
            raise ValueError(f"`onset` {self.onset} must lie in [0, cutoff={self.cutoff}) Å")
        return self


def spline_embedding(config: SplineEmbeddingConfig) -> Potential:
    r"""Learnable embedding energy ``F_a(s_i)`` with ``s_i² = rho_i = sum_j g_ab(r_ij)²``.

    ``a`` is the species of the atom and ``b`` that of its neighbor: ``g_ab`` and ``g_ba``
    are different curves, as in the general Finnis–Sinclair form. ``F`` and ``g`` are
    uniform cubic B-splines. ``g`` ends at the cutoff with two continuous derivatives and
    goes on as a straight line below ``r_min``; ``F(0) = 0``, and beyond ``s_max`` it goes on
    as a straight line, all twice continuously differentiable.

    Writing the density as a sum of squares keeps it positive, and its root smooth where a
    last neighbor leaves, which that of a density with a double zero is not. In ``s``, the
    Finnis–Sinclair form is the straight line that training starts from; ``s²`` is a pair
    energy, so only the rest of ``F`` is many-body. An overall factor of ``g`` can be moved
    into ``F``, hence the parameters are not unique.

    Parameters: ``{"amplitude": [n_species², n_amplitude], "embedding": [n_species,
    n_embedding + 3], eV}``, with row ``a * n_species + b`` for ``g_ab``.

    References:
        Daw & Baskes, Phys. Rev. B 29, 6443 (1984); Finnis & Sinclair, Phil. Mag. A 50, 45
        (1984).
    """
    species = config.species
    n_species = 1 if species is None else len(species)
    n_r, n_s = config.n_amplitude, config.n_embedding
    dr, ds = (config.cutoff - config.r_min) / n_r, config.s_max / n_s

    def init(key: Array) -> dict[str, Array]:
        del key
        # Spline coefficients of a cubic and of a line: products of knots (blossoms).
        knots = dr * (np.arange(n_r)[:, None] + np.array([-2.0, -1.0, 0.0])) + config.r_min
        amplitude = np.prod((config.cutoff - knots) / (config.cutoff - config.distance), axis=1)
        embedding = -config.strength * ds * np.arange(-1.0, n_s + 2.0)
        return {
            "amplitude": jnp.asarray(np.tile(amplitude, (n_species**2, 1))),
            "embedding": jnp.asarray(np.tile(embedding, (n_species, 1))),
        }

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        kind = None if species is None else species_index(species, system)

        # From the cutoff inwards, for full precision of the root where g is nearly zero:
        # n_r intervals and three that lead into a line.
        amplitude = params["amplitude"][:, ::-1].astype(distances.dtype)
        table = _with_line(jnp.pad(amplitude, ((0, 0), (3, 0))))
        scaled = jnp.maximum((config.cutoff - distances) / dr, 0.0)
        interval = jnp.minimum(jnp.floor(scaled), n_r + 2.0).astype(jnp.int32)
        row = interval
        if kind is not None:
            pair = gather_receivers(kind, graph) * n_species + kind[graph.senders]
            row = row + (n_r + 3) * pair
        g = piecewise_cubic(spline_pieces(table), row, scaled - interval)
        s = _root_of_squares(g, graph, system.n_atoms)

        # n_s intervals and three that lead into a line
        table = _with_line(params["embedding"].astype(distances.dtype))
        pieces = spline_pieces(table)
        scaled = s / ds
        interval = jnp.clip(jnp.floor(scaled), 0.0, n_s + 2.0).astype(jnp.int32)
        first = jnp.zeros_like(interval) if kind is None else (n_s + 3) * kind
        values = piecewise_cubic(pieces, first + interval, scaled - interval)
        return jnp.where(system.mask, values - pieces[first, 0], 0.0)

    return Potential(
        architecture="spline_embedding",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=config.cutoff,
        species=species,
    )


def power_embedding(config: PowerEmbeddingConfig) -> Potential:
    r"""Embedding energy ``-A_a sqrt(rho_i)`` with ``rho_i = sum_j (d_ab / r_ij)^m S(r_ij)²``.

    ``S`` is :func:`~mosaicmd.gnn_models.cutoffs.polynomial_switch` from ``onset`` to the
    cutoff; squared, it leaves two continuous derivatives in the root.

    Parameters: ``{"strength": [] or [n_species], eV, "distance": [] or [n_pairs], Å}``.

    References:
        Finnis & Sinclair, Phil. Mag. A 50, 45 (1984); Sutton & Chen, Phil. Mag. Lett. 61,
        139 (1990): this form of the density.
    """
    cutoff, species = config.cutoff, config.species
    onset = 0.9 * cutoff if config.onset is None else config.onset

    def init(key: Array) -> dict[str, Array]:
        del key
        strength = jnp.asarray(config.strength)
        if species is not None:
            strength = jnp.broadcast_to(strength, (len(species),))
        return {
            "strength": strength,
            "distance": jnp.asarray(per_pair("distance", config.distance, species)),
        }

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        x, y, z = edge_components(system, graph)
        distances = jnp.sqrt(x * x + y * y + z * z)
        inside = distances < cutoff
        distances = jnp.where(inside, distances, cutoff)
        strength = params["strength"].astype(distances.dtype)
        scale = params["distance"].astype(distances.dtype)
        if species is not None:
            strength = strength[species_index(species, system)]
            scale = scale[pair_index(species, system, graph)]
        switch = polynomial_switch(distances, onset, cutoff)
        g = (scale / distances) ** (0.5 * config.exponent) * switch
        s = _root_of_squares(jnp.where(inside, g, 0.0), graph, system.n_atoms)
        return jnp.where(system.mask, -strength * s, 0.0)

    return Potential(
        architecture="power_embedding",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=cutoff,
        species=species,
    )


def sutton_chen(
    *,
    epsilon: float,
    a: float,
    c: float,
    n: float,
    m: float,
    cutoff: float,
    onset: float | None = None,
    species: tuple[int, ...] | None = None,
) -> Potential:
    r"""``epsilon (1/2 sum_j (a/r)^n - c sqrt(sum_j (a/r)^m))`` per atom, in the paper's symbols.

    The sum of :func:`~mosaicmd.gnn_models.soft_repulsion` and :func:`power_embedding`, both
    learnable. The published parameters hold for infinite sums: with a cutoff, lattice
    constants grow and cohesive energies shrink somewhat.

    Copper: ``epsilon`` 0.012382 eV, ``a`` 3.61 Å, ``c`` 39.432, ``n`` 9, ``m`` 6.
    Silver: 0.0025415 eV, 4.09 Å, 144.41, 12, 6. Gold: 0.012793 eV, 4.08 Å, 34.408, 10, 8.

    References:
        Sutton & Chen, Phil. Mag. Lett. 61, 139 (1990), Table 1.
    """
    pair = SoftRepulsionConfig(
        epsilon=epsilon,
        sigma=a,
        exponent=n,
        cutoff=cutoff,
        onset=onset,
        learnable=True,
        species=species,
    )
    embedding = PowerEmbeddingConfig(
        strength=c * epsilon,
        distance=a,
        exponent=m,
        cutoff=cutoff,
        onset=onset,
        species=species,
    )
    return sum_potentials(soft_repulsion(pair), power_embedding(embedding))


def build_spline(config: Mapping[str, Any]) -> Potential:
    """:func:`spline_embedding` from the configuration in a model file."""
    return spline_embedding(load_config(SplineEmbeddingConfig, config))


def build_power(config: Mapping[str, Any]) -> Potential:
    """:func:`power_embedding` from the configuration in a model file."""
    return power_embedding(load_config(PowerEmbeddingConfig, config))


def _root_of_squares(g: Array, graph: Graph, n_atoms: int) -> Array:
    """``sqrt(sum_j g²)``, ``[n_edges] -> [n_atoms]``, with derivative zero at zero."""
    density = sum_edges(g * g, graph, n_atoms)
    some = density > 0.0
    return jnp.where(some, jnp.sqrt(jnp.where(some, density, 1.0)), 0.0)


def _with_line(coefficients: Array) -> Array:
    """Three more coefficients that continue the last two, ``[n, k] -> [n, k + 3]``."""
    last = coefficients[:, -1:]
    ahead = jnp.arange(1, 4, dtype=coefficients.dtype)[None]
    return jnp.concatenate([coefficients, last + ahead * (last - coefficients[:, -2:-1])], axis=1)
