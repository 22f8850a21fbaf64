"""MACE, NequIP and Allegro beside the codes of their authors: time, memory, and their limits.

Those codes need versions of e3nn that exclude each other, so each runs in an environment of
its own, by turns with ours, on one core in float32::

    python -m venv mace && mace/bin/pip install torch==2.13.0 mace-torch==0.3.16 matscipy
    python -m venv nequip && nequip/bin/pip install torch==2.13.0 nequip==0.6.2
    python -m venv allegro && allegro/bin/pip install torch==2.13.0 nequip-allegro==0.8.3
    python benchmarks/peers/equivariant.py --mace mace/bin/python --nequip nequip/bin/python \\
        --allegro allegro/bin/python --out lines.jsonl

The work is silicon within 5 Å, displaced at random; sizes of networks are those that the table
names, everything else is each code's default. nequip-allegro goes through its `torch.compile`
mode, which is the faster one. Each measurement has a process of its own, whose largest memory is
recorded; a process that would need more than 12 GB is stopped. Times are those of the core, so
other programs on the machine disturb little.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CUTOFF, NEIGHBORS, GIGABYTES = 5.0, 28.0, 12
REPEATS = {64: 8, 216: 6, 1000: 3, 10648: 2}  # by number of atoms
ALLEGRO = {"model": "allegro", "n_scalars": 64, "n_tensors": 16, "l_max": 2, "n_layers": 2}
CASES: dict[str, dict[str, Any]] = {
    "MACE, 128x0e": {"model": "mace", "n_channels": 128, "hidden_l_max": 0},
    "MACE, 64x0e + 64x1o": {"model": "mace", "n_channels": 64, "hidden_l_max": 1},
    "NequIP, 32 features, l = 1, 4 layers": {"model": "nequip"},
    "Allegro, 64 scalars, 16 tensors, l = 2": ALLEGRO,
    "Allegro beside nequip-allegro uncompiled": ALLEGRO | {"eager": True},
}


def silicon(n_atoms):
    import ase.build

    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True)
    atoms = atoms.repeat(round((n_atoms / len(atoms)) ** (1 / 3)))
    atoms.rattle(0.05, seed=0)
    return atoms


def ours(case, n_atoms, training):
    import jax
    import jax.numpy as jnp

    from mosaicmd.kernel.compilation import compiler_options
    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.neighbors import neighbor_list
    from mosaicmd.kernel.potentials import build_potential, evaluate
    from mosaicmd.kernel.systems import from_ase

    settings = {"species": [14], "cutoff": CUTOFF, "mean_neighbors": NEIGHBORS}
    settings |= {name: value for name, value in case.items() if name not in ("model", "eager")}
    potential = build_potential(case["model"], settings)
    system = from_ase(silicon(n_atoms), dtype=jnp.float32)
    if training:
        graph = host_graph(system, CUTOFF, reverse=True)
    else:  # in rows, with room for more, as dynamics have them
        plan = neighbor_list(system, CUTOFF, skin=0.0)
        graph = jax.jit(lambda system: plan.build(system).graph)(system)
    args = (jax.tree.map(jnp.float32, potential.init(jax.random.key(0))), system, graph)

    def loss(*args):
        found = evaluate(potential.energy, *args)
        return 1e-4 * found.energy**2 + jnp.sum((found.forces - 0.1) ** 2)

    def forces(*args):
        return evaluate(potential.energy, *args)

    function = jax.value_and_grad(loss) if training else forces
    function = jax.jit(function, compiler_options=compiler_options())
    found = timed(lambda: jax.block_until_ready(function(*args)), n_atoms)
    cost = function.lower(*args).compile().cost_analysis()
    return found | {"flops": cost["flops"], "bytes": cost["bytes accessed"]}


def peer(case, n_atoms, training):
    from _torch_models import TorchModel, in_two

    compiled = case["model"] == "allegro" and "eager" not in case
    model = TorchModel(
        case["model"],
        case,
        CUTOFF,
        "Si",
        reference=0.0,
        scale=1.0,
        neighbors=NEIGHBORS,
        stress=False,
        compiled=compiled,
    )
    batch = model.batch([silicon(n_atoms)])
    if compiled:
        model(model.batch([silicon(64), silicon(64)]), training)
        batch = in_two(batch)

    def step():
        model.model.zero_grad()
        energy, forces, _ = model(batch, True)
        (1e-4 * energy.sum() ** 2 + ((forces - 0.1) ** 2).sum()).backward()

    return timed(step if training else lambda: model(batch, False), n_atoms)


def timed(function, n_atoms):
    """Seconds: the best of some calls, and what the first took longer."""
    times = []
    for _ in range(REPEATS[n_atoms] + 2):  # torch compiles in the first two
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    best = min(times[2:])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": best, "compile": times[0] - best, "kib": memory}


def limits():
    """What one core can do: GFLOP/s of a large matrix product, GB/s of copying."""
    import jax
    import jax.numpy as jnp

    def best(function, *args):
        times = []
        for _ in range(6):
            start = time.process_time()
            jax.block_until_ready(function(*args))
            times.append(time.process_time() - start)
        return min(times)

    square, long = jnp.ones((2048, 2048), jnp.float32), jnp.ones(2**26, jnp.float32)
    flops = 2 * 2048**3 / best(jax.jit(jnp.matmul), square, square)
    copied = 2 * long.nbytes / best(jax.jit(lambda x: x + 1.0), long)
    return {"flops": flops, "bytes": copied}


def measured(python, *arguments):
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    environment |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [python, __file__, "--worker", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        if done.returncode < 0 or "alloc" in done.stderr or "memory" in done.stderr:
            return None
        raise SystemExit(f"{arguments} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(given):
    peers = {"mace": given.mace, "nequip": given.nequip, "allegro": given.allegro}
    done = [json.loads(line) for line in given.out.read_text().splitlines() if line]
    found = {tuple(one["of"]): one["found"] for one in done}

    def obtain(python, *arguments):
        if arguments not in found:
            found[arguments] = measured(python, *arguments)
            with given.out.open("a") as file:
                line = {"of": arguments, "found": found[arguments]}
                file.write(json.dumps(line) + "\n")
        return found[arguments]

    peak = obtain(sys.executable, "limits")
    print(f"one core: {peak['flops'] / 1e9:.0f} GFLOP/s, {peak['bytes'] / 1e9:.1f} GB/s\n")
    print(
        "| model | atoms | energy and forces / s | peer | training step / s | peer "
        "| compiling / s | arithmetic in training | KiB per atom | peer |"
    )
    print("| --- |" + " ---: |" * 9)
    for name in given.only:
        before: list[Any] = [None, None]  # atoms and KiB of the last size, of either side
        for n_atoms in given.sizes:
            rows = []
            for training in (False, True):
                python_of_peer = peers[CASES[name]["model"]]
                for python, side in ((sys.executable, "ours"), (python_of_peer, "peer")):
                    arguments = (side, name, n_atoms, int(training))
                    rows.append(obtain(python, *arguments) if python else None)
            forces, its_forces, training, its_training = rows
            memory = []
            for k, one in enumerate((forces, its_forces)):
                now = None if one is None else np.array([n_atoms, one["kib"]])
                grown = now is not None and before[k] is not None
                memory.append(f"{np.divide(*(now - before[k])[::-1]):.0f}" if grown else "")
                before[k] = now
            compiling = [f"{one['compile']:.1f}" for one in (forces, training) if one]
            # of training: XLA counts what is in a loop once, and forces of Allegro come from one
            share = training and training["flops"] / training["seconds"] / peak["flops"]
            cells = [
                f"{forces['seconds']:.3g}" if forces else "",
                ratio(its_forces, forces),
                f"{training['seconds']:.3g}" if training else "",
                ratio(its_training, training),
                ", ".join(compiling),
                f"{share:.0%}" if share else "",
                *memory,
            ]
            print(f"| {name} | {n_atoms} | {' | '.join(cells)} |", flush=True)


def ratio(one, other):
    """``"0.52 (4.7 x)"``, empty where the one was not measured or needed too much memory."""
    if not one:
        return ""
    times = f" ({one['seconds'] / other['seconds']:.1f} x)" if other else ""
    return f"{one['seconds']:.3g}{times}"


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    match sys.argv[1:]:
        case ["--worker", "limits"]:
            print(json.dumps(limits()))
            sys.exit()
        case ["--worker", side, name, n_atoms, training]:
            resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTES * 10**9,) * 2)
            run = {"ours": ours, "peer": peer}[side]
            print(json.dumps(run(CASES[name], int(n_atoms), training == "1")))
            sys.exit()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("mace", "nequip", "allegro"):
        parser.add_argument(f"--{name}", help="Python of the environment with it")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=list(REPEATS), choices=list(REPEATS)
    )
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON; resumed if there")
    given = parser.parse_args()
    given.out.touch()
    main(given)
