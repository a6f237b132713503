"""Kinds of artifact: what they are called, and how they are made."""

from __future__ import annotations

from lazyfx.v1 import compiler_pb2 as pb

# Made by Inductor, for a machine.
NATIVE_KINDS = {
    pb.ARTIFACT_KIND_INDUCTOR: "inductor",
    pb.ARTIFACT_KIND_AOT_INDUCTOR: "aot_inductor",
}
KINDS = {
    pb.ARTIFACT_KIND_CODE: "code",
    pb.ARTIFACT_KIND_PICKLE: "pickle",
    pb.ARTIFACT_KIND_PACKAGE: "package",
    pb.ARTIFACT_KIND_GRAPH: "graph",
    pb.ARTIFACT_KIND_PICTURE: "picture",
    pb.ARTIFACT_KIND_CONSTANT: "constant",
    pb.ARTIFACT_KIND_SOURCE: "source",
    pb.ARTIFACT_KIND_TORCHSCRIPT: "torchscript",
    pb.ARTIFACT_KIND_EXPORTED_PROGRAM: "exported_program",
    **NATIVE_KINDS,
}
# Kinds that are made from generated Python source.
FROM_SOURCE = {pb.ARTIFACT_KIND_CODE, pb.ARTIFACT_KIND_PICKLE, pb.ARTIFACT_KIND_PACKAGE}
# Kinds that hold the constants that passes made.
WITH_CONSTANTS = {
    pb.ARTIFACT_KIND_PICKLE,
    pb.ARTIFACT_KIND_PACKAGE,
    pb.ARTIFACT_KIND_TORCHSCRIPT,
    pb.ARTIFACT_KIND_EXPORTED_PROGRAM,
}
SOURCE_TYPE = "application/x-protobuf"
