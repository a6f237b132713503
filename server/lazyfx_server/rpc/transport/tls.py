"""The server's certificates, reloaded when they change."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc

from lazyfx_server.security.stat_fingerprint import StatFingerprint, stat_fingerprint

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """The PEM files of a server.

    Attributes:
        certificate: The server's chain.
        key: Its private key.
        client_ca: Authorities of the certificates that callers must present; None requires none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None

    def _paths(self) -> list[Path]:
        paths = [self.certificate, self.key]
        return paths if self.client_ca is None else [*paths, self.client_ca]

    def fingerprint(self) -> tuple[StatFingerprint, ...]:
        """A value that changes when a file does.

        Raises:
            OSError: One cannot be read.
        """
        return tuple(map(stat_fingerprint, self._paths()))

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The current files in gRPC's form.

        Raises:
            OSError: One cannot be read.
        """
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        roots = self.client_ca.read_bytes() if self.client_ca is not None else None
        return grpc.ssl_server_certificate_configuration([pair], roots)


@dataclass
class _Reloading:
    """Reads the files again, for gRPC, once they have changed."""

    files: TlsFiles
    seen: tuple[StatFingerprint, ...]

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration; None to keep the current one."""
        try:
            found = self.files.fingerprint()
            if found == self.seen:
                return None
            configuration = self.files.read()
        except OSError as error:
            _log.error("keeping the previous certificates: %s", error)
            return None
        self.seen = found
        _log.info("the server's certificates changed")
        return configuration


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow their files; each handshake checks for changes.

    Raises:
        OSError: A file cannot be read.
    """
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        # The stub forbids None, which gRPC documents.
        _Reloading(files, files.fingerprint()),  # type: ignore[arg-type]
        require_client_authentication=files.client_ca is not None,
    )
