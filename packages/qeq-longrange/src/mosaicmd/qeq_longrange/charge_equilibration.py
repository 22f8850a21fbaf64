"""Charges that minimise their energy at given net charges, as a potential.

``E(q) = sum_i chi_i q_i + 1/2 J_i q_i² + 1/2 sum_ij q_i A_ij q_j`` with electronegativities
``chi``, hardnesses ``J`` and the matrix ``A`` of
:func:`~mosaicmd.qeq_longrange.electrostatics.coulomb_matrix`, in which Gaussian charges act on
themselves: what is called hardness elsewhere is ``J_i + k / (sqrt(pi) sigma_i)`` here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from mosaicmd.kernel.config import Config, Length, load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.units import COULOMB_CONSTANT
from mosaicmd.qeq_longrange.coulomb import NO_EDGES, check_species, per_species
from mosaicmd.qeq_longrange.electrostatics import coulomb_matrix, coulomb_operator
from mosaicmd.qeq_longrange.equilibrium import (
    Equilibrium,
    equilibrate_charges,
    equilibrate_charges_iteratively,
)
from mosaicmd.qeq_longrange.plans import CoulombPlan

Array = jax.Array


class SolverConfig(Config):
    """How charges are solved for.

    ``dense`` factors a matrix: memory grows with the square, time with the cube of the number
    of atoms; it is quick for some hundred. ``iterative`` applies the Coulomb sum of the plan
    until the residual has fallen to ``tolerance`` of where it starts (1e-10, and 1e-5 in
    float32, if left out).
    """

    method: Literal["dense", "iterative"] = "dense"
    tolerance: float | None = Field(default=None, gt=0.0, lt=1.0)
    max_iterations: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _check(self) -> SolverConfig:
        if self.method == "dense" and self.tolerance is not None:
            raise ValueError('`tolerance` has no meaning for the method "dense"')
        return self


class Fragments(NamedTuple):
    """Sets of atoms whose charges are given."""

    labels: Array  # [n_atoms], int32: the fragment of every atom
    charges: Array  # [n_fragments], e


def equilibrium_of_gaussians(
    system: System,
    graph: Graph | None,
    plan: CoulombPlan,
    *,
    electronegativity: Array,
    hardness: Array,
    widths: Array,
    solver: SolverConfig,
    fragments: Fragments | None = None,
) -> Equilibrium:
    """Charges in equilibrium of Gaussians in a system of net charge ``system.total_charge``.

    Args:
        system: one structure; without ``total_charge`` it is neutral.
        graph: neighbors within at least ``plan.cutoff``; ``None`` for a direct sum.
        plan: of the Coulomb sum.
        electronegativity: ``[n_atoms]``, eV/e.
        hardness: ``[n_atoms]``, eV/e², without the energy of a Gaussian in its own field.
        widths: ``[n_atoms]``, Å.
        solver: how.
        fragments: in place of ``system.total_charge``.
    """
    total = 0.0 if system.total_charge is None else system.total_charge
    labels = None
    if fragments is not None:
        total, labels = fragments.charges, fragments.labels
    if solver.method == "dense":
        matrix = coulomb_matrix(system, graph, plan, widths=widths) + jnp.diag(hardness)
        return equilibrate_charges(matrix, electronegativity, total, system.mask, fragments=labels)
    operator = coulomb_operator(system, graph, plan, widths=widths)
    own = COULOMB_CONSTANT / math.sqrt(math.pi) / jnp.where(system.mask, widths, 1.0)
    return equilibrate_charges_iteratively(
        lambda charges: operator(charges) + hardness * charges,
        hardness + own,
        electronegativity,
        total,
        system.mask,
        fragments=labels,
        tolerance=solver.tolerance,
        max_iterations=solver.max_iterations,
    )


class ChargeEquilibrationConfig(Config):
    """Settings and initial parameters of :func:`charge_equilibration`.

    One ``electronegativity`` (eV/e), ``hardness`` (eV/e²) and ``widths`` (Å, standard deviation of
    the Gaussian charge) for each of ``species``. The atoms in each of ``fragments``, given by
    their indices, hold together the charge in ``fragment_charges`` (e); all others hold the
    rest of the net charge.
    """

    plan: CoulombPlan
    species: tuple[int, ...]
    electronegativity: tuple[float, ...]
    hardness: tuple[float, ...]
    widths: tuple[Length, ...] = Field(description="Å")
    solver: SolverConfig = SolverConfig()
    fragments: tuple[tuple[int, ...], ...] = ()
    fragment_charges: tuple[float, ...] = ()

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
        if len(self.fragments) != len(self.fragment_charges):
            raise ValueError(
                f"`fragment_charges` has {len(self.fragment_charges)} values for "
                f"{len(self.fragments)} `fragments`"
            )
        atoms = [atom for fragment in self.fragments for atom in fragment]
        if not all(self.fragments) or min(atoms, default=0) < 0 or len(set(atoms)) < len(atoms):
            raise ValueError(
                "`fragments` must be disjoint lists of indices of atoms, none of them empty, got "
                f"{[list(fragment) for fragment in self.fragments]}"
            )
        return self


class ChargeEquilibration(NamedTuple):
    """A potential, and the charges it finds."""

    potential: Potential
    equilibrium: Any  # (params, system, graph) -> Equilibrium


def charge_equilibration(config: ChargeEquilibrationConfig) -> ChargeEquilibration:
    """Energy of charges in equilibrium with net charge ``system.total_charge`` (zero if none).

    Parameters: ``{"electronegativity": [n_species], eV/e, "hardness": [n_species], eV/e²,
    "widths": [n_species], Å}``, stored as they are; the last two must stay positive. The energy
    is stationary in the charges, so forces are those at fixed charges, and take no further
    solution; second derivatives do. Where it has no minimum, energies are not numbers.

    Raises:
        ValueError: on evaluation, for a system with fewer atoms than ``fragments`` speak of, or
            none that are in none of them.
    """
    plan, species = config.plan, config.species

    def init(key: Array) -> dict[str, Array]:
        del key
        names = ("electronegativity", "hardness", "widths")
        return {name: jnp.asarray(getattr(config, name), float) for name in names}

    def equilibrium(params: dict[str, Array], system: System, graph: Graph) -> Equilibrium:
        chi, hardness, widths = _per_atom(params, species, system)
        return equilibrium_of_gaussians(
            system,
            graph,
            plan,
            electronegativity=chi,
            hardness=hardness,
            widths=widths,
            solver=config.solver,
            fragments=_fragments(config, system),
        )

    def slopes(
        charges: Array, params: dict[str, Array], system: System, graph: Graph
    ) -> tuple[Array, Array]:
        """Energies at given charges, and their derivatives in these, ``[n_atoms]`` each."""
        chi, hardness, widths = _per_atom(params, species, system)
        potentials = coulomb_operator(system, graph, plan, widths=widths)(charges)
        field = hardness * charges + potentials
        return charges * (chi + 0.5 * field), chi + field

    @jax.custom_jvp
    def at_charges(charges: Array, params: dict[str, Array], system: System, graph: Graph) -> Array:
        return slopes(charges, params, system, graph)[0]

    @at_charges.defjvp
    def _envelope(primals: Any, tangents: Any) -> tuple[Array, Array]:
        """The change at fixed charges, and what a change of the net charge costs."""
        charges, _, system, _ = primals
        (energies, slope), (change, _) = jax.jvp(
            lambda *rest: slopes(charges, *rest), primals[1:], tangents[1:]
        )
        if system.total_charge is not None:
            change = change + slope * _last_share(config, system) * tangents[2].total_charge
        return energies, change

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        return at_charges(equilibrium(params, system, graph).charges, params, system, graph)

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


def _labels(config: ChargeEquilibrationConfig, system: System) -> np.ndarray:
    """The fragment of every atom, the last one for those that the settings do not name."""
    labels = np.full(system.n_atoms, len(config.fragments), np.int32)
    if (last := max(map(max, config.fragments), default=-1)) >= system.n_atoms - 1:
        named = sum(map(len, config.fragments))
        if last >= system.n_atoms or named >= system.n_atoms:
            raise ValueError(
                f"`fragments` name {named} atoms, the last of index {last}, of a system of "
                f"{system.n_atoms} atoms; leave at least one of its atoms for the rest"
            )
    for label, atoms in enumerate(config.fragments):
        labels[list(atoms)] = label
    return labels


def _fragments(config: ChargeEquilibrationConfig, system: System) -> Fragments | None:
    if not config.fragments:
        return None
    dtype = system.positions.dtype
    given = jnp.asarray(config.fragment_charges, dtype)
    total = jnp.zeros((), dtype) if system.total_charge is None else system.total_charge
    charges = jnp.append(given, total - jnp.sum(given))
    return Fragments(jnp.asarray(_labels(config, system)), charges)


def _last_share(config: ChargeEquilibrationConfig, system: System) -> Array:
    """One over its number of atoms on those that hold the rest of the net charge, else zero."""
    rest = system.mask & jnp.asarray(_labels(config, system) == len(config.fragments))
    rest = rest.astype(system.positions.dtype)
    return rest / jnp.maximum(jnp.sum(rest), 1.0)


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
