"""Settings that are lists of names."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_settings import NoDecode


def _names(given: Any) -> Any:
    """Parse the value of a variable or flag: comma-separated names, or JSON."""
    if isinstance(given, str):
        text = given.strip()
        if not text.startswith("["):
            return _split([text])
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return given  # which is refused unchanged
    return _split(given) if isinstance(given, list) else given


def _split(texts: list[Any]) -> list[Any]:
    if not all(isinstance(text, str) for text in texts):
        return texts
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


# Not decoded by pydantic's sources: the environment source only supports JSON.
Names = Annotated[list[str], NoDecode, BeforeValidator(_names)]
