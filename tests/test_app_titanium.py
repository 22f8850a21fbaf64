"""The titanium app with few steps: complete output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

APP = Path(__file__).parents[1] / "apps" / "titanium"
MODELS = ("dft", "exp", "fused")


def command(folder):
    """Few steps from the start; one temperature to learn from, another to validate at."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["labels"] |= {"n_steps": 10}
    settings["experiment"] |= {"temperatures_kelvin": [323], "n_equilibration": 5, "n_rest": 6}
    settings["experiment"] |= {"n_frames": 40, "n_updates": 1, "average_last": 1}
    settings["fusion"] |= {"n_rounds": 2, "label_steps": 2}
    validation = settings["validation"]
    validation |= {"temperatures_kelvin": [323, 373], "n_equilibration": 5, "n_frames": 20}
    validation["expansion"] |= {"temperatures_kelvin": [323, 373], "n_equilibration": 5}
    validation["expansion"] |= {"n_frames": 20}
    validation["stability"] |= {"every": 10, "n_frames": 10}
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    arguments = ["run", "--config", str(config), "--out", str(folder / "out")]
    return [sys.executable, str(APP / "app.py"), *arguments]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.slow
def test_output_is_complete(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    for name in MODELS:
        for quantity in ("elastic_mape_heldout", "force_rmse", "pressure_max_abs", "stable"):
            assert set(metrics[f"{quantity}_{name}"]) == {
                "value",
                "error",
                "unit",
                "reference",
                "source",
            }
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 5
    assert "src=" not in report
