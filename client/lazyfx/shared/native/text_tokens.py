"""Texts of a graph as tokens, so that generated source holds none of them, and the way back.

A server replaces every text that is not one of torch's own words before it compiles natively.
A token is made from the text alone, so a client finds the text again in the graph that it has,
and believes no server about it.
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
# A text may come back in errors again and again.
_MAX_CHARACTERS: Final = 2000


def token_of(text: str) -> str:
    """The token of a text: lower-case letters and digits, the same everywhere."""
    data = text.encode("utf-8", "surrogatepass")
    return _PREFIX + hashlib.sha256(data).hexdigest()[:32]


def texts_of(body: bytes) -> dict[str, str]:
    """The texts of a graph by their tokens.

    Args:
        body: A GraphBody.
    """
    return {token_of(text): text for text in graph_pb2.GraphBody.FromString(body).strings}


def restore_texts(message: str, texts: Mapping[str, str]) -> str:
    """A message with the texts in place of their tokens.

    Args:
        message: From torch or from a server.
        texts: As `texts_of` gives them; other tokens stay.
    """
    return TOKEN.sub(lambda found: texts.get(found[0], found[0])[:_MAX_CHARACTERS], message)


@contextmanager
def restoring_texts(texts: Mapping[str, str]) -> Iterator[None]:
    """Give errors that leave the block the texts in place of their tokens."""
    try:
        yield
    except Exception as error:
        if texts:
            error.args = tuple(
                restore_texts(part, texts) if isinstance(part, str) else part for part in error.args
            )
        raise


def with_texts(call: Callable[..., Any], texts: Mapping[str, str]) -> Callable[..., Any]:
    """A function whose errors show the texts; the same one when there are none."""
    if not texts:
        return call

    def restoring_call(*args: Any, **kwargs: Any) -> Any:
        with restoring_texts(texts):
            return call(*args, **kwargs)

    return restoring_call
