"""An AOTInductor package gets the values of its weights, which never left this process."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch

from lazyfx.errors import ArtifactError
from lazyfx.native.constants import stored
from lazyfx.v1 import compiler_pb2 as pb


def write_package(package: pb.AotPackage, tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    """Write a package with its values, as `torch._inductor.aoti_load_package` reads it.

    Args:
        package: From `read_made`.
        tensors: The graph's tensors by their paths in canonical names.
        path: The file; its name should end in .pt2, or torch complains when it loads it.

    Raises:
        ArtifactError: The package wants tensors that the graph does not have.
    """
    try:
        given = zipfile.ZipFile(io.BytesIO(package.archive))
    except zipfile.BadZipFile as error:
        raise ArtifactError("the package is not an archive") from error
    with given, zipfile.ZipFile(path, "w") as whole:
        for name in given.namelist():
            whole.writestr(name, given.read(name))
        if package.constants:
            with whole.open(package.values, "w", force_zip64=True) as values:
                for constant in package.constants:
                    _write_values(values, constant, tensors)
    return path


def _write_values(
    file: IO[bytes],
    constant: pb.AotConstant,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    tensor = tensors.get(constant.path)
    if tensor is None:
        raise ArtifactError(f"the package wants a tensor {constant.path!r} that the graph lacks")
    data = stored(tensor)
    if not data.numel() <= constant.size_bytes < data.numel() + 64:
        raise ArtifactError(f"the package wants {constant.path!r} in another size")
    file.write(data.numpy().data)
    file.write(bytes(constant.size_bytes - data.numel()))
