"""The pairs of `equivariant.py` on a GPU, within a time that is given.

Measured are energy with forces and training steps on silicon within 5 Å, in float32 without
TF32 on either side. Every measurement has a process of its own. All of them prepare (import,
compile, lists of neighbors) side by side, then take the GPU by turns, while those that still
prepare are stopped. Results are lines of JSON, written to `--out` as they come, so nothing is
lost when the whole is cut off::

    python benchmarks/peers/gpu.py --out gpu.jsonl --seconds 150 \\
        --mace-path SITE_WITH_MACE --allegro-path SITE_WITH_ALLEGRO --chemtrain-path SITE
    python benchmarks/peers/gpu.py --out gpu.jsonl --table

Sites are folders for PYTHONPATH, for two of the codes want versions of e3nn that exclude each
other; `--mace-python`, `--allegro-python` and `--chemtrain-python` name other interpreters.
`cuequivariance` is the path of mace-torch through cuequivariance-torch, `compiled` that of
nequip-allegro through `torch.compile`. Ours are compiled without the search for the fastest form
of every product that XLA makes by default, which takes minutes (`searched` is with it), with
products by Triton or, as `cuBLAS`, by the library (`searched cuBLAS`: by its fastest form). With
`--device cpu` the same runs without a GPU.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CUTOFF, NEIGHBORS = 5.0, 28.0
MACE = {"n_channels": 128, "hidden_l_max": 0}
ALLEGRO = {"n_scalars": 64, "n_tensors": 16, "l_max": 2, "n_layers": 2}
SIDES: dict[str, tuple[str, str, dict[str, Any]]] = {  # who, architecture, settings
    "MACE": ("ours", "mace", MACE),
    "mace-torch": ("mace", "mace", MACE),
    "mace-torch, cuequivariance": ("mace", "mace", MACE),
    "Allegro": ("ours", "allegro", ALLEGRO),
    "nequip-allegro": ("allegro", "allegro", ALLEGRO),
    "nequip-allegro, compiled": ("allegro", "allegro", ALLEGRO),
    "NequIP": ("ours", "nequip", {}),
    "DimeNet++": ("ours", "dimenet", {"n_features": 32, "species_features": 16}),
    "chemtrain": ("chemtrain", "dimenet", {}),
}
UNTUNED = "--xla_gpu_autotune_level=0"
FLAGS = {  # of XLA, by what a name ends with
    "": UNTUNED,
    "cuBLAS": f"{UNTUNED} --xla_gpu_enable_triton_gemm=false",
    "searched": "",
    "searched cuBLAS": "--xla_gpu_enable_triton_gemm=false",
}
SIDES |= {
    f"{name}, {kind}": side
    for name, side in SIDES.items()
    for kind in list(FLAGS)[1:]
    if side[0] == "ours"
}
PEERS = ("mace", "allegro", "chemtrain")
SIZES, SMALL, TURN = (1000, 10648, 216), 64, 20.0


def silicon(n_atoms):
    import ase.build

    atoms = ase.build.bulk("Si", "diamond", a=5.43, cubic=True)
    atoms = atoms.repeat(round((n_atoms / len(atoms)) ** (1 / 3)))
    atoms.rattle(0.05, seed=0)
    return atoms


def ours(name, n_atoms, training, device):
    """Prepared function, what waits for it, and what is known of it."""
    import jax
    import jax.numpy as jnp

    from mosaicmd.kernel.compilation import compiler_options
    from mosaicmd.kernel.graphs import host_graph
    from mosaicmd.kernel.potentials import evaluate
    from mosaicmd.kernel.systems import from_ase

    jax.config.update("jax_platforms", {"cuda": "cuda"}.get(device, device))
    jax.config.update("jax_default_matmul_precision", "highest")
    _, model, settings = SIDES[name]
    settings = {"species": [14], "cutoff": CUTOFF, **settings}
    if model != "dimenet":
        settings["mean_neighbors"] = NEIGHBORS
    potential = importlib.import_module(f"mosaicmd.gnn_models.{model}").build(settings)
    system = from_ase(silicon(n_atoms), dtype=jnp.float32)
    graph = host_graph(system, CUTOFF, reverse=True)
    args = (jax.tree.map(jnp.float32, potential.init(jax.random.key(0))), system, graph)

    def loss(*args):
        found = evaluate(potential.energy, *args)
        return 1e-4 * found.energy**2 + jnp.sum((found.forces - 0.1) ** 2)

    def forces(*args):
        return evaluate(potential.energy, *args)

    start = time.perf_counter()
    function = jax.jit(
        jax.value_and_grad(loss) if training else forces, compiler_options=compiler_options()
    )
    compiled = function.lower(*args).compile()
    known = {"compile": time.perf_counter() - start, "edges": graph.n_edges}
    cost = compiled.cost_analysis() or {}
    known |= {"flops": cost.get("flops"), "bytes": cost.get("bytes accessed")}

    return lambda: jax.block_until_ready(compiled(*args)), peak_of_jax, known


def peak_of_jax():
    """Bytes, where the device says so."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def theirs(name, n_atoms, training, device):
    from _torch_models import TorchModel, in_two, torch_of_one_thread

    _, model, settings = SIDES[name]
    torch = torch_of_one_thread()
    kind = name.partition(", ")[2]
    side = TorchModel(
        model,
        settings,
        CUTOFF,
        "Si",
        reference=0.0,
        scale=1.0,
        neighbors=NEIGHBORS,
        stress=False,
        compiled=kind == "compiled",
        device=device,
    )
    if kind == "cuequivariance":
        importlib.import_module("cuequivariance_torch")  # else mace-torch goes on without
        convert = importlib.import_module("mace.cli.convert_e3nn_cueq").run
        side.model = convert(side.model, device=device, return_model=True).to(device)
    batch = side.batch([silicon(n_atoms)])
    batch = in_two(batch) if model == "allegro" else batch

    def step(batch=batch):
        if training:
            side.model.zero_grad()
            energy, forces, _ = side(batch, True)
            (1e-4 * energy.sum() ** 2 + ((forces - 0.1) ** 2).sum()).backward()
        else:
            side(batch, False)
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    small = side.batch([silicon(SMALL), silicon(SMALL)])
    for _ in range(3):  # what is compiled, is compiled for any size
        step(small)
    known = {"compile": time.perf_counter() - start}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def memory():
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    return step, memory, known


