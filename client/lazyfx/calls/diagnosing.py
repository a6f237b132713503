"""Explains in one sentence why a server cannot be reached, after a call has failed.

gRPC says "failed to connect to all addresses" for a server that is not there, for one that speaks
TLS to a client that does not, for a certificate that is not accepted, and for the port of another
program. One or two probe connections tell these apart; only a greeting (HTTP/2, TLS) is sent on
them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from lazyfx.trust.access import Tls

_SECONDS: Final = 1.0
# Servers that are probed at a time, and those that a message names.
_AT_A_TIME: Final = 16
_MAX_SHOWN: Final = 4
# The start of an HTTP/2 connection: the preface, and an empty settings frame.
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS_FRAME: Final = 4
_TLS_ALERT: Final = b"\x15\x03"
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_RESOLVERS = ("dns:", "ipv4:", "ipv6:")
_START = "start one with `lazyfx serve`, or set another address (LAZYFX_ADDRESS, --address)"
_USE_TLS = "connect with tls=lazyfx.Tls(ca=...) or tls=True (LAZYFX_CA)"


def diagnose_each(addresses: Sequence[str], tls: Tls | None) -> list[str | None]:
    """Find out why no call reaches each of these servers; see `diagnose`."""
    if len(addresses) == 1:
        return [diagnose(addresses[0], tls)]
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        return list(threads.map(partial(diagnose, tls=tls), addresses))


def in_one_sentence(addresses: Sequence[str], reasons: Sequence[str | None]) -> str | None:
    """What `diagnose_each` found; None if nothing is wrong with any."""
    if len(addresses) == 1 or not any(reasons):
        return reasons[0]
    shown = [
        f"{address}: {reason or 'can be reached now'}"
        for address, reason in zip(addresses, reasons, strict=True)
    ]
    rest = [f"and {len(shown) - _MAX_SHOWN} more"] if len(shown) > _MAX_SHOWN else []
    return f"none of {len(shown)} servers answered: {'; '.join(shown[:_MAX_SHOWN] + rest)}"


def diagnose(address: str, tls: Tls | None) -> str | None:
    """Find out why no call reaches a server.

    Each attempt to connect takes a second at most; to resolve a name may take longer.

    Args:
        address: As `addresses.read_address` returns it.
        tls: How the client encrypts.

    Returns:
        A sentence that says what to do; None if the probes find nothing wrong.
    """
    if address.startswith("unix:"):
        return _through_a_file(address)
    for resolver in _RESOLVERS:
        address = address.removeprefix(resolver).removeprefix("///")
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    deadline = time.monotonic() + _SECONDS
    try:
        connection = socket.create_connection((host, int(port)), _SECONDS)
    except socket.gaierror:
        return f"{host!r} cannot be resolved ({address}); check the address or the name service"
    except TimeoutError:
        return f"{address} does not answer: the host is down, or a firewall drops the packets"
    except OSError as error:
        return _not_there(address, error)
    with connection:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        if tls is not None:
            return _diagnose_tls(connection, address, host, tls)
        answer = _first_bytes(connection)
    if answer is None:
        return _silent(address)
    if answer[3:4] == bytes([_SETTINGS_FRAME]):
        return None
    if answer.startswith(_TLS_ALERT) or (answer == b"" and _speaks_tls(host, int(port))):
        return f"the server at {address} speaks TLS, but this client does not; {_USE_TLS}"
    return _another_program(address) if answer else _closed(address, host) or _silent(address)


def is_through_a_proxy() -> bool:
    """Whether gRPC may connect through a proxy, which the probes do not."""
    return any(os.environ.get(name) for name in _PROXY_VARIABLES)


def not_a_server(address: str, details: str) -> str | None:
    """The message for a call that was answered by something other than a lazyfx server.

    Args:
        address: Address of the server.
        details: gRPC's message; the call has no status from the server.
    """
    if details.startswith("Received http2"):
        through = next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)
        remedy = f"; if it is the proxy of {through}, put the host into no_proxy" if through else ""
        return f"{_another_program(address)}{remedy} ({details})"
    if details == "Method not found!":
        return (
            f"the server at {address} does not know this method: it is not a lazyfx server, or it "
            "has another version; check the address, or use the same release on both sides"
        )
    return None


def _not_there(address: str, error: OSError) -> str:
    return f"no server answers at {address} ({error.strerror or error}); {_START}"


def _closed(address: str, host: str) -> str | None:
    """Why a connection was closed before anything came, if the server has ended meanwhile.

    While the kernel takes a killed process apart, it still accepts connections.
    """
    try:
        with contextlib.suppress(TimeoutError):
            socket.create_connection((host, int(address.rpartition(":")[2])), _SECONDS).close()
    except OSError as error:
        return _not_there(address, error)
    return None


def _through_a_file(address: str) -> str | None:
    path = address.removeprefix("unix:").removeprefix("//")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            return f"no server answers at {address} ({error.strerror or error}); {_START}"
    return None


def _first_bytes(connection: socket.socket) -> bytes | None:
    """The first bytes of the answer to an HTTP/2 client.

    Empty if the connection was closed instead; None if nothing came.
    """
    try:
        connection.sendall(_GREETING)
        return connection.recv(16)
    except TimeoutError:
        return None
    except OSError:
        return b""


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The peer is not verified, because nothing is sent: this only tests for TLS.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except (OSError, ValueError):
        return False


def _another_program(address: str) -> str:
    return (
        f"the program that answers at {address} is not a lazyfx server; check the host and the "
        "port: by default, `lazyfx serve` listens on port 8700, and serves metrics on port 8701"
    )


def _silent(address: str) -> str:
    return (
        f"{address} accepts connections but does not answer: the server hangs or is stopped, or "
        "another program listens there; check the address, or restart the server"
    )


def _diagnose_tls(connection: socket.socket, address: str, host: str, tls: Tls) -> str | None:
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.certificate:
            context.load_cert_chain(str(tls.certificate), str(tls.key) if tls.key else None)
    except (OSError, ssl.SSLError) as error:
        return f"the certificates of this client cannot be used: {_reason(error)}"
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=tls.server_name or host) as secured:
            if secured.selected_alpn_protocol() != "h2":
                return _another_program(address)
            # A server that requires a client certificate says so after the handshake.
            secured.recv(1)
    except ssl.SSLEOFError as error:
        return _closed(address, host) or _no_tls(address, _reason(error))
    except ConnectionError:
        return _closed(address, host)
    except ssl.SSLCertVerificationError as error:
        return _refused_certificate(error, address)
    except ssl.SSLError as error:
        if "CERTIFICATE" in (error.reason or "").upper():
            return (
                f"the server at {address} rejected the certificate of this client "
                f"({_reason(error)}); set one with tls=lazyfx.Tls(certificate=..., key=...) "
                "(LAZYFX_CLIENT_CERTIFICATE, LAZYFX_CLIENT_KEY)"
            )
        return _no_tls(address, _reason(error))
    except TimeoutError:
        return _silent(address)
    except (OSError, ValueError):
        return None
    return None


def _no_tls(address: str, reason: str) -> str:
    return (
        f"the server at {address} does not speak TLS, but this client does ({reason}); start it "
        "with --server-certificate and --server-key, or connect without tls"
    )


def _refused_certificate(error: ssl.SSLCertVerificationError, address: str) -> str:
    problem = error.verify_message or _reason(error)
    if "mismatch" in problem.lower() or "not valid for" in problem.lower():
        remedy = "connect by a name that it contains, or pass such a name as server_name= "
        remedy += "(LAZYFX_SERVER_HOST)"
    elif "expired" in problem or "not yet valid" in problem:
        remedy = "its operator must renew it; also compare the clocks"
    else:
        remedy = "set the authority that issued it with tls=lazyfx.Tls(ca=...) (LAZYFX_CA)"
    return f"the certificate of the server at {address} is not accepted: {problem}; {remedy}"


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error.strerror or error).replace("_", " ").lower()
