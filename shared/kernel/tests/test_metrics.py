"""The metric log survives interruption unchanged, and progress shows speed and time left."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicmd.kernel import metrics
from mosaicmd.kernel.metrics import MetricLog, progress, read_metrics


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand, seconds."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def write(path, start, stop):
    log = MetricLog(path)
    for step in range(start, stop):
        log.append(step, {"loss": 1.0 / (step + 3.0), "n_eff": np.float32(0.1) * step})


def test_lines_are_plain_json_with_all_digits(tmp_path):
    log = MetricLog(tmp_path / "m.jsonl")
    log.append(0, {"loss": 0.1 + 0.2, "count": 3, "flag": True, "name": "rdf", "none": None})
    log.append(1, {"array": jnp.array([[1.5, -0.0]]), "narrow": jnp.bfloat16(0.5)})
    assert (tmp_path / "m.jsonl").read_text() == (
        '{"step": 0, "loss": 0.30000000000000004, "count": 3, "flag": true, "name": "rdf", '
        '"none": null}\n'
        '{"step": 1, "array": [[1.5, -0.0]], "narrow": 0.5}\n'
    )


def test_what_json_lacks_is_stored_as_text_and_read_back(tmp_path):
    log = MetricLog(tmp_path / "m.jsonl")
    log.append(5, {"a": float("nan"), "b": np.array([np.inf, -np.inf, 1.0])})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {
        "step": 5,
        "a": "nan",
        "b": ["inf", "-inf", 1.0],
    }
    (record,) = read_metrics(tmp_path / "m.jsonl")
    assert math.isnan(record["a"])
    assert record["b"] == [math.inf, -math.inf, 1.0]


def test_a_resumed_run_leaves_the_same_file(tmp_path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(whole, 0, 10)
    write(resumed, 0, 7)
    with open(resumed, "ab") as stream:
        stream.write(b'{"step": 7, "lo')  # killed in the middle of a line
    MetricLog(resumed).truncate(4)
    write(resumed, 5, 10)
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_torn_line_is_dropped_before_more_is_added(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 0}\n{"st')
    write(path, 1, 2)
    assert [record["step"] for record in read_metrics(path)] == [0, 1]
    path.write_bytes(b'{"st')
    MetricLog(path)
    assert path.read_bytes() == b""


def test_truncate_of_a_log_that_does_not_exist_does_nothing(tmp_path):
    MetricLog(tmp_path / "m.jsonl").truncate(3)
    assert not (tmp_path / "m.jsonl").exists()


def test_foreign_lines_are_named_and_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    for line in (b'{"loss": 1}\n', b"epoch 3\n", b"[1]\n"):
        path.write_bytes(b'{"step": 0}\n' + line)
        with pytest.raises(ValueError, match="line 2 of"):
            MetricLog(path).truncate(0)
        assert path.read_bytes() == b'{"step": 0}\n' + line


@pytest.mark.parametrize("bad", [{"step": 1}, {"x": object()}, {"x": 1j}, {"x": {"y": 1}}])
def test_values_that_are_no_metrics_are_refused(tmp_path, bad):
    log = MetricLog(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}`"):
        log.append(0, bad)
    assert not log.path.exists()


def test_lines_show_speed_and_time_left(clock, capsys):
    """500 steps of 2 fs in 10 s: 50 steps/s, 0.1 ps/s = 8.64 ns/day, 10 s for the other 500."""
    with progress(1000, "NVT", rate=(2e-6 * 86400, "ns/day"), every=5.0) as bar:
        clock.now += 1.0
        bar.advance(50)
        assert capsys.readouterr().err == ""
        clock.now += 9.0
        bar.advance(450, "T 300 K")
    assert capsys.readouterr().err == "NVT: 500/1000 (50 %), 8.64 ns/day, 0:00:10 left, T 300 K\n"


def test_speed_of_a_resumed_run_counts_its_own_steps(clock, capsys):
    with progress(1000, "NVT", start=900) as bar:
        clock.now += 10.0
        bar.advance(100)
    assert capsys.readouterr().err == "NVT: 1000/1000 (100 %), 10 steps/s, 0:00:00 left\n"


def test_quiet_shows_nothing_and_counts(clock, capsys):
    with progress(3, "x", quiet=True, every=0.0) as bar:
        clock.now += 60.0
        bar.advance(3)
    assert bar.completed == 3
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress(10, "training") as bar:
        clock.now += 2.0
        bar.advance(5, "loss 0.5")
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "5/10 (50 %), 2.5 steps/s, 0:00:02 left, loss 0.5" in shown
