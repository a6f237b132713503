"""Adds the values of weights, which never left this process, to an AOTInductor package."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

import torch

from lazyfx.errors import ArtifactError
from lazyfx.shared.native.graph_tensors import stored
from lazyfx.v1 import compiler_pb2 as pb

_NONE: Final[Mapping[str, str]] = MappingProxyType({})

_MAX_MEMBERS: Final = 10_000

TEXTS: Final = "extra/lazyfx_texts.json"
"""Member in a package's root folder: the graph's strings by the tokens in its errors."""


def write_package(
    package: pb.AotPackage,
    tensors: Mapping[str, torch.Tensor],
    file: Path | IO[bytes],
    texts: Mapping[str, str] = _NONE,
) -> None:
    """Write a package with its values, for `torch._inductor.aoti_load_package`.

    Args:
        package: From `read_artifact`.
        tensors: The graph's tensors by canonical path.
        file: The file, or its path, which should end in .pt2, or torch warns when it loads it.
        texts: The graph's strings by token; those whose tokens occur in the package are added to
            it, for people who see a token in an error.

    Raises:
        ArtifactError: The package requires tensors that the graph does not have, or has members
            that torch does not write.
    """
    try:
        given = zipfile.ZipFile(io.BytesIO(package.archive))
    except zipfile.BadZipFile as error:
        raise ArtifactError("the package is not an archive") from error
    _check_members(given, len(package.archive))
    with given, zipfile.ZipFile(file, "w") as whole:
        known: dict[str, str] = {}
        for name in given.namelist():
            data = given.read(name)
            whole.writestr(name, data)
            known.update((t, text) for t, text in texts.items() if t.encode() in data)
        if package.constants:
            with whole.open(package.values, "w", force_zip64=True) as values:
                for constant in package.constants:
                    _write_values(values, constant, tensors)
        if known:
            root = given.namelist()[0].partition("/")[0]
            whole.writestr(f"{root}/{TEXTS}", json.dumps(known, indent=1))


def _check_members(archive: zipfile.ZipFile, length: int) -> None:
    """Check that nothing expands when read, and nothing is written outside the folder.

    torch stores members uncompressed, so their total size is at most that of the archive.
    """
    members = archive.infolist()
    if not 0 < len(members) <= _MAX_MEMBERS:
        raise ArtifactError(f"the package has {len(members)} members")
    names = {member.filename for member in members}
    if len(names) != len(members):
        raise ArtifactError("the package has two members with the same name")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ArtifactError("the package has a compressed member")
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise ArtifactError("the package has a member outside its folder")
    # Overlapping members could expand to many times the size of the file.
    if sum(member.file_size for member in members) > length:
        raise ArtifactError("members of the package overlap")


def _write_values(
    file: IO[bytes],
    constant: pb.AotConstant,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    tensor = tensors.get(constant.path)
    if tensor is None:
        raise ArtifactError(f"the package requires a tensor {constant.path!r} that the graph lacks")
    data = stored(tensor)
    if not data.numel() <= constant.size_bytes < data.numel() + 64:
        raise ArtifactError(f"the package requires {constant.path!r} in a different size")
    file.write(data.numpy().data)
    file.write(bytes(constant.size_bytes - data.numel()))
