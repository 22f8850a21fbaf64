"""The diamond app on a small cell: complete output, learning, exact resume after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mosaicmd.kernel.metrics import read_metrics

APP = Path(__file__).parents[1] / "apps" / "diamond"


def command(folder):
    """Three updates and a short validation of 64 atoms."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["repeats"] = 2
    settings["training"] |= {"n_equilibration": 20, "n_frames": 120}
    settings["training"] |= {"n_updates": 3, "average_last": 1}
    settings["validation"] |= {"n_equilibration": 20, "n_frames": 200}
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


def test_output_is_complete(undisturbed):
    metrics = json.loads((undisturbed / "results.json").read_text())["metrics"]
    assert list(metrics) == ["c11", "c12", "c44", "pressure", "stress_max_abs", "raman_thz"]
    for metric in metrics.values():
        assert set(metric) == {"value", "error", "unit", "reference", "source"}
    report = (undisturbed / "report.html").read_text()
    assert report.count("<svg") == 3
    assert "src=" not in report


def test_shear_becomes_stiffer_with_every_update(undisturbed):
    """Silicon's ratios start at 210 GPa; error bars are 15 GPa."""
    history = read_metrics(undisturbed / "training" / "metrics.jsonl")
    c44 = [line["value/ambient/elasticity/2"] for line in history]
    assert c44[0] < 300.0
    assert c44[2] > c44[0] + 60.0
    assert history[2]["loss"] < 0.7 * history[0]["loss"]


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
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "report.html", "model/weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name
