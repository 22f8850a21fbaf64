"""Molecular dynamics beside JAX-MD and LAMMPS: steps per second on one core, memory per atom.

Every timing runs in its own process on the same core, one after the other; energies of the start
must agree. Run by `nox -s bench -- dynamics`.
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from _dynamics_engines import CASES

SIZES = (1_000, 10_000, 100_000)
WORKER = Path(__file__).with_name("_dynamics_engines.py")
TIME_LIMIT = 600.0  # seconds, compilation included


def engines(name, n_atoms):
    yield "MosaicMD"
    if "triclinic" not in name or n_atoms < 50_000:  # it compares all pairs: 10^10 distances
        yield "JAX-MD Dense"
        if name.startswith("Lennard-Jones"):  # the other potentials know Dense alone
            yield "JAX-MD OrderedSparse"
    yield "LAMMPS"


def measured(engine: str, name: str, n_atoms: int) -> dict[str, Any]:
    """What one process found, or why it did not."""
    command = [sys.executable, str(WORKER), engine, name, str(n_atoms)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"over {TIME_LIMIT:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"failure": f"failed: {last[:60]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    print("| system | atoms | engine | steps/s | MosaicMD is | programs |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    memory = {}
    for name in CASES:
        for size in SIZES:
            ours = None
            for engine in engines(name, size):
                found = measured(engine, name, size)
                if "failure" in found:
                    print(f"| {name} | {size} | {engine} | {found['failure']} | | |", flush=True)
                    continue
                memory[name, engine, size] = (found["n_atoms"], found["memory_mib"])
                ours = found if engine == "MosaicMD" else ours
                ratio = ""
                if ours is not None and found is not ours:
                    ratio = f"{ours['rate'] / found['rate']:.2f} x"
                    if not math.isclose(ours["energy"], found["energy"], rel_tol=1e-4):
                        ratio += f" (other energy: {found['energy']} for {ours['energy']})"
                print(
                    f"| {name} | {found['n_atoms']} | {engine} | {found['rate']:.4g} | {ratio} "
                    f"| {found.get('programs', '')} |",
                    flush=True,
                )
    print("\n| system | engine | KiB per atom |\n| --- | --- | ---: |")
    for name, engine in dict.fromkeys((name, engine) for name, engine, _ in memory):
        points = [memory[name, engine, n] for n in SIZES if (name, engine, n) in memory]
        if len(points) > 1:
            (n_small, small), *_, (n_large, large) = points
            per_atom = (large - small) * 1024 / (n_large - n_small)
            print(f"| {name} | {engine} | {per_atom:.2f} |")


if __name__ == "__main__":
    main()