def chemtrain(name, n_atoms, training, device):
    """The network of chemtrain, which later versions of JAX than it asks for compile as well."""
    import dimenet
    import jax

    jax.config.update("jax_platforms", device)
    jax.config.update("jax_default_matmul_precision", "highest")
    atoms = silicon(n_atoms)
    known, *functions, args = dimenet.chemtrain(
        atoms.get_positions(wrap=True), atoms.cell[0, 0], CUTOFF
    )
    start = time.perf_counter()
    compiled = functions[training].lower(*args).compile()
    known["compile"] = time.perf_counter() - start

    return lambda: jax.block_until_ready(compiled(*args)), peak_of_jax, known


def limits(name, n_atoms, training, device):
    """A large product of matrices and a copy: what the device can do at most."""
    del name, n_atoms
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", device)
    jax.config.update("jax_default_matmul_precision", "highest")
    size = 8192 if device == "cuda" else 1024
    if training:
        x = jnp.ones((2 * size, 2 * size), jnp.float32)
        function, known = jax.jit(lambda x: x + 1.0), {"bytes": 2.0 * x.nbytes}
    else:
        x = jnp.ones((size, size), jnp.float32)
        function, known = jax.jit(lambda x: x @ x), {"flops": 2.0 * size**3}
    jax.block_until_ready(function(x))
    return lambda: jax.block_until_ready(function(x)), lambda: None, known


PREPARED = {"ours": ours, "mace": theirs, "allegro": theirs, "chemtrain": chemtrain}


def worker(name, n_atoms, training, device):
    """Prepare, say so, wait for the turn, measure, say what was found."""
    start = time.perf_counter()
    prepare = limits if name == "limits" else PREPARED[SIDES[name][0]]
    step, memory, known = prepare(name, n_atoms, training, device)
    known["preparing"] = time.perf_counter() - start
    print("READY", flush=True)
    sys.stdin.readline()
    times, start = [], time.perf_counter()
    for _ in range(3):  # torch settles in its first calls on new shapes
        step()
    while len(times) < 3 or (len(times) < 30 and time.perf_counter() - start < 3.0):
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    found = {"seconds": min(times), "median": float(np.median(times)), "calls": len(times)}
    print(json.dumps(found | {"memory": memory()} | known), flush=True)


