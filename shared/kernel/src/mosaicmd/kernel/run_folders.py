"""Folders for the results of a run, which belong to its settings and its input files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from mosaicmd.kernel.config import Config, ConfigError, load_config, suggest
from mosaicmd.kernel.files import atomic_write_json, atomic_write_text

C = TypeVar("C", bound=Config)


def settings_and_folder(
    config_type: type[C],
    presets: Path,
    *,
    preset: str,
    config: Path | None = None,
    out: Path | None = None,
    name: str = "run",
) -> tuple[C, Path]:
    """Checked settings and the folder for their results, where ``config.yaml`` records them.

    The same settings may come again, which is how a run resumes; others need another folder.

    Args:
        config_type: what the settings are.
        presets: folder of ``PRESET.yaml`` files.
        preset: one of them.
        config: a file to take instead of a preset.
        out: folder for results; made if missing. ``None``: ``runs/NAME-PRESET``.
        name: of the app.

    Raises:
        ConfigError: for a preset that does not exist, settings that are not valid, or a
            folder that holds a run with other settings.
    """
    if config is None:
        known = sorted(path.stem for path in presets.glob("*.yaml"))
        if preset not in known:
            raise ConfigError(f"no preset {preset!r}{suggest(preset, known)}; there are {known}")
        config = presets / f"{preset}.yaml"
    settings = load_config(config_type, config)
    out = out or Path("runs") / f"{name}-{config.stem}"
    claim(out, settings)
    return settings, out


def claim(out: Path, config: Config, inputs: Mapping[str, Path] | None = None) -> None:
    """Make a folder that of a run, or check that it is.

    It gets ``config.yaml`` and, for inputs, ``data.json`` with their checksums.

    Raises:
        ConfigError: if it belongs to other settings, or an input file has changed since.
    """
    sums = {name: _checksum(path) for name, path in (inputs or {}).items()}
    settings, record = out / "config.yaml", out / "data.json"
    if settings.exists():
        known = load_config(type(config), settings)
        if known != config:
            names = [
                n for n in type(config).model_fields if getattr(known, n) != getattr(config, n)
            ]
            raise ConfigError(
                f"{out} holds a run with other settings (different: {', '.join(names)}); give "
                "another --out, or delete it"
            )
        stored = json.loads(record.read_text(encoding="utf-8")) if record.exists() else sums
        if changed := sorted(name for name in sums if stored.get(name) != sums[name]):
            raise ConfigError(
                f"{', '.join(changed)} changed since the run in {out} was started; give another "
                "--out, or delete it"
            )
    elif out.exists() and (not out.is_dir() or any(not _is_torn(path) for path in out.iterdir())):
        raise ConfigError(f"{out} exists and holds no run; give another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        atomic_write_text(settings, text)
    if inputs and not record.exists():
        atomic_write_json(record, sums)


def _checksum(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"file {path} does not exist")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_torn(path: Path) -> bool:
    """Whether a kill has left this behind while a file was being written."""
    return path.name.startswith(".") and path.name.endswith(".tmp")
