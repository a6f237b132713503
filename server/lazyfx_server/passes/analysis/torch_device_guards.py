"""Registers guards for devices that this torch was not built for.

autograd requires the guard of a tensor's device as soon as an operator gets a tensor that requires
grad, even a fake one, and torch aborts the process without that guard. If torch is built for CUDA
but finds no device, it registers a guard that does nothing; if it is built without CUDA, it
registers none. torch has such a guard for the meta device, in a table of its library.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

_TABLE = "_ZN3c104impl26device_guard_impl_registryE"
# `c10::DeviceType`; the table has one more entry than the last of them.
_CPU, _META, _COUNT = 0, 14, 21
_LIBRARIES = ("libc10.so", "libc10.dylib")


@functools.lru_cache(maxsize=1)
def guard_absent_devices() -> bool:
    """Use the guard of the meta device for devices that this torch lacks.

    It only fills empty entries, and only in a table that looks as expected.

    Returns:
        Whether all devices have a guard now.
    """
    table = _table()
    if table is None:
        _log.warning("graphs for devices that torch %s lacks may crash workers", torch.__version__)
        return False
    for place in range(_COUNT):
        if not table[place]:
            table[place] = table[_META]
    return True


def _table() -> ctypes.Array[ctypes.c_void_p] | None:
    folder = Path(torch.__file__).with_name("lib")
    library = next((folder / name for name in _LIBRARIES if (folder / name).exists()), None)
    if library is None:
        return None
    try:
        table = (ctypes.c_void_p * _COUNT).in_dll(ctypes.CDLL(str(library)), _TABLE)
    except (OSError, ValueError):
        return None
    return table if table[_CPU] and table[_META] else None
