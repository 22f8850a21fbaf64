"""An ASE calculator of any potential, with neighbor lists that are kept while they are valid.

It also serves programs that speak the i-PI protocol (i-PI, LAMMPS ``fix ipi``, CP2K, ASE):
they move the atoms, this side computes forces::

    atoms.calc = ase_calculator("runs/silicon/model", dtype="float64")
    ase.calculators.socketio.SocketClient(unixsocket="mosaicmd").run(atoms)

The client's ``atoms`` say what the atoms are and which directions are periodic; the other
side sends positions and the cell. Stresses are sent along where the cell is periodic; give
``use_stress=False`` to ``run`` where it is not.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mosaicmd.kernel.compilation import compiler_options
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.model_files import load_model
from mosaicmd.kernel.neighbors import NeighborList, Neighbors, grow, neighbor_list
from mosaicmd.kernel.potentials import ChargesFn, EnergyFn, Params, Potential
from mosaicmd.kernel.precision import weights_type
from mosaicmd.kernel.systems import System, from_ase, strained, volume

Array = jax.Array
Model = str | os.PathLike[str] | tuple[Potential, Params]
"""A model directory, or a potential with its parameters."""


def ase_calculator(
    model: Model,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    skin: float = 1.0,
    charges: ChargesFn | None = None,
) -> PotentialCalculator:
    """The model as an ``ase.calculators.calculator.Calculator``.

    Results are ``energy``, ``free_energy`` (the same), ``energies`` (per atom), ``forces``,
    ``stress`` (where the cell has three vectors and a periodic direction) and, if the model
    predicts them or a function for them is given, ``charges``; in eV, Å and e, with the
    conventions of ASE.

    Nothing is compiled per step: one program is made per number of atoms, and one more when
    a list outgrows its room, which then stays. Calculators of the same `Potential` object
    share their programs, so images of a band may have one each. Initial charges and
    ``atoms.info["total_charge"]`` reach the potential.

    Args:
        model: a model directory, or ``(potential, params)``.
        dtype: of the calculation; by default that of the weights of a model directory, and
            JAX's otherwise. Phonons by finite differences and tight relaxations want
            float64.
        skin: by how much neighbor lists reach beyond the cutoff, Å.
        charges: ``(params, system, graph) -> [n_atoms]``, e; by default that of the
            potential, if it has one.

    Raises:
        ModelFileError: for a directory that is no model.
        ValueError: for a negative skin, or float64 while JAX is in 32-bit mode. From the
            calculation: for species that the model does not know, no atoms, numbers that
            are not finite, and periodic directions without a lattice vector.
    """
    return PotentialCalculator(model, dtype=dtype, skin=skin, charges=charges)


class PotentialCalculator(Calculator):
    """What :func:`ase_calculator` returns.

    Attributes:
        potential: of the model.
        params: its parameters, in the dtype of the calculation.
        n_list_builds: how many neighbor lists were built so far.
    """

    ignored_changes = {"initial_magmoms"}  # noqa: RUF012, as in the base class

    def __init__(
        self,
        model: Model,
        *,
        dtype: jax.typing.DTypeLike | None = None,
        skin: float = 1.0,
        charges: ChargesFn | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(skin) and skin >= 0.0):
            raise ValueError(f"`skin` must not be negative (Å), got {skin!r}")
        if isinstance(model, tuple):
            self.potential, params = model
        else:
            self.potential, params = load_model(model, dtype=dtype)
            dtype = weights_type(params) if dtype is None else dtype
        self.dtype = _checked_dtype(dtype)
        self.params = jax.tree.map(functools.partial(_cast, dtype=self.dtype), params)
        self.skin, self.charges_fn = float(skin), charges or self.potential.charges
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        if self.charges_fn is not None:
            self.implemented_properties.append("charges")
        self.n_list_builds = 0
        self._system: System | None = None
        self._total_charge: float | None = None
        self._plans: dict[_Kind, NeighborList] = {}
        self._list: _List | None = None

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, the total charge included."""
        changes = super().check_state(atoms, tol=tol)
        if self.atoms is not None and self.atoms.info.get("total_charge") != atoms.info.get(
            "total_charge"
        ):
            changes = [*changes, "total_charge"]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Everything at once: one derivative gives forces and stress."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        own: Any = self.atoms  # a copy
        system = self._moved(own, system_changes)
        graph = self._graph(system)
        has_stress = own.cell.rank == 3 and bool(np.any(own.pbc))
        found = jax.device_get(
            _evaluate()(
                self.potential.energy,
                self.charges_fn,
                has_stress,
                self.params,
                system,
                graph,
            )
        )
        self.results = {
            "energy": float(found.energy),
            "free_energy": float(found.energy),
            "energies": np.asarray(found.energies, float),
            "forces": np.asarray(found.forces, float),
        }
        if found.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(found.stress, float))
        if found.charges is not None:
            self.results["charges"] = np.asarray(found.charges, float)

    def _moved(self, atoms: Any, changes: list[str]) -> System:
        """The atoms as a system; only positions and cell are taken anew where no more changed."""
        if self._system is None or not {"positions", "cell"}.issuperset(changes):
            system = _system(atoms, self.dtype)
            self.potential.check(system)
            cell = np.asarray(system.cell)
        else:
            system = self._system
            cell = np.asarray((_system(atoms, self.dtype) if "cell" in changes else system).cell)
            if not np.isfinite(atoms.positions).all():
                raise ValueError("`positions` of the atoms are not finite")
        leaves: dict[str, Any] = {"positions": atoms.positions.astype(self.dtype), "cell": cell}
        self._system = system._replace(**leaves)
        return self._system

    def _graph(self, system: System) -> Graph:
        """The graph of the last list, if it can be shown to be complete, or of a new one."""
        positions, cell = np.asarray(system.positions), np.asarray(system.cell)
        kind = (system.n_atoms, tuple(np.asarray(system.pbc).tolist()))
        last = self._list
        if last is None or last.kind != kind:
            plan = self._plans.get(kind)
            if plan is None:
                plan = neighbor_list(system, self.potential.cutoff, skin=self.skin)
            neighbors = _build(plan, system)
        else:
            moved = np.square(positions - last.positions).sum(axis=1).max()
            if moved < 0.249 * self.skin**2 and np.array_equal(cell, last.cell):
                return last.neighbors.graph  # 0.249, not 0.25: positions are rounded
            plan = self._plans[kind]
            neighbors = _update(plan, last.neighbors, system)
            if _same_build(neighbors, last.neighbors):  # strained with the cell, still complete
                return last.neighbors.graph
        while np.any(neighbors.graph.overflow):
            plan = grow(plan, neighbors)
            neighbors = _build(plan, system)
        self.n_list_builds += 1
        self._plans[kind] = plan
        self._list = _List(kind, positions, cell, neighbors)
        return neighbors.graph


