"""The pictures of the report."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import water

from mosaicmd.kernel import units
from mosaicmd.kernel.report import Metric, Section, write_report

MEASURED, BEFORE, AFTER = "#1c2733", "#d9822b", "#1f77b4"


def write_page(
    out: Path,
    settings: water.WaterConfig,
    params: tuple[Any, Any],
    runs: tuple[Any, Any],
    metrics: dict[str, Metric],
    history: list[dict[str, Any]],
) -> None:
    """``report.html``, and the structure figure as PNG beside it."""
    structure = structure_figure(*runs)
    structure.savefig(out / "structure.png", dpi=150, bbox_inches="tight")
    duration = settings.validation.production_ps
    sections = [
        Section(
            "Structure",
            f"Liquid water at 1 bar, {settings.n_beads} beads. 'Before' is the potential that "
            "learning starts from; 'after' is an independent run of the learned potential, "
            f"{duration:.0f} ps at {settings.validation.timestep_fs:g} fs, from another start "
            "structure and seed. Shaded: one standard error.",
            structure,
        ),
        Section("Figures of merit", metrics=metrics),
        Section("Potential", "Energy of two beads.", potential_figure(settings, params)),
        Section("Pressure", "Of the validation run.", pressure_figure(settings, runs[1])),
        Section("Learning", "Before each update.", history_figure(settings, history)),
    ]
    write_report(out / "report.html", "Coarse-grained water learned from experiment", sections)
    plt.close("all")


def structure_figure(before: Any, after: Any) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    curves = water.measured()
    for panel, observable in zip(panels, water.structure(), strict=True):
        name, axis = observable.name, np.asarray(observable.axis)
        axis = np.degrees(axis) if name == "adf" else axis
        for run, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
            value, error = run.values[name], run.errors[name]
            panel.plot(axis, value, color=color, label=label)
            panel.fill_between(axis, value - error, value + error, color=color, alpha=0.3, lw=0)
        panel.plot(axis, curves[name], "--", color=MEASURED, label="measured")
    panels[0].set(xlabel="r / Å", ylabel="g(r), O-O", xlim=(2, 10))
    panels[1].set(xlabel="angle O-O-O / degrees", ylabel="probability density / rad⁻¹")
    panels[0].legend(frameon=False)
    return figure


def potential_figure(settings: water.WaterConfig, params: tuple[Any, Any]) -> Any:
    figure, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
    r = np.linspace(2.2, settings.model.prior.cutoff, 200)
    for one, color, label in zip(params, (BEFORE, AFTER), ("before", "after"), strict=True):
        energy = water.pair_energy(settings.model, one, r) / units.KJ_PER_MOL
        panel.plot(r, energy, color=color, label=label)
    panel.axhline(0.0, color="#b0b8c0", lw=0.8)
    panel.set(xlabel="r / Å", ylabel="pair energy / kJ mol⁻¹", ylim=(-8, 25))
    panel.legend(frameon=False)
    return figure


def pressure_figure(settings: water.WaterConfig, run: Any) -> Any:
    figure, panel = plt.subplots(figsize=(8, 3), layout="constrained")
    series = run.pressure_series
    time = settings.validation.frame_ps * np.arange(1, len(series) + 1)
    panel.plot(time, series, color=AFTER, lw=0.4, alpha=0.5, label="instantaneous")
    panel.plot(time, np.cumsum(series) / np.arange(1, len(series) + 1), color=AFTER, label="mean")
    panel.axhline(1.0, ls="--", color=MEASURED, label="target")
    panel.set(xlabel="time / ps", ylabel="pressure / bar")
    panel.legend(frameon=False, ncols=3)
    return figure


def history_figure(settings: water.WaterConfig, history: list[dict[str, Any]]) -> Any:
    scale = settings.training
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    step = [line["step"] for line in history]
    panels[0].semilogy(step, [line["loss"] for line in history], color=AFTER)
    panels[0].set(ylabel="loss")
    for name, tolerance, label in (
        ("rdf", scale.tolerance_rdf, "g(r)"),
        ("adf", scale.tolerance_adf, "angles, rad⁻¹"),
        ("pressure", 1e-3 * scale.tolerance_bar, "pressure, kbar"),
    ):
        deviation = [tolerance * line[f"deviation/ambient/{name}"] for line in history]
        panels[1].semilogy(step, deviation, label=label)
    panels[1].set(ylabel="root mean square deviation")
    panels[1].legend(frameon=False)
    panels[2].plot(step, [line["n_eff/ambient"] for line in history], color=AFTER)
    panels[2].set(ylabel="N_eff / N after the update", ylim=(0, 1.05))
    for panel in panels:
        panel.set(xlabel="update")
    return figure
