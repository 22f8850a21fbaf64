"""Particle-mesh Ewald sums beside torch-pme and JAX-MD: energy and forces of rock salt by size.

Rock salt with random displacements and charges of ±1 e, float32, one pinned core. The cutoff is the
same for all; splitting and mesh of each code are the cheapest found on 1000 atoms, of those
whose forces are at least as close to a converged Ewald sum as those of our plan. Neighbor lists are
given and not in the times, which are processor times, the least of some calls. Cells are cubic, as
JAX-MD needs them.

    python benchmarks/peers/coulomb.py --torch-pme /path/to/python --repeats 5 11 23

The interpreter needs torch-pme 0.5 and torch, this one the members of `requirements.txt` and
jax-md.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CUTOFF, ACCURACY, CALLS = 6.0, 1e-2, 5  # Å, eV/Å
COULOMB = 14.399645  # eV Å/e²
TUNED_ON = 5  # cells along each edge: 1000 atoms


def rock_salt(repeats):
    """Positions (Å), charges (e) and edge (Å)."""
    import ase.build

    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(repeats)
    atoms.rattle(0.1, seed=0)
    charges = np.where(atoms.numbers == 11, 1.0, -1.0)
    return atoms.get_positions(wrap=True), charges, 5.64 * repeats


def fastest(call):
    """Least processor time of some calls after the first, and the result."""
    result, times = call(), []
    for _ in range(CALLS):
        began = time.process_time()
        result = call()
        times.append(time.process_time() - began)
    return min(times), result


def error(forces, truth):
    """Root mean square error of a force vector, eV/Å."""
    return float(np.sqrt(np.mean(np.sum((forces - truth) ** 2, axis=1))))


def of_torch_pme(folder):
    """Run by the other interpreter: time and forces for every setting in a file."""
    torch, torchpme = map(importlib.import_module, ("torch", "torchpme"))

    torch.set_num_threads(1)
    settings = json.loads((folder / "settings.json").read_text())
    given = np.load(folder / "system.npz")
    real = torch.float32
    charges = torch.tensor(given["charges"], dtype=real)[:, None]
    cell = torch.eye(3, dtype=real) * float(given["edge"])
    pairs = torch.tensor(given["pairs"])
    shifts = torch.tensor(given["shifts"], dtype=real) @ cell
    found = []
    for smearing, spacing, nodes in settings:
        potential = torchpme.CoulombPotential(smearing=smearing)
        calculator = torchpme.PMECalculator(
            potential, mesh_spacing=spacing, interpolation_nodes=nodes
        ).to(dtype=real)

        def call(calculator=calculator):
            positions = torch.tensor(given["positions"], dtype=real, requires_grad=True)
            vectors = positions[pairs[:, 1]] - positions[pairs[:, 0]] + shifts
            distances = torch.linalg.norm(vectors, dim=1)
            potentials = calculator(charges, cell, positions, pairs, distances)
            # potentials are halved: their sum with charges is the energy
            energy = COULOMB * torch.sum(potentials * charges)
            energy.backward()
            return -positions.grad.numpy()  # pyright: ignore

        seconds, forces = fastest(call)
        found.append({"seconds": seconds, "forces": forces.tolist()})
    (folder / "found.json").write_text(json.dumps(found))


def torch_pme(python, repeats, settings, edges):
    """Times and forces of torch-pme for some settings."""
    positions, charges, edge = rock_salt(repeats)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "system.npz", positions=positions, charges=charges, edge=edge, **edges)
        (folder / "settings.json").write_text(json.dumps(settings))
        subprocess.run([python, __file__, "--inside", name], check=True)
        found = json.loads((folder / "found.json").read_text())
    return [(one["seconds"], np.array(one["forces"])) for one in found]


def of_jax_md(repeats, settings):
    """Times and forces of JAX-MD for some settings ``(alpha, mesh points)``."""
    import jax
    import jax.numpy as jnp
    from jax_md import partition, space
    from jax_md._energy import electrostatics

    positions, charges, edge = rock_salt(repeats)
    displacement, _ = space.periodic(edge)
    q = jnp.asarray(charges, jnp.float32)
    place = jnp.asarray(positions, jnp.float32)
    found = []
    for alpha, points in settings:
        neighbor_fn, direct = electrostatics.coulomb_direct_neighbor_list(
            displacement, edge, q, alpha=alpha, cutoff=CUTOFF, dr_threshold=0.0,
            format=partition.Dense,
        )  # fmt: skip
        wave = electrostatics.coulomb_recip_pme(q, np.float32(edge), points, alpha=alpha)
        neighbors = neighbor_fn.allocate(place)
        force = jax.jit(
            jax.grad(
                lambda r, n, direct=direct, wave=wave: -COULOMB * (direct(r, neighbor=n) + wave(r))
            )
        )
        seconds, forces = fastest(
            lambda force=force, n=neighbors: force(place, n).block_until_ready()
        )
        found.append((seconds, np.asarray(forces, float)))
    return found


def ours(repeats, plan, precise=False):
    """Time and forces of our sum, and half of the pairs within the cutoff."""
    import jax
    import jax.numpy as jnp

    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.potentials import evaluate
    from mosaicmd.kernel.systems import make_system
    from mosaicmd.qeq_longrange import CoulombConfig, coulomb

    positions, charges, edge = rock_salt(repeats)
    species = np.where(charges > 0, 11, 17)
    dtype = "float64" if precise else "float32"
    system = make_system(
        positions, species, cell=edge * np.eye(3), charges=charges, dtype=jnp.dtype(dtype)
    )
    graph = host_graph(system, plan.cutoff)
    potential = coulomb(CoulombConfig(plan=plan))
    force = jax.jit(lambda s, g: evaluate(potential.energy, {}, s, g).forces)
    seconds, forces = fastest(lambda: force(system, graph).block_until_ready())
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    shifts = np.asarray(graph.shifts)
    first = (senders < receivers) | ((senders == receivers) & (shifts @ [9.0, 3.0, 1.0] > 0))
    edges = {
        "pairs": np.stack([receivers, senders], axis=1)[first],
        "shifts": shifts[first],
    }
    return seconds, np.asarray(forces, float), edges


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--torch-pme", help="Python interpreter with torch-pme")
    parser.add_argument("--repeats", type=int, nargs="+", default=[5, 11, 23])
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        of_torch_pme(chosen.inside)
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    from mosaicmd.kernel.systems import make_system
    from mosaicmd.qeq_longrange import plan_coulomb

    def planned(repeats, **options):
        positions, charges, edge = rock_salt(repeats)
        system = make_system(
            positions, np.where(charges > 0, 11, 17), cell=edge * np.eye(3), charges=charges
        )
        return plan_coulomb(system, **options)

    def pme(repeats):
        return planned(repeats, accuracy=ACCURACY, method="pme", cutoff=CUTOFF)

    _, truth, _ = ours(TUNED_ON, planned(TUNED_ON, accuracy=1e-7, method="ewald"), precise=True)
    _, forces, edges = ours(TUNED_ON, pme(TUNED_ON))
    limit = error(forces, truth)
    print(f"our error {limit:.2e} eV/Å with {pme(TUNED_ON)}", flush=True)
    alpha = pme(TUNED_ON).splitting
    edge = 5.64 * TUNED_ON
    best = {}
    if chosen.torch_pme:
        settings = [
            (1.0 / (np.sqrt(2.0) * a), edge / n, nodes)
            for a in (alpha, 1.03 * alpha)
            for n in (16, 24, 32, 48)
            for nodes in (4, 5, 6, 7)
        ]
        found = torch_pme(chosen.torch_pme, TUNED_ON, settings, edges)
        best["torch-pme"] = cheapest(settings, found, truth, limit)
    settings = [(a, n) for a in (alpha, 1.03 * alpha) for n in (24, 32, 48, 64)]
    best["JAX-MD"] = cheapest(settings, of_jax_md(TUNED_ON, settings), truth, limit)
    for repeats in chosen.repeats:
        seconds, forces, edges = ours(repeats, pme(repeats))
        row = {"atoms": 8 * repeats**3, "MosaicMD": seconds}
        for name, setting in best.items():
            if setting is None:
                continue
            if name == "torch-pme":
                ((row[name], other),) = torch_pme(chosen.torch_pme, repeats, [setting], edges)
            else:
                a, n = setting
                points = round(n * repeats / TUNED_ON)
                ((row[name], other),) = of_jax_md(repeats, [(a, points)])
            row[f"{name} differs by"] = error(other, forces)
        print(json.dumps(row), flush=True)


def cheapest(settings, found, truth, limit):
    """The fastest setting whose forces are not worse than the limit."""
    rows = [
        (seconds, setting, error(forces, truth))
        for setting, (seconds, forces) in zip(settings, found, strict=True)
    ]
    good = [row for row in rows if row[2] <= 1.05 * limit]
    if not good:
        print(f"none of {len(rows)} is as accurate; the best is {min(rows, key=lambda r: r[2])}")
        return None
    seconds, setting, off = min(good)
    print(f"{setting}: {1e3 * seconds:.1f} ms, error {off:.2e} eV/Å", flush=True)
    return setting


if __name__ == "__main__":
    sys.exit(main())
