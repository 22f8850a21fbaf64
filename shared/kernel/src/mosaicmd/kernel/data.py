"""Structures and their labels from files, checked, in internal units."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np

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
_PARSE_ERRORS = (ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError)
_NPZ_NAMES = {
    "positions": ("positions", "coordinates", "R"),
    "forces": ("forces", "F"),
    "energy": ("energy", "energies", "E"),
    "cell": ("cell",),
    "numbers": ("numbers", "atomic_numbers", "species", "Z", "z"),
}


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
    min_distance: float = 0.3,
) -> list[ase.Atoms]:
    """Every structure of a file as ``ase.Atoms``, lengths in Å, energies in eV.

    Reads .xyz, .extxyz, .gro, .pdb and .npz, also with .gz, and .cif, .vasp, .traj. The
    arrays of an .npz file are ``positions`` or ``coordinates`` (``[n_frames, n_atoms,
    3]``), and optionally ``forces``, ``energies``, ``cell`` and ``numbers``.

    Args:
        path: the file.
        species: element symbol or positive label for every atom name of the file
            (``{"CG0": 1}``), or one per atom. Names that are no elements need this.
        masses: by atom name, or one for all atoms, u; needed where ``species`` gives
            labels instead of element symbols.
        length_unit: of the numbers in .xyz, .extxyz and .npz, for example ``"nm"``.
        energy_unit: of the energies there, for example ``"kcal/mol"``.
        min_distance: two atoms closer than this are an error, Å; 0 allows anything.

    Raises:
        DataError: for a file that is missing, empty, damaged or of unknown format, names
            that are no elements, values that are not finite, and atoms that overlap.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = ([s for s in suffixes if s != ".gz"] or [""])[-1]
    scales = (_scale(length_unit, "length"), _scale(energy_unit, "energy"))
    if scales != (1.0, 1.0) and kind not in (".xyz", ".extxyz", ".npz"):
        raise DataError(
            f"{path}: the format {kind} fixes its units; leave `length_unit` and `energy_unit` out"
        )
    try:
        if kind in (".gro", ".pdb"):
            parse = parse_gro if kind == ".gro" else parse_pdb
            structures = [from_names(frame, species, masses) for frame in parse(_text(path))]
        elif kind in (".xyz", ".extxyz"):
            structures = _read_xyz(_text(path), species, masses)
        elif kind == ".npz":
            structures = _read_npz(path, species, masses)
        elif kind in _READ_BY_ASE:
            structures = _read_ase(path, _READ_BY_ASE[kind], species, masses)
        else:
            known = ".xyz, .extxyz, .gro, .pdb, .npz, .cif, .vasp or .traj"
            raise DataError(f"format {kind!r} is unknown; convert it to {known}")
        if not structures or not all(map(len, structures)):
            raise DataError("holds no structure, or one without atoms")
        for index, atoms in enumerate(structures):
            _rescale(atoms, *scales)
            _check(atoms, f"frame {index}", min_distance, kind in (".xyz", ".extxyz", ".npz"))
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
        _attach(atoms, results)
    return structures


def _read_npz(path: Path, species: Species | None, masses: Masses | None) -> list[ase.Atoms]:
    import ase

    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
        given = {name: archive[name] for name in archive.files}
    arrays = {}
    for name, spellings in _NPZ_NAMES.items():
        if present := [spelling for spelling in spellings if spelling in given]:
            arrays[name] = given[present[0]]
    if "positions" not in arrays:
        raise DataError(f"has no array `positions` or `coordinates`; it has {sorted(given)}")
    positions = arrays["positions"]
    positions = positions[None] if positions.ndim == 2 else positions
    n_frames, n_atoms = positions.shape[:2]
    for name, shape in (("forces", positions.shape), ("energy", (n_frames,))):
        if name in arrays:
            arrays[name] = arrays[name].reshape(shape)
    if species is None and "numbers" not in arrays:
        raise DataError(f"has no array `numbers`; give `species`, one for each of {n_atoms} atoms")
    names = [str(index) for index in range(n_atoms)]
    numbers = arrays["numbers"] if species is None else labels_of_names(names, species, masses)
    cells = arrays.get("cell")
    structures = []
    for frame in range(n_frames):
        cell = None if cells is None else cells if cells.ndim == 2 else cells[frame]
        atoms = ase.Atoms(numbers, positions[frame], cell=cell, pbc=cell is not None)
        set_masses(atoms, names, masses)
        _attach(atoms, {k: arrays[k][frame] for k in ("energy", "forces") if k in arrays})
        structures.append(atoms)
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
        _attach(atoms, results)
    return structures


def _results(atoms: ase.Atoms) -> dict[str, Any]:
    return {} if atoms.calc is None else dict(atoms.calc.results)


def _attach(atoms: ase.Atoms, results: dict[str, Any]) -> None:
    """Make ``atoms.get_forces()`` and the like return these results."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(atoms, **results) if results else None


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
    _attach(atoms, results)


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
