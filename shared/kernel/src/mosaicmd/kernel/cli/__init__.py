"""The command `mosaicmd`: train, evaluate, md, export, schema, and what members add to it.

A member adds a subcommand by an entry point of the group ``mosaicmd.commands``, whose name
is that of the subcommand and which leads to a ``typer.Typer`` or a function. It is imported
when it is called, so a member that is slow or broken does not slow down or break the rest.
"""

from __future__ import annotations

import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Entry point of the command."""
    try:
        from mosaicmd.kernel.cli.commands import build_app
    except ImportError as error:
        if error.name != "typer":
            raise
        sys.exit("the command needs typer: pip install 'mosaicmd-kernel[cli]'")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    build_app()()
