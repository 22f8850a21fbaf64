"""Independent pieces of work on several devices at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

T = TypeVar("T")
Item = TypeVar("Item")


def on_devices(
    function: Callable[[Item], T],
    items: Sequence[Item],
    devices: Sequence[Any] | None = None,
) -> list[T]:
    """``[function(item) for item in items]``, one item on each device at a time.

    Every device has a thread of its own, in which it is the default device, so arrays that are
    not bound to another one are computed with there. What the function returns is brought to
    the first device. Item ``k`` goes to device ``k`` modulo their number, so the same work is
    always done by the same device.

    Args:
        function: returns a pytree of arrays; what it compiles is compiled for each device.
        items: what to call it with.
        devices: of JAX, those of this process by default. With one, or for one item, there are no
            threads.

    Raises:
        Exception: what ``function`` raises first, by the order of the items.
    """
    devices = jax.local_devices() if devices is None else devices
    if len(devices) < 2 or len(items) < 2:
        return [function(item) for item in items]

    def share(first: int) -> list[T | Exception]:
        found: list[T | Exception] = []
        with jax.default_device(devices[first]):
            for item in items[first :: len(devices)]:
                try:
                    found.append(jax.device_put(function(item), devices[0]))
                except Exception as error:
                    found.append(error)
        return found

    with ThreadPoolExecutor(len(devices)) as threads:
        shares = list(threads.map(share, range(min(len(devices), len(items)))))
    results = [shares[k % len(devices)][k // len(devices)] for k in range(len(items))]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results  # type: ignore[return-value]
