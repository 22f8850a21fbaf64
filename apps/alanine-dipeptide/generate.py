"""Simulate alanine dipeptide in explicit water and keep positions and forces of the peptide.

`python generate.py run --out DIR --replica K --ns N` simulates one replica: AMBER ff99SB-ILDN in
TIP3P water at 300 K, built here from bond lengths and angles, equilibrated at 1 bar, then sampled
at the volume found. It writes numbered pieces, each with the state that it ended in, so that a run
may be killed at any time: the same command goes on. It needs OpenMM and NumPy alone.

`python generate.py collect DIR...` maps all replicas to ten beads, the heavy atoms, and writes
`data/reference-*.npz` (small files of whole numbers and float16, no pickles) and
`data/reference.json`, which says how they were made. It needs `mosaicmd-difftre` besides.

References:
    Lindorff-Larsen et al., Proteins 78, 1950 (2010): ff99SB-ILDN.
    Jorgensen et al., J. Chem. Phys. 79, 926 (1983): TIP3P.
    Zhang et al., J. Phys. Chem. A 123, 6056 (2019): the integrator.
"""

import argparse
import io
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

KELVIN, FRICTION_PER_PS, TIMESTEP_FS = 300.0, 1.0, 4.0
HYDROGEN_MASS, N_WATERS, CUTOFF_NM = 1.5, 700, 0.9
STEPS_PER_FRAME = 250  # 1 ps
NPT_STEPS, NVT_STEPS = 15_000, 10_000  # equilibration: 60 and 40 ps
FRAMES_PER_FILE = 7000  # keeps each below one MiB
FRAMES_PER_PIECE, SECONDS_PER_PIECE = 500, 30.0
SEED = 20_260
# settings that may differ: all replicas sample the same ensemble
OF_REPLICA = ("replica", "seed", "start_degrees", "platform", "threads", "versions")
OF_REPLICA += ("platform_properties",)
STARTS = ((-75.0, 145.0), (-65.0, -40.0), (-150.0, 155.0))  # phi, psi of replicas, in turn

# residue, name, element, then bond, angle and dihedral (Å, degrees) to three earlier atoms
Z_MATRIX: Any = (
    ("ACE", "CH3", "C", None),
    ("ACE", "C", "C", ("CH3", 1.52)),
    ("ACE", "H1", "H", ("CH3", 1.09, "C", 109.5)),
    ("ACE", "H2", "H", ("CH3", 1.09, "C", 109.5, "H1", 120.0)),
    ("ACE", "H3", "H", ("CH3", 1.09, "C", 109.5, "H1", -120.0)),
    ("ACE", "O", "O", ("C", 1.23, "CH3", 120.5, "H1", 0.0)),
    ("ALA", "N", "N", ("ACE:C", 1.335, "ACE:CH3", 116.5, "ACE:H1", 180.0)),
    ("ALA", "H", "H", ("N", 1.01, "ACE:C", 119.0, "ACE:CH3", 0.0)),
    ("ALA", "CA", "C", ("N", 1.45, "ACE:C", 122.0, "ACE:CH3", 180.0)),
    ("ALA", "C", "C", ("CA", 1.525, "N", 111.0, "ACE:C", "phi")),
    ("ALA", "CB", "C", ("CA", 1.53, "N", 110.0, "C", -122.0)),
    ("ALA", "HA", "H", ("CA", 1.09, "N", 109.0, "C", 118.0)),
    ("ALA", "HB1", "H", ("CB", 1.09, "CA", 109.5, "N", 60.0)),
    ("ALA", "HB2", "H", ("CB", 1.09, "CA", 109.5, "N", 180.0)),
    ("ALA", "HB3", "H", ("CB", 1.09, "CA", 109.5, "N", -60.0)),
    ("NME", "N", "N", ("ALA:C", 1.335, "ALA:CA", 116.5, "ALA:N", "psi")),
    ("ALA", "O", "O", ("C", 1.23, "CA", 120.5, "NME:N", 180.0)),
    ("NME", "H", "H", ("N", 1.01, "ALA:C", 119.0, "ALA:CA", 0.0)),
    ("NME", "C", "C", ("N", 1.45, "ALA:C", 122.0, "ALA:CA", 180.0)),
    ("NME", "H1", "H", ("C", 1.09, "N", 109.5, "ALA:C", 60.0)),
    ("NME", "H2", "H", ("C", 1.09, "N", 109.5, "ALA:C", 180.0)),
    ("NME", "H3", "H", ("C", 1.09, "N", 109.5, "ALA:C", -60.0)),
)
ATOMS = tuple(
    sorted((row[:3] for row in Z_MATRIX), key=lambda a: ("ACE", "ALA", "NME").index(a[0]))
)
NAMES = tuple(f"{residue}:{name}" for residue, name, _ in ATOMS)

