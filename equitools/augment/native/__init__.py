"""The optional extension `_native` (native/*.c): crops and fused operations in C, without globals.

It is loaded as a plain library; calls through ctypes release the interpreter's lock. Where it was
not built, torch does the same.
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

INTERFACE = 3  # as in native/picture.h; goes up when a function's arguments or meaning change
POINTER, INT = ctypes.c_void_p, ctypes.c_int


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where they were not built or do not load."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_native" + suffix)
        if path.exists():
            try:
                built = ctypes.CDLL(str(path))
            except OSError:
                return None
            # An editable installation may have new Python beside an old build.
            same = getattr(built, "interface", None) and built.interface() == INTERFACE
            return _declared(built) if same else None
    return None


def _declared(built: ctypes.CDLL) -> ctypes.CDLL:
    built.finish.argtypes = [*[POINTER] * 4, INT, POINTER, *[INT] * 4, POINTER, POINTER]
    built.crop.argtypes = [POINTER, INT, INT, POINTER, INT, INT, POINTER]
    built.resize_part.argtypes = [POINTER, *[INT] * 9, POINTER]
    return built
