"""The water app on a small box: complete output, exact resume after a kill, clear errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

APP = Path(__file__).parents[1] / "apps" / "water"


def small_settings():
    """Two updates and a short validation of 343 beads."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["n_beads"] = 343
    short = {"equilibration_ps": 1.0, "production_ps": 4.0}
    settings["training"] |= short | {"frame_ps": 0.05, "n_updates": 2, "average_last": 1}
    settings["validation"] |= short | {"production_ps": 8.0}
    return settings


def command(folder, *, settings=None):
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(small_settings() if settings is None else settings))
    arguments = ["run", "--config", str(config), "--out", str(folder / "out")]
    return [sys.executable, str(APP / "app.py"), *arguments]


def run(arguments):
    return subprocess.run(arguments, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_output_is_complete(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    for name in (
        "rdf_mse",
        "rdf_mse_initial",
        "adf_mse",
        "adf_mse_initial",
        "pressure_bar",
        "tetrahedral_order",
        "diffusion",
    ):
        assert set(metrics[name]) == {"value", "error", "unit", "reference", "source"}
        assert metrics[name]["error"] > 0.0
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 4
    assert "src=" not in report
    assert {path.name for path in (undisturbed / "model").iterdir()} == {
        "model.json",
        "weights.safetensors",
    }


def test_learning_lowers_the_pressure_of_the_repulsive_start(undisturbed):
    """Two steps take several kbar of the 18 kbar away; error bars are a tenth of a kbar."""
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    before, after = metrics["pressure_bar_initial"], metrics["pressure_bar"]
    assert before["value"] > 10_000.0
    assert before["value"] - after["value"] > 1_000.0 + 4.0 * (before["error"] + after["error"])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_result(undisturbed, tmp_path):
    arguments = command(tmp_path)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "out" / "training" / "checkpoints"
    deadline = time.monotonic() + 600.0
    while not list(first.glob("step-*.safetensors")) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "results.json").exists()
    assert run(arguments).returncode == 0
    for name in ("results.json", "report.html", "model/weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_bead": 900}, "did you mean `n_beads`?"),
        ({"density": "300 K"}, "density"),
        ({"temperature_kelvin": "25 ps"}, "temperature_kelvin"),
    ],
)
def test_bad_settings_are_named(change, message, tmp_path):
    done = run(command(tmp_path, settings=small_settings() | change))
    assert done.returncode != 0
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_an_output_folder_of_other_settings_is_refused(undisturbed, tmp_path):
    config = tmp_path / "other.yaml"
    config.write_text(yaml.safe_dump(small_settings() | {"seed": 7}))
    app = [sys.executable, str(APP / "app.py"), "run"]
    done = run([*app, "--config", str(config), "--out", str(undisturbed)])
    assert done.returncode != 0
    assert "other settings" in done.stderr
