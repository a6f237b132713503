"""The passes and pipelines of a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.plugins import load_plugins, registry_with
from lazyfx_server.passes.registry import Registry
from lazyfx_server.settings.model import Settings


@dataclass(frozen=True)
class PassTables:
    """The passes and pipelines of a server.

    Attributes:
        registry: The passes.
        named: The pipelines of the settings.
        plugins: Object references by which workers find plugins.
    """

    registry: Registry
    named: NamedPipelines
    plugins: Sequence[str]

    @classmethod
    def of(cls, settings: Settings) -> PassTables:
        """Load plugins and check pipelines.

        Raises:
            PluginError: An enabled plugin cannot be used.
            ValueError: A pipeline in the settings is invalid.
        """
        plugins = load_plugins(settings.passes.pass_plugins)
        registry = registry_with(plugins)
        try:
            named = NamedPipelines(registry, settings.passes.named_pipelines)
        except ValueError as error:
            raise ValueError(f"--pipelines: {error}") from error
        return cls(registry, named, tuple(plugin.target for plugin in plugins))
