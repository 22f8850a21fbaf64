"""The silicon-germanium app on small data: synthetic elements, and two others by settings alone."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import ase.build
import ase.io
import pytest
import yaml
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

APP = Path(__file__).parents[1] / "apps" / "silicon-germanium"
FEW = {"source_steps": 40, "steps": 20, "source_rate": 0.01, "rates": [0.01, 0.02]}
FEW |= {"shares": [0.5, 1.0], "seeds": 2}
MODEL = {
    "architecture": "painn",
    "cutoff": "3.6 A",
    "config": {"n_features": 8, "n_layers": 1, "n_radial": 4},
}


def quick():
    return yaml.safe_load((APP / "config" / "quick.yaml").read_text())


def run(folder, settings, **environment):
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    arguments = ["run", "--config", str(config), "--out", str(folder / "out"), "--workers", "1"]
    return subprocess.run(
        [sys.executable, str(APP / "app.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=1800,
        env=os.environ | environment,
    )


def metal(folder, symbol, a):
    """Rattled, strained fcc with labels of the effective medium potential of ASE."""
    for part, n, seed in (("train", 8, 0), ("test", 4, 100)):
        frames = []
        for k in range(n):
            atoms = ase.build.bulk(symbol, "fcc", a=a * (1.0 + 0.004 * (k % 4)), cubic=True)
            atoms = atoms.repeat((2, 1, 1))
            atoms.rattle(0.08, seed=seed + k)
            atoms.calc = EMT()
            labels = {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(),
            }
            atoms.calc = SinglePointCalculator(atoms, **labels)
            frames.append(atoms)
        text = io.StringIO()
        ase.io.write(text, frames, format="extxyz")
        (folder / f"{symbol}_{part}.extxyz").write_text(text.getvalue())
    return {part: f"{symbol}_{part}.extxyz" for part in ("train", "test")}


@pytest.fixture(scope="module")
def copper_to_nickel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metals")
    settings = {
        "seed": 1,
        "model": MODEL,
        "strategies": {
            "freeze": {"scales": "tables", "rates": {"embedding": 0.0}, "pull": 0.1},
        },
        "pairs": {
            "metals": {
                "source": metal(folder, "Cu", 3.61),
                "target": metal(folder, "Ni", 3.52),
                "cohesive_energies": [3.49, 4.44],
                "training": FEW,
            }
        },
    }
    done = run(folder, settings)
    assert done.returncode == 0, done.stderr
    return folder, settings


def test_another_pair_needs_settings_alone(copper_to_nickel):
    folder, _ = copper_to_nickel
    results = json.loads((folder / "out" / "results.json").read_text())
    for name in ("ratio", "scratch", "freeze"):
        for percent in (50, 100):
            metric = results["metrics"][f"metals_force_rmse_{name}_{percent}pct"]
            assert metric["value"] > 0.0
            assert metric["error"] > 0.0
    report = (folder / "out" / "report.html").read_text()
    assert report.count("<svg") == 2
    assert "src=" not in report
