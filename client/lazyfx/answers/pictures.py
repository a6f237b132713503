"""Sanitizes pictures from a server: rewrites them with the few elements that drawings need.

SVG is a web format: it can contain scripts, forms, links, other documents, and styles that fetch
resources. A notebook shows it next to the reader's credentials.
"""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from lazyfx.errors import DecodeError
from lazyfx.shared.picture import STYLE
from lazyfx.shared.printable import one_line

_NAMESPACE: Final = "{http://www.w3.org/2000/svg}"
_MAX_ELEMENTS: Final = 20_000_000
_MAX_TEXT: Final = 4096
_MAX_DEPTH: Final = 8

_NUMBER: Final = r"-?[0-9]{1,9}(\.[0-9]{1,6})?"
_LENGTH: Final = rf"{_NUMBER}%?"
_CLOSED: Final = {
    "viewBox": rf"{_NUMBER}( {_NUMBER}){{3}}",
    "role": "img",
    "fill": r"#[0-9a-fA-F]{3,8}|none",
    "style": "stroke:none",
    "class": "[a-z]{1,8}",
    "d": rf"[MCLZ](({_NUMBER})?[ CLZ]?){{0,64}}",
    "transform": rf"translate\({_NUMBER} {_NUMBER}\)",
    **dict.fromkeys(("width", "height", "x", "y", "rx", "ry"), _LENGTH),
}
_VALUES: Final = {name: re.compile(pattern, re.ASCII) for name, pattern in _CLOSED.items()}
_ELEMENTS: Final[dict[str, frozenset[str]]] = {
    "svg": frozenset({"viewBox", "width", "height", "role"}),
    "title": frozenset(),
    "style": frozenset(),
    "g": frozenset({"transform", "class"}),
    "rect": frozenset({"x", "y", "width", "height", "rx", "ry", "fill", "style", "class"}),
    "path": frozenset({"d", "class"}),
    "text": frozenset({"x", "y", "class"}),
}
# Elements that contain text but no elements.
_LEAVES: Final = frozenset({"title", "text", "style"})


def sanitize_picture(data: bytes) -> str:
    """Rewrite a drawing with known elements, validated attributes and plain text only.

    Args:
        data: SVG from a server.

    Raises:
        DecodeError: It is not such a drawing; names what is not allowed.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise DecodeError("the picture is not UTF-8") from None
    # Before parsing: entity declarations can expand small documents into huge ones. In text, this
    # character is escaped.
    if "<!" in text or "<?" in text:
        raise DecodeError(
            "the picture contains a declaration, a comment or a processing instruction"
        )
    writer = _Writer()
    parser = ElementTree.XMLParser(target=writer)  # noqa: S314 - without declarations, see above
    try:
        parser.feed(text)
        return str(parser.close())
    except (ElementTree.ParseError, ValueError) as error:
        raise DecodeError(f"the picture is not XML: {error}") from None


class _Writer:
    """Writes a drawing while parsing; never builds a tree."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self._elements = 0
        self._is_new = False  # only the start tag of the innermost element has been seen

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        self._end_text()
        self._close_tag()
        name = tag.removeprefix(_NAMESPACE)
        allowed = _ELEMENTS.get(name) if tag.startswith(_NAMESPACE) else None
        inside = self._open[-1] if self._open else ""
        if allowed is None or (name == "svg") != (not inside) or inside in _LEAVES:
            raise DecodeError(f"the picture has an element {one_line(tag, 100)!r}")
        self._elements += 1
        if self._elements > _MAX_ELEMENTS or len(self._open) >= _MAX_DEPTH:
            raise DecodeError("the picture has too many elements")
        self._parts.append(f"<{name}")
        if not inside:
            self._parts.append(' xmlns="http://www.w3.org/2000/svg"')
        for attribute, value in attributes.items():
            if attribute not in allowed or not _VALUES[attribute].fullmatch(value):
                shown = one_line(f"{attribute}={value}", 100)
                raise DecodeError(f"the picture has an attribute {shown!r} in its {name}")
            self._parts.append(f" {attribute}={quoteattr(value)}")
        self._open.append(name)
        self._is_new = True

    def data(self, text: str) -> None:
        """Text between tags."""
        self._text.append(text)

    def end(self, tag: str) -> None:
        """An element ends."""
        self._end_text()
        self._parts.append("/>" if self._is_new else f"</{tag.removeprefix(_NAMESPACE)}>")
        self._is_new = False
        self._open.pop()

    def close(self) -> str:
        """The drawing."""
        return "".join([*self._parts, "\n"])

    def _close_tag(self) -> None:
        if self._is_new:
            self._parts.append(">")
            self._is_new = False

    def _end_text(self) -> None:
        text, name = "".join(self._text), self._open[-1] if self._open else ""
        self._text.clear()
        if name in _LEAVES:
            self._close_tag()
        if name == "style":
            # There is only one style, which the client knows.
            self._parts.append(STYLE)
        elif name in _LEAVES:
            self._parts.append(escape(one_line(text, _MAX_TEXT)))
        elif text.strip():
            raise DecodeError(f"the picture has text in its {name}")
