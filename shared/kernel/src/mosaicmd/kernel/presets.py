"""Settings of an app: from a preset or a file, into an output folder that belongs to them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml

from mosaicmd.kernel.config import Config, ConfigError, load_config, suggest
from mosaicmd.kernel.files import atomic_write_text

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
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    record = out / "config.yaml"
    if record.exists() and record.read_text() != text:
        raise ConfigError(f"{out} holds a run with other settings ({record}); give another --out")
    atomic_write_text(record, text)
    return settings, out
