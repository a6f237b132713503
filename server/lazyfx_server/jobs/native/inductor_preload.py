"""Preload module of the fork server for native artifacts: imports Inductor, which takes seconds."""

from __future__ import annotations

import gc

import torch._inductor.compile_fx
import torch._inductor.standalone_compile

from lazyfx_server.jobs.native import native_job

__all__: list[str] = []

_ = (torch._inductor.compile_fx, torch._inductor.standalone_compile, native_job)  # noqa: SLF001 - imported for their own sake

gc.collect()
gc.freeze()