BEADS = (
    "ACE:CH3", "ACE:C", "ACE:O", "ALA:N", "ALA:CA", "ALA:CB", "ALA:C", "ALA:O", "NME:N", "NME:C",
)  # fmt: skip


def bonds():
    """Pairs of names of the bonded atoms of the peptide: those the Z-matrix measures from."""
    pairs = []
    for residue, name, _, terms in Z_MATRIX:
        if terms is not None:
            other = terms[0] if ":" in terms[0] else f"{residue}:{terms[0]}"
            pairs.append((other, f"{residue}:{name}"))
    return pairs


def peptide(phi, psi):
    """Positions of the 22 atoms, `[22, 3]`, Å, at the given dihedrals (degrees)."""
    place = {}
    for residue, name, _, terms in Z_MATRIX:
        key = f"{residue}:{name}"
        if terms is None:
            place[key] = np.zeros(3)
            continue
        near = [place[one if ":" in one else f"{residue}:{one}"] for one in terms[0::2]]
        bond, *turns = [{"phi": phi, "psi": psi}.get(one, one) for one in terms[1::2]]
        angle, dihedral = np.radians([*turns, 0.0, 0.0][:2])
        if len(near) == 1:
            place[key] = near[0] + [bond, 0.0, 0.0]
            continue
        axis = near[0] - near[1]
        axis /= np.linalg.norm(axis)
        far = near[2] - near[1] if len(near) == 3 else np.array([0.0, 1.0, 0.0])
        side = far - axis * (far @ axis)
        side /= np.linalg.norm(side)
        up = np.cross(axis, side)
        direction = np.cos(dihedral) * side + np.sin(dihedral) * up
        place[key] = near[0] + bond * (np.sin(angle) * direction - np.cos(angle) * axis)
    return np.array([place[name] for name in NAMES])


