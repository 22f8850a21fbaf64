"""Molecular dynamics beside JAX-MD and LAMMPS: steps per second on one core, memory per atom.

Every timing runs in its own process on the same core, one after the other; energies of the start
must agree. Run by `nox -s bench -- dynamics`.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _dynamics_engines import CASES

SIZES = (1_000, 10_000, 100_000)
WORKER = Path(__file__).with_name("_dynamics_engines.py")
TIME_LIMIT = 600.0  # seconds, compilation included
ENGINES = ("MosaicMD", "JAX-MD Dense", "JAX-MD OrderedSparse", "LAMMPS")


def engines(name: str, n_atoms: int) -> Iterator[str]:
    """Those that can do it in reasonable time."""
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


def cell(found: dict[str, Any], ours: dict[str, Any]) -> str:
    """Steps per second, and how many times faster MosaicMD is."""
    if "failure" in found:
        return found["failure"]
    if found is ours:
        return f"{found['rate']:.4g}"
    text = f"{found['rate']:.4g} ({ours['rate'] / found['rate']:.2f} x)"
    if not math.isclose(ours["energy"], found["energy"], rel_tol=1e-4):
        text += f", other energy: {found['energy']} for {ours['energy']}"
    return text


def main():
    print(f"| system | atoms | {' | '.join(ENGINES)} | programs |")
    print(f"| --- | ---: |{' ---: |' * len(ENGINES)} ---: |")
    memory = {}
    for name in CASES:
        for size in SIZES:
            found = {engine: measured(engine, name, size) for engine in engines(name, size)}
            ours = found["MosaicMD"]
            cells = [cell(found[e], ours) if e in found else "" for e in ENGINES]
            count, programs = ours["n_atoms"], ours["programs"]
            print(f"| {name} | {count} | {' | '.join(cells)} | {programs} |", flush=True)
            for engine, one in found.items():
                if "failure" not in one:
                    memory[name, engine, size] = (one["n_atoms"], one["memory_mib"])
    print(f"\n| KiB per atom | {' | '.join(ENGINES)} |\n| --- |{' ---: |' * len(ENGINES)}")
    for name in CASES:
        cells = []
        for engine in ENGINES:
            points = [memory[name, engine, n] for n in SIZES if (name, engine, n) in memory]
            if len(points) > 1:
                (n_small, small), *_, (n_large, large) = points
                cells.append(f"{(large - small) * 1024 / (n_large - n_small):.2f}")
            else:
                cells.append("")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
