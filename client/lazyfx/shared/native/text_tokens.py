"""Replaces a graph's strings by tokens, so that generated source contains none of them, and back.

A server replaces every string that is not one of torch's own words before a native compile. A token
depends only on the string, so a client restores strings from its own graph, without trusting the
server.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lazyfx.v1 import graph_pb2

_PREFIX: Final = "lazyfxtext"
TOKEN: Final = re.compile(_PREFIX + "[0-9a-f]{32}", re.ASCII)
# The same string may occur in errors many times.
_MAX_CHARACTERS: Final = 2000


def token_of(text: str) -> str:
    """The token of a string: lower-case letters and digits, the same everywhere."""
    data = text.encode("utf-8", "surrogatepass")
    return _PREFIX + hashlib.sha256(data).hexdigest()[:32]


def texts_of(body: bytes) -> dict[str, str]:
    """The strings of a graph by token.

    Args:
        body: A GraphBody.
    """
    return {token_of(text): text for text in graph_pb2.GraphBody.FromString(body).strings}


def restore_texts(message: str, texts: Mapping[str, str]) -> str:
    """Replace the tokens in a message by their strings.

    Args:
        message: A message of torch or of a server.
        texts: From `texts_of`; other tokens are kept.
    """
    return TOKEN.sub(lambda found: texts.get(found[0], found[0])[:_MAX_CHARACTERS], message)


@contextmanager
def restoring_texts(texts: Mapping[str, str]) -> Iterator[None]:
    """In errors that leave the block, replace tokens by their strings."""
    try:
        yield
    except Exception as error:
        if texts:
            error.args = tuple(
                restore_texts(part, texts) if isinstance(part, str) else part for part in error.args
            )
        raise


def with_texts(call: Callable[..., Any], texts: Mapping[str, str]) -> Callable[..., Any]:
    """A function whose errors show the strings; the same function if there are none."""
    if not texts:
        return call

    def restoring_call(*args: Any, **kwargs: Any) -> Any:
        with restoring_texts(texts):
            return call(*args, **kwargs)

    return restoring_call
