"""Contract tests: what every potential must satisfy, as plain functions for any test runner.

:func:`check_potential` runs them all; each check is also a function of its own and
returns the largest deviation it measured. A deviation is the largest absolute difference
divided by the largest reference value (but at least 1e-3 eV, 1e-3 eV/Å or 1e-6 eV/Å³); one
above the tolerance, or one that is not a number, raises an ``AssertionError`` saying what
differs, by how much, and the tolerance. They need JAX in 64-bit mode::

    def test_my_potential():
        system = random_system(0, species=(1, 8))
        check_potential(potential, potential.init(jax.random.key(0)), system)
"""

from __future__ import annotations

import numpy as np

from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.testing._derivatives import check_forces, check_smoothness, check_stress
from mosaicmd.kernel.testing._representation import (
    check_atom_energies,
    check_batch,
    check_graph_layouts,
    check_longer_list,
    check_padding,
    check_precision,
)
from mosaicmd.kernel.testing._structures import in_rows, random_orthogonal, random_system
from mosaicmd.kernel.testing._symmetries import (
    check_extensivity,
    check_periodic_images,
    check_permutation,
    check_rotation,
    check_translation,
)

__all__ = [
    "check_atom_energies",
    "check_batch",
    "check_extensivity",
    "check_forces",
    "check_graph_layouts",
    "check_longer_list",
    "check_padding",
    "check_periodic_images",
    "check_permutation",
    "check_potential",
    "check_precision",
    "check_rotation",
    "check_smoothness",
    "check_stress",
    "check_translation",
    "in_rows",
    "random_orthogonal",
    "random_system",
]


def check_potential(
    potential: Potential,
    params: Params,
    system: System,
    *,
    order: int = 2,
    tolerance: float = 1e-9,
    difference_tolerance: float = 1e-6,
    smoothness_tolerance: float = 1e-6,
    single_tolerance: float = 1e-4,
    seed: int = 0,
) -> dict[str, float]:
    """Run every check of this module that applies to the boundary conditions of ``system``.

    Args:
        potential: what is tested.
        params: parameters far enough from zero that every part of the energy is seen.
        system: a structure without symmetry, as :func:`random_system` builds.
        order: how many derivatives of the energy are continuous, see
            :func:`check_smoothness`.
        tolerance: of identities, in float64.
        difference_tolerance: of forces and stress against finite differences.
        smoothness_tolerance: of jumps in a derivative.
        single_tolerance: of float32 against float64.
        seed: of the random rotations, displacements, ...

    Returns:
        The measured deviation of every check that ran, by name.

    Raises:
        AssertionError: from the first check that fails.
        RuntimeError: if JAX is not in 64-bit mode.
        ValueError: if the system has species that the potential does not know.
    """
    potential.check(system)
    args = (potential, params, system)
    measured = {
        "atom_energies": check_atom_energies(*args, tolerance=tolerance, seed=seed),
        "rotation": check_rotation(*args, tolerance=tolerance, seed=seed),
        "translation": check_translation(*args, tolerance=tolerance, seed=seed),
        "permutation": check_permutation(*args, tolerance=tolerance, seed=seed),
        "extensivity": check_extensivity(*args, tolerance=tolerance),
        "forces": check_forces(*args, tolerance=difference_tolerance, seed=seed),
        "smoothness": check_smoothness(*args, order=order, tolerance=smoothness_tolerance),
        "padding": check_padding(*args, tolerance=tolerance),
        "precision": check_precision(*args, tolerance=single_tolerance),
        "graph_layouts": check_graph_layouts(*args, tolerance=tolerance, seed=seed),
        "longer_list": check_longer_list(*args, tolerance=tolerance),
        "batch": check_batch(*args, tolerance=tolerance, seed=seed),
    }
    if np.asarray(system.pbc).any():
        measured["periodic_images"] = check_periodic_images(*args, tolerance=tolerance, seed=seed)
    if np.asarray(system.pbc).all():
        measured["stress"] = check_stress(*args, tolerance=difference_tolerance)
    return measured
