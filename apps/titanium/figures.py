"""The pictures of the report."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import titanium
import validation

from mosaicmd.kernel.report import Metric, Section, write_report

MEASURED = "#1c2733"
COLORS = {"dft": "#d1752c", "exp": "#4a9a62", "fused": "#1f77b4"}
LABELS = {"dft": "labels only", "exp": "experiment only", "fused": "both"}


def write_page(
    out: Path,
    settings: titanium.TitaniumConfig,
    found: dict[str, validation.Findings],
    metrics: dict[str, Metric],
    history: dict[str, list[dict[str, Any]]],
) -> None:
    """``report.html``, and the elastic constants as PNG beside it."""
    elastic = elastic_figure(settings, found)
    elastic.savefig(out / "elasticity.png", dpi=150, bbox_inches="tight")
    learned = ", ".join(f"{t:g}" for t in settings.experiment.temperatures_kelvin)
    heldout = ", ".join(f"{t:g}" for t in settings.heldout_kelvin)
    sections = [
        Section(
            "Elastic constants and pressure",
            f"Of {2 * int(np.prod(settings.repeats))} atoms in the measured cells, each from an "
            f"independent run with its standard error. Learned from: {learned} K (filled); not "
            f"learned from: {heldout} K (open). Line: measured. The cell at "
            f"{titanium.OFF_TREND_KELVIN:g} K (square) is interpolated.",
            elastic,
        ),
        Section("What must hold", checks(metrics)),
        Section("Figures of merit", metrics=metrics),
        Section(
            "Learning",
            "Deviations from experiment in tolerances, root mean square over all temperatures, "
            "before each update.",
            learning_figure(history),
        ),
        Section(
            "Errors of labels by phase",
            "Root mean square errors of force components, of the structures held out.",
            phase_figure(found),
        ),
        Section(
            "Thermal expansion",
            "Lattice parameters without pressure, in cells that move freely. Line: measured.",
            expansion_figure(found),
        ),
        Section(
            "Phonons",
            "Harmonic frequencies in the cell measured at 298 K; negative ones would be imaginary.",
            phonon_figure(found),
        ),
    ]
    write_report(out / "report.html", "Titanium learned from labels and experiment", sections)
    plt.close("all")


def checks(metrics: dict[str, Metric]) -> str:
    """In words, whether the fused model joins what the other two know."""
    value = {name: metric.value for name, metric in metrics.items()}
    elastic, alone = value["elastic_mape_heldout_fused"], value["elastic_mape_heldout_dft"]
    force, least = value["force_rmse_fused"], value["force_rmse_dft"]
    pressure = value["pressure_max_abs_fused"]
    claims = (
        (elastic <= 5.0, f"elastic constants within 5 % where not learned from ({elastic:.1f} %)"),
        (elastic <= 0.5 * alone, f"at most half the deviation of labels alone ({alone:.1f} %)"),
        (force <= 1.1 * least, f"forces at most 10 % worse ({force:.3f} and {least:.3f} eV/Å)"),
        (pressure <= 0.3, f"pressure below 0.3 GPa everywhere ({pressure:.2f} GPa)"),
    )
    said = [f"{'holds' if holds else 'does not hold'}: {claim}" for holds, claim in claims]
    return "; ".join(said) + "."


def elastic_figure(settings: titanium.TitaniumConfig, found: dict[str, validation.Findings]) -> Any:
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True)
    table = titanium.measured()
    kelvin = np.array(sorted(table))
    wanted = np.array([np.append(table[t].constants, 0.0) for t in kelvin])
    names = [*(name.upper() for name in titanium.CONSTANTS), "pressure"]
    for k, (panel, name) in enumerate(zip(panels.flat, names, strict=True)):
        panel.plot(kelvin, wanted[:, k], color=MEASURED, lw=1.0)
        for model, of in found.items():
            series, color = of.elasticity, COLORS[model]
            odd = series.kelvin == titanium.OFF_TREND_KELVIN
            heldout = np.isin(series.kelvin, settings.heldout_kelvin) & ~odd
            for which, face, mark in (
                (~heldout & ~odd, color, "o"),
                (heldout, "white", "o"),
                (odd, "white", "s"),
            ):
                panel.errorbar(
                    series.kelvin[which], series.values[which, k], series.errors[which, k],
                    fmt=mark, ms=5, color=color, mfc=face, capsize=2,
                    label=LABELS[model] if face == color else None,
                )  # fmt: skip
        panel.set(ylabel=f"{name} / GPa")
    for panel in panels[1]:
        panel.set(xlabel="T / K")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def learning_figure(history: dict[str, list[dict[str, Any]]]) -> Any:
    figure, panel = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for model, lines in history.items():
        rows = [[value for name, value in line.items() if "deviation/" in name] for line in lines]
        sizes = [float(np.sqrt(np.mean(np.square(row)))) for row in rows if row]
        if sizes:
            panel.plot(np.arange(1, len(sizes) + 1), sizes, ".-", color=COLORS[model],
                       label=LABELS[model])  # fmt: skip
    panel.set(xlabel="update by experiment", ylabel="deviation / tolerance", yscale="log")
    panel.legend(frameon=False, fontsize=8)
    return figure


def phase_figure(found: dict[str, validation.Findings]) -> Any:
    figure, panel = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    phases = list(next(iter(found.values())).labels)
    for k, (model, of) in enumerate(found.items()):
        errors = [1e-3 * of.labels[phase]["rmse_forces_mev_per_angstrom"] for phase in phases]
        panel.bar(np.arange(len(phases)) + 0.27 * (k - 1), errors, 0.25, color=COLORS[model],
                  label=LABELS[model])  # fmt: skip
    panel.set_xticks(np.arange(len(phases)), phases)
    panel.set(ylabel="force error / eV/Å", yscale="log")
    panel.legend(frameon=False, fontsize=8)
    return figure


def expansion_figure(found: dict[str, validation.Findings]) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")
    table = titanium.measured()
    kelvin = np.array(sorted(table))
    wanted = np.array([[table[t].a, table[t].c] for t in kelvin])
    for axis, (panel, name) in enumerate(zip(panels, "ac", strict=True)):
        panel.plot(kelvin, wanted[:, axis], color=MEASURED, lw=1.0)
        for model, of in found.items():
            series = of.expansion
            panel.errorbar(
                series.kelvin, series.values[:, axis], series.errors[:, axis], fmt="o-",
                color=COLORS[model], capsize=2, label=LABELS[model],
            )  # fmt: skip
        panel.set(xlabel="T / K", ylabel=f"{name} / Å")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def phonon_figure(found: dict[str, validation.Findings]) -> Any:
    figure, panel = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for model, of in found.items():
        along, frequencies = of.branches
        lines = panel.plot(along, frequencies, color=COLORS[model], lw=1.0)
        lines[0].set_label(LABELS[model])
    panel.set_xticks(range(len(validation.PATH)), [name for name, _ in validation.PATH])
    panel.set(ylabel="frequency / THz", xlim=(0, len(validation.PATH) - 1))
    panel.legend(frameon=False, fontsize=8)
    return figure
