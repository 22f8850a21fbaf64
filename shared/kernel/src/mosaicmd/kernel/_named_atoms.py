"""Files whose atoms have names rather than elements: GROMACS .gro and PDB.

ASE takes the first letters of a name for an element, which turns a bead "CG0" or a Martini
"W" into carbon or tungsten. Here a name stands for an element only where that is certain.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mosaicmd.kernel import units

if TYPE_CHECKING:
    import ase

Species = Mapping[str, int | str] | Sequence[int | str]
Masses = Mapping[str, float] | float


class DataError(ValueError):
    """A structure file that cannot be used; the message names file, frame and atom."""


class NamedFrame(NamedTuple):
    """One structure with the names that its file gives."""

    names: list[str]
    residues: list[str]
    elements: list[str]  # "" where the file does not say
    positions: np.ndarray  # [n_atoms, 3], Å
    cell: np.ndarray | None  # [3, 3], Å
    velocities: np.ndarray | None = None  # [n_atoms, 3], Å/t


_BIOMOLECULES = """
    ALA ARG ASN ASP ASH CYS CYX CYM GLN GLU GLH GLY HIS HID HIE HIP ILE LEU LYS LYN MET PHE PRO
    SER THR TRP TYR VAL ACE NME NMA NAC NHE NH2 HOH SOL WAT TIP3 TIP4 SPC
