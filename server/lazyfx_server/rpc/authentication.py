"""Who calls: found out from tokens and certificates, before anything that was sent is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import grpc.aio

from lazyfx_server.compiling.tenants import ANONYMOUS, Tenant, Tenants
from lazyfx_server.errors import PermissionDeniedError, UnauthenticatedError
from lazyfx_server.security.bearer_tokens import TokenFile, is_tenant_name

Identification = Literal["open", "tokens", "certificates"]
Metadata = Iterable[tuple[str, str | bytes]]

_BEARER = "bearer "
_CALLER: ContextVar[Tenant] = ContextVar("lazyfx_caller")
"""The tenant of the call that this task serves; each call has a task of its own."""


def caller() -> Tenant:
    """The tenant of the call that is being served."""
    return _CALLER.get()


def caller_name() -> str:
    """The name of the tenant of the call that is being served; empty before it is known."""
    tenant = _CALLER.get(None)
    return "" if tenant is None else tenant.name


@dataclass(frozen=True)
class Authenticator:
    """Tells whose a call is.

    Attributes:
        tenants: Makes tenants of names.
        tokens: Whose tokens are whose; None when tokens are not asked for.
        certificates: Callers show a certificate, whose common name is the tenant.
        names: The only common names that are served; empty for all.
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

    def check_token(self, metadata: Metadata) -> None:
        """Check what can be known before the first byte of the request is read.

        Raises:
            UnauthenticatedError: The token is missing or unknown.
        """
        if self.tokens is not None:
            self._token_tenant(self.tokens, metadata)

    def enter(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Find out whose a call is, for `caller`.

        Raises:
            UnauthenticatedError: The caller cannot be identified.
            PermissionDeniedError: The certificate's name cannot be a tenant.
        """
        name = ANONYMOUS
        if self.tokens is not None:
            name = self._token_tenant(self.tokens, context.invocation_metadata() or ())
        elif self.certificates:
            name = _certificate_name(context.auth_context())
        if self.certificates and self.names:
            shown = _certificate_name(context.auth_context())
            if shown not in self.names:
                raise PermissionDeniedError(f"certificates for {shown!r} are not accepted here")
        _CALLER.set(self.tenants.named(name))

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
