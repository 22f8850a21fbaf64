"""Angular order: distributions of angles between neighbors, and tetrahedrality."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.observables._histogram import bin_centres, counts
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.observables._rows import rows_within
from mosaicmd.kernel.systems import System

Array = jax.Array


def adf(
    species: tuple[int, int, int] | None = None,
    *,
    r_max: float,
    n_bins: int,
    smoothing: float | None = None,
    max_neighbors: int = 20,
    name: str | None = None,
) -> Observable:
    """Distribution of the angle ``j-i-k`` over the neighbors of ``i`` within ``r_max``.

    A density over ``theta`` in [0, pi] that integrates to 1 in every frame: it is not
    divided by ``sin(theta)``, so an ideal gas gives ``sin(theta) / 2``. A frame without
    any angle gives 0.

    Args:
        species: labels ``(j, i, k)``, the centre in the middle; ``None``: all atoms.
        r_max: Å.
        n_bins: number of bins.
        smoothing: standard deviation of a Gaussian in place of each angle, rad; makes the
            distribution differentiable in positions.
        max_neighbors: columns set aside for the neighbors of an atom; the cost grows with
            its square. A frame in which an atom has more within ``r_max`` gives nan.
        name: by default ``adf``, or ``adf_j_i_k`` for given labels.

    Raises:
        ValueError: for settings out of range.
    """
    if not r_max > 0.0:
        raise ValueError(f"`r_max` must be positive (Å), got {r_max!r}")
    if n_bins < 1 or max_neighbors < 2:
        raise ValueError(
            f"`n_bins` must be at least 1 and `max_neighbors` at least 2, got {n_bins!r} and "
            f"{max_neighbors!r}"
        )
    if smoothing is not None and not smoothing > 0.0:
        raise ValueError(f"`smoothing` must be positive (rad) or None, got {smoothing!r}")
    if species is not None and len(species) != 3:
        raise ValueError(f"`species` must be three labels (j, i, k), got {species!r}")
    if name is None:
        name = "adf" if species is None else "adf_" + "_".join(map(str, species))

    def per_frame(params: object, system: System, graph: Graph | None, momenta: object) -> Array:
        if graph is None:
            raise ValueError(f"`{name}` needs a graph of radius {r_max} Å, got None")
        rows = rows_within(system, graph, r_max, max_neighbors)
        units = rows.vectors / rows.distances[..., None]
        first, second = np.triu_indices(rows.mask.shape[1], k=1)
        include = rows.mask[:, first] & rows.mask[:, second]
        if species is not None:
            left, centre, right = species
            found = jnp.where(rows.mask, system.species[rows.senders], 0)
            one, other = found[:, first], found[:, second]
            matches = ((one == left) & (other == right)) | ((one == right) & (other == left))
            include = include & matches & (system.species == centre)[:, None]
        cosine = jnp.zeros(include.shape, units.dtype)
        for direction in range(3):
            along = units[..., direction]
            cosine = cosine + along[:, first] * along[:, second]
        counted = counts(
            _angle(cosine),
            include,
            upper=math.pi,
            n_bins=n_bins,
            smoothing=smoothing,
            closed=True,
        )
        # A blurred angle may leave the interval: the norm is what stayed.
        total = jnp.sum(counted) * (math.pi / n_bins)
        pdf = jnp.where(total > 0.0, counted / jnp.where(total > 0.0, total, 1.0), 0.0)
        return jnp.where(rows.overflow, jnp.nan, pdf)

    return Observable(
        name=name,
        unit="1/rad",
        per_frame=per_frame,
        cutoff=r_max,
        axis=bin_centres(math.pi, n_bins),
        axis_unit="rad",
    )


def tetrahedral_order(
    species: int | None = None,
    *,
    r_max: float,
    max_neighbors: int = 64,
    name: str = "tetrahedral_order",
) -> Observable:
    """Orientational order ``q`` of the four nearest neighbors, averaged over atoms.

    ``q_i = 1 - 3/8 sum_{j<k} (cos theta_jik + 1/3)²``: 1 in a diamond lattice, 0 on average
    in an ideal gas. Atoms with fewer than four neighbors within ``r_max`` are left out;
    if that is all of them, the frame gives nan.

    Args:
        species: label of centres and neighbors; ``None``: all atoms.
        r_max: radius in which to look for the four, Å; large enough for any atom.
        max_neighbors: columns set aside for the neighbors of an atom; a frame in which an
            atom has more within ``r_max`` gives nan.
        name: key in ``Trajectory.quantities``.

    Raises:
        ValueError: for settings out of range.

    References:
        Chau & Hardwick, Mol. Phys. 93, 511 (1998); in this norm Errington & Debenedetti,
        Nature 409, 318 (2001).
    """
    if not r_max > 0.0:
        raise ValueError(f"`r_max` must be positive (Å), got {r_max!r}")
    if max_neighbors < 4:
        raise ValueError(f"`max_neighbors` must be at least 4, got {max_neighbors!r}")

    def per_frame(params: object, system: System, graph: Graph | None, momenta: object) -> Array:
        if graph is None:
            raise ValueError(f"`{name}` needs a graph of radius {r_max} Å, got None")
        rows = rows_within(system, graph, r_max, max_neighbors)
        member = system.mask if species is None else system.mask & (system.species == species)
        open_ = rows.mask & member[rows.senders]
        complete = member & (jnp.sum(open_, axis=1) >= 4)
        units = rows.vectors / rows.distances[..., None]
        columns = jnp.arange(open_.shape[1])[None]
        nearest = []
        for _ in range(min(4, open_.shape[1])):  # on a CPU far cheaper than a sort
            column = jnp.argmin(jnp.where(open_, rows.distances, jnp.inf), axis=1)
            nearest.append(jnp.take_along_axis(units, column[:, None, None], axis=1)[:, 0])
            open_ = open_ & (columns != column[:, None])
        four = jnp.stack(nearest, axis=1)
        cosine = jnp.einsum("ijd,ikd->ijk", four, four, precision="highest")
        first, second = np.triu_indices(len(nearest), k=1)
        order = 1.0 - 0.375 * jnp.sum((cosine[:, first, second] + 1.0 / 3.0) ** 2, axis=1)
        mean = jnp.sum(jnp.where(complete, order, 0.0)) / jnp.sum(complete)
        return jnp.where(rows.overflow, jnp.nan, mean)

    return Observable(name=name, unit="1", per_frame=per_frame, cutoff=r_max)


def _angle(cosine: Array) -> Array:
    """``arccos`` on [0, pi] whose derivative stays finite at its ends."""
    largest = 1.0 - 4.0 * float(jnp.finfo(cosine.dtype).eps)
    inside = jnp.abs(cosine) < largest
    return jnp.where(
        inside, jnp.arccos(jnp.where(inside, cosine, 0.0)), jnp.where(cosine > 0.0, 0.0, math.pi)
    )
