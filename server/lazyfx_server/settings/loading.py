"""Settings of the server: the only reader of flags, environment and files.

Precedence: command line, then environment (``LAZYFX_*``), then the TOML file named by
``--config`` or ``LAZYFX_CONFIG``, then the defaults of `Settings`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from lazyfx.shared.suggesting import closest
from lazyfx_server.settings.mistakes import describe_mistake
from lazyfx_server.settings.model import FIELDS, PARTS, Settings, group_of
from lazyfx_server.settings.toml_file import SettingsFileError, read_settings_file

__all__ = ["Settings", "load"]


def _schema(path: Path | None) -> type[BaseSettings]:
    """All settings as one flat model; a TOML file ranks below the environment."""

    class Sources(BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix="LAZYFX_",
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
            nested_model_default_partial_update=False,
        )

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

    # Fields of the base classes are in the order of the parts.
    bases: Any = (Sources, *reversed(PARTS))
    schema: type[BaseSettings] = create_model(
        "Settings", __base__=bases, __doc__="Settings of `lazyfx serve`."
    )
    return schema


def _config_file(arguments: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value it is refused where all flags are read.
    parser.add_argument("--config", nargs="?", default=os.environ.get("LAZYFX_CONFIG"))
    named = parser.parse_known_args(list(arguments))[0].config
    return Path(named) if named else None


# The parser's own types and defaults, which are in code notation.
_METAVARS = {
    "Path": "PATH",
    "str": "TEXT",
    "int": "N",
    "float": "NUMBER",
    "ByteSize": "BYTES",
    "list[str]": "NAME,...",
}
_VALUE_OF_SWITCH = re.compile(r"argument (\S+): ignored explicit argument (.*)")
_NO_DEFAULT = re.compile(r" \(default(?:: (?:None|\[\])?| factory: \w+)\)\Z")


class _Groups:
    """Shows the flags of a parser in groups by purpose, in command-line notation."""

    def __init__(self) -> None:
        self._groups: dict[str, Any] = {}

    def add_argument(self, parser: Any, *names: str, **options: Any) -> Any:
        """See `ArgumentParser.add_argument`."""
        parser.usage = "lazyfx serve [FLAG [VALUE]]..."
        if "metavar" in options:
            options["metavar"] = _METAVARS.get(options["metavar"], options["metavar"])
        options["help"] = _NO_DEFAULT.sub("", options.get("help") or "")
        if "--help" in names:
            return parser.add_argument(*names, **options)
        title = group_of(names[-1].lstrip("-").replace("-", "_"))
        if title not in self._groups:
            self._groups[title] = parser.add_argument_group(title)
        return self._groups[title].add_argument(*names, **options)


def _written_in(
    location: tuple[int | str, ...],
    arguments: Sequence[str],
    path: Path | None,
    in_file: Mapping[str, object],
) -> str:
    """Where the operator specified a setting: a flag, a variable, or the file."""
    if not location:
        return ""  # the error names the conflicting settings
    name = str(location[0])
    flag, variable = f"--{name.replace('_', '-')}", f"LAZYFX_{name.upper()}"
    if not any(given == flag or given.startswith(f"{flag}=") for given in arguments):
        if variable in os.environ:
            return f"{variable}: "
        if name in in_file:
            return f"{path}: {name}: "
    return f"{flag}: "


def refuse(reason: str) -> NoReturn:
    """End the process: a setting is invalid.

    Raises:
        SystemExit: Always.
    """
    sys.stderr.write(f"lazyfx serve: {reason}\n")
    raise SystemExit(2)


def flags() -> list[str]:
    """All flags."""
    names = {name: name.replace("_", "-") for name in FIELDS}
    switches = [f"--no-{names[name]}" for name, field in FIELDS.items() if field.annotation is bool]
    return ["--help", *(f"--{name}" for name in names.values()), *switches]


def _parsed(schema: type[BaseSettings], arguments: Sequence[str]) -> CliSettingsSource[object]:
    """Parse the flags; an error is reported on one line, without argparse's usage text."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return CliSettingsSource[object](
                schema,
                cli_prog_name="lazyfx serve",
                cli_parse_args=list(arguments),
                add_argument_method=_Groups().add_argument,
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        reason = output.getvalue().rstrip().rpartition("lazyfx serve: error: ")[2]
    if switch := _VALUE_OF_SWITCH.fullmatch(reason):
        refuse(f"{switch[1]} takes no value, not {switch[2]}")
    unknown = reason.removeprefix("unrecognized arguments: ")
    if unknown == reason:
        refuse(reason)
    word = unknown.split()[0].partition("=")[0]
    meant = closest(word, flags()) if word.startswith("-") else ""
    hint = f"did you mean {meant}?" if meant else "`lazyfx serve --help` lists the flags"
    refuse(f"there is no {'flag' if word.startswith('-') else 'argument'} {word}; {hint}")


def _expand_switches(arguments: Sequence[str]) -> list[str]:
    """Replace `--native` alone, and `--no-native`, by explicit values."""
    given = list(arguments)
    for place, word in enumerate(given):
        following = given[place + 1] if place + 1 < len(given) else "-"
        if word == "--native" and following.startswith("-"):
            given[place] = "--native=on"
        elif word == "--no-native":
            given[place] = "--native=off"
    return given


def load(arguments: Sequence[str]) -> Settings:
    """Load the settings.

    Args:
        arguments: Command-line flags, without the program's name.

    Raises:
        SystemExit: With status 2 and the reason on standard error if a setting is invalid, with
            status 0 after --help.
    """
    arguments = _expand_switches(arguments)
    path = _config_file(arguments)
    in_file: Mapping[str, object] = {}
    if path is not None:
        try:
            in_file = read_settings_file(path, FIELDS)
        except SettingsFileError as error:
            refuse("\n".join(f"--config {line}" for line in str(error).splitlines()))
    schema = _schema(path)
    try:
        parsed = _parsed(schema, arguments)
        settings = Settings.of(schema(_cli_settings_source=parsed))
    except ValidationError as error:
        lines = [
            f"{_written_in(e['loc'], arguments, path, in_file)}{describe_mistake(e)}"
            for e in error.errors()
        ]
        refuse("\nlazyfx serve: ".join(lines))
    except SettingsError as error:
        refuse(str(error))
    addresses = settings.addresses
    if (exposure := settings.exposure) and not addresses.insecure:
        refuse(
            f"--listen {addresses.listen} can be reached from other machines, but {exposure}; "
            "listen on 127.0.0.1, or pass --insecure if the network itself is trusted"
        )
    if mistake := settings.upstream_mistake:
        refuse(f"--upstream {settings.upstream.upstream} {mistake}")
    return settings
