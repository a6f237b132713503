"""Settings of the server that is asked first."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from lazyfx.errors import AddressError
from lazyfx.shared.addresses import is_loopback, read_address
from lazyfx_server.settings.name_lists import Names
from lazyfx_server.settings.part import Part

_KEY_DIGITS = 64
SYSTEM = Path("system")
"""As --upstream-ca: the authorities of the system."""


class UpstreamSettings(Part):
    """The server that is asked before anything is compiled here."""

    group = "upstream server"

    upstream: str | None = None
    """Address of a central server, HOST:PORT. This server answers from its own store, asks the
    upstream once for what it lacks, and does the work itself if the upstream is away."""

    upstream_ca: Path | None = None
    """PEM file with the authorities that certify the upstream, or "system" for those of this
    machine; enables TLS to the upstream."""

    upstream_certificate: Path | None = None
    """PEM file with the certificate chain that this server shows the upstream (--client-ca there),
    for all of its callers. Reread when it changes."""

    upstream_key: Path | None = None
    """PEM file with the private key of --upstream-certificate."""

    upstream_verify_keys: Names = []
    """Public keys of the upstream in hex, as `lazyfx keys` prints them there. Default: the keys
    that it publishes, which requires TLS or an upstream on this machine."""

    upstream_token: Path | None = None
    """File with a bearer token under which this server asks the upstream for all of its callers.
    Default: the token of each caller (--tokens). Reread when it changes."""

    upstream_insecure: bool = False
    """Allow an upstream on another machine without TLS. Anyone on the network in between can then
    read the tokens and take the place of the upstream."""

    upstream_wait_seconds: float = Field(default=1.0, gt=0, le=60)
    """Seconds in which the upstream must answer a health check. While requests wait for it, it is
    checked every second; one that is late is not asked until it is in time again."""

    # The settings as a whole inherit from each part, so validators have names of their own.
    @field_validator(
        "upstream",
        "upstream_ca",
        "upstream_certificate",
        "upstream_key",
        "upstream_token",
        mode="before",
    )
    @classmethod
    def _empty_upstream_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("upstream")
    @classmethod
    def _upstream_is_address(cls, value: str | None) -> str | None:
        try:
            return None if value is None else read_address(value)
        except AddressError as error:
            raise ValueError(str(error)) from error

    @field_validator("upstream_verify_keys")
    @classmethod
    def _are_upstream_keys(cls, keys: list[str]) -> list[str]:
        for key in keys:
            try:
                raw = bytes.fromhex(key)
            except ValueError:
                raw = b""
            if 2 * len(raw) != _KEY_DIGITS:
                raise ValueError(
                    f"must be public keys of {_KEY_DIGITS} hex digits, as `lazyfx keys` prints"
                )
        return keys

    @model_validator(mode="after")
    def _belongs_to_upstream(self) -> Self:
        names = [name for name in UpstreamSettings.model_fields if name != "upstream_wait_seconds"]
        stray = [name for name in names if getattr(self, name)]
        if self.upstream is None and stray:
            raise ValueError(f"--{stray[0].replace('_', '-')} requires --upstream")
        if (self.upstream_certificate is None) != (self.upstream_key is None):
            raise ValueError("--upstream-certificate and --upstream-key must be set together")
        if self.upstream_certificate is not None and self.upstream_ca is None:
            raise ValueError("--upstream-certificate requires --upstream-ca")
        return self

    @property
    def exposure(self) -> str | None:
        """Why the connection to the upstream is not safe; None if it is, or without upstream."""
        if self.upstream is None or self.upstream_ca is not None or is_loopback(self.upstream):
            return None
        return "is on another machine, and the connection is not encrypted (--upstream-ca)"

    def mistake(self, *, tokens: bool, certificates: bool, listen: str) -> str | None:
        """Why these settings cannot work with those of the callers; None if they can.

        Args:
            tokens: Callers are identified by tokens.
            certificates: Callers are identified by certificates.
            listen: The address of this server.
        """
        if self.upstream is None:
            return None
        if _same_address(self.upstream, listen):
            return "is this server itself (--listen); name the server nearer to the center"
        own = self.upstream_token or self.upstream_certificate
        if certificates and not tokens and own is None:
            return (
                "cannot be shown the certificates of callers (--client-ca); set --upstream-token "
                "or --upstream-certificate to ask it under this server's own name, or identify "
                "callers by --tokens"
            )
        if self.exposure is None or self.upstream_insecure:
            return None
        if tokens or self.upstream_token is not None:
            return (
                f"{self.exposure}, so tokens could be read on the way; set --upstream-ca, or "
                "--upstream-insecure if the network itself is trusted"
            )
        if not self.upstream_verify_keys:
            return (
                f"{self.exposure}, so another server could take its place; set --upstream-ca or "
                "--upstream-verify-keys, or --upstream-insecure if the network itself is trusted"
            )
        return None


def _same_address(upstream: str, listen: str) -> bool:
    host, _, port = upstream.rpartition(":")
    own_host, _, own_port = listen.rpartition(":")
    if port != own_port:
        return False
    return host == own_host or (is_loopback(upstream) and _listens_on_loopback(own_host))


def _listens_on_loopback(host: str) -> bool:
    return is_loopback(f"{host}:0") or host.strip("[]") in ("0.0.0.0", "::")  # noqa: S104
