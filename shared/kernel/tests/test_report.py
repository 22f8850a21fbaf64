"""What a run leaves behind: strict JSON, and a page that needs nothing beside it."""

import json

import pytest

from mosaicmd.kernel.report import Metric, Section, with_error, write_report, write_results

METRICS = {
    "pressure_bar": Metric(-12.34, "bar", 4.56, 1.0, "ambient <pressure>"),
    "order": Metric(0.5761, "", None, None, ""),
}


def test_results_hold_every_part_of_a_metric(tmp_path):
    write_results(tmp_path / "results.json", METRICS, seed=3)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["seed"] == 3
    assert content["metrics"]["pressure_bar"] == {
        "value": -12.34,
        "error": 4.56,
        "unit": "bar",
        "reference": 1.0,
        "source": "ambient <pressure>",
    }
    assert content["metrics"]["order"]["error"] is None


@pytest.mark.parametrize("broken", [Metric(float("nan"), "bar"), Metric(1.0, "", float("inf"))])
def test_a_metric_that_is_not_finite_is_named(broken, tmp_path):
    with pytest.raises(ValueError, match=r"of metric `loss` is (nan|inf)"):
        write_results(tmp_path / "results.json", {"loss": broken})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-12.34, 4.56, "-12.3 ± 4.6"),
        (1234.5, 23.4, "1234 ± 23"),
        (0.5761, 0.0012, "0.5761 ± 0.0012"),
        (3.3e-4, 1.2e-5, "3.30e-04 ± 1.2e-05"),
        (0.5761, None, "0.5761"),
    ],
)
def test_values_are_rounded_to_their_error(value, error, text):
    assert with_error(value, error) == text


def test_the_page_is_self_contained_escaped_and_reproducible(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    pages = []
    for name in ("one.html", "two.html"):
        figure, panel = plt.subplots()
        panel.plot([0, 1], [1, 0])
        sections = [Section("Metrics", "a < b", metrics=METRICS), Section("Plot", figure=figure)]
        pages.append(write_report(tmp_path / name, "Report & more", sections).read_text())
        plt.close(figure)
    assert pages[0] == pages[1]
    assert "<title>Report &amp; more</title>" in pages[0]
    assert "a &lt; b" in pages[0]
    assert "ambient &lt;pressure&gt;" in pages[0]
    assert pages[0].count("<svg") == 1
    assert "<img" not in pages[0]
    assert "<script" not in pages[0]
