"""Whether generated native source holds only what Inductor's templates write.

Inductor puts graphs into text: C++ kernels and wrappers, and the Python that calls them. Nothing
of a caller's text should be in there (`jobs/native/tokenized_graph.py` sees to that). Here what was
written is read again before a compiler or an interpreter gets it: no assembly, no attribute,
include or pragma but the known ones, no name that reaches the system, and no string but plain words
and sentences.

Reading takes linear time, and only the standard library.
"""

from __future__ import annotations

from lazyfx_server.security.native_source.cpp import check_cpp
from lazyfx_server.security.native_source.python import check_wrapper
from lazyfx_server.security.native_source.refusal import NativeSourceRefused

__all__ = ["NativeSourceRefused", "check_cpp", "check_wrapper"]
