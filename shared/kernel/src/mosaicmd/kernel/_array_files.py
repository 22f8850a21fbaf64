"""Structures from files of named arrays: NumPy archives and HDF5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mosaicmd.kernel._named_atoms import DataError, Masses, Species, labels_of_names, set_masses

if TYPE_CHECKING:
    import ase

_SPELLINGS = {
    "positions": ("positions", "coordinates", "conformations", "R"),
    "forces": ("forces", "F"),
    "energy": ("energy", "energies", "E"),
    "stress": ("stress", "stresses"),
    "charges": ("charges",),
    "dipole": ("dipole", "dipoles"),
    "total_charge": ("total_charge", "total_charges"),
    "cell": ("cell", "cells"),
    "pbc": ("pbc",),
    "numbers": ("numbers", "atomic_numbers", "species", "Z", "z"),
}
_RESULTS = ("energy", "forces", "stress", "charges", "dipole")

LABEL_NAMES = (*_RESULTS, "total_charge")
"""Labels whose name in a file can be given."""


def read_npz(
    path: Path, species: Species | None, masses: Masses | None, names: Mapping[str, str]
) -> list[ase.Atoms]:
    """The frames of an archive, whose arrays belong to one set of atoms."""
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return _structures(arrays, species, masses, names)


def read_hdf5(
    path: Path, species: Species | None, masses: Masses | None, names: Mapping[str, str]
) -> list[ase.Atoms]:
    """The frames of every group with positions, groups in the order of their names."""
    try:
        import h5py
    except ImportError:
        raise DataError("needs h5py to be read: pip install 'mosaicmd-kernel[io]'") from None

    def groups(group: Any) -> Iterator[Any]:
        children = [group[name] for name in sorted(group)]
        if any(isinstance(child, h5py.Dataset) for child in children):
            yield group
        for child in children:
            if isinstance(child, h5py.Group):
                yield from groups(child)

    path.stat()  # a missing file gets the message of all formats
    structures: list[ase.Atoms] = []
    with h5py.File(path, "r") as file:
        for group in groups(file):
            arrays = {
                name: np.asarray(child[()])
                for name, child in group.items()
                if isinstance(child, h5py.Dataset)
            }
            try:
                structures += _structures(arrays, species, masses, names)
            except (DataError, ValueError) as error:
                raise DataError(f"group {group.name}: {error}") from None
    return structures


def attach(atoms: ase.Atoms, results: Mapping[str, Any]) -> None:
    """Make ``atoms.get_forces()`` and the like return these results."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(atoms, **results) if results else None


def attach_named(structures: list[ase.Atoms], names: Mapping[str, str]) -> None:
    """Take labels from other columns or entries than those that ASE knows.

    Raises:
        DataError: for a name that no structure has.
    """
    for label, name in names.items():
        found = False
        for atoms in structures:
            sign, plain = _signed(name)
            results = {} if atoms.calc is None else dict(atoms.calc.results)
            places = [place for place in (atoms.info, atoms.arrays, results) if plain in place]
            if not places:
                continue
            found = True
            value = sign * np.asarray(places[0][plain], float)
            if label == "total_charge":
                atoms.info["total_charge"] = float(value)
            else:
                attach(atoms, results | {label: float(value) if value.ndim == 0 else value})
        if not found:
            have = {*structures[0].info, *structures[0].arrays}
            raise DataError(f"no frame has `{name}` for `{label}`; the first has {sorted(have)}")


def _signed(name: str) -> tuple[float, str]:
    return (-1.0, name[1:]) if name.startswith("-") else (1.0, name)


def _structures(
    given: Mapping[str, np.ndarray],
    species: Species | None,
    masses: Masses | None,
    names: Mapping[str, str],
) -> list[ase.Atoms]:
    import ase

    arrays = _by_spelling(given, names)
    if "positions" not in arrays:
        raise DataError(f"has no array `positions` or `coordinates`; it has {sorted(given)}")
    positions = arrays["positions"]
    positions = positions[None] if positions.ndim == 2 else positions
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise DataError(
            f"`positions` must have shape [n_frames, n_atoms, 3], got {positions.shape}"
        )
    n_frames, n_atoms = positions.shape[:2]
    if species is None and "numbers" not in arrays:
        raise DataError(f"has no array `numbers`; give `species`, one for each of {n_atoms} atoms")
    shapes = {
        "energy": [(n_frames,)],
        "forces": [positions.shape],
        "stress": [(n_frames, 3, 3), (n_frames, 6)],
        "charges": [(n_frames, n_atoms)],
        "dipole": [(n_frames, 3)],
        "total_charge": [(n_frames,)],
        "cell": [(n_frames, 3, 3)],
        "pbc": [(n_frames, 3)],
        "numbers": [(n_frames, n_atoms)],
    }
    for name, possible in shapes.items():
        if name in arrays:
            arrays[name] = _per_frame(name, arrays[name], possible)
    labels = [str(index) for index in range(n_atoms)]
    kinds = None if species is None else labels_of_names(labels, species, masses)
    structures = []
    for frame in range(n_frames):
        numbers = _numbers(arrays["numbers"][frame]) if kinds is None else kinds
        cell = arrays["cell"][frame] if "cell" in arrays else None
        pbc = arrays["pbc"][frame].astype(bool) if "pbc" in arrays else cell is not None
        atoms = ase.Atoms(numbers, positions[frame], cell=cell, pbc=pbc)
        set_masses(atoms, labels, masses)
        if "total_charge" in arrays:
            atoms.info["total_charge"] = float(arrays["total_charge"][frame])
        attach(atoms, {label: arrays[label][frame] for label in _RESULTS if label in arrays})
        structures.append(atoms)
    return structures


def _by_spelling(
    given: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    arrays = {}
    for name, spellings in _SPELLINGS.items():
        sign, wanted = _signed(names.get(name, ""))
        if wanted and wanted not in given:
            raise DataError(f"has no array `{wanted}` for `{name}`; it has {sorted(given)}")
        present = [wanted] if wanted else [spelling for spelling in spellings if spelling in given]
        if present:
            arrays[name] = given[present[0]] if sign > 0.0 else -given[present[0]]
    return arrays


def _per_frame(name: str, array: np.ndarray, possible: list[tuple[int, ...]]) -> np.ndarray:
    """With an axis of frames, in one of the possible shapes."""
    for shape in possible:
        if array.shape == shape[1:]:  # the same in all frames
            return np.broadcast_to(array, shape)
        if array.size == np.prod(shape) and array.shape[:1] == shape[:1]:
            return array.reshape(shape)
    raise DataError(f"`{name}` must have shape {possible[0]}, got {array.shape}")


def _numbers(numbers: np.ndarray) -> np.ndarray:
    """Atomic numbers, also from symbols."""
    if numbers.dtype.kind not in "SUO":
        return numbers
    from ase.data import atomic_numbers

    symbols = [one.decode() if isinstance(one, bytes) else str(one) for one in numbers]
    if unknown := sorted(set(symbols) - set(atomic_numbers)):
        raise DataError(f"`numbers` holds {unknown}, which are no elements; give `species`")
    return np.array([atomic_numbers[symbol] for symbol in symbols])
