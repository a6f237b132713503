"""Settings and states that travel: each has a closed type, here and on the server."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lazyfx.errors import LazyfxError
from lazyfx.shared.native import named_values, torch_inductor, torch_settings, tracing_state
from lazyfx.shared.native.configuration import read_configuration
from lazyfx.shared.native.native_request import check_request, native_request
from lazyfx.shared.native.setting_table import FUNCTORCH, SETTINGS
from lazyfx.shared.native.setting_types import Bool, Float, Int, ValueType, Words, mismatch_reason
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native.conditions import CannotCompile, apply_request

CPU = {torch.device("cpu")}
HERE = [name for name in SETTINGS if torch_inductor.has_setting(name)]
HOSTILE: list[Any] = [
    *("", " ", "off ", "OFF", "off -x c++", "off; touch /tmp/x", "$(id)", "`id`", "a\nb", "é"),
    *("/etc/passwd", "-fplugin=/tmp/evil.so", "@/tmp/file", "x" * 10_000_000, "off\0"),
    *(10**30, -(10**30), 2**63 - 1, -1, float("nan"), float("inf"), -float("inf"), 0.5),
    *(None, [], ["off"], {"off": 1}, ("off",), b"off", object(), print),
]


def good_values(expected: ValueType) -> list[Any]:
    if isinstance(expected, Bool):
        return [True, False]
    if isinstance(expected, Words):
        return list(expected.words)
    return [expected.minimum, expected.maximum]


def torch_type(name: str) -> Any:
    """The type of a setting in torch."""
    if name.startswith("functorch."):
        return torch_inductor.functorch_config.get_type(name.removeprefix("functorch."))
    return torch_inductor.inductor_config.get_type(name)


@pytest.mark.parametrize("name", HERE)
def test_a_type_is_that_of_torch(name: str) -> None:
    """torch's own default and its own type agree with the table, so no honest value is refused."""
    expected, default = SETTINGS[name], torch_inductor.default_setting(name)
    assert default is None or mismatch_reason(default, expected) == ""
    given = torch_type(name)
    accepted = set(typing.get_args(given)) or {given}
    if typing.get_origin(given) is typing.Literal:
        accepted = {type(word) for word in accepted}
    python = {Bool: bool, Int: int, Float: float, Words: str}[type(expected)]
    assert python in accepted or ("int" in str(given) and python is int)


def test_every_setting_exists_in_the_newest_torch() -> None:
    if torch.__version__ >= "2.13":
        assert sorted(HERE) == sorted(SETTINGS)


@pytest.mark.parametrize("name", HERE)
def test_a_setting_takes_values_of_its_type_and_nothing_else(name: str) -> None:
    expected = SETTINGS[name]
    for value in good_values(expected):
        assert torch_settings.from_proto(torch_settings.to_proto({name: value})) == {name: value}
        with torch_settings.applied({name: value}):
            assert torch_inductor.current_setting(name) == value
            assert (
                torch_settings.requested(None, {}).get(name, torch_inductor.default_setting(name))
                == value
            )
    for value in HOSTILE:
        if expected.accepts(value) or (
            value is None and torch_inductor.default_setting(name) is None
        ):
            continue
        if not name.startswith(FUNCTORCH):
            with pytest.raises(LazyfxError, match=re.escape(name)) as refused:
                torch_settings.requested(None, {name: value})
            assert "it must be" in str(refused.value)
            assert len(str(refused.value)) < 400
        for message in sent(name, value):
            with pytest.raises(named_values.NamedValueError) as caught:
                torch_settings.from_proto([message])
            assert caught.value.field == f"native.settings[{name}]"
            assert str(expected) in caught.value.reason
            assert len(caught.value.reason) < 400


def sent(name: str, value: Any) -> Iterator[pb.PassOption]:
    """A value as a stranger may send it, if the format has a place for it."""
    fields = {bool: "boolean", int: "integer", float: "floating", str: "text"}
    field = fields.get(type(value))
    if field is None:
        yield pb.PassOption(name=name)
        yield pb.PassOption(name=name, value=pb.OptionValue(list=pb.OptionValueList()))
    elif not isinstance(value, int) or -(2**63) <= value < 2**63:
        yield pb.PassOption(name=name, value=pb.OptionValue(**{field: value}))


