"""Simulations that each optimiser needs to learn water to a mean square error of g(r) of 1e-3.

Trains the `water` app with its Gauss-Newton and its Adam settings, at equal length of every
simulation, into `benchmarks/runs/` (resumed where it stands). Run by
`nox -s bench -- optimizers`.
"""

import subprocess
import sys
from pathlib import Path

import yaml

from mosaicmd.kernel.metrics import read_metrics

HERE = Path(__file__).parent
APP = HERE.parent / "apps" / "water"
GOAL = 1.0e-3
ADAM = {"optimizer": "adam", "n_updates": 120}
VARIANTS = {
    "Gauss-Newton": {"optimizer": "gauss_newton"},
    "Adam 2e-3": ADAM | {"learning_rate": 2.0e-3},
    "Adam 5e-3": ADAM | {"learning_rate": 5.0e-3},
    "Adam 5e-3 beta2 0.95 keeping 0.3": ADAM
    | {"learning_rate": 5.0e-3, "beta2": 0.95, "keep_fraction": 0.3},
}


def main():
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    print("| optimiser | simulations to 1e-3 | best rdf_mse | after simulations |")
    print("| --- | ---: | ---: | ---: |")
    for name, change in VARIANTS.items():
        folder = HERE / "runs" / name.lower().replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        training = settings["training"] | change
        config = folder.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings | {"training": training}))
        command = [sys.executable, str(APP / "app.py"), "train"]
        done = subprocess.run(
            [*command, "--config", str(config), "--out", str(folder)], check=False
        )
        history = read_metrics(folder / "training" / "metrics.jsonl")
        errors = [
            (training["tolerance_rdf"] * line["deviation/ambient/rdf"]) ** 2 for line in history
        ]
        counts = [line["simulations"] for line in history]
        reached = [count for count, error in zip(counts, errors, strict=True) if error <= GOAL]
        best = min(range(len(errors)), key=errors.__getitem__)
        shown = str(reached[0]) if reached else f"not in {counts[-1]}"
        shown += ", then a simulation broke" if done.returncode else ""
        print(f"| {name} | {shown} | {errors[best]:.2e} | {counts[best]} |", flush=True)


if __name__ == "__main__":
    main()