def write(path, **arrays):
    """An `npz` that is there in full or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    scratch = path.with_name(path.name + ".part")
    with scratch.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def libraries() -> tuple[Any, Any]:
    """OpenMM and its application layer, which `collect` does without."""
    import openmm  # pyright: ignore[reportMissingImports]
    import openmm.app  # pyright: ignore[reportMissingImports]

    return openmm, openmm.app


def solvated(replica):
    """Topology, positions and force field of the peptide in its box of water."""
    openmm, app = libraries()
    topology, atoms, residues = app.Topology(), {}, {}
    chain = topology.addChain()
    for (residue, name, symbol), key in zip(ATOMS, NAMES, strict=True):
        if residue not in residues:
            residues[residue] = topology.addResidue(residue, chain)
        element = app.Element.getBySymbol(symbol)
        atoms[key] = topology.addAtom(name, element, residues[residue])
    for one, other in bonds():
        topology.addBond(atoms[one], atoms[other])
    positions = [openmm.Vec3(*row) for row in 0.1 * peptide(*STARTS[replica % len(STARTS)])]
    force_field = app.ForceField("amber99sbildn.xml", "tip3p.xml")
    modeller = app.Modeller(topology, positions * openmm.unit.nanometer)
    modeller.addSolvent(force_field, model="tip3p", numAdded=N_WATERS)
    return modeller.topology, modeller.positions, force_field


def simulation(settings, box=None):
    """A new OpenMM simulation; with the box vectors (nm) of the ensemble NVT, else NPT."""
    openmm, app = libraries()
    topology, positions, force_field = solvated(settings["replica"])
    if box is not None:
        topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in box] * openmm.unit.nanometer)
    system = force_field.createSystem(
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=CUTOFF_NM,
        constraints=app.HBonds,
        hydrogenMass=HYDROGEN_MASS,
        removeCMMotion=False,
    )
    seed = SEED + 10 * settings["replica"]
    if box is None:
        barostat = openmm.MonteCarloBarostat(1.0, KELVIN)
        barostat.setRandomNumberSeed(seed + 1)
        system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(KELVIN, FRICTION_PER_PS, 1e-3 * TIMESTEP_FS)
    integrator.setRandomNumberSeed(seed + (2 if box is None else 3))
    chosen = openmm.Platform.getPlatformByName(settings["platform"])
    properties = {"CUDA": {"Precision": "mixed"}, "CPU": {"Threads": str(settings["threads"])}}
    sim = app.Simulation(
        topology, system, integrator, chosen, properties.get(settings["platform"], {})
    )
    sim.context.setPositions(positions)
    return sim


def equilibrate(settings):
    """Box vectors (nm) and the simulation in them, ready to sample."""
    sim = simulation(settings)
    sim.minimizeEnergy(maxIterations=500)
    sim.context.setVelocitiesToTemperature(KELVIN, SEED + 10 * settings["replica"])
    lengths = []
    for part in range(60):
        sim.integrator.step(NPT_STEPS // 60)
        if part >= 30:
            lengths.append(sim.context.getState().getPeriodicBoxVolume()._value ** (1.0 / 3.0))
    state = sim.context.getState(positions=True, velocities=True)
    scale = np.mean(lengths) / lengths[-1]
    vectors = np.array([list(row) for row in state.getPeriodicBoxVectors()._value])
    box = scale * vectors
    velocities = state.getVelocities(asNumpy=True)
    centred = state.getPositions(asNumpy=True)._value
    # molecules move apart as a whole, as with the barostat
    for residue in sim.topology.residues():
        if residue.name == "HOH":
            rows = [atom.index for atom in residue.atoms()]
            centred[rows] += (scale - 1.0) * centred[rows].mean(axis=0)
    peptide_rows = slice(len(ATOMS))
    centred[peptide_rows] += (scale - 1.0) * centred[peptide_rows].mean(axis=0)
    del sim
    sim = simulation(settings, box)
    sim.context.setPositions(centred)
    sim.context.setVelocities(velocities)
    sim.integrator.step(NVT_STEPS)
    return box, sim


def pieces(folder):
    """Finished pieces of a replica, in order."""
    found = sorted(folder.glob("piece-*.npz"))
    if [int(path.stem[6:]) for path in found] != list(range(len(found))):
        raise SystemExit(f"pieces are missing in {folder}: {[path.name for path in found]}")
    return found


def run(options):
    """One replica, from its last piece on."""
    openmm, _ = libraries()
    started = time.monotonic()
    folder = Path(options.out) / f"replica-{options.replica}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "replica": options.replica,
        "platform": options.platform,
        "threads": options.threads,
        "seed": SEED + 10 * options.replica,
        "start_degrees": STARTS[options.replica % len(STARTS)],
        "temperature_kelvin": KELVIN,
        "timestep_fs": TIMESTEP_FS,
        "friction_per_ps": FRICTION_PER_PS,
        "hydrogen_mass_u": HYDROGEN_MASS,
        "n_waters": N_WATERS,
        "cutoff_nm": CUTOFF_NM,
        "steps_per_frame": STEPS_PER_FRAME,
        "equilibration_ps": [1e-3 * TIMESTEP_FS * n for n in (NPT_STEPS, NVT_STEPS)],
        "force_field": ["amber99sbildn.xml", "tip3p.xml"],
        "versions": {
            "openmm": openmm.version.version,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    goal = round(1e6 * options.ns / (STEPS_PER_FRAME * TIMESTEP_FS))
    done = pieces(folder)
    if done:
        earlier = json.loads((folder / "settings.json").read_text())
        changed = {k for k in settings if earlier[k] != json.loads(json.dumps(settings[k]))}
        if changed:
            raise SystemExit(
                f"{folder} was begun with other {sorted(changed)}; go on as it was begun, or "
                "choose another --out"
            )
        with np.load(done[-1]) as last:
            count, box = int(last["first"]) + len(last["positions"]), last["box"]
            state = last["checkpoint"].tobytes()
        sim = simulation(settings, box)
        try:
            sim.context.loadCheckpoint(state)
        except openmm.OpenMMException as error:
            raise SystemExit(
                f"{done[-1]} does not load here ({error}): a run goes on only on the kind of "
                "machine that it was begun on. Choose another --out, and collect both."
            ) from error
    else:
        box, sim = equilibrate(settings)
        context = sim.context
        names = context.getPlatform().getPropertyNames()
        found = {n: context.getPlatform().getPropertyValue(context, n) for n in names}
        text = json.dumps(settings | {"platform_properties": found}, indent=1)
        (folder / "settings.json").write_text(text + "\n")
        empty = np.zeros((0, len(ATOMS), 3), np.float32)
        save(folder, 0, box, sim, empty, empty, 0)
        count = 0
    print(
        f"replica {options.replica}: {count} of {goal} frames, set up in "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    sample(sim, folder, box, count, goal, options, started)


def sample(sim, folder, box, count, goal, options, started):
    """Frames until the goal or the time limit; times are wall-clock seconds."""
    n = len(ATOMS)
    number = len(pieces(folder))
    positions, forces = [], []
    begun = last = time.monotonic()
    first = begun_at = count
    while count < goal:
        sim.integrator.step(STEPS_PER_FRAME)
        state = sim.context.getState(positions=True, forces=True)
        place = state.getPositions(asNumpy=True)._value[:n]
        positions.append((10.0 * (place - place.mean(axis=0))).astype(np.float32))
        forces.append(state.getForces(asNumpy=True)._value[:n].astype(np.float32))
        count += 1
        now = time.monotonic()
        over = options.max_seconds is not None and now - started > options.max_seconds
        full = len(positions) == FRAMES_PER_PIECE or now - last > SECONDS_PER_PIECE
        if over or full or count == goal:
            save(folder, number, box, sim, np.array(positions), np.array(forces), first)
            ns = 1e-6 * TIMESTEP_FS * STEPS_PER_FRAME * (count - begun_at)
            speed = 86400.0 * ns / (now - begun)
            print(
                f"replica {options.replica}: {count} of {goal} frames, {speed:.0f} ns/day",
                flush=True,
            )
            number, first, last = number + 1, count, now
            positions, forces = [], []
        if over:
            print(f"replica {options.replica}: stopped by --max-seconds", flush=True)
            return


def save(folder, number, box, sim, positions, forces, first):
    """One piece: frames from `first` on (Å, kJ/mol/nm) and the state after them."""
    write(
        folder / f"piece-{number:05d}.npz",
        positions=positions,
        forces=forces,
        first=np.int64(first),
        box=box,
        checkpoint=np.frombuffer(sim.context.createCheckpoint(), np.uint8),
    )


def collect(options):
    """Beads and their forces of all replicas, as small files."""
    from mosaicmd.difftre import aggregate_forces, basic_force_map
    from mosaicmd.kernel import units

    heavy = [NAMES.index(name) for name in BEADS]
    pairs = [(NAMES.index(one), NAMES.index(other)) for one, other in bonds()]
    held = [pair for pair in pairs if any(ATOMS[atom][2] == "H" for atom in pair)]
    to_beads = basic_force_map(heavy, len(ATOMS), held)
    folders = [f for one in options.folders for f in sorted(Path(one).glob("replica-*"))]
    if not folders:
        raise SystemExit(f"there are no replicas in {options.folders}")
    owns, shared = [], {}
    for folder in folders:
        settings = json.loads((folder / "settings.json").read_text())
        owns.append({name: settings.pop(name) for name in OF_REPLICA})
        shared = shared or settings
        if settings != shared:
            names = sorted(settings.keys() | shared.keys())
            other = [name for name in names if settings.get(name) != shared.get(name)]
            raise SystemExit(f"{folder} has other {other} than {folders[0]}: collect them apart")
    target = Path(options.to)
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("reference-*.npz"):
        old.unlink()
    record = []
    for number, (folder, own) in enumerate(zip(folders, owns, strict=True)):
        loaded = []
        for path in pieces(folder):
            with np.load(path) as piece:
                loaded.append((piece["positions"][:, heavy], piece["forces"]))
                volume = float(np.linalg.det(piece["box"]))
        positions = np.concatenate([one for one, _ in loaded]).astype(float)
        forces = np.concatenate([one for _, one in loaded]) * (units.KJ_PER_MOL / units.NANOMETER)
        mapped = aggregate_forces(to_beads, forces)
        positions -= positions.mean(axis=1, keepdims=True)
        record.append(own | {"n_frames": len(positions), "volume_nm3": volume})
        for part, first in enumerate(range(0, len(positions), FRAMES_PER_FILE)):
            chosen = slice(first, first + FRAMES_PER_FILE)
            np.savez_compressed(
                target / f"reference-{number:02d}-{part}.npz",
                position_milliangstrom=np.round(1e3 * positions[chosen]).astype(np.int16),
                force=mapped[chosen].astype(np.float16),
            )
    command = "python generate.py run --platform PLATFORM --replica REPLICA"
    text = {"command": command, "beads": BEADS, "replicas": record, "settings": shared}
    (target / "reference.json").write_text(json.dumps(text, indent=1) + "\n")
    total = 1e-3 * sum(one["n_frames"] for one in record)
    print(f"{len(record)} replicas, {total:g} ns, in {target}")


def main():
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="simulate one replica, or go on with it")
    one.add_argument("--out", required=True, help="folder of all replicas")
    one.add_argument("--replica", type=int, default=0, help="number of this one: start and seed")
    one.add_argument("--ns", type=float, default=2.0, help="length of this replica")
    one.add_argument("--platform", default="CPU", choices=["CUDA", "OpenCL", "CPU", "Reference"])
    one.add_argument("--threads", type=int, default=1, help="on the platform CPU")
    one.add_argument("--max-seconds", type=float, help="stop after this wall-clock time")
    all_of = commands.add_parser("collect", help="write the beads of all replicas to data/")
    all_of.add_argument("folders", nargs="+", help="each is the --out of runs")
    all_of.add_argument("--to", default=str(Path(__file__).with_name("data")), help="folder")
    options = parser.parse_args()
    {"run": run, "collect": collect}[options.command](options)


if __name__ == "__main__":
    main()
