"""Radial distribution functions."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import (
    FAR,
    Graph,
    edge_vectors,
    gather_receivers,
    gather_senders,
)
from mosaicmd.kernel.observables._histogram import REACH, bin_centres, bin_edges, counts
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.systems import System, cell_heights, volume

Array = jax.Array


def rdf(
    species_a: int | None = None,
    species_b: int | None = None,
    *,
    r_max: float,
    n_bins: int,
    pairs: Literal["neighbors", "all"] = "neighbors",
    smoothing: float | None = None,
    finite_size: bool = True,
    name: str | None = None,
) -> Observable:
    """Radial distribution function ``g_ab(r)`` on ``n_bins`` equal bins up to ``r_max``.

    Counts are divided by those of an ideal gas with the same numbers and volume, in shells
    of exact volume, so every bin of an ideal gas has expectation 1. For like pairs this
    means ``N (N - 1)`` ordered pairs, and images of an atom itself do not count. With
    ``finite_size=False`` they do, and ``N²`` is the norm: the choice for small cells of a
    crystal, and what most programs do. The two differ by ``1 / N``.

    Without three periodic directions there is no density to compare with: ``g`` is nan.

    Args:
        species_a: label of the central atoms; ``None``: all atoms.
        species_b: label of their neighbors; ``None``: as ``species_a``.
        r_max: Å.
        n_bins: number of bins.
        pairs: ``"neighbors"`` goes over the edges of a graph of radius ``r_max``, any cell
            and radius; ``"all"`` over all pairs at their nearest image and needs no graph,
            which is faster up to some thousand atoms. It holds while ``r_max`` is at most
            half the least cell height; a smaller cell gives nan.
        smoothing: standard deviation of a Gaussian in place of each distance, Å; makes
            ``g`` differentiable in positions. The norm takes it into account.
        finite_size: see above.
        name: by default ``rdf``, or ``rdf_a_b`` for labels a and b.

    Raises:
        ValueError: for settings that are not positive, ``species_b`` alone, an unknown
            ``pairs``, or ``pairs="all"`` with images of atoms themselves.
    """
    _check(r_max, n_bins, smoothing)
    if species_a is None and species_b is not None:
        raise ValueError(f"`species_b` is {species_b} but `species_a` is not given")
    if pairs not in ("neighbors", "all"):
        raise ValueError(f"`pairs` must be 'neighbors' or 'all', got {pairs!r}")
    if pairs == "all" and not finite_size:
        raise ValueError("`finite_size=False` counts images: use `pairs='neighbors'`")
    species_b = species_a if species_b is None else species_b
    if name is None:
        name = "rdf" if species_a is None else f"rdf_{species_a}_{species_b}"
    reach = r_max + (0.0 if smoothing is None else REACH * smoothing)
    shells = shell_volumes(bin_edges(r_max, n_bins), smoothing)
    settings = {"upper": r_max, "n_bins": n_bins, "smoothing": smoothing}

    def members(system: System) -> tuple[Array, Array]:
        return _of_species(system, species_a), _of_species(system, species_b)

    def over_edges(params: object, system: System, graph: Graph | None, momenta: object) -> Array:
        if graph is None:
            raise ValueError(f"`{name}` needs a graph of radius {reach} Å, got None")
        centre, neighbor = members(system)
        include = graph.mask & gather_receivers(centre, graph) & gather_senders(neighbor, graph)
        if finite_size:
            include = include & (graph.senders != graph.receivers)
        distance = _safe_sqrt(jnp.sum(edge_vectors(system, graph) ** 2, axis=-1))
        counted = counts(distance, include, **settings)
        counted = jnp.where(graph.overflow, jnp.nan, counted)
        return _normalise(counted, system)

    def over_pairs(params: object, system: System, graph: object, momenta: object) -> Array:
        centre, neighbor = members(system)
        distance, first, second = _half_of_all_pairs(system)
        there = centre[first] & neighbor[second]
        back = neighbor[first] & centre[second]
        counted = counts(distance, there | back, **settings)
        if species_a == species_b:
            counted = 2.0 * counted
        fits = reach <= 0.5 * (1.0 + 1e-5) * jnp.min(cell_heights(system.cell))  # rounding
        return _normalise(jnp.where(fits, counted, jnp.nan), system)

    def _normalise(counted: Array, system: System) -> Array:
        centre, neighbor = members(system)
        n_a = jnp.sum(centre).astype(counted.dtype)
        n_b = jnp.sum(neighbor).astype(counted.dtype)
        n_pairs = n_a * (n_a - 1.0) if finite_size and species_a == species_b else n_a * n_b
        expected = n_pairs / volume(system) * jnp.asarray(shells, counted.dtype)
        return jnp.where(jnp.all(system.pbc), counted / expected, jnp.nan)

    return Observable(
        name=name,
        unit="1",
        per_frame=over_edges if pairs == "neighbors" else over_pairs,
        cutoff=reach if pairs == "neighbors" else None,
        axis=bin_centres(r_max, n_bins),
        axis_unit="Å",
    )


def shell_volumes(edges: np.ndarray, smoothing: float | None = None) -> np.ndarray:
    """Volumes of spherical shells, ``[n_bins]``; with ``smoothing``, of blurred ones.

    The latter is the number of points in each bin if points of unit density have their
    distances displaced by a Gaussian: the integral over the bin of
    ``4 pi [(r² + s²) Phi(r / s) + r s phi(r / s)]``.
    """
    if smoothing is None:
        return 4.0 / 3.0 * math.pi * np.diff(edges**3)
    x = edges / smoothing
    below = np.array([0.5 * (1.0 + math.erf(value / math.sqrt(2.0))) for value in x])
    density = np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
    integral = (x**3 / 3.0 + x) * below + (x**2 + 2.0) * density / 3.0
    return 4.0 * math.pi * smoothing**3 * np.diff(integral)


def coordination_number(
    g: Array, axis: np.ndarray, number_density: float | Array, r_max: float | None = None
) -> Array:
    """Mean number of neighbors within ``r_max``: the integral of ``4 pi r² rho g``.

    Args:
        g: radial distribution function on the whole ``axis``, shape ``[n_bins]``.
        axis: bin centres, Å, equally spaced from half a bin on.
        number_density: of the neighbors, 1/Å³; ``(N - 1) / V`` for like pairs normalised
            with ``finite_size=True``.
        r_max: end of the integral, rounded to a bin edge; ``None``: all bins.
    """
    edges = bin_edges(axis[-1] + axis[0], len(axis))
    n_bins = len(axis) if r_max is None else int(np.argmin(np.abs(edges - r_max)))
    shells = jnp.asarray(shell_volumes(edges)[:n_bins], g.dtype)
    return number_density * jnp.sum(shells * g[:n_bins])


def _half_of_all_pairs(system: System) -> tuple[Array, Array, Array]:
    """Nearest-image distances of every unordered pair, and its two atoms.

    Atom ``i`` meets ``i + 1 ... i + n // 2`` around the ring of atoms, ``[n, n // 2]``; for
    even ``n`` the last column holds each pair twice, and its second half is masked.
    """
    n_atoms = system.n_atoms
    cell = jnp.where(jnp.all(system.cell == 0.0), jnp.eye(3, dtype=system.cell.dtype), system.cell)
    fractional = jnp.matmul(system.positions, jnp.linalg.inv(cell), precision="highest")
    # Wrapped atoms differ by less than one cell, so float32 keeps its digits.
    fractional = fractional - jax.lax.stop_gradient(jnp.floor(fractional))
    ring = jnp.arange(n_atoms, dtype=jnp.int32)[:, None]
    first = jnp.broadcast_to(ring, (n_atoms, n_atoms // 2))
    steps = jnp.broadcast_to(1 + jnp.arange(n_atoms // 2, dtype=jnp.int32)[None], first.shape)
    second = (first + steps) % n_atoms
    once = (2 * steps < n_atoms) | (first < second)
    images = []
    for direction in range(3):
        along = fractional[:, direction]
        component = along[second] - along[first]
        images.append(component - jax.lax.stop_gradient(jnp.round(component)))
    squared = jnp.zeros_like(images[0])
    for direction in range(3):
        component = sum(images[k] * cell[k, direction] for k in range(3))
        squared = squared + component**2
    return jnp.where(once, _safe_sqrt(squared), FAR), first, second


def _of_species(system: System, species: int | None) -> Array:
    return system.mask if species is None else system.mask & (system.species == species)


def _safe_sqrt(squared: Array) -> Array:
    """Square root with derivative zero at zero."""
    positive = squared > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _check(upper: float, n_bins: int, smoothing: float | None) -> None:
    if not upper > 0.0:
        raise ValueError(f"`r_max` must be positive (Å), got {upper!r}")
    if n_bins < 1:
        raise ValueError(f"`n_bins` must be at least 1, got {n_bins!r}")
    if smoothing is not None and not smoothing > 0.0:
        raise ValueError(f"`smoothing` must be positive (Å) or None, got {smoothing!r}")
