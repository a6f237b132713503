"""Describes this machine as a target of native code, and compares two descriptions.

A kernel for another vector instruction set loads without an error and trains to NaN, so everything
that matters is compared before an artifact is requested, and again before it is loaded.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from lazyfx.shared.native import torch_inductor
from lazyfx.v1 import compiler_pb2 as pb

# Flags of /proc/cpuinfo for instructions that a compiler may use. Other flags describe microcode,
# power and virtualization, and differ between machines that run the same code.
_INSTRUCTIONS: Final = re.compile(
    r"(sse|ssse3|pni|avx|fma|f16c|bmi|abm|adx|aes|vaes|pclmulqdq|vpclmulqdq|sha|gfni|movbe|movdir|"
    r"popcnt|rdrand|rdseed|xsave|clflushopt|clwb|amx|cx16|fsgsbase|3dnow|lahf|waitpkg|serialize|"
    r"asimd|sve|sme|bf16|i8mm|fphp|crc32|atomics|dotprod|dcpop|fcma|jscvt|lrcpc|rng)"
)


@lru_cache(maxsize=1)
def cpu_flags() -> tuple[str, ...]:
    """Names of the instruction sets of this CPU, sorted; empty if unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    flags = found[1].split() if found else []
    return tuple(sorted({flag for flag in flags if _INSTRUCTIONS.match(flag)}))


def likely_vector_isa() -> str:
    """The vector instructions that Inductor would pick, determined without running a compiler.

    Inductor itself compiles and loads a probe to find out.
    """
    available = torch_inductor.x86_isa_checker()
    found = [
        i for i in torch_inductor.supported_vec_isa_list if set(str(i).split()) <= set(available)
    ]
    width = torch_inductor.inductor_config.cpp.simdlen
    if width is not None:
        return next((str(isa) for isa in found if isa.bit_width() == width), "")
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    if capability == "default":
        return ""
    if capability in ("avx2", "avx512"):
        found = [isa for isa in found if capability in str(isa)] or found
    return str(found[0]) if found else ""


def accelerator(devices: Iterable[torch.device]) -> str:
    """The accelerator type among these devices; "" if they are all CPUs."""
    others = sorted({device.type for device in devices} - {"cpu", "meta"})
    if not others:
        return ""
    if others != ["cuda"] or not torch.cuda.is_available():
        return "+".join(others)
    index = next(d.index for d in devices if d.type == "cuda")
    return cuda_description(0 if index is None else index)


def cuda_description(index: int) -> str:
    """GPU `index`, CUDA and Triton as text; equal texts can run each other's artifacts."""
    major, minor = torch.cuda.get_device_capability(index)
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    name = torch.cuda.get_device_name(index)
    return f"cuda {torch.version.cuda}, {name} sm_{major}{minor}, triton {triton_version}"


def describe_host(*, vector_isa: str, accelerator: str) -> pb.NativeTarget:
    """This machine as a target."""
    return pb.NativeTarget(
        torch=torch.__version__,
        torch_key=torch_inductor.torch_key(),
        python=sysconfig.get_config_var("SOABI") or "",
        vector_isa=vector_isa,
        cpu_flags=cpu_flags(),
        accelerator=accelerator,
    )


def mismatch(build_target: pb.NativeTarget, host_target: pb.NativeTarget) -> str:
    """Why artifacts built on one machine cannot run on another; "" if they can."""
    for name, label in (
        ("torch", "torch"),
        ("torch_key", "the digest of torch's sources"),
        ("python", "Python's ABI"),
        ("vector_isa", "the vector instruction set"),
    ):
        there, here = getattr(build_target, name), getattr(host_target, name)
        if there != here:
            shown = (
                (there.hex()[:12], here.hex()[:12]) if isinstance(there, bytes) else (there, here)
            )
            return f"{label} is {shown[0] or 'none'} on the server and {shown[1] or 'none'} here"
    if lacking := sorted(set(build_target.cpu_flags) - set(host_target.cpu_flags)):
        return f"the server's CPU has instructions that this one lacks: {' '.join(lacking[:8])}"
    if host_target.accelerator and build_target.accelerator != host_target.accelerator:
        return (
            f"the graph runs on {host_target.accelerator!r}, and the server can target "
            f"{build_target.accelerator or 'CPUs only'!r}"
        )
    return ""
