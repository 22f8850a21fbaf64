"""Bond lengths, angles and dihedrals: values, distributions and free-energy surfaces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel import statistics
from mosaicmd.kernel.minimum_image import minimum_image
from mosaicmd.kernel.observables._histogram import REACH
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.systems import System

Array = jax.Array
Indices = Sequence[Sequence[int]] | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Coordinate:
    """A kind of internal coordinate and the atoms it is measured on.

    Made by :func:`bond_length`, :func:`bond_angle` and :func:`dihedral`.

    Attributes:
        name: first part of the name of observables made from it.
        unit: ``"Å"`` or ``"rad"``.
        values: of every listed group of atoms, ``System -> [n_groups]``.
        lower: left edge of its histograms.
        upper: right edge of its histograms.
        ends: what becomes of a blurred value beyond an edge: ``"open"``: it is lost,
            ``"reflecting"``: it is folded back, ``"periodic"``: it enters at the other.
        measure: integral over ``[a, b]`` of the density that free atoms would have.
    """

    name: str
    unit: str
    values: Callable[[System], Array]
    lower: float
    upper: float
    ends: Literal["open", "reflecting", "periodic"]
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray]


def bond_length(pairs: Indices, *, r_max: float, r_min: float = 0.0) -> Coordinate:
    """Distance of two atoms at their nearest image, with histograms on ``[r_min, r_max]``.

    Args:
        pairs: atoms, shape ``[n_groups, 2]``; a single pair may be given as it is.
        r_max: Å.
        r_min: Å.

    Raises:
        ValueError: for indices that are no pairs of distinct atoms, or an empty interval.
    """
    atoms = _checked("pairs", pairs, 2)
    if not 0.0 <= r_min < r_max:
        raise ValueError(f"`r_min` and `r_max` must grow from 0 on (Å), got {r_min!r}, {r_max!r}")
    return Coordinate(
        name="bond_length",
        unit="Å",
        values=lambda system: _lengths(system, atoms),
        lower=float(r_min),
        upper=float(r_max),
        ends="open",
        measure=lambda a, b: 4.0 / 3.0 * math.pi * (b**3 - a**3),
    )


def bond_angle(triples: Indices) -> Coordinate:
    """Angle ``i-j-k`` with its vertex at ``j``, rad in [0, pi].

    Args:
        triples: atoms, shape ``[n_groups, 3]``; a single triple may be given as it is.

    Raises:
        ValueError: for indices that are no triples of distinct atoms.
    """
    atoms = _checked("triples", triples, 3)
    return Coordinate(
        name="bond_angle",
        unit="rad",
        values=lambda system: _angles(system, atoms),
        lower=0.0,
        upper=math.pi,
        ends="reflecting",
        measure=lambda a, b: np.cos(a) - np.cos(b),
    )


def dihedral(quadruples: Indices) -> Coordinate:
    """Dihedral ``i-j-k-l`` about ``j-k``, rad in [-pi, pi), 0 for cis, of IUPAC's sign.

    It is positive if, looking from ``j`` to ``k``, the bond to ``l`` lies clockwise of the
    bond to ``i``. Three atoms in line give 0.

    Args:
        quadruples: atoms, shape ``[n_groups, 4]``; a single one may be given as it is.

    Raises:
        ValueError: for indices that are no quadruples of distinct atoms.

    References:
        IUPAC-IUB Commission on Biochemical Nomenclature, Biochemistry 9, 3471 (1970).
    """
    atoms = _checked("quadruples", quadruples, 4)
    return Coordinate(
        name="dihedral",
        unit="rad",
        values=lambda system: _dihedrals(system, atoms),
        lower=-math.pi,
        upper=math.pi,
        ends="periodic",
        measure=lambda a, b: b - a,
    )


def coordinate_average(
    coordinate: Coordinate,
    function: Callable[[Array], Array] | None = None,
    *,
    unit: str | None = None,
    name: str | None = None,
) -> Observable:
    """Mean over frames of ``function(values)``, one for each group of atoms.

    The per-frame values are the time series of the coordinate. A mean over angles is
    meaningless across their period; give a function, such as ``jnp.cos`` or a Karplus
    equation.

    Args:
        coordinate: what to measure.
        function: acts on ``[n_groups]`` and may return any shape; ``None``: the values.
        unit: of what ``function`` returns; by default that of the coordinate.
        name: by default that of the coordinate.
    """

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        values = coordinate.values(system)
        return values if function is None else function(values)

    unit = coordinate.unit if unit is None else unit
    return Observable(name=name or coordinate.name, unit=unit, per_frame=per_frame)


def coordinate_distribution(
    *coordinates: Coordinate,
    n_bins: int | Sequence[int],
    smoothing: float | Sequence[float] | None = None,
    name: str | None = None,
) -> Observable:
    """Probability density of one coordinate, or of several jointly, over their groups.

    A joint density takes group ``g`` of every coordinate together, as in a Ramachandran
    plot of one or more residues. It integrates to the share of groups within the edges:
    1 but for bond lengths outside theirs.

    Args:
        coordinates: one or more with the same number of groups.
        n_bins: number of equal bins, one or one for each coordinate.
        smoothing: standard deviation of a Gaussian in place of each value, in the unit of
            the coordinate, one or one for each; makes the density differentiable in
            positions. ``None``: a value counts in one bin.
        name: by default ``bond_length_distribution`` and the like.

    Returns:
        Values ``[*n_bins]``. Its ``axis`` holds the bin centres, ``[n_bins]`` for one
        coordinate, else ``[*n_bins, n_coordinates]``.

    Raises:
        ValueError: for settings out of range.
    """
    if not coordinates:
        raise ValueError("`coordinate_distribution` needs at least one coordinate")
    bins = [int(n) for n in _for_each("n_bins", n_bins, coordinates)]
    widths = _for_each("smoothing", smoothing, coordinates)
    for one, n, width in zip(coordinates, bins, widths, strict=True):
        if n < 1:
            raise ValueError(f"`n_bins` must be at least 1, got {n_bins!r}")
        largest = (one.upper - one.lower) / (2.0 * REACH)
        if width is not None and not 0.0 < width <= largest:
            raise ValueError(
                f"`smoothing` of a {one.name} must lie between 0 and {largest:.3g} {one.unit}, a "
                f"tenth of its range, got {width!r}"
            )
    edges = [
        np.linspace(one.lower, one.upper, n + 1) for one, n in zip(coordinates, bins, strict=True)
    ]
    volume = math.prod(float(edge[1] - edge[0]) for edge in edges)
    letters = "abcdefgh"[: len(coordinates)]
    joint = ",".join(f"z{letter}" for letter in letters) + f"->{letters}"

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        found = [one.values(system) for one in coordinates]
        if len({len(values) for values in found}) > 1:
            raise ValueError(
                "coordinates of a joint distribution must have one number of groups, got "
                f"{[len(values) for values in found]}"
            )
        shares = [
            _shares(values, edge, width, one.ends)
            for values, edge, width, one in zip(found, edges, widths, coordinates, strict=True)
        ]
        counted = jnp.einsum(joint, *shares, precision="highest")
        return counted / (len(found[0]) * volume)

    centres = [0.5 * (edge[1:] + edge[:-1]) for edge in edges]
    axis = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)
    names = [one.name for one in coordinates]
    return Observable(
        name=name or "_".join(names) + "_distribution",
        unit="1/(" + " ".join(one.unit for one in coordinates) + ")",
        per_frame=per_frame,
        axis=axis[..., 0] if len(coordinates) == 1 else axis,
        axis_unit=", ".join(dict.fromkeys(one.unit for one in coordinates)),
    )


def free_energy_surface(
    distribution: Observable, kT: float, *, geometry: Sequence[Coordinate] = ()
) -> Observable:
    """Free energy ``-kT ln p`` over the bins of a distribution, eV, zero at its minimum.

    It reads what the distribution recorded: both have the same per-frame values and
    ``name``, so one of them is observed, and either is called on the trajectory::

        rama = coordinate_distribution(dihedral(phi), dihedral(psi), n_bins=36)
        surface, info = free_energy_surface(rama, kT)(add_quantities([rama], None, run))

    An empty bin has infinite free energy and the error nan; the error is nan as well where
    one block of the jackknife holds everything that is in a bin. Errors are those of the
    difference to the minimum. Gradients with respect to weights are finite; those of
    infinite entries are zero.

    Args:
        distribution: from :func:`coordinate_distribution`; any density will do.
        kT: eV.
        geometry: the coordinates of the distribution, to divide the density by that of
            free atoms, ``r²`` or ``sin(theta)``: the surface of a single bond is then its
            potential. By default the density is taken as it is.

    Raises:
        ValueError: for a temperature that is not positive, or a geometry that does not
            belong to the distribution.
    """
    if not kT > 0.0:
        raise ValueError(f"`kT` must be positive (eV), got {kT!r}")
    shift = _geometry(distribution, kT, geometry)

    def combine(values: Array, weights: Array) -> Array:
        density = statistics.weighted_mean(values, weights)
        occupied = density > 0.0
        surface = -kT * jnp.log(jnp.where(occupied, density, 1.0)) + jnp.asarray(shift)
        surface = jnp.where(occupied, surface, jnp.inf)
        return surface - jnp.min(surface)

    return dataclasses.replace(distribution, unit="eV", combine=combine)


def _bonds(system: System, atoms: np.ndarray) -> list[Array]:
    """Vectors from every atom of a group to the next, each ``[n_groups, 3]``."""
    if atoms.max() >= system.n_atoms:
        raise ValueError(f"atom {atoms.max()} does not exist: the system has {system.n_atoms}")
    chain = system.positions[atoms]
    vectors = minimum_image(chain[:, 1:] - chain[:, :-1], system.cell, system.pbc)
    return [vectors[:, k] for k in range(atoms.shape[1] - 1)]


def _lengths(system: System, atoms: np.ndarray) -> Array:
    return _norm(*_bonds(system, atoms))


def _angles(system: System, atoms: np.ndarray) -> Array:
    first, second = _bonds(system, atoms)
    return _arctan2(_norm(jnp.cross(first, second)), -jnp.sum(first * second, axis=-1))


def _dihedrals(system: System, atoms: np.ndarray) -> Array:
    first, axis, last = _bonds(system, atoms)
    left, right = jnp.cross(first, axis), jnp.cross(axis, last)
    sine = jnp.sum(first * right, axis=-1) * _norm(axis)
    angle = _arctan2(sine, jnp.sum(left * right, axis=-1))
    return jnp.where(angle >= math.pi, -math.pi, angle)


def _norm(vectors: Array) -> Array:
    """Length with derivative zero at zero."""
    squared = jnp.sum(vectors**2, axis=-1)
    return jnp.where(squared > 0.0, jnp.sqrt(jnp.where(squared > 0.0, squared, 1.0)), 0.0)


def _arctan2(y: Array, x: Array) -> Array:
    """``arctan2`` that is zero, with derivative zero, where both arguments vanish."""
    nowhere = (x == 0.0) & (y == 0.0)
    return jnp.where(nowhere, 0.0, jnp.arctan2(y, jnp.where(nowhere, 1.0, x)))


def _shares(
    values: Array,
    edges: np.ndarray,
    smoothing: float | None,
    ends: Literal["open", "reflecting", "periodic"],
) -> Array:
    """How much of every value lies in every bin, ``[n_values, n_bins]``."""
    lower, upper, n_bins = float(edges[0]), float(edges[-1]), len(edges) - 1
    if smoothing is None:
        width = (upper - lower) / n_bins
        position = jnp.clip((values - lower) / width, -1.0, n_bins + 1.0)
        index = jnp.floor(position).astype(jnp.int32)
        if ends != "open":
            index = jnp.clip(index, 0, n_bins - 1)
        bins = jnp.arange(n_bins, dtype=jnp.int32)
        return (index[:, None] == bins[None]).astype(values.dtype)
    period = upper - lower
    images = {
        "open": [values],
        "reflecting": [values, 2.0 * lower - values, 2.0 * upper - values],
        "periodic": [values, values - period, values + period],
    }[ends]
    scale = 1.0 / (math.sqrt(2.0) * smoothing)
    boundaries = jnp.asarray(edges, values.dtype)[None]
    below = sum(jax.lax.erf((boundaries - image[:, None]) * scale) for image in images)
    return 0.5 * jnp.diff(jnp.asarray(below), axis=1)


def _geometry(distribution: Observable, kT: float, geometry: Sequence[Coordinate]) -> np.ndarray:
    """``kT ln`` of the density of free atoms in every bin, or zero."""
    axis = distribution.axis
    if not geometry:
        return np.zeros(())
    shape = () if axis is None else axis.shape[:1] if axis.ndim == 1 else axis.shape[:-1]
    if len(shape) != len(geometry):
        raise ValueError(
            f"`geometry` has {len(geometry)} coordinates, the distribution has {len(shape)}"
        )
    total = np.zeros(shape)
    for k, (one, n) in enumerate(zip(geometry, shape, strict=True)):
        edges = np.linspace(one.lower, one.upper, n + 1)
        measure = kT * np.log(one.measure(edges[:-1], edges[1:]) / np.diff(edges))
        total += measure.reshape([n if j == k else 1 for j in range(len(shape))])
    return total


def _checked(name: str, indices: Indices, size: int) -> np.ndarray:
    atoms = np.asarray(indices)
    if atoms.ndim == 1:
        atoms = atoms[None]
    if atoms.ndim != 2 or atoms.shape[1] != size or not len(atoms):
        raise ValueError(f"`{name}` must have shape [n_groups, {size}], got {atoms.shape}")
    if not np.issubdtype(atoms.dtype, np.integer) or atoms.min() < 0:
        raise ValueError(f"`{name}` must hold indices of atoms from 0 on, got {atoms[:3].tolist()}")
    for group in atoms:
        if len(set(group.tolist())) < size:
            raise ValueError(f"`{name}` has an atom twice in {group.tolist()}")
    return atoms.astype(np.int32)


def _for_each(name: str, setting: object, coordinates: Sequence[Coordinate]) -> list:
    settings = list(setting) if isinstance(setting, Sequence) else [setting] * len(coordinates)
    if len(settings) != len(coordinates):
        raise ValueError(
            f"`{name}` must be one value or one for each of {len(coordinates)} coordinates, "
            f"got {setting!r}"
        )
    return settings
