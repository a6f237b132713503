"""Parses addresses of servers into the form that gRPC expects.

Several servers that stand for one another (replicas) are written as one text: "a:8700,b:8700".
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Final

from lazyfx.errors import AddressError

DEFAULT_PORT: Final = 8700
DEFAULT_ADDRESS: Final = f"127.0.0.1:{DEFAULT_PORT}"
VARIABLE: Final = "LAZYFX_ADDRESS"

_EXAMPLES = f"HOST or HOST:PORT, e.g. {DEFAULT_ADDRESS}, trainer-cache:8700 or [::1]:8700"
_LIST_EXAMPLE: Final = "HOST:PORT,HOST:PORT, e.g. cache-0:8700,cache-1:8700"
# gRPC resolvers in common use; each is followed by an address.
_SCHEMES = ("dns:", "ipv4:", "ipv6:")
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>[^/]*)", re.IGNORECASE)
# Host names and IP addresses, but not plain numbers. Container engines create names with "_".
_HOST = re.compile(r"(?![0-9]+\Z)[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_.])?")
_MAX_CHARACTERS = 512
# Connections of one client; a longer list belongs behind one name.
_MAX_ADDRESSES: Final = 64
_MAX_SHOWN = 80


def server_address(given: str | None = None) -> str:
    """The given addresses, else LAZYFX_ADDRESS, else port 8700 of this machine.

    Returns:
        One address, or several joined by commas; `split_addresses` takes them apart.

    Raises:
        AddressError: It is not the address of a server, nor a list of them.
    """
    if given is not None:
        if not isinstance(given, str):
            raise _invalid_address(given)
        return read_addresses(given)
    given = os.environ.get(VARIABLE)
    if not given:
        return DEFAULT_ADDRESS
    try:
        return read_addresses(given)
    except AddressError as error:
        raise AddressError(f"{VARIABLE}: {error}") from error


def read_addresses(text: str) -> str:
    """Parse one address, or several replicas joined by commas; see `read_address`.

    Returns:
        The addresses in the same order, joined by commas.

    Raises:
        AddressError: One is not an address, or is named twice; names it.
    """
    written = text.split(",")
    if len(written) == 1:
        return read_address(text)
    if len(written) > _MAX_ADDRESSES:
        raise AddressError(
            f"a list of {len(written)} addresses is longer than {_MAX_ADDRESSES}; give the servers "
            "one name, and use dns:///NAME:PORT"
        )
    found: list[str] = []
    for one in written:
        if not one.strip():
            raise AddressError(f"{_shown(text)} has an empty address; write {_LIST_EXAMPLE}")
        address = read_address(one)
        if address in found:
            raise AddressError(f"{_shown(text)} names {_shown(address)} twice; name each once")
        found.append(address)
    return ",".join(found)


def split_addresses(addresses: str) -> tuple[str, ...]:
    """The single addresses of a text from `read_addresses`."""
    return tuple(addresses.split(","))


def is_balanced_name(address: str) -> bool:
    """Whether an address from `read_address` is a name for several servers ("dns:...")."""
    return address.startswith("dns:")


def read_address(text: str) -> str:
    """Parse an address for gRPC; the default port is 8700.

    Args:
        text: "host", "host:port", "[ipv6]:port", "unix:/path", or one of these after a gRPC
            resolver, e.g. "dns:///name:port".

    Raises:
        AddressError: It is something else.
    """
    text = text.strip()
    if not text or len(text) > _MAX_CHARACTERS or not text.isprintable():
        raise _invalid_address(text)
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text
    for scheme in _SCHEMES:
        if text.startswith(scheme):
            rest = text.removeprefix(scheme)
            slashes = "///" if rest.startswith("///") else ""
            return f"{scheme}{slashes}{_host_and_port(rest.removeprefix(slashes), text)}"
    if url := _URL.match(text):
        meant = url["rest"] or DEFAULT_ADDRESS
        more = "; with TLS: tls=True, or LAZYFX_CA" if url["scheme"].endswith("s") else ""
        raise AddressError(
            f"{_shown(text)} is a URL, but lazyfx uses gRPC: write {_shown(meant)}{more}"
        )
    return _host_and_port(text, text)


def is_loopback(address: str) -> bool:
    """Whether an address from `read_address` is a loopback address, judging by its text alone.

    A name that resolves to this machine today may resolve to another one tomorrow, so the only
    accepted name is "localhost".
    """
    if address.startswith("unix:"):
        return True
    for scheme in _SCHEMES:
        address = address.removeprefix(scheme).removeprefix("///")
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_and_port(text: str, whole: str) -> str:
    if _is_ipv6(text):
        return f"[{text.strip('[]')}]:{DEFAULT_PORT}"
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(DEFAULT_PORT)
    if not (_is_ipv6(host) and host.startswith("[")) and not _HOST.fullmatch(host):
        raise _invalid_address(whole)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise _invalid_address(whole)
    return f"{host}:{int(port)}"


def _is_ipv6(text: str) -> bool:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return ipaddress.ip_address(bare).version == 6
    except ValueError:
        return False


def _invalid_address(text: object) -> AddressError:
    if isinstance(text, list | tuple):
        return AddressError(
            f"{_shown(text)} is a {type(text).__name__}; write several addresses as one text: "
            f"{_LIST_EXAMPLE}"
        )
    if isinstance(text, str) and any(mark in text.strip() for mark in " ;|"):
        return AddressError(
            f"{_shown(text)} is not a server address; use {_EXAMPLES}, or several: {_LIST_EXAMPLE}"
        )
    return AddressError(f"{_shown(text)} is not a server address; use {_EXAMPLES}")


def _shown(given: object) -> str:
    text = given if isinstance(given, str) else str(given)
    if text is not given:
        return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")
