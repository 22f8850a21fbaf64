"""London dispersion that a density functional lacks: DFT-D3 with rational (BJ) damping.

The library s-dftd3 computes it (extra ``d3``); here it is a potential among others, and what is
subtracted from labels before a model is fitted to the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mosaicmd.kernel.config import Config, load_config
from mosaicmd.kernel.data import Labels
from mosaicmd.kernel.graphs import Graph
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.systems import System
from mosaicmd.kernel.units import BOHR, HARTREE

Array = jax.Array

D3BJ = "d3bj"
_HEAVIEST = 103  # element with parameters; the library does not check


class DispersionConfig(Config):
    """Settings of :func:`dispersion`.

    ``functional`` is the one that labels were computed with, as the library names it; with
    ``three_body`` Axilrod–Teller–Muto terms are added.
    """

    method: Literal["d3bj"] = D3BJ
    functional: str
    three_body: bool = False


class _Found(NamedTuple):
    energy: np.ndarray  # [], eV
    gradient: np.ndarray  # [n_atoms, 3], eV/Å
    virial: np.ndarray  # [3, 3], eV, dE/d(strain)


def dispersion(config: DispersionConfig) -> Potential:
    """D3(BJ) of neutral atoms, without parameters; labels of species are atomic numbers.

    Within the cutoffs of the library (60 bohr for pairs, 40 for coordination numbers and
    triples), whatever the graph reaches. It is computed on the host, so a step costs a round
    trip, and a program that calls it cannot be exported. There are first derivatives in
    positions and cell, forwards and backwards, and no second ones. The energy is divided evenly
    among the atoms.

    Raises:
        ValueError: for a functional that the library does not know.
        ImportError: if dftd3 is missing.

    References:
        Grimme, Antony, Ehrlich & Krieg, J. Chem. Phys. 132, 154104 (2010); Grimme, Ehrlich &
        Goerigk, J. Comput. Chem. 32, 1456 (2011); Ehlert, J. Open Source Softw. 9, 7169 (2024).
    """
    _damping(config)

    def on_host(with_gradient: bool, *arrays: Array) -> Array | tuple[Array, Array, Array]:
        positions = arrays[0]
        shapes = [(), positions.shape, (3, 3)] if with_gradient else [()]
        results = [jax.ShapeDtypeStruct(shape, positions.dtype) for shape in shapes]

        def call(*arrays: Any) -> list[np.ndarray]:
            positions, cell, species, mask, pbc = map(np.asarray, arrays)
            found = _compute(config, positions[mask], cell, species[mask], pbc, with_gradient)
            if not with_gradient:
                return [found.energy.astype(positions.dtype)]
            gradient = np.zeros(positions.shape)
            gradient[mask] = found.gradient
            # what strain does beyond moving the atoms is done by the cell
            rest = found.virial - positions.T.astype(float) @ gradient
            of_cell = np.linalg.pinv(cell.T.astype(float)) @ rest
            values = (found.energy, gradient, of_cell)
            return [np.asarray(value, positions.dtype) for value in values]

        found = jax.pure_callback(call, results, *arrays, vmap_method="sequential")
        return tuple(found) if with_gradient else found[0]

    @jax.custom_jvp
    def total(positions: Array, cell: Array, species: Array, mask: Array, pbc: Array) -> Any:
        return on_host(False, positions, cell, species, mask, pbc)

    @total.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        value, gradient, of_cell = on_host(True, *primals)
        return value, jnp.sum(gradient * tangents[0]) + jnp.sum(of_cell * tangents[1])

    def energy(params: Params, system: System, graph: Graph) -> Array:
        del params, graph
        positions, mask = system.positions, system.mask
        value = total(positions, system.cell, system.species, mask, system.pbc)
        n_atoms = jnp.maximum(jnp.sum(mask), 1).astype(value.dtype)
        return jnp.where(mask, value / n_atoms, 0.0)

    return Potential(
        architecture=D3BJ,
        config=config.model_dump(mode="json"),
        init=lambda key: {},
        energy=energy,
        cutoff=1.0,  # asks for no neighbors, but a list must have a range
        species=tuple(range(1, _HEAVIEST + 1)),
    )


def build(config: Mapping[str, Any]) -> Potential:
    """:func:`dispersion` from the configuration in a model file."""
    return dispersion(load_config(DispersionConfig, config))


def subtract_dispersion(
    data: Sequence[tuple[System, Labels]], config: DispersionConfig
) -> list[tuple[System, Labels]]:
    """Labels less the dispersion in energies, forces and stresses.

    Raises:
        ValueError: for a functional or an element that the library does not know, and labels
            that are no atomic numbers.
        ImportError: if dftd3 is missing.
    """
    rest = []
    for system, labels in data:
        system = jax.device_get(system)
        mask = system.mask
        found = _compute(
            config, system.positions[mask], system.cell, system.species[mask], system.pbc
        )
        changes: dict[str, Any] = {}
        if labels.energy is not None:
            changes["energy"] = labels.energy - float(found.energy)
        if labels.forces is not None:
            changes["forces"] = labels.forces + found.gradient
        if labels.stress is not None:
            volume = abs(np.linalg.det(np.asarray(system.cell, float)))
            changes["stress"] = labels.stress - found.virial / volume
        rest.append((system, labels._replace(**changes)))
    return rest


def _compute(
    config: DispersionConfig,
    positions: np.ndarray,
    cell: np.ndarray,
    numbers: np.ndarray,
    pbc: np.ndarray,
    with_gradient: bool = True,
) -> _Found:
    from dftd3.interface import DispersionModel

    lattice: dict[str, np.ndarray] = {}
    if np.any(pbc):
        lattice = {"lattice": np.asarray(cell, float) / BOHR, "periodic": np.asarray(pbc)}
    if unknown := sorted({int(number) for number in numbers if not 1 <= number <= _HEAVIEST}):
        raise ValueError(f"D3 has no parameters for `species` {unknown}; labels are atomic numbers")
    model = DispersionModel(numbers, np.asarray(positions, float) / BOHR, **lattice)
    found = model.get_dispersion(_damping(config), grad=with_gradient)
    if not with_gradient:
        return _Found(found["energy"] * HARTREE, np.zeros_like(positions), np.zeros((3, 3)))
    return _Found(
        found["energy"] * HARTREE, found["gradient"] * HARTREE / BOHR, found["virial"] * HARTREE
    )


def _damping(config: DispersionConfig) -> Any:
    try:
        from dftd3.interface import RationalDampingParam
    except ImportError as error:
        raise ImportError("D3 dispersion needs dftd3: pip install 'mosaicmd-kernel[d3]'") from error
    try:
        return RationalDampingParam(method=config.functional, atm=config.three_body)
    except RuntimeError as error:
        raise ValueError(
            f"`functional` {config.functional!r} has no D3(BJ) parameters in dftd3 ({error}); "
            "give the one that labels were computed with, for example 'pbe'"
        ) from error
