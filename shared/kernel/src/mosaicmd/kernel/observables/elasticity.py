"""Elastic constants at finite temperature from fluctuations of the stress, or of the cell."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.elastic_tensors import (
    birch_coefficients,
    project,
    strain_vector,
    voigt_tensor,
)
from mosaicmd.kernel.elasticity import Kind, check_kind, strain_derivatives
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.observables._observable import Observable
from mosaicmd.kernel.observables.fluctuations import covariance, require_graph, require_positive
from mosaicmd.kernel.potentials import EnergyFn
from mosaicmd.kernel.systems import System, volume
from mosaicmd.kernel.units import GPA

Array = jax.Array

_UPPER = np.triu_indices(6)
_STRESS, _VOLUME, _IDEAL = slice(21, 27), 27, 28


class ElasticTerms(NamedTuple):
    """What elastic constants are the sum of; ``born + fluctuation + kinetic``, eV/Å³."""

    born: Array  # [6, 6], mean second derivative in the Lagrangian strain
    fluctuation: Array  # [6, 6], -V / kT times the covariance of the stress
    kinetic: Array  # [6, 6], of an ideal gas
    stress: Array  # [6], mean Cauchy stress with its kinetic part, tension positive


def elastic_constants(
    energy_fn: EnergyFn,
    *,
    cutoff: float,
    kT: float,
    kind: Kind = "birch",
    rotations: np.ndarray | None = None,
    name: str = "elastic_constants_gpa",
) -> Observable:
    r"""Isothermal elastic constants, ``[6, 6]`` in Voigt order, GPa, of a run in a fixed cell.

    ``C = <B> - V / kT (<s s> - <s><s>) + N kT / V (d_ik d_jl + d_il d_jk)`` with the
    instantaneous stress ``s`` of the potential and ``B`` its second derivative in the
    Lagrangian strain (the Born term): that of the free energy, per volume. Momenta are
    integrated out. Fluctuations of the stress converge slowest; see :func:`elastic_terms`.

    Args:
        energy_fn: per-atom energy function, forward over reverse differentiable; the
            parameters come with each evaluation.
        cutoff: radius of the neighbor list it needs, Å.
        kT: temperature of the frames, eV.
        kind: ``"birch"``, the derivative of the mean Cauchy stress in the strain, which is
            what explicit strain measures; or ``"lagrangian"``, ``C`` itself. They are equal
            where the mean stress vanishes.
        rotations: a point group, ``[n, 3, 3]``, from
            :func:`mosaicmd.kernel.elastic_tensors.point_group` of the ideal crystal, to
            average over; ``None``: no symmetry is used.
        name: key in ``Trajectory.quantities``.

    Raises:
        ValueError: for a temperature that is not positive, another ``kind``, or rotations of
            another shape.

    References:
        Squire, Holt & Hoover, Physica 42, 388 (1969); Lutsko, J. Appl. Phys. 65, 2991
        (1989); Clavier, Desbiens, Bourasseau, Lachet, Brusselle-Dupend & Rousseau, Mol.
        Simul. 43, 1413 (2017).
    """
    require_positive(name, kT=kT)
    check_kind(kind)
    _check_rotations(rotations)

    def per_frame(params: object, system: System, graph: Graph | None, momenta: object) -> Array:
        graph = require_graph(graph, name, cutoff)
        stress, born = strain_derivatives(energy_fn, params, system, graph)
        n_atoms = jnp.sum(system.mask).astype(stress.dtype)
        cell_volume = volume(system).astype(stress.dtype)
        scalars = jnp.stack([cell_volume, n_atoms * jnp.asarray(kT, stress.dtype) / cell_volume])
        return jnp.concatenate([born[_UPPER], stress, scalars])

    def combine(values: Array, weights: Array) -> Array:
        terms = elastic_terms(values, weights, kT=kT)
        stiffness = terms.born + terms.fluctuation + terms.kinetic
        if kind == "birch":
            stiffness = birch_coefficients(stiffness, terms.stress)
        if rotations is not None:
            stiffness = project(stiffness, jnp.asarray(rotations))
        return stiffness / GPA

    return Observable(
        name=name,
        unit="GPa",
        per_frame=per_frame,
        cutoff=cutoff,
        depends_on_params=True,
        combine=combine,
    )


def elastic_constants_from_strain(
    *, kT: float, rotations: np.ndarray | None = None, name: str = "elastic_constants_npt_gpa"
) -> Observable:
    """Isothermal elastic constants, ``[6, 6]``, GPa, of a run with a flexible cell.

    The compliance is ``<V> / kT`` times the covariance of the Lagrangian strain between the
    mean cell and that of a frame. It needs no derivative of the potential, but many
    independent frames at a hydrostatic pressure, and a cell that does not turn, as that of
    :func:`mosaicmd.kernel.barostats.npt`. Under pressure these are Birch's coefficients.
    Right up to terms of order ``1 / N``: in a small cell strains are large and anharmonic.

    Args:
        kT: temperature of the frames, eV.
        rotations: a point group to average over, as in :func:`elastic_constants`.
        name: key in ``Trajectory.quantities``.

    Raises:
        ValueError: for a temperature that is not positive, or rotations of another shape.

    References:
        Parrinello & Rahman, J. Chem. Phys. 76, 2662 (1982).
    """
    require_positive(name, kT=kT)
    _check_rotations(rotations)

    def per_frame(params: object, system: System, graph: object, momenta: object) -> Array:
        return system.cell

    def combine(values: Array, weights: Array) -> Array:
        cells = jnp.asarray(values, weights.dtype)
        mean = jnp.tensordot(weights, cells, axes=1)
        stretch = jnp.matmul(jnp.linalg.inv(mean)[None], cells, precision="highest")
        eta = 0.5 * jnp.matmul(stretch, jnp.swapaxes(stretch, 1, 2), precision="highest")
        strain = jax.vmap(strain_vector)(eta)
        mean_volume = weights @ jnp.abs(jnp.linalg.det(cells))
        stiffness = jnp.linalg.inv(mean_volume / kT * covariance(strain, strain, weights))
        if rotations is not None:
            stiffness = project(stiffness, jnp.asarray(rotations))
        return stiffness / GPA

    return Observable(name=name, unit="GPa", per_frame=per_frame, combine=combine)


def elastic_terms(values: Array, weights: Array, *, kT: float) -> ElasticTerms:
    """The terms of elastic constants from what :func:`elastic_constants` stores per frame.

    Args:
        values: ``[n_frames, 29]``: the upper triangle of the Born term, the stress of the
            potential, the volume (Å³) and ``N kT / V``; eV/Å³.
        weights: normalised, ``[n_frames]``.
        kT: temperature of the frames, eV.
    """
    values = jnp.asarray(values, weights.dtype)
    mean = weights @ values
    upper = jnp.zeros((6, 6), mean.dtype).at[_UPPER].set(mean[:21])
    stress = values[:, _STRESS]
    eye = jnp.eye(3, dtype=mean.dtype)
    both = jnp.einsum("ik,jl->ijkl", eye, eye) + jnp.einsum("il,jk->ijkl", eye, eye)
    normal = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], mean.dtype)
    return ElasticTerms(
        born=upper + upper.T - jnp.diag(jnp.diagonal(upper)),
        fluctuation=-mean[_VOLUME] / kT * covariance(stress, stress, weights),
        kinetic=mean[_IDEAL] * voigt_tensor(both),
        stress=mean[_STRESS] - mean[_IDEAL] * normal,
    )


def _check_rotations(rotations: np.ndarray | None) -> None:
    if rotations is not None and np.shape(rotations)[1:] != (3, 3):
        raise ValueError(f"`rotations` must have shape [n, 3, 3], got {np.shape(rotations)}")
