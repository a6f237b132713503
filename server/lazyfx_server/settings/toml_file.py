"""Reads the TOML file of settings, and reports errors by file and key."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lazyfx.shared.suggesting import closest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 2**20


class SettingsFileError(Exception):
    """The file cannot be used; says why and where."""


def read_settings_file(path: Path, known: Iterable[str]) -> Mapping[str, Any]:
    """Read the settings in a file.

    Args:
        path: The file.
        known: Names of all settings.

    Raises:
        SettingsFileError: It cannot be read, is not TOML, or names an unknown setting.
    """
    try:
        if not path.is_file():
            raise SettingsFileError(
                f"{path}: {'is not a file' if path.exists() else 'no such file'}"
            )
        if path.stat().st_size > _MAX_BYTES:
            raise SettingsFileError(f"{path}: too large for a settings file")
        text = path.read_bytes().decode("utf-8")
        settings = tomllib.loads(text)
    except OSError as error:
        raise SettingsFileError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingsFileError(f"{path}: is not a text file in UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsFileError(f"{path}: is not valid TOML: {error or 'too deep'}") from error
    except ValueError as error:
        # Of `int`, which bounds the digits.
        raise SettingsFileError(f"{path}: a number has too many digits") from error
    names = sorted(known)
    if unknown := [key for key in settings if key not in names]:
        lines = [f"{path}: {_unknown(key, names)}" for key in unknown]
        raise SettingsFileError("\n".join(lines))
    for key, value in settings.items():
        if isinstance(value, str) and "\0" in value:
            raise SettingsFileError(f"{path}: {key}: contains a NUL character")
    return settings


def _unknown(key: str, names: list[str]) -> str:
    guess = closest(key, names)
    hint = f"; did you mean {guess!r}?" if guess else "; `lazyfx serve --help` lists the settings"
    return f"unknown setting {key[:100]!r}{hint}"
