"""Charges that minimise their energy at a given net charge, solved densely.

``E(q) = sum_i chi_i q_i + 1/2 J_i q_i² + 1/2 sum_ij q_i A_ij q_j`` with electronegativities
``chi``, hardnesses ``J`` and the matrix ``A`` of
:func:`~mosaicmd.qeq_longrange.electrostatics.coulomb_matrix`, in which Gaussian charges act on
themselves: what is called hardness elsewhere is ``J_i + k / (sqrt(pi) sigma_i)`` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System
from mosaicmd.qeq_longrange.coulomb import NO_EDGES, check_species, per_species
from mosaicmd.qeq_longrange.electrostatics import coulomb_matrix, coulomb_potentials
from mosaicmd.qeq_longrange.plans import CoulombPlan

Array = jax.Array


class Equilibrium(NamedTuple):
    """Charges in equilibrium, and what to know of them."""

    charges: Array  # [n_atoms], e, zero for masked atoms
    chemical_potential: Array  # [], eV/e, dE/dq of every atom
    stable: Array  # [], bool: the energy has a minimum; if not, the charges are not numbers


def equilibrate_charges(
    hardness_matrix: Array, electronegativity: Array, total_charge: Array | float, mask: Array
) -> Equilibrium:
    """Charges that minimise ``chi . q + q . H q / 2`` subject to ``sum(q) = total_charge``.

    The constraint is eliminated: with ``P`` the projection on charges of sum zero, ``P H P`` is
    factored by Cholesky, so ``H`` need be positive only for these. Differentiable to any order
    in every argument by one more solution with the same factor.

    Args:
        hardness_matrix: symmetric ``H``, ``[n_atoms, n_atoms]``, eV/e²; hardness included.
        electronegativity: ``chi``, ``[n_atoms]``, eV/e.
        total_charge: net charge, e.
        mask: real atoms, ``[n_atoms]``, bool; rows and columns of others are not looked at.

    Raises:
        ValueError: for shapes that do not belong to the same number of atoms.

    References:
        Rappé & Goddard, J. Phys. Chem. 95, 3358 (1991).
    """
    n_slots = mask.shape[0]
    for name, array, shape in (
        ("hardness_matrix", hardness_matrix, (n_slots, n_slots)),
        ("electronegativity", electronegativity, (n_slots,)),
    ):
        if array.shape != shape:
            raise ValueError(f"`{name}` must have shape {shape}, got {array.shape}")
    dtype = hardness_matrix.dtype
    both = mask[:, None] & mask[None, :]
    matrix = jnp.where(both, hardness_matrix, 0.0)
    chi = jnp.where(mask, jnp.asarray(electronegativity, dtype), 0.0)
    real = mask.astype(dtype)
    n_atoms = jnp.maximum(jnp.sum(real), 1.0)

    def neutral(values: Array) -> Array:
        return real * (values - jnp.sum(real * values) / n_atoms)

    def curvature(values: Array) -> Array:
        """``P H P``, and a positive multiple of what it leaves out."""
        inner = neutral(values)
        return neutral(jnp.matmul(matrix, inner, precision="highest")) + scale * (values - inner)

    frozen = jax.lax.stop_gradient(matrix)
    scale = jnp.sum(jnp.diagonal(jnp.abs(frozen))) / n_atoms + 1e-6
    means = jnp.sum(frozen, axis=1) / n_atoms
    centered = frozen - means[:, None] - means[None, :] + jnp.sum(means) / n_atoms
    rest = jnp.diag(1.0 - real) + real[:, None] * real[None, :] / n_atoms
    factor = jnp.linalg.cholesky(jnp.where(both, centered, 0.0) + scale * rest)

    uniform = real * jnp.asarray(total_charge, dtype) / n_atoms
    push = chi + jnp.matmul(matrix, uniform, precision="highest")
    shift = jax.lax.custom_linear_solve(
        curvature,
        -neutral(push),
        lambda _, target: cho_solve((factor, True), target),
        symmetric=True,
    )
    charges = uniform + neutral(shift)
    slope = chi + jnp.matmul(matrix, charges, precision="highest")
    return Equilibrium(charges, jnp.sum(slope) / n_atoms, jnp.all(jnp.isfinite(factor)))


class ChargeEquilibrationConfig(Config):
    """Settings and initial parameters of :func:`charge_equilibration`.

    One ``electronegativity`` (eV/e), ``hardness`` (eV/e²) and ``widths`` (Å, standard deviation of
    the Gaussian charge) for each of ``species``.
    """

    plan: CoulombPlan
    species: tuple[int, ...]
    electronegativity: tuple[float, ...]
    hardness: tuple[float, ...]
    widths: tuple[Length, ...] = Field(description="Å")

    @model_validator(mode="after")
    def _check(self) -> ChargeEquilibrationConfig:
        check_species(self.species)
        for name in ("electronegativity", "hardness", "widths"):
            values = getattr(self, name)
            if len(values) != len(self.species):
                raise ValueError(
                    f"`{name}` has {len(values)} values for {len(self.species)} species"
                )
            if name != "electronegativity" and min(values) <= 0.0:
                raise ValueError(f"`{name}` must be positive, got {list(values)}")
        return self


class ChargeEquilibration(NamedTuple):
    """A potential, and the charges it finds."""

    potential: Potential
    equilibrium: Any  # (params, system, graph) -> Equilibrium


def charge_equilibration(config: ChargeEquilibrationConfig) -> ChargeEquilibration:
    """Energy of charges in equilibrium with net charge ``system.total_charge`` (zero if none).

    Parameters: ``{"electronegativity": [n_species], eV/e, "hardness": [n_species], eV/e²,
    "widths": [n_species], Å}``, stored as they are; the last two must stay positive. A dense
    matrix is solved: memory grows with the square, time with the cube of the number of atoms;
    some hundred are meant. Forces are those at fixed charges, as the energy is stationary in
    them. Where it has no minimum, energies are not numbers.
    """
    plan, species = config.plan, config.species

    def init(key: Array) -> dict[str, Array]:
        del key
        names = ("electronegativity", "hardness", "widths")
        return {name: jnp.asarray(getattr(config, name), float) for name in names}

    def equilibrium(params: dict[str, Array], system: System, graph: Graph) -> Equilibrium:
        chi, hardness, widths = _per_atom(params, species, system)
        matrix = coulomb_matrix(system, graph, plan, widths=widths) + jnp.diag(hardness)
        total = 0.0 if system.total_charge is None else system.total_charge
        return equilibrate_charges(matrix, chi, total, system.mask)

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        chi, hardness, widths = _per_atom(params, species, system)
        charges = equilibrium(params, system, graph).charges
        potentials = coulomb_potentials(charges, system, graph, plan, widths=widths)
        return charges * (chi + 0.5 * hardness * charges + 0.5 * potentials)

    potential = Potential(
        architecture="charge_equilibration",
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=NO_EDGES if plan.cutoff is None else plan.cutoff,
        species=species,
        charges=lambda params, system, graph: equilibrium(params, system, graph).charges,
    )
    return ChargeEquilibration(potential, equilibrium)


def build(config: Mapping[str, Any]) -> Potential:
    """The potential of :func:`charge_equilibration` from the configuration in a model file."""
    return charge_equilibration(load_config(ChargeEquilibrationConfig, config)).potential


def _per_atom(
    params: dict[str, Array], species: tuple[int, ...], system: System
) -> tuple[Array, Array, Array]:
    index = per_species(species, system)
    dtype = system.positions.dtype
    chi, hardness, widths = (
        jnp.asarray(params[name], dtype)[index]
        for name in ("electronegativity", "hardness", "widths")
    )
    return chi, hardness, widths
