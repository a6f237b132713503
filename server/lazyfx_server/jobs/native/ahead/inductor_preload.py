"""Preload module of native workers: imports Inductor, which takes seconds."""

from __future__ import annotations

import gc

import torch
import torch._inductor.compile_fx
import torch._inductor.standalone_compile

from lazyfx_server.jobs.native import native_job
from lazyfx_server.jobs.native.ahead import torch_shortcuts

__all__: list[str] = []

_ = (torch._inductor.compile_fx, torch._inductor.standalone_compile, native_job)  # noqa: SLF001 - imported for their own sake

torch_shortcuts.install()
gc.collect()
gc.freeze()
