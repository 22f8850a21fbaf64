"""MACE and NequIP beside the codes of their authors: energy with forces, and training steps.

Those codes need versions of e3nn that exclude each other, so each runs in an environment of
its own, by turns with ours, on one core in float32::

    python -m venv mace && mace/bin/pip install torch==2.13.0 mace-torch==0.3.16 matscipy
    python -m venv nequip && nequip/bin/pip install torch==2.13.0 nequip==0.6.2
    python benchmarks/peers/equivariant.py mace/bin/python nequip/bin/python

The work is 216 atoms of silicon within 5 Å, displaced at random; sizes are those that the
table names, everything else is each code's default.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

CUTOFF, REPEATS = 5.0, 6
CASES: dict[str, dict[str, Any]] = {
    "MACE, 128x0e": {"model": "mace", "n_channels": 128, "hidden_l_max": 0},
    "MACE, 64x0e + 64x1o": {"model": "mace", "n_channels": 64, "hidden_l_max": 1},
    "NequIP, 32 features, l = 1, 4 layers": {"model": "nequip"},
}


def silicon():
    import ase.build

    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True).repeat(3)
    atoms.rattle(0.05, seed=0)
    return atoms


def ours(case):
    import jax
    import jax.numpy as jnp

    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.potentials import build_potential, evaluate
    from mosaicmd.kernel.systems import from_ase

    settings = {"species": [14], "cutoff": CUTOFF, "mean_neighbors": 28.0}
    settings |= {name: value for name, value in case.items() if name != "model"}
    potential = build_potential(case["model"], settings)
    system = from_ase(silicon(), dtype=jnp.float32)
    graph = host_graph(system, CUTOFF)
    args = (jax.tree.map(jnp.float32, potential.init(jax.random.key(0))), system, graph)

    def loss(*args):
        found = evaluate(potential.energy, *args)
        return 1e-4 * found.energy**2 + jnp.sum((found.forces - 0.1) ** 2)

    forces = jax.jit(lambda *args: evaluate(potential.energy, *args))
    training = jax.jit(jax.value_and_grad(loss))
    return timed(
        lambda: jax.block_until_ready(forces(*args)),
        lambda: jax.block_until_ready(training(*args)),
    )


def mace_torch(case):
    torch = torch_of_one_thread()
    o3, modules = (importlib.import_module(name) for name in ("e3nn.o3", "mace.modules"))
    neighbors = importlib.import_module("matscipy.neighbours")
    width = case["n_channels"]
    hidden = "+".join(f"{width}x{l}{'eo'[l % 2]}" for l in range(case["hidden_l_max"] + 1))
    blocks = modules.interaction_classes
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=1,
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(1),
        avg_num_neighbors=28.0,
        atomic_numbers=[14],
        correlation=3,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    atoms = silicon()
    i, j, shifts = neighbors.neighbour_list("ijS", atoms, CUTOFF)
    n = len(atoms)
    data = {
        "positions": torch.tensor(atoms.positions, dtype=torch.float32),
        "node_attrs": torch.ones(n, 1),
        "edge_index": torch.tensor(np.stack([i, j]), dtype=torch.long),
        "shifts": torch.tensor(shifts @ atoms.cell.array, dtype=torch.float32),
        "unit_shifts": torch.tensor(shifts, dtype=torch.float32),
        "cell": torch.tensor(atoms.cell.array, dtype=torch.float32),
        "batch": torch.zeros(n, dtype=torch.long),
        "ptr": torch.tensor([0, n]),
        "head": torch.zeros(1, dtype=torch.long),
    }

    def training():
        model.zero_grad()
        found = model(dict(data), training=True, compute_force=True)
        loss(found["energy"], found["forces"]).backward()

    return timed(lambda: model(dict(data), training=False, compute_force=True), training)


def nequip(case):
    del case
    torch = torch_of_one_thread()
    config = importlib.import_module("nequip.utils").Config
    models = importlib.import_module("nequip.model")
    lists = importlib.import_module("ase.neighborlist")
    # the published defaults, which are ours as well
    settings = config.from_dict(
        {
            "r_max": CUTOFF,
            "num_layers": 4,
            "l_max": 1,
            "parity": True,
            "num_features": 32,
            "num_basis": 8,
            "BesselBasis_trainable": True,
            "PolynomialCutoff_p": 6,
            "invariant_layers": 2,
            "invariant_neurons": 64,
            "avg_num_neighbors": 28.0,
            "use_sc": True,
            "nonlinearity_type": "gate",
            "nonlinearity_scalars": {"e": "silu", "o": "tanh"},
            "nonlinearity_gates": {"e": "silu", "o": "tanh"},
            "resnet": False,
            "num_types": 1,
            "type_names": ["Si"],
            "model_dtype": "float32",
        }
    )
    models.SimpleIrrepsConfig(settings)
    model = models.ForceOutput(models.EnergyModel(settings, initialize=False, dataset=None))
    atoms = silicon()
    i, j, shifts = lists.neighbor_list("ijS", atoms, CUTOFF)

    def data():
        return {
            "pos": torch.tensor(atoms.positions, dtype=torch.float32),
            "edge_index": torch.tensor(np.stack([i, j])),
            "edge_cell_shift": torch.tensor(shifts, dtype=torch.float32),
            "cell": torch.tensor(atoms.cell.array, dtype=torch.float32),
            "atom_types": torch.zeros(len(atoms), dtype=torch.long),
        }

    def forces():
        model.eval()
        model(data())

    def training():
        model.train()
        model.zero_grad()
        found = model(data())
        loss(found["total_energy"], found["forces"]).backward()

    return timed(forces, training)


def torch_of_one_thread():
    torch = importlib.import_module("torch")
    torch.serialization.add_safe_globals([slice])  # e3nn loads its own constants
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    return torch


def loss(energy, forces):
    return 1e-4 * energy.sum() ** 2 + ((forces - 0.1) ** 2).sum()


def timed(forces, training):
    """Seconds: the best of some calls, and what the first took longer."""
    found = {}
    for name, function in (("forces", forces), ("training", training)):
        times = []
        for _ in range(REPEATS + 2):  # torch compiles in the first two
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        found[name] = min(times[2:])
        found[f"{name}_compile"] = times[0] - found[name]
    return found


def measured(python, side, name):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    environment["OMP_NUM_THREADS"] = "1"
    command = [python, __file__, "--worker", side, name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(pythons):
    print("| model | implementation | energy and forces / s | training step / s | compiling / s |")
    print("| --- | --- | ---: | ---: | ---: |")
    peers = {"mace": ("mace-torch", pythons[0]), "nequip": ("nequip", pythons[1])}
    for name, case in CASES.items():
        ratio = None
        for side, python in (("MosaicMD", sys.executable), peers[case["model"]]):
            found = measured(python, side, name)
            times = [found["forces"], found["training"]]
            cells = [f"{one:.3f}" for one in times]
            if ratio is not None:
                cells = [
                    f"{c} ({t / r:.1f} x)" for c, t, r in zip(cells, times, ratio, strict=True)
                ]
            ratio = times
            compiling = f"{found['forces_compile']:.1f}, {found['training_compile']:.1f}"
            print(f"| {name} | {side} | {' | '.join(cells)} | {compiling} |", flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    match sys.argv[1:]:
        case ["--worker", side, name]:
            sides = {"MosaicMD": ours, "mace-torch": mace_torch, "nequip": nequip}
            print(json.dumps(sides[side](CASES[name])))
        case [_, _]:
            main(sys.argv[1:])
        case _:
            raise SystemExit(f"usage: {sys.argv[0]} PYTHON_WITH_MACE PYTHON_WITH_NEQUIP")
