"""The private names of torch that the backend and native artifacts rest on have the shape we use.

When one of these fails after an upgrade of torch: the files `torch_*.py` (in
lazyfx.backend, lazyfx.warming, lazyfx.shared.native and lazyfx_server.jobs.native) are where the
names are used.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch._dynamo.output_graph import GraphCompileReason
from torch._inductor import codecache, cpp_builder, cpu_vec_isa
from torch._inductor.fx_passes import joint_graph
from torch.distributed import distributed_c10d
from torch.utils.checkpoint import checkpoint

from lazyfx.backend import torch_autograd as backend_names
from lazyfx.backend.planning import torch_aot as aot_names
from lazyfx.shared.native import torch_inductor
from lazyfx.warming import torch_fake_groups as warming_names
from lazyfx_server.jobs.native import torch_inductor_codegen as server_names


def test_inductor_compiles_cpp_through_one_method() -> None:
    parameters = inspect.signature(torch_inductor.CppCodeCache.load_async).parameters
    assert {"main_code", "optimized_code", "device_type", "extra_flags"} <= parameters.keys()
    assert issubclass(codecache.CppPythonBindingsCodeCache, torch_inductor.CppCodeCache)
    assert "load_async" not in vars(codecache.CppPythonBindingsCodeCache)
    assert callable(torch_inductor.CppCodeCache._load_library)


def test_programs_are_started_where_we_put_the_server() -> None:
    assert "run_compile_cmd(" in inspect.getsource(cpp_builder.CppBuilder.build)
    assert "run_compile_cmd(" in inspect.getsource(cpp_builder.run_asm_build_object)
    assert "cpp_compiler_search(" in inspect.getsource(cpp_builder.get_cpp_compiler)
    assert "_precompile_header(" in inspect.getsource(codecache.CppCodeCache.load_async)
    assert "subprocess." in inspect.getsource(cpu_vec_isa)
    assert list(inspect.signature(cpp_builder.run_compile_cmd).parameters) == ["cmd_line", "cwd"]


def test_artifacts_are_written_and_read() -> None:
    artifact = torch_inductor.AOTCompiledArtifact
    assert callable(artifact.deserialize)
    assert callable(artifact.serialize)
    assert "inner_fn" in inspect.getsource(artifact.__init__)
    parameters = inspect.signature(torch._inductor.standalone_compile).parameters
    assert {"dynamic_shapes", "options", "aot"} <= parameters.keys()
    assert callable(server_names.compile_ahead)
    assert torch_inductor.functorch_config.bypass_autograd_cache_key is False
    assert torch_inductor.functorch_config.strict_autograd_cache is False


def test_backwards_can_be_compiled_for_more_than_one_call() -> None:
    source = inspect.getsource(server_names.graph_compile)
    assert source.count("= collect_bw_donated_buffer_idxs(") > 0


def test_graphs_can_be_traced_here_for_a_compiler_elsewhere() -> None:
    parameters = inspect.signature(torch._inductor.compile_fx.compile_fx).parameters
    assert {"inner_compile", "config_patches"} <= parameters.keys()
    settings = torch_inductor.functorch_config.get_config_copy()
    assert settings["force_non_lazy_backward_lowering"] is False
    assert "enable_autograd_cache" in settings
    source = inspect.getsource(server_names.graph_compile)
    assert source.count("inner_meta.bw_donated_idxs = fw_metadata.bw_donated_idxs") == 1
    assert "replace_random_passes(graph)" in inspect.getsource(joint_graph.joint_graph_passes)
    with torch.autocast("cpu", dtype=torch.bfloat16), aot_names.without_autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_settings_and_their_defaults() -> None:
    settings = torch_inductor.portable_configuration()
    assert "inductor.max_autotune" in settings
    assert any(name.startswith("aot.") for name in settings)
    assert torch_inductor.default_setting("epilogue_fusion") is True
    assert torch_inductor.mode_settings("max-autotune-no-cudagraphs")["max_autotune"] is True


def test_all_sources_go_through_one_function_to_their_files() -> None:
    assert list(inspect.signature(codecache.write).parameters)[:2] == ["content", "extension"]
    for writer, extension in (
        (codecache.CppCodeCache.load_async, "main.cpp"),
        (codecache.PyCodeCache.write, "py"),
        (codecache.AotCodeCompiler.compile, "wrapper.cpp"),
    ):
        source = inspect.getsource(writer)
        assert " write(" in source
        assert f'"{extension}"' in source


def test_what_is_loaded_can_be_wrapped() -> None:
    source = inspect.getsource(torch_inductor.CompiledFxGraph.after_deserialization)
    assert "self.current_callable =" in source


def test_vector_instructions_are_found_without_a_compiler() -> None:
    assert isinstance(torch_inductor.x86_isa_checker(), list)
    assert all(isa.bit_width() > 0 for isa in torch_inductor.supported_vec_isa_list)
    assert len(torch_inductor.torch_key()) == 32


def test_packages_are_made_without_reading_values() -> None:
    source = inspect.getsource(codecache.AotCodeCompiler)
    assert "determine_aoti_mmap_flags(" in source
    assert 'struct.pack("q", consts_size)' in source
    settings = torch_inductor.inductor_config.get_config_copy()
    assert settings["aot_inductor.package_constants_in_so"] is True
    assert settings["aot_inductor.package_constants_on_disk_format"] is None
    assert settings["aot_inductor.use_runtime_constant_folding"] is False
    assert callable(server_names.compile_package)


def test_dynamo_can_be_asked_to_fix_floats() -> None:
    assert issubclass(
        torch_inductor.TensorifyScalarRestartAnalysis, torch._dynamo.exc.RestartAnalysis
    )
    torch_inductor.TensorifyState.specialize("zf7")
    assert torch_inductor.TensorifyState.should_specialize("zf7")
    torch_inductor.TensorifyState.clear()
    assert not torch_inductor.backed_values(torch.fx.experimental.symbolic_shapes.ShapeEnv())


def test_a_backward_pass_can_be_detected_from_outside() -> None:
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    y = (x * 2).sum()
    assert y.grad_fn is not None
    y.grad_fn.register_hook(lambda *_: seen.append(backend_names.in_backward()))
    assert not backend_names.in_backward()
    y.backward()
    assert seen == [True]
    assert not backend_names.in_backward()


def test_a_checkpoint_and_its_recomputations_can_be_detected_from_within() -> None:
    runs: list[backend_names.CheckpointRun | None] = []

    def region(x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            runs.append(backend_names.checkpoint_run())
            y = x.sin()
        runs.append(backend_names.checkpoint_run())
        return y.cos()

    x = torch.ones(2, requires_grad=True)
    y = checkpoint(region, x, use_reentrant=False).sum()
    assert runs[0] is not None
    assert runs[0].recomputation is None
    assert runs[1] == runs[0]
    y.backward(retain_graph=True)
    y.backward()
    again = [run for run in runs[2:] if run is not None]
    assert len(again) == 4
    assert all(run.region is runs[0].region for run in again)
    assert again[0] == again[1] != again[2] == again[3]
    assert None not in {run.recomputation for run in again}
    assert backend_names.checkpoint_run() is None
    with torch.autograd.graph.save_on_cpu():
        assert backend_names.checkpoint_run() is None


def test_version_counters_can_be_kept() -> None:
    x = torch.ones(2)
    with backend_names.keeping_versions([x]):
        x.add_(1)
    assert x._version == 0
    with pytest.raises(ZeroDivisionError), backend_names.keeping_versions([x]):
        x.add_(1).div_(1 / 0)
    assert x._version == 0
    with backend_names.keeping_versions([]):
        x.add_(1)
    assert x._version == 1


def test_a_process_group_can_be_replaced_by_a_fake_one() -> None:
    fake = torch._C._distributed_c10d.FakeProcessGroup
    group = fake._create_internal(1, 4, fake.Options())
    assert (group.rank(), group.size()) == (1, 4)
    helper = inspect.getsource(distributed_c10d._new_process_group_helper)
    assert "ProcessGroupGloo(" in helper
    assert "isinstance(backend_class, ProcessGroupGloo)" in helper
    assert "rendezvous(" in inspect.getsource(distributed_c10d.init_process_group)
    assert callable(distributed_c10d._store_based_barrier)
    assert callable(torch.distributed._register_builtin_comm_hook)
    assert callable(torch._C._distributed_c10d.Logger.set_construction_data_and_log)
    ddp = inspect.getsource(torch.nn.parallel.DistributedDataParallel)
    assert "dist.Reducer(" in ddp
    assert "dist._register_comm_hook(" in ddp
    assert isinstance(warming_names.graph_break_reasons, list)
    assert {"reason", "user_stack"} <= inspect.signature(GraphCompileReason).parameters.keys()
