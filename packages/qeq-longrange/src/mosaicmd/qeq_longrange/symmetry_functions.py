"""Atom-centered symmetry functions: what the surroundings of an atom look like, in numbers."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.gnn_models.cutoffs import polynomial_switch
from mosaicmd.kernel.config import Config, Length
from mosaicmd.kernel.graphs import Graph, edge_vectors, gather_senders, sum_edges
from mosaicmd.kernel.systems import System
from mosaicmd.qeq_longrange.coulomb import check_species, per_species

Array = jax.Array


class SymmetryFunctionsConfig(Config):
    """Settings of :func:`symmetry_functions`; lengths in Å.

    ``n_radial`` Gaussians with centers from ``first_center`` to the ``cutoff`` see each species;
    every pair of species is seen by angular functions of all ``angular_widths``, powers
    ``zetas`` and both signs.
    """

    species: tuple[int, ...]
    cutoff: Length = Field(gt=0.0)
    n_radial: int = Field(default=8, ge=2)
    first_center: Length = Field(default=0.8, ge=0.0)
    angular_widths: tuple[Length, ...] = (2.0, 4.0)
    zetas: tuple[int, ...] = (1, 2, 4)

    @model_validator(mode="after")
    def _check(self) -> SymmetryFunctionsConfig:
        check_species(self.species)
        if self.first_center >= self.cutoff:
            raise ValueError(
                f"`first_center` {self.first_center} must be below `cutoff` {self.cutoff} Å"
            )
        if min(self.angular_widths, default=1.0) <= 0.0:
            raise ValueError(f"`angular_widths` must be positive, got {list(self.angular_widths)}")
        if not all(1 <= zeta <= 8 for zeta in self.zetas):
            raise ValueError(f"`zetas` must be from 1 to 8, got {list(self.zetas)}")
        return self

    @property
    def n_functions(self) -> int:
        """Number of symmetry functions of an atom."""
        n = len(self.species)
        n_angular = 2 * len(self.zetas) * len(self.angular_widths) if self.zetas else 0
        return n * self.n_radial + n * (n + 1) // 2 * n_angular


def symmetry_functions(config: SymmetryFunctionsConfig, system: System, graph: Graph) -> Array:
    r"""Radial and angular symmetry functions of every atom, ``[n_atoms, n_functions]``.

    ``G_radial = sum_j exp(-(r_ij - r_s)² / 2 d²) f(r_ij)`` over the neighbors of one species, with
    ``d`` the distance of two centers, and

    ``G_angular = 2^(1-zeta) sum_{j<k} (1 ± cos theta_jik)^zeta g(r_ij) g(r_ik)``,
    ``g(r) = exp(-(r / w)²) f(r)``

    over pairs of neighbors of two species. The power is a polynomial in the cosine, so the sum
    over pairs is one over neighbors, of the monomials of their directions, and then a product:
    no list of triplets is needed. The cutoff function ``f`` is
    :func:`~mosaicmd.gnn_models.cutoffs.polynomial_switch` over the whole range.

    References:
        Behler, J. Chem. Phys. 134, 074106 (2011), Eqs. 6 and 9 (here without the third side).
    """
    vectors = edge_vectors(system, graph)
    distances = jnp.sqrt(jnp.sum(vectors**2, axis=1))
    inside = graph.mask & (distances < config.cutoff)
    envelope = jnp.where(inside, polynomial_switch(distances, 0.0, config.cutoff), 0.0)
    directions = vectors / distances[:, None]
    n_species, n_atoms = len(config.species), system.n_atoms
    kinds = jax.nn.one_hot(per_species(config.species, system), n_species, dtype=vectors.dtype)
    kinds = gather_senders(kinds, graph)

    centers = np.linspace(config.first_center, config.cutoff, config.n_radial)
    spacing = float(centers[1] - centers[0])
    offsets = (distances[:, None] - jnp.asarray(centers, vectors.dtype)[None]) / spacing
    radial = jnp.exp(-0.5 * offsets**2) * envelope[:, None]
    found = [sum_edges(_outer(radial, kinds), graph, n_atoms)]
    if config.zetas:
        powers = _monomials(max(config.zetas))
        monomials = _products(directions, powers)
        for width in config.angular_widths:
            near = kinds * (jnp.exp(-((distances / width) ** 2)) * envelope)[:, None]
            moments = sum_edges(_outer(near, monomials), graph, n_atoms)
            moments = moments.reshape(n_atoms, n_species, len(powers))
            squares = sum_edges(near**2, graph, n_atoms)
            for a, b in itertools.combinations_with_replacement(range(n_species), 2):
                product = moments[:, a] * moments[:, b]
                found.append(_powers(config.zetas, powers, product, squares[:, a], a == b))
    return jnp.concatenate(found, axis=1)


def _powers(
    zetas: tuple[int, ...], powers: np.ndarray, product: Array, squares: Array, same: bool
) -> Array:
    """Sums over pairs of neighbors of all powers and signs, ``[n_atoms, 2 * n_zetas]``.

    Each neighbor is a pair with itself in the product of moments, and every pair of one species
    is there twice.
    """
    degrees = powers.sum(axis=1)
    ways = np.array([math.factorial(p.sum()) // math.prod(map(math.factorial, p)) for p in powers])
    columns = []
    for zeta, sign in itertools.product(zetas, (1, -1)):
        binomial = np.array([math.comb(zeta, d) * sign**d for d in degrees])
        weights = jnp.asarray(2.0 ** (1 - zeta) * binomial * ways, product.dtype)
        total = jnp.matmul(product, weights, precision="highest")
        if same:
            alone = 2.0 * squares if sign > 0 else 0.0  # (1 + cos 0)^zeta 2^(1 - zeta)
            total = 0.5 * (total - alone)
        columns.append(total)
    return jnp.stack(columns, axis=1)


def _monomials(degree: int) -> np.ndarray:
    """Exponents of x, y, z of all monomials up to a degree, ``[n, 3]``."""
    every = itertools.product(range(degree + 1), repeat=3)
    return np.array([p for p in every if sum(p) <= degree])


def _products(directions: Array, powers: np.ndarray) -> Array:
    """Monomials of directions ``[n, 3]`` with these exponents ``[m, 3]``: ``[n, m]``.

    By products, whose derivatives are finite where a component vanishes.
    """
    table = [jnp.ones_like(directions)]
    for _ in range(int(powers.max())):
        table.append(table[-1] * directions)
    return jnp.stack([table[i][:, 0] * table[j][:, 1] * table[k][:, 2] for i, j, k in powers], 1)


def _outer(first: Array, second: Array) -> Array:
    """Products of all columns of one with all of the other, ``[n, n_first * n_second]``."""
    return (first[:, :, None] * second[:, None, :]).reshape(first.shape[0], -1)