_Kind = tuple[int, tuple[bool, ...]]  # number of atoms, and periodic directions


class _List(NamedTuple):
    kind: _Kind
    positions: np.ndarray  # when it was built
    cell: np.ndarray
    neighbors: Neighbors


class _Found(NamedTuple):
    energy: Array
    energies: Array
    forces: Array
    stress: Array | None
    charges: Array | None


_build = jax.jit(NeighborList.build, static_argnums=0)
_update = jax.jit(NeighborList.update, static_argnums=0)


@functools.cache
def _evaluate() -> Callable[..., _Found]:
    """:func:`_evaluated`, compiled: the options depend on the device, which is known by now."""
    return jax.jit(
        _evaluated, static_argnums=(0, 1, 2), compiler_options=compiler_options(training=False)
    )


def _evaluated(
    energy_fn: EnergyFn,
    charges_fn: ChargesFn | None,
    has_stress: bool,
    params: Params,
    system: System,
    graph: Graph,
) -> _Found:
    def total(positions: Array, strain: Array | None) -> tuple[Array, Array]:
        moved = system._replace(positions=positions)
        moved = moved if strain is None else strained(moved, strain)
        energies = energy_fn(params, moved, graph)
        return jnp.sum(energies, dtype=jax.dtypes.canonicalize_dtype(float)), energies

    charges = None if charges_fn is None else charges_fn(params, system, graph)
    if not has_stress:
        (energy, energies), slope = jax.value_and_grad(total, has_aux=True)(system.positions, None)
        return _Found(energy, energies, -slope, None, charges)
    strain = jnp.zeros((3, 3), system.positions.dtype)
    (energy, energies), (slope, virial) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        system.positions, strain
    )
    return _Found(energy, energies, -slope, virial / volume(system), charges)


def _system(atoms: Atoms, dtype: np.dtype) -> System:
    """The system of the atoms, its cell completed where it may be."""
    if len(atoms) == 0:
        raise ValueError("the `Atoms` are empty: there is nothing to compute")
    missing = atoms.pbc & ~atoms.cell.array.any(axis=1)
    if missing.any():
        raise ValueError(
            f"`pbc` of the atoms is {atoms.pbc.tolist()}, but the cell {atoms.cell.array.tolist()} "
            "lacks a vector there; give it, or make that direction not periodic"
        )
    if atoms.pbc.any() and atoms.cell.rank < 3:
        atoms = atoms.copy()
        atoms.cell = atoms.cell.complete()
    return from_ase(atoms, dtype=dtype)


def _same_build(one: Neighbors, other: Neighbors) -> bool:
    return np.array_equal(one.positions, other.positions) and np.array_equal(one.cell, other.cell)


def _checked_dtype(dtype: jax.typing.DTypeLike | None) -> np.dtype:
    """The dtype, refused where JAX would silently take another."""
    wanted = np.dtype(jnp.zeros(()).dtype if dtype is None else dtype)
    if not np.issubdtype(wanted, np.floating):
        raise ValueError(f"`dtype` must be a floating-point type, got {dtype!r}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"`dtype` is {wanted}, but JAX is in 32-bit mode; call "
            'jax.config.update("jax_enable_x64", True) first, or give dtype="float32"'
        )
    return wanted


def _cast(leaf: Any, dtype: np.dtype) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
