"""Settings of the server: the only reader of flags, environment and files.

Precedence: command line, then environment (``LAZYFX_*``), then the TOML file named by
``--config`` or ``LAZYFX_CONFIG``, then the defaults of `Settings`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

from lazyfx_server.settings import Settings

__all__ = ["Settings", "load"]


def _settings_with_file(path: Path | None) -> type[Settings]:
    """Settings that also read a TOML file, below the environment."""

    class FileSettings(Settings):
        __doc__ = Settings.__doc__

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            if path is None:
                return init_settings, env_settings
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    return FileSettings


def _config_file(arguments: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=os.environ.get("LAZYFX_CONFIG"))
    named = parser.parse_known_args(list(arguments))[0].config
    if named and not Path(named).is_file():
        _refuse(f"--config {named}: no such file")
    return Path(named) if named else None


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"lazyfx serve: {reason}\n")
    raise SystemExit(2)


def _with_words(arguments: Sequence[str]) -> list[str]:
    """`--native` alone, and its opposite, as the words that they stand for."""
    given = list(arguments)
    for place, word in enumerate(given):
        following = given[place + 1] if place + 1 < len(given) else "-"
        if word == "--native" and following.startswith("-"):
            given[place] = "--native=on"
        elif word == "--no-native":
            given[place] = "--native=off"
    return given


def load(arguments: Sequence[str]) -> Settings:
    """Read the settings.

    Args:
        arguments: Command-line flags, without the program's name.

    Raises:
        SystemExit: With status 2 and the reason on standard error when a setting is
            wrong, with status 0 after --help.
    """
    arguments = _with_words(arguments)
    schema = _settings_with_file(_config_file(arguments))
    flags = CliSettingsSource[object](
        schema, cli_prog_name="lazyfx serve", cli_parse_args=list(arguments)
    )
    try:
        settings = schema(_cli_settings_source=flags)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = [
            f"  --{'.'.join(map(str, e['loc'])).replace('_', '-')}: {e['msg']}"
            for e in error.errors()
        ]
        _refuse("wrong settings\n" + "\n".join(lines))
    if (exposure := settings.exposure) and not settings.insecure:
        _refuse(
            f"--listen {settings.listen} can be reached from other machines and {exposure}; "
            "listen on 127.0.0.1, or pass --insecure if the network itself is trusted"
        )
    return settings
