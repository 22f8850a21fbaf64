"""The diamond app on a small cell: complete output, learning, exact resume after a kill."""

import json
from pathlib import Path

import pytest
import yaml
from app_runs import app_command, finished, killed

from mosaicmd.kernel.metrics import read_metrics

APP = Path(__file__).parents[1] / "apps" / "diamond"


def command(folder):
    """Three updates and a short validation of 64 atoms."""
    settings = yaml.safe_load((APP / "config" / "quick.yaml").read_text())
    settings["repeats"] = 2
    settings["training"] |= {"n_equilibration": 20, "n_frames": 120}
    settings["training"] |= {"n_updates": 3, "average_last": 1}
    settings["validation"] |= {"n_equilibration": 20, "n_frames": 200}
    return app_command(APP, folder, settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = finished(command(folder))
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
    killed(arguments, tmp_path / "out" / "training" / "checkpoints", "step-*.safetensors")
    assert not (tmp_path / "out" / "results.json").exists()
    done = finished(arguments)
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "report.html", "model/weights.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes(), name
