"""The example in the README runs as printed, and prints what stands below it."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
EXAMPLE = re.compile(r"<!-- example -->\n```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)


def test_the_example_prints_what_it_says(tmp_path):
    found = EXAMPLE.findall(README.read_text())
    assert len(found) == 1
    source, printed = found[0]
    assert len(source.splitlines()) <= 20
    run = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == printed