@pytest.mark.parametrize("name", sorted(tracing_state.STATES))
def test_a_state_takes_values_of_its_type_and_nothing_else(name: str) -> None:
    expected = tracing_state.STATES[name]
    for value in HOSTILE:
        if not expected.accepts(value):
            for message in sent(name, value):
                with pytest.raises(named_values.NamedValueError) as caught:
                    tracing_state.from_proto([message])
                assert caught.value.field == f"native.states[{name}]"
                assert len(caught.value.reason) < 400


def test_every_state_of_a_process_is_known() -> None:
    assert {
        state.name for state in tracing_state.read_states({"cpu"})
    } <= tracing_state.STATES.keys()
    assert tracing_state.STATES.keys() - {"deterministic", "deterministic_warn_only"} == set(
        tracing_state._SETTERS
    )


@pytest.mark.parametrize("value", [v for v in HOSTILE if not isinstance(v, (bytes, type(None)))])
def test_a_mode_is_a_word_of_torch(value: Any) -> None:
    if value == "":
        return
    with pytest.raises(LazyfxError, match=r"mode is .* it must be one of 'default'"):
        torch_settings.requested(value, {})


def test_what_is_patched_in_the_process_is_typed_too() -> None:
    with (
        torch._inductor.config.patch({"cpp.enable_floating_point_contract_flag": "off -fplugin=x"}),
        pytest.raises(LazyfxError, match="it must be one of 'off', 'on', 'fast'"),
    ):
        torch_settings.requested(None, {})


def test_a_long_request_is_refused() -> None:
    request = native_request(CPU, None, {})
    check_request(request)
    request.target.accelerator = "x" * 100_000
    with pytest.raises(named_values.NamedValueError, match="longer than"):
        check_request(request)


def test_the_documentation_lists_what_travels() -> None:
    text = Path(__file__).parents[2].joinpath("docs", "training.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|$", text, re.MULTILINE))
    assert {name: str(expected) for name, expected in SETTINGS.items()} == {
        name: rows.get(name, "is missing") for name in SETTINGS
    }


def test_run_time_state_of_torch_is_not_a_setting() -> None:
    """`aoti_compile_and_package` leaves what it found on this machine in the configuration."""
    before = native_request(CPU, None, {}).configuration
    config = torch._inductor.config
    with config.patch({"aot_inductor.metadata": {"AOTI_MACHINE": "x86_64"}}):
        assert native_request(CPU, None, {}).configuration == before


def test_a_package_once_in_a_process_changes_no_setting(needs_gxx: None, tmp_path: Path) -> None:
    before = read_configuration()
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(3),))
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "a.pt2"))
    after = read_configuration()
    assert after.differences(before.short_digests) == ()
    assert after.digest == before.digest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prologue_fusion", False),
        ("assert_indirect_indexing", False),
        ("cpp.gemm_cache_blocking", "4,1,10"),
        ("reorder_for_compute_comm_overlap_passes", [print]),
        ("post_grad_fusion_options", {"a": {}}),
    ],
)
def test_a_setting_that_differs_is_named(name: str, value: Any) -> None:
    with torch._inductor.config.patch({name: value}):
        request = native_request(CPU, None, {})
    with (
        pytest.raises(CannotCompile, match=rf"this server: inductor\.{re.escape(name)} \("),
        apply_request(request),
    ):
        pass
    request.setting_digests = b""
    with pytest.raises(CannotCompile, match="the caller did not list them"), apply_request(request):
        pass


def test_many_settings_that_differ_are_counted() -> None:
    names = [n for n in read_configuration().values if n.startswith("inductor.")][:20]
    flags = {n.removeprefix("inductor."): "other" for n in names}
    with torch._inductor.config.patch(flags):
        request = native_request(CPU, None, {})
    with pytest.raises(CannotCompile, match=r"and 1[0-9] more;"), apply_request(request):
        pass


def test_the_activation_memory_budget_travels() -> None:
    with torch._functorch.config.patch(activation_memory_budget=0.5):
        request = native_request(CPU, None, {})
        assert request.configuration == read_configuration().digest
    assert torch._functorch.config.activation_memory_budget == 1.0
    with apply_request(request):
        assert torch._functorch.config.activation_memory_budget == 0.5
    with torch._functorch.config.patch(activation_memory_budget=1):
        assert torch_settings.requested(None, {}) == {}
