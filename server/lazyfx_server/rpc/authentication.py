"""Authenticates callers by tokens and certificates, before any request bytes are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import grpc.aio

from lazyfx_server.compiling.tenants import ANONYMOUS, Tenant, Tenants
from lazyfx_server.errors import PermissionDeniedError, UnauthenticatedError
from lazyfx_server.security.bearer_tokens import TokenFile, is_tenant_name

Identification = Literal["open", "tokens", "certificates"]
Metadata = Iterable[tuple[str, str | bytes]]

_BEARER = "bearer "


@dataclass(frozen=True)
class Authenticator:
    """Determines the tenant of a call.

    Attributes:
        tenants: Creates tenants by name.
        tokens: The file of tokens; None if tokens are not required.
        certificates: Whether callers present a certificate, whose common name is the tenant.
        names: The accepted common names; empty for all.
    """

    tenants: Tenants
    tokens: TokenFile | None = None
    certificates: bool = False
    names: frozenset[str] = frozenset()

    @property
    def identification(self) -> Identification:
        """How callers are identified."""
        if self.tokens is not None:
            return "tokens"
        return "certificates" if self.certificates else "open"

    @property
    def reads_certificates(self) -> bool:
        """Whether a caller is let in only after a look at its certificate: see `certified`."""
        return self.certificates and bool(self.names)

    def identify(self, metadata: Metadata) -> Tenant | None:
        """Identify the tenant of a call, before the first byte of the request is read.

        Returns:
            The tenant; None if the certificate names it, which gRPC exposes only to handlers: see
            `certified`.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
        """
        if self.tokens is not None:
            return self.tenants.named(self._token_tenant(self.tokens, metadata))
        return None if self.certificates else self.tenants.named(ANONYMOUS)

    def certified(
        self, tenant: Tenant | None, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Tenant:
        """The identified tenant, or the one that an accepted certificate names.

        Raises:
            UnauthenticatedError: The caller cannot be identified.
            PermissionDeniedError: The certificate's name is not a valid tenant name.
        """
        if tenant is not None and not self.reads_certificates:
            return tenant
        name = _certificate_name(context.auth_context())
        if self.names and name not in self.names:
            raise PermissionDeniedError(f"certificates for {name!r} are not accepted here")
        return tenant or self.tenants.named(name)

    @staticmethod
    def _token_tenant(tokens: TokenFile, metadata: Metadata) -> str:
        values = [v for key, v in metadata if key == "authorization"]
        value = values[0] if len(values) == 1 else ""
        if not isinstance(value, str) or value[: len(_BEARER)].lower() != _BEARER:
            raise UnauthenticatedError(
                "this server requires a token: connect(..., token=...) or LAZYFX_TOKEN"
            )
        tenant = tokens.tenant_of(value[len(_BEARER) :])
        if tenant is None:
            raise UnauthenticatedError("the token is unknown or was revoked")
        return tenant


def _certificate_name(shown: Mapping[str, Iterable[bytes]]) -> str:
    names = list(shown.get("x509_common_name", ()))
    if not names:
        raise UnauthenticatedError("this server requires a certificate with a common name")
    name = names[0].decode("utf-8", "replace")
    if not is_tenant_name(name):
        raise PermissionDeniedError(
            "the certificate's common name is not a valid tenant name (letters, digits and . _ @ -)"
        )
    return name
