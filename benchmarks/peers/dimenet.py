"""DimeNet++ beside chemtrain's: energy with forces, and training steps, on one core in float32.

chemtrain 0.2.0 asks for a JAX of its own, so it runs in an environment of its own, by turns with
ours and on the same core::

    python -m venv peer && peer/bin/pip install chemtrain==0.2.0
    python benchmarks/peers/dimenet.py peer/bin/python

Both have the sizes that the authors of chemtrain use for coarse-grained water (32 features), and
as many edges and triplets as there are: capacities of chemtrain are set to these numbers, our
graph is that of data sets, and for diamond we say that atoms have four neighbors. Simulations
pay on top of it for the skin of their neighbor lists. On a GPU, `gpu.py` measures both with one
JAX.
"""

import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FEATURES, REPEATS = 32, 5
CUTOFFS = {"water": (5.0, None), "diamond": (2.0, 4)}  # Å, and most neighbors
CASES = {"water": 901, **{f"diamond {n}": n for n in (64, 216, 1000, 10648)}}  # atoms


def water(n_atoms):
    """Up to 1000 beads of mW water at 298 K and 0.998 g/cm³, after 10 ps from a lattice."""
    import jax
    import jax.numpy as jnp

    from mosaicmd.gnn_models import stillinger_weber
    from mosaicmd.kernel import units
    from mosaicmd.kernel.integrators import langevin
    from mosaicmd.kernel.simulation import Simulation
    from mosaicmd.kernel.systems import make_system

    rng = np.random.default_rng(0)
    sites = np.stack(np.meshgrid(*[np.arange(10)] * 3), axis=-1).reshape(-1, 3) * 3.0 + 1.5
    positions = rng.permutation(sites)[:n_atoms] + rng.normal(scale=0.05, size=(n_atoms, 3))
    system = make_system(positions, 8, cell=30.0, masses=18.015).astype(jnp.float32)
    epsilon = 6.189 * units.KCAL_PER_MOL
    model = stillinger_weber(epsilon=epsilon, sigma=2.3925, strength=23.15)
    params = jax.tree.map(jnp.float32, model.init(jax.random.key(0)))
    dynamics = langevin(
        5.0 * units.FEMTOSECOND, 1.0 / (500.0 * units.FEMTOSECOND), 298.0 * units.KELVIN
    )
    simulation = Simulation(model.energy, dynamics, cutoff=model.cutoff, every=2000)
    state = simulation.start(jax.random.key(0), params, system)
    state, _ = simulation.run(params, state, 2000)
    return np.asarray(state.md.system.positions) % 30.0, 30.0


def diamond(n_atoms):
    """Displaced at random by 0.05 Å per direction."""
    rng, repeats = np.random.default_rng(0), round((n_atoms / 8) ** (1 / 3))
    face = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0]])
    basis = np.concatenate([face, face + 1]) / 4.0
    origins = np.stack(np.meshgrid(*[np.arange(repeats)] * 3), axis=-1).reshape(-1, 1, 3)
    positions = 3.567 * (origins + basis).reshape(-1, 3)
    return positions + rng.normal(scale=0.05, size=positions.shape), repeats * 3.567


def ours(positions, box, cutoff, most_neighbors):
    import jax
    import jax.numpy as jnp

    from mosaicmd.gnn_models import DimeNetConfig, dimenet
    from mosaicmd.kernel.compilation import compiler_options
    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.potentials import evaluate
    from mosaicmd.kernel.systems import make_system

    config = DimeNetConfig(
        species=(6,),
        cutoff=cutoff,
        n_features=FEATURES,
        species_features=FEATURES // 2,
        most_neighbors=most_neighbors,
    )
    model = dimenet(config)
    system = make_system(positions, 6, cell=box, dtype=jnp.float32)
    graph = host_graph(system, cutoff, reverse=True)
    params = jax.tree.map(jnp.float32, model.init(jax.random.key(0)))
    args = (params, system, graph)

    def loss(*args):
        return jnp.mean(evaluate(model.energy, *args).forces ** 2)

    compiled = functools.partial(jax.jit, compiler_options=compiler_options())
    forces = compiled(lambda *args: evaluate(model.energy, *args))
    return {"edges": graph.n_edges}, forces, compiled(jax.value_and_grad(loss)), args


