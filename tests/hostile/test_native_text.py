"""A caller's texts and settings never become code, neither on the server nor on the client."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lazyfx
from lazyfx.errors import InvalidRequestError
from lazyfx.shared import wire
from lazyfx.shared.native.native_request import native_request
from lazyfx.shared.native.text_tokens import TOKEN
from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer

pytestmark = pytest.mark.long

X = torch.linspace(0, 1, 8)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A g++ that writes its arguments down, NUL behind each, and runs the real one."""
    folder = tmp_path_factory.mktemp("compiler")
    compiler, real = folder / "g++", shutil.which("g++")
    compiler.write_text(
        f'#!/bin/bash\nprintf \'%s\\0\' "$@" >> {folder}/arguments\nexec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    return compiler


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer], stand_in: Path) -> RunningServer:
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which Inductor compiles with")
    environment = {"CXX": str(stand_in), "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    # Confined, the stand-in could not write, and code that got through could not either.
    return launch_for_file(
        "--native", "--native-unconfined", "--workers", "1", environment=environment
    )


@pytest.fixture(autouse=True)
def _own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def breaking_out(marker: Path) -> list[str]:
    """Messages that are code where they stand unescaped between quotes in C++ or Python."""
    touch = f'system("touch {marker}")'
    return [
        f'a"), 0)); static int escaped = {touch}; ((void)("',
        f'b\\"), 0)); static int escaped2 = {touch}; ((void)("',
        f"c', __import__('os').{touch}, '",
        f"""d''' + str(__import__('os').{touch}) + '''""",
        f'e\n#include "/etc/hostname"\nasm(".incbin \\"/etc/hostname\\"");{touch};\r\n',
        f"f */ {touch} /*",
        "ö\u2028\u202e" + "long " * 1000,
    ]


def test_a_message_is_a_message_on_both_sides(server: RunningServer, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    messages = breaking_out(marker)

    def model(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        for i, message in enumerate(messages):
            torch._assert_async(places[i] > 0, message)
        return torch.relu(x) * 3

    options = {"address": server.address, "on_error": "raise", "timeout": 300.0}
    compiled: Any = torch.compile(model, backend="lazyfx", options=options)
    good = torch.ones(len(messages))
    assert torch.equal(compiled(X, good), X * 3)
    for i, message in enumerate(messages):
        with pytest.raises(RuntimeError) as raised:
            compiled(X, good.index_fill(0, torch.tensor(i), -1.0))
        assert message[:1000] in str(raised.value)
        assert not TOKEN.search(str(raised.value))
    assert not marker.exists()


def test_messages_of_a_backward_come_back_too(server: RunningServer, tmp_path: Path) -> None:
    class Checked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            torch._assert_async(gradient.sum() > 0, 'too "small"')
            return gradient * 2

    def model(x: torch.Tensor) -> torch.Tensor:
        return Checked.apply(x)  # type: ignore[no-any-return, no-untyped-call]

    options = {"address": server.address, "on_error": "raise", "timeout": 300.0}
    compiled: Any = torch.compile(model, backend="lazyfx", options=options)
    compiled(X.clone().requires_grad_()).sum().backward()
    with pytest.raises(RuntimeError, match='too "small"'):
        compiled(X.clone().requires_grad_()).sum().mul(-1.0).backward()


def test_the_package_for_serving_holds_no_text_of_a_caller(
    server: RunningServer, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    messages = breaking_out(marker)[:3]

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for i, message in enumerate(messages):
                torch._assert_async(x[i] > -1, message)
            return torch.relu(x) * 3

    with lazyfx.connect(server.address) as client:
        module = client.compile(torch.export.export(Model(), (X,)), timeout=300.0)
        path = module.save_aot_inductor(tmp_path / "model.pt2", timeout=300.0)
    run = torch._inductor.aoti_load_package(str(path))
    assert torch.equal(run(X)[0] if isinstance(run(X), list) else run(X), X * 3)
    with pytest.raises(RuntimeError) as raised:
        run(X - 2)
    assert TOKEN.search(str(raised.value))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpp.enable_floating_point_contract_flag", {"text": "off -fplugin=/tmp/evil.so"}),
        ("cpp.enable_floating_point_contract_flag", {"text": "off; touch /tmp/marker"}),
        ("cpp.simdlen", {"text": "512"}),
        ("max_fusion_size", {"integer": 2**60}),
        ("max_autotune", {"integer": 1}),
        ("cpp.march", {"text": "native"}),
        ("cpp.cxx", {"text": "sh"}),
    ],
)
def test_a_setting_that_is_not_of_its_type_is_refused_with_its_field(
    server: RunningServer, name: str, value: dict[str, Any]
) -> None:
    request = native_request({torch.device("cpu")}, None, {})
    request.settings.append(pb.PassOption(name=name, value=pb.OptionValue(**value)))
    graph = torch.fx.symbolic_trace(lambda x: (torch.relu(x),))
    wire.encode(graph)
    with lazyfx.connect(server.address) as client:
        module = client.compile(graph)
        with pytest.raises(InvalidRequestError) as refused:
            module.native(request, timeout=60.0)
    assert name in refused.value.violations[0].field
    assert refused.value.violations[0].field.startswith("native.settings[")


def test_a_state_that_is_not_of_its_type_is_refused_with_its_field(server: RunningServer) -> None:
    request = native_request({torch.device("cpu")}, None, {})
    request.states.append(pb.PassOption(name="threads2", value=pb.OptionValue(text="x")))
    with lazyfx.connect(server.address) as client:
        module = client.compile(torch.fx.symbolic_trace(lambda x: (torch.relu(x),)))
        with pytest.raises(InvalidRequestError) as refused:
            module.native(request, timeout=60.0)
    assert refused.value.violations[0].field == "native.states['threads2']"


# Flags, headers and libraries of torch, Python and the compiler; files of the job.
ARGUMENTS = re.compile(
    r"-[cEMPSw]|-###|-g[0-3]?|-pedantic|-O[0-3s]|-std=[a-z+0-9]+|-x|c\+\+(?:-header)?|-shared|-fPIC|-fopenmp|-pthread"
    r"|-f(?:no-)?[a-z][a-z0-9-]*(?:=(?:off|fast|on|default|hidden))?|-m[a-z0-9.+-]+(?:=[a-z0-9.+_-]+)?"
    r"|-W[a-zA-Z0-9-]+(?:,[A-Za-z0-9/._=-]+)*|-D ?[A-Z][A-Z0-9_a-z]*(?:=[0-9A-Za-z_]*)?|-D"
    r"|[A-Z][A-Z0-9_]+(?:=[0-9A-Za-z_]*)?|-[IL]|-[IL]?/[\w./+-]+|-l[a-z0-9_.+-]+|-o|-include"
    r"|-(?:-version|dumpversion|dumpfullversion|print-search-dirs|print-prog-name=[a-z0-9-]+|v)|/[\w./+-]+"
    r"|source\.cpp|data\.S|header\.h(?:\.gch)?|object[0-9]+\.o|made"
)


def test_every_argument_of_every_compile_is_a_known_one(
    server: RunningServer, stand_in: Path
) -> None:
    """Runs last: what the tests above had compiled is looked through, with settings at their ends."""
    options = {
        "address": server.address, "on_error": "raise", "timeout": 300.0,
        "cpp.enable_floating_point_contract_flag": "fast", "cpp.simdlen": 256,
        "cpp.enable_unsafe_math_opt_flag": True, "use_fast_math": True,
    }  # fmt: skip
    compiled: Any = torch.compile(lambda x: torch.relu(x) * 5, backend="lazyfx", options=options)
    # Refused where the server's vectors are wider than those that are asked for.
    with suppress(lazyfx.LazyfxError):
        compiled(X)
    arguments = (stand_in.parent / "arguments").read_bytes().decode().split("\0")[:-1]
    assert len(arguments) > 20
    unknown = {argument for argument in arguments if not ARGUMENTS.fullmatch(argument)}
    assert not unknown
    assert not [argument for argument in arguments if ".." in argument.split("/")]
