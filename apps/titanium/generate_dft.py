"""Label cells of titanium by density functional theory (PBE) in GPAW, for the preset `full`.

`python generate_dft.py label FOLDER` labels structures and appends a line to a file in FOLDER for
each; `pulay FOLDER` measures what the finite set of plane waves does to stresses; `pack FOLDER ..`
writes everything found there to `data/pbe.extxyz.gz`. A structure follows from the seed and its
number. Runs may be killed, started again, and share a folder: none repeats what is done or in
work. One core labels a cell in half a minute (2 atoms) to 20 minutes (16 atoms). It needs the
packages of `requirements-generate-dft.txt`.

Cells are hcp, bcc, fcc and omega crystals of 1 to 16 atoms under random strain, all atoms
displaced by normal random numbers. The stress of a code of plane waves is the slope of the energy
with a fixed number of waves; that of energies at a fixed cutoff, and nearly that of all waves, has
the isotropic term `2/3 E_cut/V dE/dE_cut` besides (Pulay). `pack` adds it, with the derivative per
atom that `pulay` measured.
"""

import argparse
import contextlib
import fcntl
import gzip
import importlib.metadata
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import cellpar_to_cell
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa

DATA = Path(__file__).with_name("data") / "pbe.extxyz.gz"
SEED = 2025
CUTOFF = 350.0  # eV
SPACING = 0.32  # largest distance of k-points but for rounding, 1/Å with the factor 2 pi
SMEARING = 0.2  # eV, Methfessel-Paxton of first order
SECONDS = {1: 30.0, 2: 40.0, 3: 70.0, 4: 100.0, 8: 300.0, 16: 1200.0}  # a core, at most
PULAY = (3, 0, 7)  # structures to measure the tension on, and the variants of each
VARIANTS = ((CUTOFF, 1.0), (330.0, 1.0), (370.0, 1.0), (CUTOFF, 0.995), (CUTOFF, 1.005))
PLAN = (  # phase, repeats, largest strain, displacement (Å), how many of every 100
    ("hcp", (1, 1, 1), 0.02, 0.02, 28),
    ("hcp", (1, 1, 1), 0.03, 0.08, 22),
    ("hcp", (1, 1, 1), 0.03, 0.15, 6),
    ("hcp", (2, 1, 1), 0.02, 0.10, 8),
    ("hcp", (1, 1, 2), 0.02, 0.12, 6),
    ("hcp", (2, 1, 1), 0.03, 0.16, 4),
    ("hcp", (2, 2, 1), 0.02, 0.12, 3),
    ("hcp", (2, 2, 2), 0.02, 0.14, 1),
    ("bcc", (1, 1, 1), 0.03, 0.00, 5),
    ("bcc", (2, 1, 1), 0.03, 0.12, 7),
    ("fcc", (1, 1, 1), 0.03, 0.00, 3),
    ("fcc", (2, 1, 1), 0.03, 0.10, 2),
    ("omega", (1, 1, 1), 0.03, 0.08, 5),
)


def crystal(phase: str) -> ase.Atoms:
    """The primitive cell."""
    if phase == "hcp":
        return ase.build.bulk("Ti", "hcp", a=2.95, c=4.68)
    if phase == "bcc":
        return ase.build.bulk("Ti", "bcc", a=3.26)
    if phase == "fcc":
        return ase.build.bulk("Ti", "fcc", a=4.11)
    return ase.Atoms(
        "Ti3",
        scaled_positions=[[0.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]],
        cell=cellpar_to_cell([4.58, 4.58, 2.83, 90.0, 90.0, 120.0]),
        pbc=True,
    )


def structure(number: int) -> tuple[ase.Atoms, str]:
    """Structure of this number, and its phase; every hundred of them follow the plan."""
    order = np.concatenate([[k] * row[-1] for k, row in enumerate(PLAN)])
    block, place = divmod(number, len(order))
    row = np.random.default_rng([SEED, 1, block]).permutation(order)[place]
    phase, repeats, strain, displacement, _ = PLAN[row]
    rng = np.random.default_rng([SEED, 2, number])
    atoms = crystal(phase).repeat(repeats)
    change = rng.uniform(-strain, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (change + change.T)), scale_atoms=True)
    atoms.positions += rng.normal(0.0, displacement, (len(atoms), 3))
    return atoms, phase


def grid(atoms: ase.Atoms) -> list[int]:
    """Numbers of k-points, centered at the origin."""
    lengths = 2.0 * np.pi * np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
    return np.maximum(1, np.rint(lengths / SPACING)).astype(int).tolist()


def calculator(atoms: ase.Atoms, cutoff: float) -> Any:
    from gpaw import GPAW, PW  # pyright: ignore[reportMissingImports]

    return GPAW(
        mode=PW(cutoff),
        xc="PBE",
        kpts={"size": grid(atoms), "gamma": True},
        occupations={"name": "methfessel-paxton", "width": SMEARING, "order": 1},
        eigensolver={"name": "davidson", "niter": 2},
        convergence={"density": 5e-4, "eigenstates": 5e-6, "maximum iterations": 60},
        symmetry={"point_group": False},
        txt=None,
    )


