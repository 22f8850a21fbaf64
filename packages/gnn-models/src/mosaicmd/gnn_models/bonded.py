"""Bonded terms between listed atoms: harmonic bonds, angles and impropers, periodic dihedrals.

They read positions and cell alone and need no graph, so their cutoff is zero: in a sum the
other terms decide it. Vectors are taken at the minimum image of any triclinic cell. The
energy of a term is shared equally by its atoms; a term with a masked atom has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import model_validator

from mosaicmd.kernel.config import Angle, Config, Energy, Length, load_config
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.observables.internal_coordinates import (
    Coordinate,
    bond_angle,
    bond_length,
    dihedral,
)
from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.systems import System

Array = jax.Array


class BondedConfig(Config):
    """Settings that all bonded terms have.

    ``atoms`` holds the atoms of every term, counted from 0. Each term has parameters of
    its own, unless ``types`` says for every term which set (0, 1, ...) it takes. A setting
    is one value for all sets, or one for each. Unless ``learnable``, the potential has no
    parameters and training leaves it as it is.
    """

    atoms: tuple[tuple[int, ...], ...]
    types: tuple[int, ...] | None = None
    learnable: bool = True

    @model_validator(mode="after")
    def _check_atoms(self) -> BondedConfig:
        if not self.atoms:
            raise ValueError("`atoms` is empty; list at least one term or leave the potential out")
        for term in self.atoms:
            if min(term) < 0 or len(set(term)) < len(term):
                raise ValueError(f"`atoms` must be distinct and counted from 0, got {list(term)}")
        if self.types is not None:
            if len(self.types) != len(self.atoms):
                raise ValueError(
                    f"`types` has {len(self.types)} entries for {len(self.atoms)} terms"
                )
            if set(self.types) != set(range(max(self.types) + 1)):
                raise ValueError(f"`types` must be 0, 1, ... without gaps, got {set(self.types)}")
        return self

    @property
    def n_sets(self) -> int:
        """Number of parameter sets."""
        return len(self.atoms) if self.types is None else max(self.types) + 1

    def per_set(self, name: str, *, positive: bool = False) -> np.ndarray:
        """A setting with one row per parameter set.

        Raises:
            ValueError: for a number of values that does not fit, or values that are not
                positive where they must be.
        """
        value = getattr(self, name)
        values = np.asarray(value)
        if positive and not (values > 0.0).all():
            raise ValueError(f"`{name}` must be positive, got {value}")
        if values.ndim == 0:
            return np.full(self.n_sets, values)
        if len(values) != self.n_sets:
            raise ValueError(
                f"`{name}` has {len(values)} values for {self.n_sets} sets of parameters; give "
                "one for all, or one for each"
            )
        return values


class HarmonicBondConfig(BondedConfig):
    """Settings of :func:`harmonic_bond`; ``stiffness`` in eV/Å², ``length`` in Å."""

    atoms: tuple[tuple[int, int], ...]
    stiffness: float | tuple[float, ...]
    length: Length | tuple[Length, ...]

    @model_validator(mode="after")
    def _check(self) -> HarmonicBondConfig:
        self.per_set("stiffness", positive=True)
        self.per_set("length", positive=True)
        return self


class HarmonicAngleConfig(BondedConfig):
    """Settings of :func:`harmonic_angle`; ``stiffness`` in eV/rad², ``angle`` in rad."""

    atoms: tuple[tuple[int, int, int], ...]
    stiffness: Energy | tuple[Energy, ...]
    angle: Angle | tuple[Angle, ...]

    @model_validator(mode="after")
    def _check(self) -> HarmonicAngleConfig:
        self.per_set("stiffness", positive=True)
        angle = self.per_set("angle")
        if not ((angle >= 0.0) & (angle <= math.pi)).all():
            raise ValueError(
                f'`angle` must lie in [0, pi] rad, got {self.angle}; give degrees as "104.5 deg"'
            )
        return self


class HarmonicImproperConfig(BondedConfig):
    """Settings of :func:`harmonic_improper`; ``stiffness`` in eV/rad², ``angle`` in rad."""

    atoms: tuple[tuple[int, int, int, int], ...]
    stiffness: Energy | tuple[Energy, ...]
    angle: Angle | tuple[Angle, ...] = 0.0

    @model_validator(mode="after")
    def _check(self) -> HarmonicImproperConfig:
        self.per_set("stiffness", positive=True)
        angle = self.per_set("angle")
        if not (np.abs(angle) <= math.pi).all():
            raise ValueError(
                f'`angle` must lie in [-pi, pi] rad, got {self.angle}; give degrees as "180 deg"'
            )
        return self


class PeriodicDihedralConfig(BondedConfig):
    """Settings of :func:`periodic_dihedral`; ``amplitude`` in eV, ``phase`` in rad.

    Both have one value per entry of ``multiplicities``, the same for all parameter sets or
    a tuple of such tuples, one per set.
    """

    atoms: tuple[tuple[int, int, int, int], ...]
    multiplicities: tuple[int, ...]
    amplitude: tuple[Energy, ...] | tuple[tuple[Energy, ...], ...]
    phase: tuple[Angle, ...] | tuple[tuple[Angle, ...], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> PeriodicDihedralConfig:
        n = self.multiplicities
        if not n or min(n) < 1 or len(set(n)) < len(n):
            raise ValueError(f"`multiplicities` must be distinct and positive, got {list(n)}")
        self.series("amplitude")
        self.series("phase")
        return self

    def series(self, name: str) -> np.ndarray:
        """``amplitude`` or ``phase`` as ``[n_sets, n_multiplicities]``."""
        shape = (self.n_sets, len(self.multiplicities))
        value = getattr(self, name)
        rows = ((0.0,) * shape[1],) if value is None else value
        rows = rows if isinstance(rows[0], tuple) else (rows,)
        if len(rows) not in (1, shape[0]) or any(len(row) != shape[1] for row in rows):
            raise ValueError(
                f"`{name}` must have one value for each of {shape[1]} multiplicities, the same "
                f"for all or in each of {shape[0]} sets of parameters, got {value}"
            )
        return np.array(np.broadcast_to(np.array(rows), shape))


def harmonic_bond(config: HarmonicBondConfig) -> Potential:
    """Bonds ``k / 2 (r - r_0)²`` between listed pairs of atoms.

    The factor 1/2 is part of the convention, as in OpenMM and GROMACS; AMBER, CHARMM and
    LAMMPS write ``K (r - r_0)²`` with ``K = k / 2``.

    Parameters, if learnable: ``{"stiffness": [n_sets], eV/Å², "length": [n_sets], Å}``,
    stored as they are; both must stay positive.
    """
    initial = {"stiffness": config.per_set("stiffness"), "length": config.per_set("length")}

    def term(params: dict[str, Array], lengths: Array) -> Array:
        return 0.5 * params["stiffness"] * (lengths - params["length"]) ** 2

    coordinate = bond_length(config.atoms, r_max=math.inf)
    return bonded("harmonic_bond", config, coordinate, initial, term)


def harmonic_angle(config: HarmonicAngleConfig) -> Potential:
    """Angles ``k / 2 (theta - theta_0)²`` at the middle atom of listed triples.

    The factor 1/2 is part of the convention, see :func:`harmonic_bond`. Forces are finite
    at every angle; where an angle is straight, that of a ``theta_0`` below pi is zero.

    Parameters, if learnable: ``{"stiffness": [n_sets], eV/rad², "angle": [n_sets], rad}``,
    stored as they are.
    """
    initial = {"stiffness": config.per_set("stiffness"), "angle": config.per_set("angle")}

    def term(params: dict[str, Array], angles: Array) -> Array:
        return 0.5 * params["stiffness"] * (angles - params["angle"]) ** 2

    return bonded("harmonic_angle", config, bond_angle(config.atoms), initial, term)


def harmonic_improper(config: HarmonicImproperConfig) -> Potential:
    """Impropers ``k / 2 (xi - xi_0)²``, ``xi`` the dihedral of listed atoms ``i-j-k-l``.

    The difference is taken the short way round, so there is a cusp opposite of ``xi_0``.
    The factor 1/2 is part of the convention, see :func:`harmonic_bond`.

    Parameters, if learnable: as of :func:`harmonic_angle`.
    """
    initial = {"stiffness": config.per_set("stiffness"), "angle": config.per_set("angle")}

    def term(params: dict[str, Array], angles: Array) -> Array:
        turn = 2.0 * math.pi
        difference = angles - params["angle"]
        difference = difference - turn * jnp.round(difference / turn)
        return 0.5 * params["stiffness"] * difference**2

    return bonded("harmonic_improper", config, dihedral(config.atoms), initial, term)


def periodic_dihedral(config: PeriodicDihedralConfig) -> Potential:
    """Dihedrals ``sum_n k_n (1 + cos(n phi - delta_n))`` of listed atoms ``i-j-k-l``.

    ``phi`` has the sign of IUPAC, 0 for cis; there is no factor 1/2, as in OpenMM, GROMACS,
    CHARMM and LAMMPS. Forces diverge only where three of the atoms stand in line, as the
    angle itself is not defined there.

    Parameters, if learnable: ``{"amplitude": [n_sets, n_multiplicities], eV, "phase":
    likewise, rad}``.
    """
    initial = {"amplitude": config.series("amplitude"), "phase": config.series("phase")}
    multiplicities = np.array(config.multiplicities)[None]

    def term(params: dict[str, Array], angles: Array) -> Array:
        n = jnp.asarray(multiplicities, angles.dtype)
        waves = jnp.cos(n * angles[:, None] - params["phase"])
        return jnp.sum(params["amplitude"] * (1.0 + waves), axis=1)

    return bonded("periodic_dihedral", config, dihedral(config.atoms), initial, term)


def build_bond(config: Mapping[str, Any]) -> Potential:
    """:func:`harmonic_bond` from the configuration in a model file."""
    return harmonic_bond(load_config(HarmonicBondConfig, config))


def build_angle(config: Mapping[str, Any]) -> Potential:
    """:func:`harmonic_angle` from the configuration in a model file."""
    return harmonic_angle(load_config(HarmonicAngleConfig, config))


def build_improper(config: Mapping[str, Any]) -> Potential:
    """:func:`harmonic_improper` from the configuration in a model file."""
    return harmonic_improper(load_config(HarmonicImproperConfig, config))


def build_dihedral(config: Mapping[str, Any]) -> Potential:
    """:func:`periodic_dihedral` from the configuration in a model file."""
    return periodic_dihedral(load_config(PeriodicDihedralConfig, config))


def bonded(
    architecture: str,
    config: BondedConfig,
    coordinate: Coordinate,
    initial: dict[str, np.ndarray],
    term: Callable[[dict[str, Array], Array], Array],
) -> Potential:
    """A potential that adds ``term(params of each term, coordinate)`` over all terms."""
    atoms = np.array(config.atoms, np.int32)
    types = None if config.types is None else np.array(config.types, np.int32)
    largest, size = int(atoms.max()), atoms.shape[1]

    def init(key: Array) -> dict[str, Array]:
        del key
        return {name: jnp.asarray(value) for name, value in initial.items() if config.learnable}

    def energy(params: dict[str, Array], system: System, graph: Graph) -> Array:
        del graph
        if largest >= system.n_atoms:
            raise ValueError(
                f"`atoms` of this {architecture!r} potential name atom {largest}, but the system "
                f"has {system.n_atoms} (counted from 0); build it for this system"
            )
        values = coordinate.values(system)
        own = params if config.learnable else initial
        own = {name: jnp.asarray(own[name], values.dtype) for name in initial}
        if types is not None:
            own = {name: leaf[types] for name, leaf in own.items()}
        real = jnp.all(system.mask[atoms], axis=1)
        share = jnp.where(real, term(own, values), 0.0) / size
        empty = jnp.zeros(system.n_atoms, values.dtype)
        return empty.at[atoms.ravel()].add(jnp.repeat(share, size))

    return Potential(
        architecture=architecture,
        config=config.model_dump(mode="json"),
        init=init,
        energy=energy,
        cutoff=0.0,
    )
