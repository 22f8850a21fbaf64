"""Structures and their labels from files, checked, in internal units."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np

from mosaicmd.kernel._array_files import (
    LABEL_NAMES,
    attach,
    attach_named,
    read_hdf5,
    read_npz,
)
from mosaicmd.kernel._named_atoms import (
    DataError,
    Masses,
    Species,
    from_names,
    labels_of_names,
    parse_gro,
    parse_pdb,
    require_known,
    set_masses,
)
from mosaicmd.kernel.quantities import convert
from mosaicmd.kernel.systems import System, from_ase
from mosaicmd.kernel.tables import Table, TableError, read_table

if TYPE_CHECKING:
    import ase

__all__ = [
    "DataError",
    "Labels",
    "Table",
    "TableError",
    "labels_of",
    "read_structures",
    "read_systems",
    "read_table",
]

_READ_BY_ASE = {".cif": "cif", ".vasp": "vasp", ".poscar": "vasp", ".traj": "traj"}
_HDF5 = (".h5", ".hdf5")
_UNITS_VARY = (".xyz", ".extxyz", ".npz", *_HDF5)
_PARSE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError)


class Labels(NamedTuple):
    """What a calculation says about one structure; ``None`` where it says nothing."""

    energy: float | None = None  # eV
    forces: np.ndarray | None = None  # [n_atoms, 3], eV/Å
    stress: np.ndarray | None = None  # [3, 3], eV/Å³, tension positive
    charges: np.ndarray | None = None  # [n_atoms], e
    dipole: np.ndarray | None = None  # [3], e Å
    total_charge: float | None = None  # e


def read_systems(
    path: str | os.PathLike[str], *, dtype: jax.typing.DTypeLike | None = None, **options: Any
) -> list[tuple[System, Labels]]:
    """:func:`read_structures` as systems with their labels."""
    structures = read_structures(path, **options)
    return [(from_ase(atoms, dtype=dtype), labels_of(atoms)) for atoms in structures]


def read_structures(
    path: str | os.PathLike[str],
    *,
    species: Species | None = None,
    masses: Masses | None = None,
    length_unit: str = "A",
    energy_unit: str = "eV",
    names: Mapping[str, str] | None = None,
    min_distance: float = 0.3,
) -> list[ase.Atoms]:
    """Every structure of a file as ``ase.Atoms``, lengths in Å, energies in eV.

    Reads .xyz, .extxyz, .gro and .pdb, also with .gz, .npz, .h5 and .hdf5, and .cif, .vasp,
    .traj. The arrays of .npz, and of every group of an HDF5 file, are ``positions`` or
    ``coordinates`` (``[n_frames, n_atoms, 3]``), and optionally ``forces``, ``energies``,
    ``stress`` (``[n_frames, 3, 3]``, or ``6`` in the order xx, yy, zz, yz, xz, xy),
    ``charges``, ``dipole``, ``total_charge``, ``cell``, ``pbc`` and ``numbers`` or symbols.

    Args:
        path: the file.
        species: element symbol or positive label for every atom name of the file
            (``{"CG0": 1}``), or one per atom. Names that are no elements need this.
        masses: by atom name, or one for all atoms, u; needed where ``species`` gives
            labels instead of element symbols.
        length_unit: of the numbers in .xyz, .extxyz, .npz and HDF5, for example ``"nm"``.
        energy_unit: of the energies there, for example ``"kcal/mol"``.
        names: what labels are called in these files, where they are not found by
            themselves, for example ``{"energy": "REF_energy"}``. A minus in front changes
            the sign: ``{"forces": "-gradient"}``.
        min_distance: two atoms closer than this are an error, Å; 0 allows anything.

    Raises:
        DataError: for a file that is missing, empty, damaged or of unknown format, names
            that are no elements, values that are not finite, and atoms that overlap.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = ([s for s in suffixes if s != ".gz"] or [""])[-1]
    names = {} if names is None else names
    if unknown := sorted(set(names) - set(LABEL_NAMES)):
        raise DataError(f"{path}: `names` knows {list(LABEL_NAMES)}, not {unknown}")
    scales = (_scale(length_unit, "length"), _scale(energy_unit, "energy"))
    if scales != (1.0, 1.0) and kind not in _UNITS_VARY:
        raise DataError(
            f"{path}: the format {kind} fixes its units; leave `length_unit` and `energy_unit` out"
        )
    if names and kind not in _UNITS_VARY:
        raise DataError(f"{path}: the format {kind} fixes its names; leave `names` out")
    try:
        if kind in (".gro", ".pdb"):
            parse = parse_gro if kind == ".gro" else parse_pdb
            structures = [from_names(frame, species, masses) for frame in parse(_text(path))]
        elif kind in (".xyz", ".extxyz"):
            structures = _read_xyz(_text(path), species, masses)
            attach_named(structures, names)
        elif kind == ".npz":
            structures = read_npz(path, species, masses, names)
        elif kind in _HDF5:
            structures = read_hdf5(path, species, masses, names)
        elif kind in _READ_BY_ASE:
            structures = _read_ase(path, _READ_BY_ASE[kind], species, masses)
        else:
            known = ".xyz, .extxyz, .gro, .pdb, .npz, .h5, .cif, .vasp or .traj"
            raise DataError(f"format {kind!r} is unknown; convert it to {known}")
        if not structures or not all(map(len, structures)):
            raise DataError("holds no structure, or one without atoms")
        for index, atoms in enumerate(structures):
            _rescale(atoms, *scales)
            _check(atoms, f"frame {index}", min_distance, kind in _UNITS_VARY)
    except FileNotFoundError:
        raise DataError(f"structure file {path} does not exist") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (*_PARSE_ERRORS, EOFError, zlib.error, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is damaged or no {kind} file ({reason})") from error
    return structures


def labels_of(atoms: ase.Atoms) -> Labels:
    """Energy, forces, stress, charges and dipole that a structure was read with."""
    from ase.stress import voigt_6_to_full_3x3_stress

    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    stress = results.get("stress")
    if stress is not None and np.shape(stress) == (6,):
        stress = voigt_6_to_full_3x3_stress(stress)
    elif stress is not None and np.shape(stress) == (9,):
        stress = np.reshape(stress, (3, 3))
    dipole = results.get("dipole", atoms.info.get("dipole"))
    energy, total_charge = results.get("energy"), atoms.info.get("total_charge")
    return Labels(
        energy=None if energy is None else float(energy),
        forces=results.get("forces"),
        stress=stress,
        charges=results.get("charges", atoms.arrays.get("initial_charges")),
        dipole=None if dipole is None else np.asarray(dipole, float),
        total_charge=None if total_charge is None else float(total_charge),
    )


def _scale(unit: str, dimension: str) -> float:
    return convert(f"1 {unit}", dimension)


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _read_xyz(text: str, species: Species | None, masses: Masses | None) -> list[ase.Atoms]:
    """Frames through ASE, which is shown hydrogen where ``species`` says what a name means."""
    from ase.data import atomic_numbers
    from ase.io import read

    lines = text.splitlines()
    names: list[list[str]] = []
    start = 0
    while start < len(lines) and lines[start].strip():
        n_atoms = int(lines[start])
        comment, rows = lines[start + 1], lines[start + 2 : start + 2 + n_atoms]
        if len(rows) < n_atoms:
            raise DataError(f"ends within the frame that begins at line {start + 1}")
        names_first = "Properties=" not in comment.replace("Properties=species:S:1:", "")
        if species is not None and not names_first:
            raise DataError(f"line {start + 2}: the first of the `Properties` must be species:S:1")
        split = [row.split(maxsplit=1) for row in rows]
        names.append([name for name, *_ in split])
        if species is None and names_first:
            require_known(names[-1], [name in atomic_numbers and name != "X" for name in names[-1]])
        elif species is not None:
            lines[start + 2 : start + 2 + n_atoms] = [f"H {rest}" for _, rest in split]
        start += 2 + n_atoms
    if not names:
        return []
    text = "\n".join(lines[:start]) + "\n"
    structures = cast("list[ase.Atoms]", read(io.StringIO(text), index=":", format="extxyz"))
    for atoms, found in zip(structures, names, strict=True):
        results = _results(atoms)
        if species is not None:
            atoms.numbers[:] = labels_of_names(found, species, masses)
        set_masses(atoms, found, masses)
        attach(atoms, results)
    return structures


def _read_ase(
    path: Path, file_format: str, species: Species | None, masses: Masses | None
) -> list[ase.Atoms]:
    from ase.io import read

    structures = cast("list[ase.Atoms]", read(path, index=":", format=file_format))
    for atoms in structures:
        results, names = _results(atoms), atoms.get_chemical_symbols()
        if species is not None:
            atoms.numbers[:] = labels_of_names(names, species, masses)
        set_masses(atoms, names, masses)
        attach(atoms, results)
    return structures


def _results(atoms: ase.Atoms) -> dict[str, Any]:
    return {} if atoms.calc is None else dict(atoms.calc.results)


def _rescale(atoms: ase.Atoms, length: float, energy: float) -> None:
    """From the units of the file, given in Å and eV, to Å and eV."""
    if (length, energy) == (1.0, 1.0):
        return
    powers = {"energy": 0, "energies": 0, "free_energy": 0, "forces": 1, "stress": 3}
    results = {
        name: value * (energy / length ** powers[name]) if name in powers else value
        for name, value in _results(atoms).items()
    }
    if "dipole" in results:
        results["dipole"] = results["dipole"] * length
    atoms.positions *= length
    atoms.set_cell(atoms.cell.array * length)
    attach(atoms, results)


def _check(atoms: ase.Atoms, where: str, min_distance: float, may_be_nm: bool) -> None:
    """Refuse what is not finite, and atoms that overlap."""
    values = {"positions": atoms.positions, "cell": atoms.cell.array} | labels_of(atoms)._asdict()
    for name, value in values.items():
        bad = np.argwhere(~np.isfinite(np.asarray(0.0 if value is None else value, float)))
        if len(bad):
            at = f" of atom {bad[0][0]}" if name in ("positions", "forces", "charges") else ""
            raise DataError(f"{where}: `{name}`{at} is not finite; remove the frame")
    if min_distance <= 0.0 or len(atoms) < 2:
        return
    import vesin

    calculator = vesin.NeighborList(cutoff=float(min_distance), full_list=False)
    first, second, distances = calculator.compute(
        points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="ijd"
    )
    if len(distances) == 0:
        return
    close = int(np.argmin(distances))
    crowded = len({*first.tolist(), *second.tolist()}) > len(atoms) // 2
    remedy = (
        'lengths look like nm read as Å; give `length_unit="nm"`'
        if crowded and may_be_nm
        else "move one of them, or lower `min_distance`"
    )
    raise DataError(
        f"{where}: atoms {first[close]} and {second[close]} are {distances[close]:.3g} Å apart; "
        + remedy
    )
