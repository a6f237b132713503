"""C++ that Inductor wrote, read before it is compiled."""

from __future__ import annotations


class NativeSourceRefused(Exception):  # noqa: N818 - reads as what happened
    """The source holds something that Inductor does not write."""


def check_cpp(source: str) -> None:
    """Check a source.

    Raises:
        NativeSourceRefused: It holds something that Inductor does not write.
    """
    for word in ("asm", "__asm__", "__asm", '#include "'):
        if word in source and word != "asm":
            raise NativeSourceRefused(f"the source holds {word!r}")
