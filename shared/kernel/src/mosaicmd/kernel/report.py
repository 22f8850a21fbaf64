"""What a run leaves for people: `results.json` with error bars, and one HTML page.

The page holds its plots (SVG) and style inside, so it can be mailed and archived as one
file. Needs the extra ``report`` (matplotlib) for figures.
"""

from __future__ import annotations

import html
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mosaicmd.kernel.files import atomic_write_json, atomic_write_text


class Metric(NamedTuple):
    """One figure of merit, with what it should be compared with."""

    value: float
    unit: str
    error: float | None = None  # standard error
    reference: float | None = None
    source: str = ""  # of the reference


class Section(NamedTuple):
    """A part of the page: heading, text, and optionally a figure or a table of metrics."""

    heading: str
    text: str = ""
    figure: Any = None  # matplotlib figure
    metrics: Mapping[str, Metric] | None = None


def write_results(path: str | os.PathLike[str], metrics: Mapping[str, Metric], **more: Any) -> Path:
    """Write ``{"metrics": {name: {value, error, unit, reference, source}}, ...}`` atomically.

    Args:
        path: the JSON file.
        metrics: by name.
        more: further top-level entries, any JSON.

    Raises:
        ValueError: naming a metric whose value or error is not finite.
    """
    for name, metric in metrics.items():
        for part in ("value", "error", "reference"):
            number = getattr(metric, part)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"`{part}` of metric `{name}` is {number}; it must be finite")
    entries = {
        name: {
            "value": float(m.value),
            "error": None if m.error is None else float(m.error),
            "unit": m.unit,
            "reference": None if m.reference is None else float(m.reference),
            "source": m.source,
        }
        for name, m in metrics.items()
    }
    return atomic_write_json(path, {"metrics": entries, **more})


def write_report(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> Path:
    """Write a self-contained HTML page atomically."""
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body=body)
    return atomic_write_text(path, page)


def with_error(value: float, error: float | None) -> str:
    """``value ± error``, rounded to two digits of the error: ``"-12.3 ± 4.5"``."""
    if error is None or not error > 0.0:
        return f"{value:.4g}"
    digits = 1 - math.floor(math.log10(error))
    if abs(value) < 1e-2 or abs(value) >= 1e5:
        return f"{value:.2e} ± {error:.1e}"
    return f"{value:.{max(digits, 0)}f} ± {error:.{max(digits, 0)}f}"


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.metrics is not None:
        parts.append(_table(section.metrics))
    if section.figure is not None:
        parts.append(f"<figure>{_svg(section.figure)}</figure>")
    return "\n".join(parts)


def _table(metrics: Mapping[str, Metric]) -> str:
    rows = [
        "<tr>"
        f"<td>{html.escape(name.replace('_', ' '))}</td>"
        f"<td>{with_error(m.value, m.error)}</td><td>{html.escape(m.unit)}</td>"
        f"<td>{'' if m.reference is None else f'{m.reference:.4g}'}</td>"
        f"<td>{html.escape(m.source)}</td></tr>"
        for name, m in metrics.items()
    ]
    head = "<tr><th>quantity</th><th>value</th><th>unit</th><th>reference</th><th>source</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _svg(figure: Any) -> str:
    """The figure as inline SVG, the same bytes for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mosaicmd"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.9rem; width: 100%; }
th, td { text-align: left; padding: 0.3rem 0.7rem; border-bottom: 1px solid #d5dde5; }
td:nth-child(2) { font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""
