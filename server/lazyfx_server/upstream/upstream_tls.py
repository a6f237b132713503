"""How the connection to the upstream is encrypted, and the certificate that is shown there."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from lazyfx_server.security.stat_fingerprint import StatFingerprint, known_fingerprint


@dataclass(frozen=True)
class UpstreamTls:
    """The files of a connection.

    Attributes:
        ca: Authorities that certify the upstream; None for those of the system.
        certificate: This server's own chain, which the upstream asks for; None to show none.
        key: Its private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def fingerprint(self) -> tuple[StatFingerprint | None, ...]:
        """A value that changes when a file does."""
        paths = (self.ca, self.certificate, self.key)
        return tuple(known_fingerprint(path) for path in paths if path is not None)

    def credentials(self) -> grpc.ChannelCredentials:
        """The current files in gRPC's form.

        Raises:
            OSError: One cannot be read, or the key does not belong to the certificate.
        """
        roots = None if self.ca is None else self.ca.read_bytes()
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        check_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(
            roots, self.key.read_bytes(), self.certificate.read_bytes()
        )


def check_pair(certificate: Path, key: Path) -> None:
    """Check files of a certificate and its key; gRPC would only fail to connect.

    Raises:
        OSError: They do not belong together, or are unreadable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(certificate, key, password=b"")
    except ValueError as error:  # an encrypted key
        raise OSError(str(error)) from error
