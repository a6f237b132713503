"""Graphs of devices that this torch was not built for.

autograd asks for the guard of a tensor's device as soon as an operator is given a tensor that
requires a gradient, a fake one too, and a torch without that guard ends the process. Where torch
is built for CUDA and finds no device, it puts a guard there that does nothing; where it was built
without, it puts none. torch has such a guard for the meta device, in a table of its library.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

_TABLE = "_ZN3c104impl26device_guard_impl_registryE"
# `c10::DeviceType`; the table has one more place than the last of them.
_CPU, _META, _COUNT = 0, 14, 21
_LIBRARIES = ("libc10.so", "libc10.dylib")


@functools.lru_cache(maxsize=1)
def guard_absent_devices() -> bool:
    """Have the guard of the meta device stand in for those that this torch lacks.

    It only adds to an empty place, and only to a table that looks as it should.

    Returns:
        Whether all devices have a guard now.
    """
    table = _table()
    if table is None:
        _log.warning("graphs of devices that torch %s lacks may end workers", torch.__version__)
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