def labelled(number: int, cutoff: float, scale: float) -> dict[str, Any]:
    """Everything about one structure; the energy is the free one, of which forces are slopes."""
    atoms, phase = structure(number)
    atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
    start = time.process_time()
    atoms.calc = calculator(atoms, cutoff)
    return {
        "number": number,
        "phase": phase,
        "cutoff": cutoff,
        "scale": scale,
        "cell": atoms.cell.array.tolist(),
        "positions": atoms.positions.tolist(),
        "energy": float(atoms.get_potential_energy(force_consistent=True)),
        "forces": atoms.get_forces().tolist(),
        "stress": atoms.get_stress(voigt=False).tolist(),
        "kpts": grid(atoms),
        "versions": {n: importlib.metadata.version(n) for n in ("gpaw", "gpaw-data", "ase")},
        "seconds": time.process_time() - start,
    }


def results(folders: list[Path]) -> list[dict[str, Any]]:
    """All complete lines of all files."""
    lines = []
    for folder in folders:
        for path in sorted(folder.glob("*.jsonl")):
            lines += [one for one in path.read_text().splitlines(keepends=True) if one[-1] == "\n"]
    return [json.loads(one) for one in lines]


def key_of(line: dict[str, Any]) -> tuple[int, float, float]:
    return line["number"], line["cutoff"], line["scale"]


@contextlib.contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Whether this process may do it: a lock that ends with the process."""
    with (folder / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def label(
    folder: Path, numbers: Iterable[int], seconds: float, variants: tuple[tuple[float, float], ...]
) -> None:
    """Label what fits into the time, at these cutoffs and scales of the cell."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    for number in numbers:
        size = len(structure(number)[0])
        for cutoff, scale in variants:
            key = (number, cutoff, scale)
            with claimed(folder, "-".join(f"{part:g}" for part in key)) as free:
                left = end - time.monotonic()
                if not free or key in map(key_of, results([folder])) or left < SECONDS[size]:
                    continue
                try:
                    line = labelled(*key)
                except Exception as error:  # leave it, and say so
                    print(f"{number}: {error!r}", flush=True)
                    continue
                with (folder / f"{os.uname().nodename}-{os.getpid()}.jsonl").open("ab") as file:
                    file.write(json.dumps(line).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                print(
                    f"{number}: {line['phase']}, {size} atoms, {line['seconds']:.0f} s", flush=True
                )


def slope(lines: list[dict[str, Any]]) -> float:
    """``dE/dE_cut`` per atom about the cutoff, the mean over the structures of `PULAY`.

    Shows for each structure the tension with it beside that of energies of two volumes.
    """
    energies = {key_of(line): line["energy"] for line in lines}
    slopes = []
    for number in PULAY:
        size, volume = len(structure(number)[0]), structure(number)[0].get_volume()
        (low, _), (high, _) = VARIANTS[1:3]
        rise = energies[number, high, 1.0] - energies[number, low, 1.0]
        slopes.append(rise / (high - low) / size)
        (_, small), (_, large) = VARIANTS[3:]
        rise = energies[number, CUTOFF, large] - energies[number, CUTOFF, small]
        wanted = rise / volume / (large**3 - small**3)
        line = next(line for line in lines if key_of(line) == (number, CUTOFF, 1.0))
        tensions = np.trace(line["stress"]) / 3.0, tension(slopes[-1], size, volume)
        print(f"{number}: tension {np.array([*tensions, sum(tensions), wanted]) / GPa} GPa")
    print(f"dE/dE_cut per atom: {np.array(slopes)}")
    return float(np.mean(slopes))


def tension(slope: float, size: int, volume: float) -> float:
    """What stresses lack, eV/Å³."""
    return 2.0 / 3.0 * CUTOFF * slope * size / volume


def pack(folders: list[Path]) -> None:
    """Write the structures, in the order of their numbers."""
    lines = results(folders)
    missing = slope(lines)
    plain = {line["number"]: line for line in lines if key_of(line)[1:] == (CUTOFF, 1.0)}
    found = []
    for _, line in sorted(plain.items()):
        atoms = ase.Atoms(f"Ti{len(line['positions'])}", line["positions"], pbc=True)
        atoms.set_cell(line["cell"])
        stress = np.array(line["stress"])
        stress += np.eye(3) * tension(missing, len(atoms), atoms.get_volume())
        labels = {"energy": line["energy"], "forces": line["forces"]}
        stress = full_3x3_to_voigt_6_stress(0.5 * (stress + stress.T))
        atoms.calc = SinglePointCalculator(atoms, **labels, stress=stress)
        atoms.info |= {"phase": line["phase"], "number": line["number"]}
        found.append(atoms)
    text = io.StringIO()
    ase.io.write(text, found, format="extxyz")
    with gzip.GzipFile(DATA, "wb", mtime=0) as file:
        file.write(text.getvalue().encode())
    sizes, versions = Counter(map(len, found)), plain[min(plain)]["versions"]
    seconds = sum(line["seconds"] for line in lines)
    print(f"{len(found)} structures, atoms {dict(sizes)}, {seconds:.0f} s, {versions}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("label", "pulay", "pack"))
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    if given.command == "label":
        numbers = range(given.first, given.last)
        label(given.folders[0], numbers, given.seconds, ((CUTOFF, 1.0),))
    elif given.command == "pulay":
        label(given.folders[0], PULAY, given.seconds, VARIANTS)
    else:
        pack(given.folders)
