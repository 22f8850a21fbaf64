"""How well a model reproduces labels: errors in customary units, parity plots, one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mosaicmd.kernel import units
from mosaicmd.kernel.batches import Batches
from mosaicmd.kernel.examples import Example, labels_present
from mosaicmd.kernel.label_errors import predict
from mosaicmd.kernel.potentials import Params, Potential
from mosaicmd.kernel.report import Metric, Section, write_report, write_results

LABELS = ("energy", "forces", "stress", "charges")
_UNITS = {  # of errors, and of the axes of plots: name, and what one of it is
    "energy": (("meV/atom", 1e-3), ("eV/atom", 1.0)),
    "forces": (("meV/Å", 1e-3), ("eV/Å", 1.0)),
    "stress": (("GPa", units.GPA), ("GPa", units.GPA)),
    "charges": (("me", 1e-3), ("e", 1.0)),
}
_MOST_POINTS = 4000  # in a plot, per split or curve


class Pairs(NamedTuple):
    """Values of one label, in internal units; energies per atom, less reference energies."""

    predicted: np.ndarray
    label: np.ndarray


def compare_labels(
    potential: Potential,
    params: Params,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    separate: bool = False,
) -> dict[str, Pairs]:
    """Predictions beside labels, by label; the order of structures is not kept.

    Charges are compared if the potential predicts them.

    Raises:
        ValueError: if there is nothing to compare with.
    """
    known = LABELS if potential.charges is not None else LABELS[:-1]
    labels = [label for label in labels_present(examples) if label in known]
    if not labels:
        raise ValueError(f"no structure has any of the labels {list(known)} to compare with")
    batches = Batches(examples, batch_size, shuffle=False, separate=separate)
    program = jax.jit(
        lambda params, slot: predict(potential.energy, params, slot, labels, potential.charges)
    )
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {label: [] for label in labels}
    for batch in batches.epoch():
        for index in range(batch.owner.shape[0]):
            slot = jax.tree.map(lambda leaf, i=index: leaf[i], batch)
            predictions, host = jax.device_get((program(params, slot), slot))
            for label in labels:
                given = host.targets.weight(label) > 0.0
                pair = [getattr(predictions, label)[given], getattr(host.targets, label)[given]]
                values = [np.asarray(value, float) for value in pair]
                if label == "energy":
                    values = [value / host.n_atoms[given] for value in values]
                found[label].append((values[0].ravel(), values[1].ravel()))
    return {
        label: Pairs(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
        for label, pairs in found.items()
    }


def label_metrics(splits: Mapping[str, Mapping[str, Pairs]]) -> dict[str, Metric]:
    """Mean absolute and root mean square errors by ``SPLIT_ERROR_LABEL``."""
    metrics = {}
    for split, pairs in splits.items():
        for label, (predicted, given) in pairs.items():
            (unit, size), _ = _UNITS[label]
            deviation = (predicted - given) / size
            metrics[f"{split}_mae_{label}"] = Metric(float(np.mean(np.abs(deviation))), unit)
            metrics[f"{split}_rmse_{label}"] = Metric(
                float(np.sqrt(np.mean(np.square(deviation)))), unit
            )
    return metrics


def write_label_report(
    folder: Path,
    title: str,
    splits: Mapping[str, Mapping[str, Pairs]],
    *,
    history: Sequence[Mapping[str, Any]] = (),
    text: str = "",
    **more: Any,
) -> dict[str, Metric]:
    """Write ``results.json`` and ``report.html`` into a folder, and return the errors.

    Without matplotlib (extra ``report``) the page has no figures.
    """
    metrics = label_metrics(splits)
    write_results(folder / "results.json", metrics, **more)
    sections = [Section("Errors", text, metrics=metrics)]
    if _has_matplotlib():
        if history:
            sections.append(Section("Learning curves", figure=_curves(history)))
        labels = [label for label in LABELS if any(label in pairs for pairs in splits.values())]
        sections += [
            Section(f"Parity of {label}", figure=_parity(label, splits)) for label in labels
        ]
    write_report(folder / "report.html", title, sections)
    return metrics


def describe(metrics: Mapping[str, Metric]) -> str:
    """A table for the terminal: a row per split and label."""
    rows = [f"{'split':12s} {'label':8s} {'MAE':>12s} {'RMSE':>12s}"]
    for name, metric in metrics.items():
        split, kind, label = name.rsplit("_", 2)
        if kind == "mae":
            rmse = metrics[f"{split}_rmse_{label}"]
            rows.append(
                f"{split:12s} {label:8s} {metric.value:12.5g} {rmse.value:12.5g} {metric.unit}"
            )
    return "\n".join(rows)


def _parity(label: str, splits: Mapping[str, Mapping[str, Pairs]]) -> Any:
    from matplotlib.figure import Figure

    _, (unit, size) = _UNITS[label]
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for split, pairs in splits.items():
        if label not in pairs:
            continue
        predicted, given = (values / size for values in pairs[label])
        if len(given) > _MOST_POINTS:
            chosen = rng.choice(len(given), _MOST_POINTS, replace=False)
            predicted, given = predicted[chosen], given[chosen]
        axes.plot(given, predicted, ".", markersize=3, alpha=0.6, label=split, rasterized=True)
    axes.axline((0.0, 0.0), slope=1.0, color="0.5", linewidth=0.8)
    reach = [
        min(axes.get_xlim()[0], axes.get_ylim()[0]),
        max(axes.get_xlim()[1], axes.get_ylim()[1]),
    ]
    axes.set(
        xlim=reach,
        ylim=reach,
        aspect="equal",
        xlabel=f"label ({unit})",
        ylabel=f"model ({unit})",
    )
    axes.legend()
    return figure


def _curves(history: Sequence[Mapping[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training batch"), ("validation/loss", "validation")):
        points = [(line["step"], line[name]) for line in history if name in line]
        points = points[:: max(1, len(points) // _MOST_POINTS)]
        if points:
            marker = "o" if name != "loss" else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel="loss")
    if all(line["loss"] > 0.0 for line in history):
        axes.set_yscale("log")
    axes.legend()
    return figure


def _has_matplotlib() -> bool:
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None
