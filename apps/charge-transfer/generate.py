"""Label charged clusters by density functional theory, with Hirshfeld charges.

`python generate.py label silver+ 300` labels structures of a set until there are 300, or all 15
of a curve; `python generate.py pack` writes all there are to `data/*.extxyz.gz`. Every structure
follows from the seed, its set and its number, and every result is one line appended to a file in
`LABELS`, so that a run may be killed at any time: the same command goes on. It needs the packages
of `requirements-generate.txt`.

PBE with density fitting, def2-SVP and, for silver, its effective core potential. Structures are
random: a point on a path between the shapes that the set is about, all atoms displaced by normal
random numbers, turned by a random rotation.
"""

import argparse
import gzip
import importlib.metadata
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree
from local_integrals import LocalGradients, LocalIntegration
from pyscf import dft, gto, lib  # pyright: ignore[reportMissingImports]
from pyscf.data import elements  # pyright: ignore[reportMissingImports]
from pyscf.scf import atom_ks  # pyright: ignore[reportMissingImports]
from scipy.spatial.transform import Rotation

HERE = Path(__file__).parent
LABELS = HERE.parents[1] / "runs" / "charge-transfer-labels"
SEED = 2021
CHARGE = {"silver+": 1, "silver-": -1, "salt+": 1, "chain": 0, "chain+": 1, "salt": 0}
CHARGE |= {"salt+curve": 1, "salt-curve": 0}  # without random displacements, in order
SETS = tuple(CHARGE)
FILES = {"ag3": ("silver+", "silver-"), "na9cl8": ("salt+", "salt"), "c10": ("chain", "chain+")}
FILES |= {"na9cl8-curves": ("salt+curve", "salt-curve")}
CURVE = np.linspace(2.2, 3.6, 15)  # distances of the far Na atom, Å
FUNCTIONAL, BASIS, GRID_LEVEL = "pbe", "def2-svp", 2


def product(a, b, alpha=1, c=None, beta=0):
    """alpha a b + beta c, by NumPy: three to six times as fast as by the BLAS that PySCF brings."""
    if c is None:
        return alpha * (a @ b) if alpha != 1 else a @ b
    c *= beta
    c += alpha * (a @ b)
    return c


lib.ddot = lib.numpy_helper.ddot = product


def silver(rng, charge):
    """Two bonds and an angle: near the triangle for Ag3+, near the line for Ag3-, or between."""
    along = rng.uniform() ** 2
    angle = np.radians(60.0 + 60.0 * along if charge > 0 else 180.0 - 80.0 * along)
    bonds = (2.70 if charge > 0 else 2.72) + rng.normal(0.0, 0.06)
    arm = bonds * np.array([np.sin(0.5 * angle), np.cos(0.5 * angle), 0.0])
    positions = np.array([[0.0, 0.0, 0.0], arm, arm * [-1.0, 1.0, 1.0]])
    return "Ag3", positions + rng.normal(0.0, 0.08, (3, 3))


def salt(rng, charge):
    """A bar of rock salt, eight of each, and a ninth Na atom at one end, which takes its charge.

    An Na atom at the far end, 11 Å away, is anywhere on its way off. Without the ninth atom, as
    an ion, the bar is neutral, and all that the far end has around it stays the same.
    """
    return bar(rng.uniform(2.3, 3.5), rng.uniform(2.3, 3.2), rng.normal(0.0, 0.08, (17, 3)), charge)


def bar(far, ninth, displacements, charge):
    """The far Na atom at a distance from its Cl neighbor, and the ninth on top of another."""
    corners = np.array([(x, y, z) for x in range(2) for y in range(2) for z in range(4)])
    positions = 2.70 * corners.astype(float)
    positions[0, 2] = positions[1, 2] - far
    sodium = corners.sum(axis=1) % 2 == 0
    chlorine_on_top = positions[~sodium & (corners[:, 2] == 3)][0]
    top = chlorine_on_top + np.array([0.0, 0.0, ninth])
    order = np.concatenate([positions[sodium], positions[~sodium], top[None]]) + displacements
    return ("Na8Cl8Na", order) if charge > 0 else ("Na8Cl8", order[:16])