class Job:
    """One measurement in its process, which has a session of its own to be stopped with."""

    def __init__(self, key, given):
        self.key, self.started, self.state = key, time.perf_counter(), "prepares"
        name, n_atoms, training = key
        who = "ours" if name == "limits" else SIDES[name][0]
        python, path = sys.executable, None
        if who in PEERS:
            python, path = (getattr(given, f"{who}_{of}") for of in ("python", "path"))
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
        if who == "ours":
            environment["XLA_FLAGS"] = FLAGS[name.partition(", ")[2]]
        if path:
            environment["PYTHONPATH"] = path
        command = [python, __file__, "--worker", name, n_atoms, int(training), given.device]
        self.errors, self.read = tempfile.TemporaryFile("w+"), b""  # noqa: SIM115
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            start_new_session=True,
        )

    def line(self, seconds):
        """The next line that it prints, ``""`` at its end and ``None`` when none came in time."""
        until = time.perf_counter() + seconds
        while True:
            while b"\n" in self.read:
                text, _, self.read = self.read.partition(b"\n")
                if text.startswith((b"READY", b"{")):
                    return text.decode()
            left = until - time.perf_counter()
            if left <= 0.0 or not select.select([self.process.stdout], [], [], left)[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return ""
            self.read += more

    def signal(self, which):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, which)

    def ended(self, why):
        """What is to be said of it, after it was ended."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip()
        self.errors.close()
        return {"failed": why, "said": said[-600:]}


def main(given):
    deadline = time.perf_counter() + given.seconds
    waiting = [("limits", 0, False), ("limits", 0, True)]
    waiting += [
        (name, n_atoms, training)
        for n_atoms, training, name in itertools.product(given.sizes, (False, True), SIDES)
        if name in given.only
    ]
    jobs: list[Job] = []

    def write(job, found):
        name, n_atoms, training = job.key
        line = {"name": name, "atoms": n_atoms, "training": training, "device": given.device}
        with given.out.open("a") as file:
            file.write(json.dumps(line | found) + "\n")
            file.flush()
            os.fsync(file.fileno())
        jobs.remove(job)
        print(json.dumps(line | found), flush=True)

    def left():
        return deadline - time.perf_counter()

    while (waiting or jobs) and left() > 1.0:
        while waiting and len(jobs) < given.together:
            jobs.append(Job(waiting.pop(0), given))
        round_ends = time.perf_counter() + given.round
        while any(job.state == "prepares" for job in jobs) and left() > 10.0:
            if time.perf_counter() > round_ends and any(job.state == "ready" for job in jobs):
                break
            for job in [job for job in jobs if job.state == "prepares"]:
                line = job.line(0.02)
                if line is not None and line.startswith("READY"):
                    job.state = "ready"
                elif line == "":
                    write(job, job.ended("while preparing"))
                elif time.perf_counter() - job.started > given.limit:
                    write(job, job.ended(f"not prepared within {given.limit:.0f} s"))
        unready = [job for job in jobs if job.state == "prepares"]
        for job in unready:
            job.signal(signal.SIGSTOP)
        for job in [job for job in jobs if job.state == "ready"]:
            if left() < 1.0:
                break
            job.process.stdin.write(b"go\n")
            job.process.stdin.flush()
            line = job.line(min(TURN, left()))
            if line:
                write(job, json.loads(line))
                job.ended("")
            else:
                write(job, job.ended("while measured" if line == "" else "took too long"))
        for job in unready:
            job.signal(signal.SIGCONT)
    for job in list(jobs):
        write(job, job.ended("out of time"))
    for name, n_atoms, training in waiting:
        print(f"not begun: {name}, {n_atoms} atoms, training {training}", flush=True)


def table(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(one["name"], one["atoms"], one["training"]): one for one in lines}
    peak = {k: found.get(("limits", 0, k == "bytes"), {}) for k in ("flops", "bytes")}
    rates = {k: one[k] / one["seconds"] if "seconds" in one else None for k, one in peak.items()}
    print(f"peak rates: {rates}\n")
    head = "| model | atoms | energy and forces / ms | training step / ms | preparing / s "
    print(head + "| KiB per atom | arithmetic | bandwidth |")
    print("| --- |" + " ---: |" * 7)
    for name, n_atoms in itertools.product(SIDES, sorted({k[1] for k in found} - {0})):
        pair = [found.get((name, n_atoms, training)) for training in (False, True)]
        if pair == [None, None]:
            continue
        times = [
            "" if one is None else f"{1e3 * one['seconds']:.2f}" if "seconds" in one else "failed"
            for one in pair
        ]
        preparing = [f"{one['preparing']:.0f}" for one in pair if one and "preparing" in one]
        bytes_of = [one["memory"] / n_atoms / 1024 for one in pair if one and one.get("memory")]
        shares = []
        for kind in ("flops", "bytes"):
            one = pair[0] or {}
            known = one.get(kind) and rates[kind] and "seconds" in one
            shares.append(f"{one[kind] / one['seconds'] / rates[kind]:.0%}" if known else "")
        cells = [name, str(n_atoms), *times, ", ".join(preparing)]
        cells += [", ".join(f"{one:.0f}" for one in bytes_of), *shares]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, n_atoms, training, device = sys.argv[2:]
        worker(name, int(n_atoms), training == "1", device)
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="show what is in `--out`")
    parser.add_argument("--seconds", type=float, default=150.0, help="for everything")
    parser.add_argument("--limit", type=float, default=110.0, help="seconds to prepare one")
    parser.add_argument("--round", type=float, default=25.0, help="seconds between turns")
    parser.add_argument("--together", type=int, default=20, help="processes at a time")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of atoms")
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    for who in PEERS:
        parser.add_argument(f"--{who}-python", default=sys.executable)
        parser.add_argument(f"--{who}-path", help="PYTHONPATH for it")
    given = parser.parse_args()
    if given.table:
        table(given.out)
    else:
        main(given)
