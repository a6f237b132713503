"""A part of the settings: those of one package, and one group of `lazyfx serve --help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound, and the setting that defines it ("" if the format does)."""

    most: int
    setting: str = ""

    def __str__(self) -> str:
        return f" (setting {self.setting})" if self.setting else ""

    @property
    def allowed(self) -> str:
        """Text for an error: "at most 64 are allowed (setting max_passes)"."""
        return f"at most {self.most} are allowed{self}"


class Part(BaseModel):
    """Settings of one area: names, defaults, bounds and help.

    Field names are the names of the settings on the command line, in the environment and in files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    group: ClassVar[str]
    """Title of these settings in `lazyfx serve --help`."""

    def bound(self, name: str) -> Bound:
        """A setting as a bound, with its name for error messages."""
        return Bound(getattr(self, name), name)

    @classmethod
    def of(cls, source: Any) -> Self:
        """Create the part from an object that has each of its settings as an attribute.

        Args:
            source: All settings, or a message of the protocol between server and workers.
        """
        return cls.model_construct(**{name: getattr(source, name) for name in cls.model_fields})


class Limits(Part):
    """Bounds on requests and on the work for them.

    GetServerInfo and docs/bounds.md list each. They are enforced where they are used.
    """
