"""Write the Python stubs of every .proto file into the package that uses them.

Run through `make proto`. With --check nothing is changed: the stubs are compared with the committed
ones; exit status 1 if any differs.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"lazyfx": "client", "lazyfx_server": "server"}
SERVICES = {"compiler.proto"}


def includes() -> list[str]:
    """Import roots: our own protos, protobuf's well-known types, and google.rpc."""
    rpc, tools = find_spec("google.rpc"), find_spec("grpc_tools")
    assert rpc is not None, "googleapis-common-protos is not installed"
    assert tools is not None
    assert rpc.submodule_search_locations is not None
    assert tools.submodule_search_locations is not None
    site = Path(next(iter(rpc.submodule_search_locations))).parent.parent
    well_known = Path(next(iter(tools.submodule_search_locations))) / "_proto"
    return [f"-I{ROOT / 'proto'}", f"-I{site}", f"-I{well_known}"]


def run(*arguments: str) -> None:
    """Run protoc; exit with its status when it fails."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if status := protoc.main(["protoc", *includes(), *arguments]):
        sys.exit(status)


def generate(output: Path) -> list[Path]:
    """Write all stubs below `output`; return their paths relative to it."""
    for package, place in PACKAGES.items():
        target = output / place
        target.mkdir(parents=True, exist_ok=True)
        for proto in sorted((ROOT / "proto" / package).rglob("*.proto")):
            options = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
            if proto.name in SERVICES:
                options += [f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}"]
            run(*options, str(proto))
    return sorted(p.relative_to(output) for p in output.rglob("*_pb2*.py*"))


def main() -> None:
    """Generate, check, or write a descriptor image for the linter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs")
    parser.add_argument("--image", type=Path, help="write a descriptor set with sources here")
    parser.add_argument("--root", type=Path, default=ROOT / "proto", help="protos for --image")
    options = parser.parse_args()
    if options.image:
        files = sorted(str(p) for p in options.root.rglob("*.proto"))
        includes_of_root = [f"-I{options.root}", *includes()[1:]]
        arguments = ["--include_imports", "--include_source_info"]
        status = protoc.main(
            [
                "protoc",
                *includes_of_root,
                *arguments,
                f"--descriptor_set_out={options.image}",
                *files,
            ]
        )
        sys.exit(status)
    if not options.check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as scratch:
        stale = [
            path
            for path in generate(Path(scratch))
            if not (ROOT / path).exists()
            or not filecmp.cmp(Path(scratch) / path, ROOT / path, shallow=False)
        ]
    for path in stale:
        sys.stderr.write(f"{path} is stale: run `make proto` and commit the result\n")
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
