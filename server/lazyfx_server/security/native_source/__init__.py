"""Checks that generated native source contains only what Inductor's templates write.

Inductor turns graphs into source: C++ kernels and wrappers, and the Python that calls them. It
should contain no text of a caller (`jobs/native/tokenized_graph.py` takes care of that). This
package checks the source again before a compiler or interpreter gets it: no assembly, only known
attributes, includes and pragmas, no name that gives access to the system, and no strings but plain
words and sentences.

The checks take linear time and use only the standard library.
"""

from __future__ import annotations

from lazyfx_server.security.native_source.cpp import STANDARD_HEADERS, check_cpp
from lazyfx_server.security.native_source.python import check_wrapper
from lazyfx_server.security.native_source.refusal import NativeSourceRefused

__all__ = ["STANDARD_HEADERS", "NativeSourceRefused", "check_cpp", "check_wrapper"]
