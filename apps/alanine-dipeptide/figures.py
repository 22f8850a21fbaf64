"""The pictures of the report."""

from pathlib import Path
from typing import Any

import alanine
import matplotlib.pyplot as plt
import numpy as np
import ramachandran
import validation

from mosaicmd.kernel import units
from mosaicmd.kernel.report import Metric, Section, write_report

REFERENCE = "#1c2733"
COLORS = {"prior": "#8c8c8c", "matched": "#d1752c", "entropy": "#4a9a62", "combined": "#1f77b4"}
LABELS = {
    "prior": "priors",
    "matched": "force matching",
    "entropy": "relative entropy",
    "combined": "forces, then relative entropy",
}


def write_page(
    out: Path,
    settings: alanine.AlanineConfig,
    reference: ramachandran.Sampled,
    found: dict[str, validation.Findings],
    metrics: dict[str, Metric],
    history: dict[str, list[dict[str, Any]]],
) -> None:
    """``report.html``, and the Ramachandran plots as PNG beside it."""
    plots = ramachandran_figure(settings, reference, found)
    plots.savefig(out / "ramachandran.png", dpi=130, bbox_inches="tight")
    sections = [
        Section(
            "Free energy of both dihedrals",
            "kJ/mol, on 60 x 60 bins; white: never visited.",
            plots,
        ),
        Section("What must hold", checks(metrics)),
        Section("Figures of merit", metrics=metrics),
        Section("Each dihedral", "Probability density per degree.", marginal_figure(
            reference, found)),
        Section(
            "Learning",
            "Root mean square error of mapped forces, most of which is noise that no model "
            "of beads can follow; relative entropy since the parameters that its minimisation "
            "began with.",
            learning_figure(history),
        ),
        Section(
            "Widths of bonds, angles and impropers",
            "Standard deviations over those of the reference.",
            width_figure(found),
        ),
    ]  # fmt: skip
    write_report(out / "report.html", "Alanine dipeptide as ten beads", sections)
    plt.close("all")


def checks(metrics: dict[str, Metric]) -> str:
    """In words, whether both sources together are better than forces alone."""
    value = {name: metric.value for name, metric in metrics.items()}
    both, forces, floor = (value[f"jsd_{k}"] for k in ("combined", "force_matching", "floor"))
    claims = (
        (both <= 3.0 * floor, f"divergence of the combined routine, {both:.4f} nats, at most "
                              f"three times that of one half of the reference from the other, "
                              f"{floor:.4f}"),
        (both < forces, f"below that of force matching alone, {forces:.4f} nats"),
    )  # fmt: skip
    said = [f"{'holds' if holds else 'does not hold'}: {claim}" for holds, claim in claims]
    return "; ".join(said) + "."


def ramachandran_figure(
    settings: alanine.AlanineConfig,
    reference: ramachandran.Sampled,
    found: dict[str, validation.Findings],
) -> Any:
    figure, panels = plt.subplots(
        1, 1 + len(found), figsize=(3.0 * (1 + len(found)), 3.2), layout="constrained", sharey=True
    )
    named = {"reference": reference} | {LABELS[k]: of.sampled for k, of in found.items()}
    image: Any = None
    for panel, (name, sampled) in zip(panels, named.items(), strict=True):
        energy = ramachandran.surface(sampled.counts, settings.kT) / units.KJ_PER_MOL
        image = panel.imshow(
            energy.T, origin="lower", extent=(-180, 180, -180, 180), vmin=0.0, vmax=25.0,
            cmap="viridis_r", interpolation="nearest",
        )  # fmt: skip
        panel.set(title=name, xlabel="φ / °", xticks=(-180, -90, 0, 90, 180))
        panel.title.set_fontsize(9)
    panels[0].set(ylabel="ψ / °", yticks=(-180, -90, 0, 90, 180))
    figure.colorbar(image, ax=panels, shrink=0.8)
    return figure


def marginal_figure(reference: ramachandran.Sampled, found: dict[str, validation.Findings]) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    width = 360.0 / alanine.N_BINS
    for axis, (panel, name) in enumerate(zip(panels, "φψ", strict=True)):
        named = {None: reference} | {key: of.sampled for key, of in found.items()}
        for key, sampled in named.items():
            density = sampled.counts.sum(axis=1 - axis) / sampled.counts.sum() / width
            panel.plot(
                ramachandran.CENTRES, density, lw=1.8 if key is None else 1.0,
                color=REFERENCE if key is None else COLORS[key],
                label="reference" if key is None else LABELS[key],
            )  # fmt: skip
        panel.set(xlabel=f"{name} / °", ylabel="density / °⁻¹", xlim=(-180, 180))
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def learning_figure(history: dict[str, list[dict[str, Any]]]) -> Any:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    name = "matching/rmse_forces_mev_per_angstrom"
    lines = [line for line in history["combined"] if name in line]
    panels[0].plot(
        [line["step"] for line in lines],
        [1e-3 * line[name] for line in lines],
        color=COLORS["matched"],
        lw=0.7,
    )
    panels[0].set(xlabel="step of force matching", ylabel="force error / eV/Å")
    for key, prefix in (("entropy", ""), ("combined", "refining/")):
        name = f"{prefix}relative_entropy"
        values = [line[name] for line in history[key] if name in line]
        panels[1].plot(
            range(1, len(values) + 1), values, ".-", color=COLORS[key], label=LABELS[key]
        )
    panels[1].set(xlabel="update", ylabel="relative entropy / nats")
    panels[1].legend(frameon=False, fontsize=8)
    return figure


def width_figure(found: dict[str, validation.Findings]) -> Any:
    figure, panel = plt.subplots(figsize=(8, 3.0), layout="constrained")
    for key, of in found.items():
        panel.plot(np.concatenate(list(of.widths.values())), "o", ms=4, color=COLORS[key],
                   label=LABELS[key])  # fmt: skip
    sizes = [len(values) for values in next(iter(found.values())).widths.values()]
    ends = np.cumsum([0, *sizes])
    panel.set_xticks(0.5 * (ends[1:] + ends[:-1]) - 0.5, ["bonds", "angles", "impropers"])
    for end in ends[1:-1]:
        panel.axvline(end - 0.5, color=REFERENCE, lw=0.5)
    panel.axhline(1.0, color=REFERENCE, lw=0.8)
    panel.set(ylabel="width / width of the reference")
    panel.legend(frameon=False, fontsize=8)
    return figure
