"""Apps as users run them: in a process of their own, with small settings, and killed half-way."""

import os
import signal
import subprocess
import sys
import time

import yaml


def app_command(app, folder, settings, task="run"):
    """Of the app in the folder ``app``, with results in ``folder / "out"``."""
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    options = ["--config", str(config), "--out", str(folder / "out")]
    return [sys.executable, str(app / "app.py"), task, *options]


def finished(command, **environment):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | environment
    )


def killed(command, folder, pattern):
    """Kill the command as soon as a file of this pattern is in the folder; what it said."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 900.0
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    return errors.decode()
