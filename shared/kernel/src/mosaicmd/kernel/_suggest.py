"""The nearest right name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: object, options: Iterable[object]) -> str:
    """``" (did you mean `x`?)"`` for the option closest to ``name``, or an empty string.

    Append it to the statement that the name is unknown, before listing the options.
    """
    by_lower = {str(option).lower(): str(option) for option in options}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean `{by_lower[close[0]]}`?)" if close else ""
