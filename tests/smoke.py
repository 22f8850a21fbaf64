"""Use the installed members, named as arguments, far from the tree: import each, compute an energy.

Run by `nox -s wheels` in an environment that holds the wheels and what they declare, no more.
"""

import importlib
import sys
from importlib.metadata import version
from pathlib import Path

for member in sys.argv[1:]:
    module = importlib.import_module("mosaicmd." + member.replace("-", "_"))
    folder = Path(str(module.__file__)).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not installed in {sys.prefix}"
    assert (folder / "py.typed").is_file(), f"{member} ships no py.typed"
    assert module.__version__ == version(f"mosaicmd-{member}")
    print(f"mosaicmd-{member} {module.__version__}")
