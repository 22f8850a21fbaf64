"""The pictures of the report."""

from pathlib import Path
from typing import Any

import diamond
import matplotlib.pyplot as plt
import numpy as np

from mosaicmd.kernel.report import Metric, Section, write_report

MEASURED, LEARNED = "#1c2733", "#1f77b4"


def write_page(
    out: Path,
    settings: diamond.DiamondConfig,
    learned: Any,
    after: Any,
    metrics: dict[str, Metric],
    history: list[dict[str, Any]],
    branches: tuple[np.ndarray, np.ndarray],
) -> None:
    """``report.html``, and the learning curves as PNG beside it."""
    learning = history_figure(after, history)
    learning.savefig(out / "learning.png", dpi=150, bbox_inches="tight")
    run = settings.validation
    duration = 1e-3 * run.n_frames * run.every * run.timestep_fs
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
        Section("Potential", "Energy of two atoms.", potential_figure(settings, learned)),
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


def potential_figure(settings: diamond.DiamondConfig, learned: Any) -> Any:
    figure, panel = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    pair = settings.model.pair
    r = np.linspace(0.85 * pair.sigma, 0.999 * pair.a * pair.sigma, 200)
    panel.plot(r, diamond.pair_energies(settings.model, learned, r), color=LEARNED)
    panel.axvline(settings.edge * np.sqrt(3.0) / 4.0, ls="--", color=MEASURED, lw=0.8)
    panel.set(xlabel="r / Å (dashed: the bond of diamond)", ylabel="pair energy / eV")
    return figure
