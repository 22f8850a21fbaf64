"""The pictures of the report."""

from pathlib import Path
from typing import Any

import diamond
import matplotlib.pyplot as plt
import numpy as np

from mosaicmd.kernel.potentials import Potential
from mosaicmd.kernel.report import Metric, Section, write_report

MEASURED, LEARNED = "#1c2733", "#1f77b4"


def write_page(
    out: Path,
    settings: diamond.DiamondConfig,
    learned: tuple[Potential, Any],
    after: Any,
    metrics: dict[str, Metric],
    history: list[dict[str, Any]],
    branches: tuple[np.ndarray, np.ndarray],
) -> None:
    """``report.html``, and the learning curves as PNG beside it."""
    learning = history_figure(after, history)
    learning.savefig(out / "learning.png", dpi=150, bbox_inches="tight")
    run = settings.validation
    duration = 1e-3 * (run.replicas or 1) * run.n_frames * run.every * run.timestep_fs
    sections = [
        Section(
            "Learning",
            f"{8 * settings.repeats**3} atoms of diamond at {settings.temperature_kelvin:g} K in "
            "the measured cell. Lines: before each update, in the simulations that it learns "
            f"from; at the right an independent run of the learned potential, {duration:.0f} ps "
            "from another seed, with its standard error.",
            learning,
        ),
        Section("Figures of merit", metrics=metrics),
        Section(
            "Phonons",
            "Harmonic frequencies of the learned potential, which was not shown any; the "
            "circle is the measured Raman line.",
            phonon_figure(branches, metrics["raman_thz"]),
        ),
        Section(
            "Potential",
            "Energy of the ideal crystal by the length of its bonds.",
            potential_figure(settings, learned),
        ),
    ]
    write_report(out / "report.html", "Diamond learned from its elastic constants", sections)
    plt.close("all")


def history_figure(after: Any, history: list[dict[str, Any]]) -> Any:
    figure, panels = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    step = np.array([line["step"] for line in history])
    labels = [*(f"{name.upper()} / GPa" for name in diamond.MEASURED_GPA), "pressure / GPa"]
    for k, (panel, label, measured) in enumerate(
        zip(panels, labels, [*diamond.MEASURED_GPA.values(), 0.0], strict=True)
    ):
        values = [line[f"value/ambient/elasticity/{k}"] for line in history]
        panel.plot(step, values, ".-", color=LEARNED, label="training")
        panel.errorbar(
            [step[-1] + 1.5], after.elasticity[k], after.errors[k], fmt="o", color=LEARNED,
            capsize=3, label="validation",
        )  # fmt: skip
        panel.axhline(measured, ls="--", color=MEASURED, label="measured")
        panel.set(xlabel="update", ylabel=label)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def phonon_figure(branches: tuple[np.ndarray, np.ndarray], raman: Metric) -> Any:
    figure, panel = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    along, frequencies = branches
    panel.plot(along, frequencies, color=LEARNED, lw=1.0)
    panel.plot([0.0], [raman.reference or np.nan], "o", mfc="none", color=MEASURED)
    panel.set(xlabel="from Gamma to X", ylabel="frequency / THz", xlim=(-0.02, 1), ylim=(0, None))
    return figure


def potential_figure(settings: diamond.DiamondConfig, learned: tuple[Potential, Any]) -> Any:
    figure, panel = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    measured = settings.edge * np.sqrt(3.0) / 4.0
    bonds = measured * np.linspace(0.94, 1.06, 41)
    panel.plot(bonds, diamond.energies_by_bond(*learned, bonds), color=LEARNED)
    panel.axvline(measured, ls="--", color=MEASURED, lw=0.8)
    panel.set(xlabel="bond / Å (dashed: that of diamond)", ylabel="energy / eV per atom")
    return figure
