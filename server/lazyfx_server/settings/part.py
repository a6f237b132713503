"""A part of the settings: what one package is given, and one group of `lazyfx serve --help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

MIB = 2**20
GIB = 2**30

PartType = TypeVar("PartType", bound="Part")


@dataclass(frozen=True, slots=True)
class Bound:
    """How large a number may be, and which setting says so ("" for the format)."""

    most: int
    setting: str = ""

    def __str__(self) -> str:
        return f" (setting {self.setting})" if self.setting else ""

    @property
    def allowed(self) -> str:
        """In the words of a refusal: "at most 64 are allowed (setting max_passes)"."""
        return f"at most {self.most} are allowed{self}"


class Part(BaseModel):
    """Settings about one thing: their names, defaults, bounds and help, and nothing else.

    A field has the name of the setting, on the command line, in the environment and in files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    group: ClassVar[str]
    """Title of these settings in `lazyfx serve --help`."""

    def bound(self, name: str) -> Bound:
        """A setting that is a bound, with its name for whoever exceeds it."""
        return Bound(getattr(self, name), name)

    @classmethod
    def of(cls, source: Any) -> Self:
        """The part of an object that has an attribute of the name of each of its settings.

        Args:
            source: All settings, or a message of the protocol between server and workers.
        """
        return cls.model_construct(**{name: getattr(source, name) for name in cls.model_fields})


class Limits(Part):
    """Bounds of what callers send and of what is done for them.

    GetServerInfo and docs/bounds.md list each. What is done with a bound is where it is kept.
    """
