"""Phonons from exact force constants: frequencies, density of states, harmonic thermodynamics.

Force constants are Hessian columns of a supercell, by forward derivatives of the forces
instead of finite displacements. From there on everything is differentiable in the
parameters. :func:`to_phonopy` hands them to phonopy for what is not here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mosaicmd.kernel import units
from mosaicmd.kernel.graphs import Graph, host_graph
from mosaicmd.kernel.observables._histogram import bin_centres, counts
from mosaicmd.kernel.potentials import EnergyFn, Params, total_energy
from mosaicmd.kernel.systems import System

if TYPE_CHECKING:
    from phonopy import Phonopy

Array = jax.Array

_HBAR = units.PLANCK / (2.0 * math.pi)  # eV t
_COLUMNS_AT_ONCE = 12
_SAME_DISTANCE = 1e-5  # Å, images of a pair that share its force constants
_ZERO_THZ = 1e-4  # modes below are rigid translations, which have no thermodynamics


class ForceConstants(NamedTuple):
    """Force constants between the atoms of a primitive cell and those of a supercell.

    Each pair stands for all its images in the periodic supercell; the shortest share its
    force constants equally.
    """

    values: Array  # [n_primitive, n_supercell, 3, 3], eV/Å², d2U / d(own) d(other)
    primitive: System
    supercell: System  # atom i of the primitive cell becomes atoms i n, ..., i n + n - 1
    vectors: Array  # [n_primitive, n_supercell, n_images, 3], Å, to the images
    shares: Array  # [n_primitive, n_supercell, n_images], add up to 1


class HarmonicThermodynamics(NamedTuple):
    """Of quantum harmonic oscillators, per primitive cell."""

    free_energy: Array  # [], eV, zero-point energy included
    energy: Array  # [], eV, likewise
    entropy_kB: Array  # [], kB
    heat_capacity_kB: Array  # [], kB, at constant volume


def supercell(system: System, repeats: tuple[int, int, int]) -> System:
    """The system repeated along its lattice vectors, images of one atom next to each other."""
    images = np.array([image[::-1] for image in np.ndindex(*repeats[::-1])], float)
    offsets = jnp.asarray(images, system.cell.dtype) @ system.cell
    n = len(images)
    spread = {
        name: None if leaf is None else jnp.repeat(leaf, n, axis=0)
        for name, leaf in system._asdict().items()
        if name in ("species", "masses", "mask", "charges")
    }
    total = system.total_charge
    return system._replace(
        positions=(system.positions[:, None] + offsets[None]).reshape(-1, 3),
        cell=system.cell * jnp.asarray(repeats, system.cell.dtype)[:, None],
        total_charge=None if total is None else total * n,
        **spread,
    )


def force_constants(
    energy_fn: EnergyFn,
    params: Params,
    primitive: System,
    repeats: tuple[int, int, int],
    *,
    cutoff: float,
    at: System | None = None,
) -> ForceConstants:
    """Force constants of a crystal at rest, from derivatives of the forces in a supercell.

    Exact for all wave vectors once the supercell is more than twice as wide as interactions
    reach (with message passing, farther than the cutoff); exact for those commensurate with
    any supercell. May be traced in ``params``; the structure must be concrete.

    Args:
        energy_fn: per-atom energy function, forward over reverse differentiable.
        params: its parameters.
        primitive: one unit cell, without padding, periodic in three directions, its atoms at
            rest: see :func:`mosaicmd.kernel.elasticity.relaxed_structure`.
        repeats: of the cell along its vectors.
        cutoff: of the energy function, Å.
        at: the same structure with its derivative in the parameters, from
            :func:`mosaicmd.kernel.elasticity.follow_minimum`, if the derivatives of the
            result are to be those along the minimum; it may be traced.

    Raises:
        ValueError: for repeats below 1, padding, or a system that is not periodic.
    """
    if len(repeats) != 3 or min(repeats) < 1:
        raise ValueError(f"`repeats` must be three positive integers, got {repeats!r}")
    if not (np.asarray(primitive.pbc).all() and np.asarray(primitive.mask).all()):
        raise ValueError(
            "`primitive` must be periodic in three directions and have no masked atoms, got pbc "
            f"{np.asarray(primitive.pbc).tolist()} and {int(np.sum(~np.asarray(primitive.mask)))} "
            "masked"
        )
    n_images = math.prod(repeats)
    with jax.ensure_compile_time_eval():  # though the parameters be traced
        large = supercell(primitive, repeats)
        graph = host_graph(large, cutoff)
        vectors, shares = _shortest_images(large, n_images)
    moved = large if at is None else supercell(at, repeats)
    values = _hessian_rows(energy_fn, params, moved, graph, n_images)
    return ForceConstants(values, primitive, large, vectors, shares)


def dynamical_matrix(constants: ForceConstants, wave_vector: Array) -> Array:
    """``D(q)``, Hermitian, ``[3 n_primitive, 3 n_primitive]``, 1/t².

    Args:
        constants: from :func:`force_constants`.
        wave_vector: in units of the reciprocal lattice vectors, shape ``[3]``.
    """
    primitive = constants.primitive
    n = primitive.n_atoms
    # r . q = 2 pi (fractional r) . (fractional q)
    inverse = jnp.linalg.inv(primitive.cell)
    q = jnp.matmul(inverse, jnp.asarray(wave_vector, inverse.dtype), precision="highest")
    angle = 2.0 * math.pi * jnp.einsum("pskx,x->psk", constants.vectors, q, precision="highest")
    phase = jnp.sum(constants.shares * jnp.exp(1j * angle), axis=2)
    blocks = constants.values * phase[:, :, None, None]
    folded = blocks.reshape(n, n, -1, 3, 3).sum(axis=2)
    weight = 1.0 / jnp.sqrt(primitive.masses)
    folded = folded * (weight[:, None] * weight[None])[:, :, None, None]
    matrix = jnp.swapaxes(folded, 1, 2).reshape(3 * n, 3 * n)
    return 0.5 * (matrix + matrix.conj().T)


def frequencies_thz(constants: ForceConstants, wave_vectors: Array | np.ndarray) -> Array:
    """Phonon frequencies, THz, ascending; imaginary ones as negative numbers.

    Args:
        constants: from :func:`force_constants`.
        wave_vectors: ``[n, 3]`` in units of the reciprocal lattice vectors, for example from
            ``ase.dft.kpoints.monkhorst_pack((8, 8, 8))`` or
            ``ase_atoms.cell.bandpath(npoints=100).kpts``.

    Returns:
        Shape ``[n, 3 n_primitive]``; differentiable, with derivative zero at zero.
    """

    def one(wave_vector: Array) -> Array:
        squared = jnp.linalg.eigvalsh(dynamical_matrix(constants, wave_vector))
        floor = (2.0 * math.pi * _ZERO_THZ / units.PICOSECOND) ** 2
        moving = jnp.abs(squared) > floor
        size = jnp.sqrt(jnp.where(moving, jnp.abs(squared), 1.0))
        return jnp.where(moving, jnp.sign(squared) * size, 0.0)

    wave_vectors = jnp.asarray(wave_vectors, constants.values.dtype)
    return jax.lax.map(one, wave_vectors) * (units.PICOSECOND / (2.0 * math.pi))


def phonon_dos(
    frequencies: Array, *, max_thz: float, n_bins: int, smoothing_thz: float | None = None
) -> tuple[np.ndarray, Array]:
    """Density of states of a mesh of frequencies, per primitive cell.

    Args:
        frequencies: ``[n_wave_vectors, n_modes]``, THz; negative ones are left out.
        max_thz: end of the last bin.
        n_bins: number of bins.
        smoothing_thz: standard deviation of a Gaussian in place of each frequency, which
            makes the density differentiable; ``None``: a histogram.

    Returns:
        Bin centres, THz, and modes per THz; the integral is the number of modes per cell.
    """
    histogram = counts(
        jnp.abs(frequencies),
        frequencies >= 0.0,
        upper=max_thz,
        n_bins=n_bins,
        smoothing=smoothing_thz,
        closed=False,
    )
    return bin_centres(max_thz, n_bins), histogram * (n_bins / max_thz / frequencies.shape[0])


def harmonic_thermodynamics(frequencies: Array, kT: float | Array) -> HarmonicThermodynamics:
    """Free energy, energy, entropy and heat capacity of quantum oscillators.

    Rigid translations, of frequency zero, are left out.

    Args:
        frequencies: ``[n_wave_vectors, n_modes]``, THz, of an evenly spaced mesh.
        kT: temperature, eV, positive.

    Raises:
        ValueError: for imaginary (negative) frequencies, if they are concrete.

    References:
        Born & Huang, Dynamical Theory of Crystal Lattices (1954), sec. 4.
    """
    if not isinstance(frequencies, Tracer) and np.any(np.asarray(frequencies) < 0.0):
        raise ValueError(
            f"`frequencies` hold imaginary ones, down to {float(np.min(frequencies)):.3g} THz as "
            "a negative number: the structure is no minimum; relax it, or another structure of "
            "lower symmetry is stable"
        )
    moving = frequencies > 0.0
    quantum = jnp.where(moving, frequencies, 1.0) * (2.0 * math.pi / units.PICOSECOND * _HBAR)
    x = quantum / kT
    occupied = 1.0 / jnp.expm1(x)

    def per_cell(values: Array) -> Array:
        return jnp.sum(jnp.where(moving, values, 0.0)) / frequencies.shape[0]

    log_partition = -0.5 * x - jnp.log(-jnp.expm1(-x))
    energy = quantum * (0.5 + occupied)
    return HarmonicThermodynamics(
        free_energy=per_cell(-kT * log_partition),
        energy=per_cell(energy),
        entropy_kB=per_cell(energy / kT + log_partition),
        heat_capacity_kB=per_cell(x**2 * occupied * (1.0 + occupied)),
    )


def to_phonopy(constants: ForceConstants, **settings: Any) -> Phonopy:
    """A ``phonopy.Phonopy`` with these force constants: bands, modes, DOS by tetrahedra, ...

    Args:
        constants: from :func:`force_constants`; species must be atomic numbers.
        settings: of ``Phonopy``, for example ``symprec``.

    Raises:
        ImportError: without phonopy, the extra ``phonons``.
        ValueError: if phonopy orders the supercell in another way.
    """
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise ImportError("this needs phonopy: pip install 'mosaicmd-kernel[phonons]'") from error
    small, large = constants.primitive, constants.supercell
    cell = np.asarray(small.cell, float)
    atoms = PhonopyAtoms(
        cell=cell,
        positions=np.asarray(small.positions, float),
        numbers=np.asarray(small.species),
        masses=np.asarray(small.masses, float),
    )
    repeats = np.rint(np.asarray(large.cell, float) @ np.linalg.inv(cell))
    phonopy = Phonopy(atoms, repeats.astype(int), primitive_matrix="P", **settings)
    theirs = np.asarray(phonopy.supercell.positions) - np.asarray(large.positions, float)
    apart = theirs @ np.linalg.inv(np.asarray(large.cell, float))
    if np.abs(apart - np.rint(apart)).max() > 1e-6:
        raise ValueError("phonopy orders the atoms of its supercell in another way than expected")
    phonopy.force_constants = np.array(constants.values, float, order="C")
    return phonopy


@functools.partial(jax.jit, static_argnums=(0, 4))
def _hessian_rows(
    energy_fn: EnergyFn, params: Params, large: System, graph: Graph, n_images: int
) -> Array:
    """Second derivatives between the first image of every atom and all atoms."""
    graph = dataclasses.replace(graph, reverse=None)  # which refuses forward derivatives

    def energy(positions: Array) -> Array:
        return total_energy(energy_fn, params, large._replace(positions=positions), graph)

    _, along = jax.linearize(jax.grad(energy), large.positions)
    n_primitive = large.n_atoms // n_images

    def row(index: Array) -> Array:
        unit = jnp.zeros_like(large.positions).at[index // 3 * n_images, index % 3].set(1.0)
        return along(unit)

    rows = jax.lax.map(row, jnp.arange(3 * n_primitive), batch_size=_COLUMNS_AT_ONCE)
    return jnp.swapaxes(rows.reshape(n_primitive, 3, large.n_atoms, 3), 1, 2)


def _shortest_images(large: System, n_images: int) -> tuple[Array, Array]:
    """Vectors from the first image of every atom to the nearest images of all, and shares."""
    from ase.geometry import minkowski_reduce

    positions = np.asarray(large.positions, float)
    cell, _ = minkowski_reduce(np.asarray(large.cell, float))  # so nearest images are next door
    fractional = (positions[None] - positions[::n_images, None]) @ np.linalg.inv(cell)
    steps = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))
    vectors = ((fractional - np.rint(fractional))[:, :, None] + steps) @ cell
    distances = np.linalg.norm(vectors, axis=-1)
    nearest = distances <= distances.min(axis=2, keepdims=True) + _SAME_DISTANCE
    most = int(nearest.sum(axis=2).max())
    order = np.argsort(~nearest, axis=2, kind="stable")[:, :, :most]
    chosen = np.take_along_axis(nearest, order, axis=2)
    shares = chosen / chosen.sum(axis=2, keepdims=True)
    vectors = np.take_along_axis(vectors, order[..., None], axis=2)
    dtype = large.positions.dtype
    return jnp.asarray(vectors, dtype), jnp.asarray(shares, dtype)