def chain(rng, charge):
    """Ten carbon atoms in a row, alternating bonds, one or two hydrogen atoms at an end."""
    middle = 0.5 * rng.uniform(-0.10, 0.10)
    bonds = np.array([1.30 + (middle if k % 2 else -middle) for k in range(9)])
    x = np.concatenate([[0.0], np.cumsum(bonds)])
    carbon = np.stack([x, np.zeros(10), np.zeros(10)], axis=1)
    left = [[-1.08, 0.0, 0.0]]
    if charge > 0:
        left = [[-0.57, 0.93, 0.0], [-0.57, -0.93, 0.0]]
    hydrogen = np.array([*left, [x[-1] + 1.08, 0.0, 0.0]])
    positions = np.concatenate([carbon, hydrogen])
    bend = rng.normal(0.0, 0.08) * np.sin(np.pi * positions[:, 0] / x[-1])
    positions[:, 2] += 4.0 * bend
    return f"C10H{len(hydrogen)}", positions + rng.normal(0.0, 0.04, positions.shape)


def structure(name, number):
    """Structure of this number in a set: symbols, positions in Å."""
    rng = np.random.default_rng([SEED, SETS.index(name), number])
    charge, stem = CHARGE[name], name.rstrip("+-")
    if name.endswith("curve"):
        symbols, positions = bar(CURVE[number], 2.6, np.zeros((17, 3)), charge)
        return ase.Atoms(symbols, positions)
    make = {"silver": silver, "salt": salt, "chain": chain}
    symbols, positions = make[stem](rng, charge)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()  # pyright: ignore
    positions = (positions - positions.mean(axis=0)) @ turn.T
    return ase.Atoms(symbols, positions)


def free_densities(symbols):
    """Spherical densities of the neutral atoms, by symbol: radii and values, bohr."""
    radii = np.concatenate([[0.0], np.geomspace(1e-4, 30.0, 2000)])
    points = np.stack([0.0 * radii, 0.0 * radii, radii], axis=1)
    found = {}
    for symbol in sorted(set(symbols)):
        atom = [[symbol, (0.0, 0.0, 0.0)]]
        alone = gto.M(atom=atom, basis=BASIS, ecp=core(symbol), spin=None, verbose=0)
        field = atom_ks.AtomSphericAverageRKS(alone)
        field.xc, field.init_guess = FUNCTIONAL, "hcore"
        field.atomic_configuration = elements.NRSRHFS_CONFIGURATION
        field.run()
        orbitals = dft.numint.eval_ao(alone, points) @ field.mo_coeff
        found[symbol] = (radii, np.sum(orbitals**2 * field.mo_occ, axis=1))
        held = 4.0 * np.pi * np.trapezoid(found[symbol][1] * radii**2, radii)
        if not (field.converged and abs(held - alone.nelectron) < 1e-3):
            raise RuntimeError(f"the free atom {symbol} holds {held:.4f} electrons")
    return found


def core(symbols):
    """The effective core potential that belongs to the basis: of silver, here."""
    return {"Ag": BASIS} if "Ag" in symbols else {}


