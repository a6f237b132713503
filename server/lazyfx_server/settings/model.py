"""All settings of `lazyfx serve`, by part; `loading` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from lazyfx_server.settings.limits import (
    CallLimits,
    QuotaLimits,
    RequestLimits,
    UploadLimits,
    WorkerLimits,
)
from lazyfx_server.settings.part import Limits, Part
from lazyfx_server.settings.pass_settings import NativeSettings, PassSettings
from lazyfx_server.settings.service_settings import (
    AddressSettings,
    CallerSettings,
    LogSettings,
    SigningSettings,
    StoppingSettings,
    StoreSettings,
    WorkerSettings,
)
from lazyfx_server.settings.upstream_settings import UpstreamSettings


class Settings(BaseModel):
    """The settings of `lazyfx serve`; each part is passed to one package of the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    addresses: AddressSettings = AddressSettings()
    callers: CallerSettings = CallerSettings()
    quotas: QuotaLimits = QuotaLimits()
    upstream: UpstreamSettings = UpstreamSettings()
    workers: WorkerSettings = WorkerSettings()
    store: StoreSettings = StoreSettings()
    calls: CallLimits = CallLimits()
    uploads: UploadLimits = UploadLimits()
    requests: RequestLimits = RequestLimits()
    jobs: WorkerLimits = WorkerLimits()
    passes: PassSettings = PassSettings()
    native: NativeSettings = NativeSettings()
    signing: SigningSettings = SigningSettings()
    stopping: StoppingSettings = StoppingSettings()
    logs: LogSettings = LogSettings()

    @classmethod
    def of(cls, flat: Any) -> Settings:
        """Create the settings from an object that has each as an attribute."""
        return cls.model_validate({name: part.of(flat) for name, part in _PARTS.items()})

    @property
    def limits(self) -> Iterator[tuple[str, Any]]:
        """All bounds by name."""
        for name, part in _PARTS.items():
            if issubclass(part, Limits):
                yield from getattr(self, name)

    @property
    def exposure(self) -> str | None:
        """Why the listen address is not safe to serve on, or None when it is."""
        return None if self.addresses.listens_on_loopback else self.callers.exposure

    @property
    def upstream_mistake(self) -> str | None:
        """Why the upstream cannot be used with the other settings; None if it can."""
        callers = self.callers
        return self.upstream.mistake(
            tokens=callers.tokens is not None,
            certificates=callers.client_ca is not None,
            listen=self.addresses.listen,
        )

    @property
    def tenant_secret_file(self) -> Path | None:
        """The file of the tenants' secret; None if it is only in memory."""
        return self.store.beside_keys(self.callers.tenant_secret, "tenants.key")

    @property
    def signing_key_file(self) -> Path | None:
        """The file of the signing key; None if it is only in memory."""
        return self.store.beside_keys(self.signing.signing_key, "signing.pem")


_PARTS: Final[Mapping[str, type[Part]]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in Settings.model_fields.items()
}
PARTS: Final = tuple(_PARTS.values())
"""The class of each part."""

FIELDS: Final[Mapping[str, FieldInfo]] = {
    name: field for part in PARTS for name, field in part.model_fields.items()
}
"""All settings by name: type, default and help."""

_GROUPS: Final[dict[str, str]] = {}
for _part in PARTS:
    # From the class that declares a setting to those that inherit it.
    for _class in reversed(_part.__mro__):
        if issubclass(_class, Part):
            for _name in _class.model_fields:
                _GROUPS.setdefault(_name, _class.group)


def group_of(setting: str) -> str:
    """The title of a setting's group in `lazyfx serve --help`."""
    return _GROUPS[setting]
