"""The installed package is the one this tree describes."""

import tomllib
from pathlib import Path

import mosaicmd.led_dynamics


def test_version_is_that_of_the_project_file():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert mosaicmd.led_dynamics.__version__ == project["version"]
