"""Why a server cannot be reached, in one sentence: looked into when a call has failed, not before.

gRPC says "failed to connect to all addresses" for a server that is not there, for one that speaks
TLS to a client that does not, and for a certificate that is not accepted. One connection of our
own tells them apart; nothing but a TLS greeting is sent on it.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Final

from lazyfx.access import Tls

_SECONDS: Final = 1.0
_RESOLVERS = ("dns:", "ipv4:", "ipv6:")
_START = "start one with `lazyfx serve`, or name another address (LAZYFX_ADDRESS, --address)"
_USE_TLS = "connect with tls=lazyfx.Tls(ca=...) or tls=True (LAZYFX_CA)"


def diagnose(address: str, tls: Tls | None) -> str | None:
    """Find out why no call gets through to a server; takes about a second at most.

    Args:
        address: As `addresses.read_address` returns it.
        tls: How the client encrypts.

    Returns:
        A sentence with what to do; None when a connection shows nothing wrong.
    """
    if address.startswith("unix:"):
        return None
    for resolver in _RESOLVERS:
        address = address.removeprefix(resolver).removeprefix("///")
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _SECONDS
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), _SECONDS)
    except socket.gaierror:
        return f"{host!r} cannot be resolved ({address}); check the address or the name service"
    except TimeoutError:
        return f"{address} does not answer: the host is down, or a firewall drops the packets"
    except OSError as error:
        return f"no server answers at {address} ({error.strerror or error}); {_START}"
    with connection:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        if tls is None:
            return _without_tls(connection, address)
        return _with_tls(connection, address, host.strip("[]"), tls)


def _without_tls(connection: socket.socket, address: str) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whoever it is, nothing is told to it: the question is whether TLS is spoken at all.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection):
            pass
    except (OSError, ValueError):
        return None
    return f"the server at {address} speaks TLS, but this client does not; {_USE_TLS}"


def _with_tls(connection: socket.socket, address: str, host: str, tls: Tls) -> str | None:
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.certificate:
            context.load_cert_chain(str(tls.certificate), str(tls.key) if tls.key else None)
    except (OSError, ssl.SSLError) as error:
        return f"the certificates of this client cannot be used: {_reason(error)}"
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=tls.server_name or host) as secured:
            # A server that wants a certificate says so after the greeting.
            secured.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _refused_certificate(error, address)
    except ssl.SSLError as error:
        if "CERTIFICATE" in (error.reason or "").upper():
            return (
                f"the server at {address} rejected the certificate of this client "
                f"({_reason(error)}); name one with tls=lazyfx.Tls(certificate=..., key=...) "
                "(LAZYFX_CLIENT_CERTIFICATE, LAZYFX_CLIENT_KEY)"
            )
        return (
            f"the server at {address} does not speak TLS, but this client does "
            f"({_reason(error)}); start it with --server-certificate and --server-key, or connect "
            "without tls"
        )
    except (OSError, ValueError):
        return None
    return None


def _refused_certificate(error: ssl.SSLCertVerificationError, address: str) -> str:
    told = error.verify_message or _reason(error)
    if "mismatch" in told.lower() or "not valid for" in told.lower():
        remedy = "connect by a name that is in it, or give such a name as server_name= "
        remedy += "(LAZYFX_SERVER_HOST)"
    elif "expired" in told or "not yet valid" in told:
        remedy = "its operator must renew it; also compare the clocks"
    else:
        remedy = "name the authority that issued it with tls=lazyfx.Tls(ca=...) (LAZYFX_CA)"
    return f"the certificate of the server at {address} is not accepted: {told}; {remedy}"


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error.strerror or error).replace("_", " ").lower()