def chemtrain(positions, box, cutoff):
    """Numbers of edges and triplets, energy with forces, a training step, and their arguments."""
    import jax

    jax.random.KeyArray = jax.Array  # which it imports, and JAX 0.4.37 no longer has
    np.math = importlib.import_module("math")
    jnp = jax.numpy
    jax_md = importlib.import_module("jax_md")
    jax_md.nn.InitFn = None  # of its annotations, and not in jax-md 0.2.29
    haiku = importlib.import_module("haiku")
    networks = importlib.import_module("jax_md_mod.model.neural_networks")
    graphs = importlib.import_module("jax_md_mod.model.sparse_graph")

    displacement, _ = jax_md.space.periodic(box)
    few = len(positions) < 2000
    positions = jnp.asarray(positions, jnp.float32)
    lists = jax_md.partition.neighbor_list(
        displacement, box, cutoff, dr_threshold=0.0, capacity_multiplier=1.0, disable_cell_list=few
    )
    neighbors = lists.allocate(positions)
    found, _ = graphs.sparse_graph_from_neighborlist(displacement, positions, neighbors, cutoff)
    n_edges, n_triplets = int(found.n_edges), int(found.n_triplets)

    @haiku.without_apply_rng
    @haiku.transform
    def energy(positions):
        graph, _ = graphs.sparse_graph_from_neighborlist(
            displacement, positions, neighbors, cutoff, None, n_edges, n_triplets
        )
        model = networks.DimeNetPP(cutoff, 1, num_targets=1, embed_size=FEATURES)
        return jnp.sum(model(graph))

    params = energy.init(jax.random.PRNGKey(0), positions)

    def gradient(params, positions):
        return jax.value_and_grad(energy.apply, argnums=1)(params, positions)

    def loss(params, positions):
        return jnp.mean(gradient(params, positions)[1] ** 2)

    numbers = {"edges": n_edges, "triplets": n_triplets}
    return numbers, jax.jit(gradient), jax.jit(jax.value_and_grad(loss)), (params, positions)


def timed(numbers, forces, training, args):
    """Seconds of the core: the best of some calls, and what the first took longer; memory."""
    import jax

    found = dict(numbers)
    for name, function in (("forces", forces), ("training", training)):
        times = []
        for _ in range(REPEATS + 1):
            start = time.process_time()
            jax.block_until_ready(function(*args))
            times.append(time.process_time() - start)
        found[name] = min(times[1:])
        found[f"{name}_compile"] = times[0] - found[name]
        found[f"{name}_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def measured(python, side, path):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    command = [python, __file__, "--worker", side, path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(peer, wanted):
    print(
        "| system | implementation | energy and forces / s | training step / s | compiling / s "
        "| KiB per atom |"
    )
    print("| --- | --- |" + " ---: |" * 4)
    before = {}  # atoms and KiB of the last size
    with tempfile.TemporaryDirectory() as folder:
        for name, n_atoms in CASES.items():
            if not name.startswith(wanted):
                continue
            kind = name.split()[0]
            cutoff, most = CUTOFFS[kind]
            positions, box = globals()[kind](n_atoms)
            path = str(Path(folder) / f"{name}.npz")
            np.savez(path, positions=positions, box=box, cutoff=cutoff, most=most or 0)
            for side, python in (("MosaicMD", sys.executable), ("chemtrain", peer)):
                found = measured(python, side, path)
                memory = np.array([n_atoms, found["forces_kib"], found["training_kib"]])
                grown = memory - before.get((kind, side), memory)
                before[kind, side] = memory
                size = f"{n_atoms} atoms, {found['edges']} edges"
                size += f", {found['triplets']} triplets" if "triplets" in found else ""
                cells = [
                    f"{kind}: {size}",
                    side,
                    f"{found['forces']:.4f}",
                    f"{found['training']:.4f}",
                    f"{found['forces_compile']:.1f}, {found['training_compile']:.1f}",
                    ", ".join(f"{one / grown[0]:.1f}" for one in grown[1:]) if grown[0] else "",
                ]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    match sys.argv[1:]:
        case ["--worker", side, path]:
            with np.load(path) as work:
                args = work["positions"], float(work["box"]), float(work["cutoff"])
                most = int(work["most"]) or None
            found = ours(*args, most) if side == "MosaicMD" else chemtrain(*args)
            print(json.dumps(timed(*found)))
        case [peer, *wanted]:
            main(peer, tuple(wanted) or "")
        case _:
            raise SystemExit(f"usage: {sys.argv[0]} PYTHON_WITH_CHEMTRAIN [water] [diamond]")