"""


def parse_gro(text: str) -> list[NamedFrame]:
    """Every frame of a .gro file, in Å; a box of zeros is none.

    Raises:
        ValueError: naming the line that is not as the format wants it.
    """
    lines = text.rstrip().splitlines()
    frames, start = [], 0
    while start < len(lines):
        try:
            n_atoms = int(lines[start + 1])
            rows = lines[start + 2 : start + 2 + n_atoms]
            box = [float(word) for word in lines[start + 2 + n_atoms].split()]
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"the frame that begins at line {start + 1} does not hold the number of atoms that "
                "it states, and a box"
            ) from error
        numbers = [_gro_numbers(row, start + 3 + index) for index, row in enumerate(rows)]
        values = np.array(numbers).reshape(n_atoms, -1)
        velocities = values[:, 3:] * (units.NANOMETER / units.PICOSECOND)
        frames.append(
            NamedFrame(
                names=[row[10:15].strip() for row in rows],
                residues=[row[5:10].strip() for row in rows],
                elements=[""] * n_atoms,
                positions=values[:, :3] * units.NANOMETER,
                cell=_gro_cell(box),
                velocities=velocities if velocities.shape[1] == 3 else None,
            )
        )
        start += 3 + n_atoms
    return frames


def _gro_numbers(row: str, number: int) -> list[float]:
    """Positions and velocities; the distance of the decimal points is the column width."""
    points = [match.start() + 20 for match in re.finditer(r"\.", row[20:])]
    if len(points) not in (3, 6):
        raise ValueError(f"line {number} has no three coordinates: {row!r}")
    width = points[1] - points[0]
    try:
        return [float(row[20 + width * k : 20 + width * (k + 1)]) for k in range(len(points))]
    except ValueError as error:
        raise ValueError(f"line {number} has no three coordinates: {row!r}") from error


def _gro_cell(box: list[float]) -> np.ndarray | None:
    if len(box) not in (3, 9):
        raise ValueError(f"a box line has {len(box)} numbers; it takes 3 or 9")
    cell = np.diag(box[:3])
    if len(box) == 9:
        cell[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]] = box[3:]
    return cell * units.NANOMETER if np.any(cell) else None


def parse_pdb(text: str) -> list[NamedFrame]:
    """Every model of a PDB file; of alternate locations the first (A or 1) is taken.

    A unit cell of 1 Å, which structures from solution carry, is none.

    Raises:
        ValueError: naming the line that is not as the format wants it.
    """
    from ase.geometry import cellpar_to_cell

    frames: list[NamedFrame] = []
    atoms: list[tuple[str, str, str, list[float]]] = []
    cell = None

    def close() -> None:
        if atoms:
            names, residues, elements, positions = map(list, zip(*atoms, strict=True))
            frames.append(NamedFrame(names, residues, elements, np.array(positions), cell))
            atoms.clear()

    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if line.startswith(("ATOM  ", "HETATM")):
                if line[16] in " A1":
                    position = [float(line[k : k + 8]) for k in (30, 38, 46)]
                    name, residue, element = line[12:16], line[17:21], line[76:78]
                    atoms.append((name.strip(), residue.strip(), element.strip(), position))
            elif line.startswith("CRYST1"):
                columns = [(6, 15), (15, 24), (24, 33), (33, 40), (40, 47), (47, 54)]
                parameters = [float(line[first:last]) for first, last in columns]
                cell = None if parameters[:3] == [1.0, 1.0, 1.0] else cellpar_to_cell(parameters)
            elif line.startswith("END"):
                close()
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number} cannot be read: {line!r}") from error
    close()
    return frames


def atomic_number(name: str, residue: str, element: str) -> int | None:
    """The element of a named atom, or ``None`` where it is a guess.

    Certain are: what the file states, the first letter in amino acids and water, ions
    whose residue has their name, and names that are an element's symbol. "W" is not: in a
    .gro file it is rarely tungsten.
    """
    from ase.data import atomic_numbers

    if element.capitalize() in atomic_numbers and element.capitalize() != "X":
        return atomic_numbers[element.capitalize()]
    letters = name.strip("0123456789'\"*+-")
    if residue in _BIOMOLECULES.split():
        return atomic_numbers[letters[:1]] if letters[:1] in tuple("HCNOS") else None
    ion = residue.strip("0123456789+-") == letters and len(letters) == 2
    symbol = letters.capitalize() if ion else letters
    return atomic_numbers.get(symbol) if symbol not in ("W", "X") else None


def from_names(frame: NamedFrame, species: Species | None, masses: Masses | None) -> ase.Atoms:
    """``ase.Atoms`` of a frame, with its names in the array ``names``."""
    import ase

    if species is None:
        known = [
            atomic_number(*one)
            for one in zip(frame.names, frame.residues, frame.elements, strict=True)
        ]
        require_known(frame.names, [number is not None for number in known])
        numbers = [number or 0 for number in known]
    else:
        numbers = labels_of_names(frame.names, species, masses)
    periodic = frame.cell is not None
    atoms = ase.Atoms(numbers=numbers, positions=frame.positions, cell=frame.cell, pbc=periodic)
    set_masses(atoms, frame.names, masses)
    atoms.set_array("names", np.array(frame.names))
    atoms.set_array("residues", np.array(frame.residues))
    if frame.velocities is not None:
        atoms.set_velocities(frame.velocities)
    return atoms


def require_known(names: Sequence[str], known: Sequence[bool]) -> None:
    """Refuse names that are no elements, listing them and all names of the file."""
    if not all(known):
        unknown = {name for name, ok in zip(names, known, strict=True) if not ok}
        example = ", ".join(f'"{name}": 1' for name in sorted(unknown)[:2])
        raise DataError(
            f"the names {sorted(unknown)} are no elements; the file has {_count(names)}. Give "
            f"`species={{{example}, ...}}` with an element or a label for each name, and `masses`"
        )


def _count(names: Sequence[str]) -> str:
    counts = Counter(names).most_common(20)
    return ", ".join(f"{count} {name}" for name, count in counts)


def labels_of_names(names: Sequence[str], species: Species, masses: Masses | None) -> list[int]:
    """Labels of all atoms, from a mapping of their names or one by one."""
    from ase.data import atomic_numbers

    if isinstance(species, Mapping):
        if missing := sorted(set(names) - set(species)):
            raise DataError(
                f"`species` lacks the names {missing}; the file has {_count(names)}, "
                f"`species` has {sorted(species)}"
            )
        chosen = [species[name] for name in names]
    elif isinstance(species, str) or len(species) != len(names):
        raise DataError(f"`species` must be a mapping or have one entry for each of {len(names)}")
    else:
        chosen = list(species)
    numbers = [atomic_numbers.get(one, 0) if isinstance(one, str) else int(one) for one in chosen]
    for one, number in zip(chosen, numbers, strict=True):
        if number < 1:
            raise DataError(f"`species` has {one!r}, which is no element and no positive label")
    if masses is None and not all(isinstance(one, str) for one in chosen):
        raise DataError(
            "`species` gives labels, which have no mass of their own; give `masses` (u) too, or "
            "element symbols"
        )
    return numbers


def set_masses(atoms: ase.Atoms, names: Sequence[str], masses: Masses | None) -> None:
    """Masses by name, or one for all, in place of those of the elements."""
    if masses is None:
        return
    if isinstance(masses, Mapping):
        if missing := sorted(set(names) - set(masses)):
            raise DataError(f"`masses` lacks the names {missing}; the file has {_count(names)}")
        values = np.array([masses[name] for name in names], float)
    else:
        values = np.full(len(atoms), float(masses))
    if not (values > 0.0).all():
        raise DataError("`masses` must be positive numbers, u")
    atoms.set_array("masses", values, float, ())