def hirshfeld_charges(field, free):
    """Net charge of every atom, e, whose sum is made exact by an equal shift.

    References:
        Hirshfeld, Theor. Chim. Acta 44, 129 (1977).
    """
    mol, grid = field.mol, field.grids
    density = np.concatenate(
        [
            field._numint.eval_rho(mol, field._numint.eval_ao(mol, block), field.make_rdm1())
            for block in np.array_split(grid.coords, max(1, len(grid.coords) // 20000))
        ]
    )
    share = []
    for k, place in enumerate(mol.atom_coords()):
        distance = np.linalg.norm(grid.coords - place, axis=1)
        radii, values = free[mol.atom_symbol(k)]
        share.append(np.interp(distance, radii, values))
    total = np.sum(share, axis=0)
    held = grid.weights * np.where(total > 1e-14, density / np.maximum(total, 1e-14), 0.0)
    charges = mol.atom_charges() - np.array([np.sum(held * one) for one in share])
    error = float(np.sum(charges) - mol.charge)
    if abs(error) > 0.01:
        raise RuntimeError(f"Hirshfeld charges add up to {mol.charge + error:.4f} e")
    return charges - error / len(charges), error


def label(atoms, charge, free):
    """Energy (eV), forces (eV/Å), charges (e) and dipole (e Å) of a closed-shell molecule."""
    symbols = atoms.get_chemical_symbols()
    mol = gto.M(
        atom=list(zip(symbols, atoms.positions.tolist(), strict=True)),
        basis=BASIS,
        ecp=core(symbols),
        charge=charge,
        spin=0,
        verbose=0,
    )
    field: Any = dft.RKS(mol, xc=FUNCTIONAL).density_fit()
    field.with_df.build()  # once, and not in every cycle
    field._numint = LocalIntegration()
    field.max_cycle = 100
    density, energy = None, 0.0
    for level, tolerance in ((0, 1e-5), (GRID_LEVEL, 1e-9)):  # the coarse grid only to start from
        field.grids.level, field.grids.coords, field.conv_tol = level, None, tolerance
        energy = field.kernel(dm0=density)
        if not field.converged:
            return None
        density = field.make_rdm1()
    forces = -LocalGradients(field).kernel() * Hartree / Bohr
    charges, error = hirshfeld_charges(field, free)
    occupied = mol.nelectron // 2
    levels = np.sort(field.mo_energy)
    return {
        "symbols": "".join(symbols),
        "positions": atoms.positions.tolist(),
        "total_charge": charge,
        "energy": float(energy) * Hartree,
        "forces": forces.tolist(),
        "charges": charges.tolist(),
        "charge_error": error,
        "dipole": (field.dip_moment(unit="AU", verbose=0) * Bohr).tolist(),
        "gap": float(levels[occupied] - levels[occupied - 1]) * Hartree,
    }


def results(name):
    """The complete lines of the file of a set; one that was cut short is taken out of it."""
    path = LABELS / f"{name}.jsonl"
    if not path.exists():
        return []
    text = path.read_bytes()
    if not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
    return [json.loads(line) for line in path.read_text().splitlines()]


def extend(name, count):
    """Label structures of a set until this many are labelled."""
    path = LABELS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = results(name)
    versions = {one: importlib.metadata.version(one) for one in ("pyscf", "numpy", "scipy")}
    number = 1 + max((one["number"] for one in known), default=-1)
    done = sum(one["converged"] for one in known)
    free = None
    while done < count and not (name.endswith("curve") and number == len(CURVE)):
        atoms, start = structure(name, number), time.process_time()
        free = free or free_densities(atoms.get_chemical_symbols())
        found = label(atoms, CHARGE[name], free)
        line = {"number": number, "converged": found is not None, "versions": versions}
        line |= {"seconds": time.process_time() - start} | (found or {})
        with path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        done, number = done + line["converged"], number + 1
        print(f"{name} {number - 1}: {line['converged']}, {line['seconds']:.0f} s CPU", flush=True)


def pack():
    """Write all that is labelled to `data/`, and how many of what there are."""
    (HERE / "data").mkdir(exist_ok=True)
    record = {}
    for stem, names in FILES.items():
        frames = [frame(name, one) for name in names for one in results(name) if one["converged"]]
        if not frames:
            continue
        text = io.StringIO()
        ase.io.write(text, frames, format="extxyz")
        with gzip.GzipFile(HERE / "data" / f"{stem}.extxyz.gz", "wb", mtime=0) as file:
            file.write(text.getvalue().encode())
        for name in names:
            lines = results(name)
            record[name] = {
                "file": f"{stem}.extxyz.gz",
                "structures": sum(one["converged"] for one in lines),
                "not_converged": [one["number"] for one in lines if not one["converged"]],
                "seed": [SEED, SETS.index(name)],
                "method": f"RKS {FUNCTIONAL}/{BASIS}, density fitting, grid level {GRID_LEVEL}",
                "versions": lines[-1]["versions"] if lines else None,
                "cpu_seconds": round(sum(one["seconds"] for one in lines)),
            }
    (HERE / "data" / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    for name, one in record.items():
        print(f"{name}: {one['structures']} structures")


def frame(name, line):
    """One result as an ASE structure with its labels."""
    numbers = ase.Atoms(line["symbols"]).numbers
    atoms = ase.Atoms(numbers, line["positions"])
    labels = {key: line[key] for key in ("energy", "forces", "charges", "dipole")}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    atoms.info |= {"total_charge": line["total_charge"], "set": name, "number": line["number"]}
    if name.endswith("curve"):
        atoms.info["distance"] = float(CURVE[line["number"]])
    return atoms


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("label", help="label structures of a set")
    one.add_argument("set", choices=SETS)
    one.add_argument("count", type=int)
    commands.add_parser("pack", help="write data/")
    chosen = parser.parse_args()
    pack() if chosen.command == "pack" else extend(chosen.set, chosen.count)


if __name__ == "__main__":
    main()
