"""Third-party passes: entry points that the operator's settings enable by name.

A distribution offers passes under the group "lazyfx.passes"; the entry point is a Pass
class, or a tuple of them. Only enabled plugins are loaded: a plugin is code that runs in the server
and in its workers.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_spelling import PLUGIN_GROUP
from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.builtin import BUILTIN_PASSES
from lazyfx_server.passes.registry import Registry


class PluginError(LazyfxError):
    """An enabled plugin cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An enabled plugin.

    Attributes:
        name: Name of the entry point.
        target: Its object reference, "package.module:attribute", by which workers find it.
        passes: Its passes.
    """

    name: str
    target: str
    passes: tuple[type[Pass], ...]


def load_plugins(names: Iterable[str]) -> tuple[Plugin, ...]:
    """Load the enabled plugins.

    Args:
        names: Names of entry points of the group.

    Raises:
        PluginError: A plugin is not installed, is provided by two distributions, cannot be
            imported, or provides something that is not a pass.
    """
    offered = entry_points(group=PLUGIN_GROUP)
    return tuple(
        _load(name, [e for e in offered if e.name == name]) for name in dict.fromkeys(names)
    )


def registry_with(plugins: Iterable[Plugin]) -> Registry:
    """The built-in passes and those of plugins.

    Raises:
        PluginError: Two passes have the same name.
    """
    offered = [pass_class for plugin in plugins for pass_class in plugin.passes]
    try:
        return Registry([*BUILTIN_PASSES, *offered])
    except ValueError as error:
        raise PluginError(f"{error}; disable one of them (setting pass_plugins)") from error


@lru_cache(maxsize=16)
def registry_of_targets(targets: tuple[str, ...]) -> Registry:
    """The same in a worker, which knows plugins by their targets."""
    offered = [pass_class for target in targets for pass_class in _passes_at(target)]
    return Registry([*BUILTIN_PASSES, *offered])


def _load(name: str, found: list[EntryPoint]) -> Plugin:
    if not found:
        raise PluginError(
            f"no installed distribution provides the passes {name!r} ({PLUGIN_GROUP})"
        )
    owners = [_owner(entry) for entry in found]
    if len(found) > 1:
        raise PluginError(
            f"the passes {name!r} are provided by {' and '.join(sorted(owners))}; uninstall one"
        )
    target = found[0].value
    try:
        passes = _passes_at(target)
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(f"the passes {name!r}: {type(error).__name__}: {error}") from error
    digest = _source_digest(found[0])
    for pass_class in passes:
        pass_class.origin = owners[0]
        pass_class.source_digest = digest
    return Plugin(name, target, passes)


def _passes_at(target: str) -> tuple[type[Pass], ...]:
    module, _, attribute = target.partition(":")
    found: object = importlib.import_module(module.strip())
    for part in filter(None, attribute.strip().split(".")):
        found = getattr(found, part)
    classes = tuple(found) if isinstance(found, list | tuple) else (found,)
    for each in classes:
        frozen = getattr(getattr(each, "__dataclass_params__", None), "frozen", False)
        if not (isinstance(each, type) and issubclass(each, Pass) and frozen):
            raise PluginError(
                f"{target} provides {each!r}, which is not a frozen dataclass derived from Pass"
            )
    return classes


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def _source_digest(entry: EntryPoint) -> str:
    """Digest of a plugin's code, which may change without a change of its version."""
    digest = hashlib.sha256(_owner(entry).encode())
    for path in sorted(_sources(entry)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sources(entry: EntryPoint) -> set[Path]:
    """The Python files of the distribution, or of the package if it is installed in place."""
    files = entry.dist.files if entry.dist is not None and entry.dist.files else []
    listed = {Path(str(f.locate())) for f in files if f.suffix == ".py"}
    package = importlib.import_module(entry.value.partition(":")[0].split(".")[0])
    folders = [Path(p) for p in getattr(package, "__path__", [])]
    own = {path for folder in folders for path in folder.rglob("*.py")}
    if not own and package.__file__:
        own = {Path(package.__file__)}
    return {path for path in listed | own if path.is_file()}
