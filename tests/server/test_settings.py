"""Settings from flags, environment and file, and the values that they refuse."""

from __future__ import annotations

from pathlib import Path

import grpc
import nursery
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import connected

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.operator_checks import SetupError, check_setup
from lazyfx_server.settings.limits import RequestLimits
from lazyfx_server.settings.loading import load
from lazyfx_server.settings.model import FIELDS


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    import os

    for name in os.environ:
        if name.startswith("LAZYFX_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "lazyfx.toml"
    path.write_text('max_nodes = 11\nmax_passes = 12\nlisten = "127.0.0.1:1234"\n')
    return path


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(toml, monkeypatch):
    assert load([]).requests.max_nodes == RequestLimits().max_nodes == 200_000
    assert load(["--config", str(toml)]).requests.max_nodes == 11
    monkeypatch.setenv("LAZYFX_MAX_NODES", "22")
    assert load(["--config", str(toml)]).requests.max_nodes == 22
    assert load(["--config", str(toml), "--max-nodes", "33"]).requests.max_nodes == 33
    assert load(["--config", str(toml)]).requests.max_passes == 12
    assert load(["--config", str(toml)]).addresses.listen == "127.0.0.1:1234"


def test_the_file_may_be_named_by_the_environment(toml, monkeypatch):
    monkeypatch.setenv("LAZYFX_CONFIG", str(toml))
    assert load([]).requests.max_nodes == 11


@pytest.mark.parametrize("text", ["a,b", " a , b", '["a", "b"]'])
def test_names_are_a_list_in_the_environment_as_in_a_flag(text, monkeypatch):
    monkeypatch.setenv("LAZYFX_PASS_PLUGINS", text)
    assert (
        load([]).passes.pass_plugins
        == load(["--pass-plugins", text]).passes.pass_plugins
        == ["a", "b"]
    )
    monkeypatch.setenv("LAZYFX_PASS_PLUGINS", "")
    assert load([]).passes.pass_plugins == []
    assert load(["--pass-plugins", "a", "--pass-plugins", "b"]).passes.pass_plugins == ["a", "b"]


def test_sizes_are_written_as_people_write_them():
    assert load(["--store-memory-bytes", "64MiB"]).store.store_memory_bytes == 64 * 2**20


def test_an_empty_store_path_keeps_everything_in_memory():
    assert load(["--store-path", ""]).store.store_path is None


WRONG = {
    "an unknown flag": (["--no-such-flag", "1"], "no-such-flag"),
    "a word for a number": (["--max-nodes", "many"], "max-nodes"),
    "a number out of bounds": (["--workers", "0"], "workers"),
    "an address without a port": (["--listen", "127.0.0.1"], "listen"),
    "a port that does not exist": (["--listen", "127.0.0.1:99999"], "listen"),
    "a file that is not there": (["--config", "no/such/file.toml"], "no/such/file.toml"),
    "every interface": (["--listen", "0.0.0.0:0"], "--insecure"),
    "every interface, version 6": (["--listen", "[::]:0"], "--insecure"),
    "a name that may be anywhere": (["--listen", "example.org:0"], "--insecure"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_end_with_the_reason(case, capsys):
    flags, word = WRONG[case]
    with pytest.raises(SystemExit) as ended:
        load(flags)
    assert ended.value.code not in (0, None)
    message = capsys.readouterr().err + str(ended.value.code)
    assert word in message


SENTENCES = {
    "an unknown flag": (["--workres", "2"], "there is no flag --workres; did you mean --workers?"),
    "a flag with its value": (
        ["--log-levl=info"],
        "there is no flag --log-levl; did you mean --log-level?",
    ),
    "a word": (["extra"], "there is no argument extra; `lazyfx serve --help` lists the flags"),
    "no value": (["--workers"], "argument --workers: expected one argument"),
    "a word for a number": (["--workers", "two"], "--workers: must be an integer, not 'two'"),
    "a number below": (["--workers", "-1"], "--workers: must be at least 1, not '-1'"),
    "a number above": (["--workers", "1000"], "--workers: must be at most 256, not '1000'"),
    "a number of another kind": (
        ["--max-nodes", "1e3"],
        "--max-nodes: must be an integer, not '1e3'",
    ),
    "a time": (["--drain-seconds", "abc"], "--drain-seconds: must be a number, not 'abc'"),
    "a size": (
        ["--store-disk-bytes", "4 bananas"],
        "--store-disk-bytes: must be a number of bytes, such as 256MiB, not '4 bananas'",
    ),
    "another word": (
        ["--log-level", "warn"],
        "--log-level: must be debug, info, warning or error, not 'warn'; did you mean 'warning'?",
    ),
    "no file": (["--config"], "argument --config: expected one argument"),
    "names that are no JSON": (
        ["--pass-plugins", "[a"],
        "--pass-plugins: must be comma-separated names, not '[a'",
    ),
    "a switch with a value": (
        ["--insecure=maybe"],
        "--insecure/--no-insecure takes no value, not 'maybe'",
    ),
    "a switch": (["--native", "ture"], "--native: must be off, on or optional, not 'ture'"),
    "a pipeline without passes": (
        ["--pipelines", "tidy"],
        "--pipelines: must be NAME=PASSES; NAME=PASSES, but 'tidy' is not NAME=PASSES",
    ),
    "a URL": (
        ["--listen", "http://127.0.0.1:1"],
        "--listen: must be HOST:PORT, not a URL: write 127.0.0.1:1",
    ),
    "a URL of no store, which may hold a password": (
        ["--store", "http://user:hunter2@host"],
        "--store: must begin with redis://, rediss://, unix://, s3://",
    ),
    "a bucket that is none": (
        ["--store", "redis://host", "--blobs", "/folder"],
        "--blobs: must begin with s3://",
    ),
    "a bucket without a Redis": (
        ["--blobs", "s3://bucket"],
        "--blobs requires a Redis as --store; --store s3:// needs no --blobs",
    ),
    "half of two": (
        ["--server-key", "k"],
        "--server-certificate and --server-key must be set together",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_a_wrong_setting_is_reported_in_one_sentence(case, capsys):
    flags, sentence = SENTENCES[case]
    with pytest.raises(SystemExit) as ended:
        load(flags)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"lazyfx serve: {sentence}\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--store", "redis://:hunter2@host:port"], "--store: redis://host:port: "),
        (
            ["--store", "redis://:hunter2@host", "--store-path", ""],
            "--store requires --tenant-secret",
        ),
    ],
    ids=["a wrong port", "a secret in memory only"],
)
def test_a_shared_store_that_cannot_be_used_is_refused(flags, reason, tmp_path):
    place = [] if "--store-path" in flags else ["--store-path", str(tmp_path)]
    with pytest.raises(SetupError) as caught:
        check_setup(load(["--listen", "127.0.0.1:0", "--metrics-port", "0", *place, *flags]))
    assert str(caught.value).startswith(reason)
    assert "hunter2" not in str(caught.value)


def test_a_variable_is_named_where_it_is_wrong(capsys, monkeypatch):
    monkeypatch.setenv("LAZYFX_WORKERS", "x")
    with pytest.raises(SystemExit):
        load([])
    assert capsys.readouterr().err == "lazyfx serve: LAZYFX_WORKERS: must be an integer, not 'x'\n"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_setting_is_refused_in_the_words_of_a_library(name, capsys):
    flag = f"--{name.replace('_', '-')}"
    for given in ("\u2603", "-7.5x", "1e999"):
        try:
            load([f"{flag}={given}"])
        except SystemExit:
            message = capsys.readouterr().err
            assert message.count("\n") == 1
            for words in (
                "Input should",
                "Value error",
                "unable to parse",
                "usage:",
                "byte string",
            ):
                assert words not in message


def test_a_wrong_key_in_the_file_is_refused(tmp_path, capsys):
    path = tmp_path / "wrong.toml"
    path.write_text("max_node = 5\n")
    with pytest.raises(SystemExit) as ended:
        load(["--config", str(path)])
    assert "max-node" in (capsys.readouterr().err + str(ended.value.code)).replace("_", "-")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0", "127.9.9.9:1"])
def test_loopback_needs_no_permission(address):
    assert load(["--listen", address]).addresses.listens_on_loopback


def test_other_machines_may_be_allowed():
    assert not load(["--listen", "0.0.0.0:0", "--insecure"]).addresses.listens_on_loopback


def test_help_explains_each_setting_with_its_default():
    ran = nursery.run("server", ["-m", "lazyfx_server", "--help"], check=True, timeout=60)
    for name, field in FIELDS.items():
        assert f"--{name.replace('_', '-')}" in ran.stdout
        assert field.description
    assert "200000" in ran.stdout.replace("_", "")
    for words in ("None", "factory", "(default: )", "[]", "ByteSize", "list[str]"):
        assert words not in ran.stdout


@pytest.fixture(scope="module")
def configured(launch_for_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "lazyfx.toml"
    path.write_text("max_nodes = 1111\nmax_passes = 11\nmax_rewrites = 7\n")
    environment = {"LAZYFX_MAX_NODES": "2222", "LAZYFX_MAX_PASSES": "22"}
    return launch_for_file(
        "--workers", "1", "--config", str(path), "--max-nodes", "3333", "--reflection",
        environment=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def info(configured):
    with connected(configured.address) as stub:
        return stub.GetServerInfo(pb.GetServerInfoRequest())


def test_a_running_server_holds_what_it_was_given(info):
    limits = {limit.name: limit.value for limit in info.limits}
    assert (limits["max_nodes"], limits["max_passes"], limits["max_rewrites"]) == (3333, 22, 7)


def test_server_info(info):
    import platform
    from importlib.metadata import version

    assert info.lazyfx_version == version("lazyfx")
    assert info.torch_version == torch.__version__
    assert info.python_version == platform.python_version()
    assert list(info.format_versions) == [1]
    assert info.workers == 1
    assert set(info.artifact_kinds) == set(pb.ArtifactKind.values()) - {0}
    assert info.devices[0].device == "cpu"
    assert info.devices[0].memory_total_bytes > info.devices[0].memory_free_bytes > 0
    assert {limit.unit for limit in info.limits} >= {"bytes", "nodes", "seconds"}
    assert info.uptime.ToNanoseconds() > 0


def test_passes_are_listed_with_their_options(configured):
    with connected(configured.address) as stub:
        passes = stub.ListPasses(pb.ListPassesRequest()).passes
    names = [p.name for p in passes]
    assert names == sorted(names)
    assert set(names) >= {
        "dead_code_elimination", "common_subexpression_elimination", "constant_fold",
        "remove_dropout", "fuse_conv_bn", "shape_propagation", "normalize_arguments",
        "replace_pattern",
    }  # fmt: skip
    for one in passes:
        assert one.summary
        assert one.version >= 1
        for option in one.options:
            assert option.summary
            assert option.default_value
            assert option.type.partition("[")[0] in ("bool", "int", "float", "str", "list")
    by_name = {p.name: p for p in passes}
    assert by_name["constant_fold"].needs_values
    assert by_name["shape_propagation"].needs_shapes


def test_health_is_reported_for_the_server_and_the_service(configured):
    with grpc.insecure_channel(configured.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "lazyfx.v1.GraphCompiler"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_when_asked_for(configured):
    with grpc.insecure_channel(configured.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(stub.ServerReflectionInfo(iter([request])))
    services = {service.name for service in answer.list_services_response.service}
    assert {"lazyfx.v1.GraphCompiler", "grpc.health.v1.Health"} <= services


def test_a_port_that_is_taken_is_refused(configured):
    flags = ("--listen", configured.address, "--metrics-port", "0", "--store-path", "")
    ran = nursery.run("server", ["-m", "lazyfx_server", *flags], timeout=120)
    assert ran.returncode == 2
    assert f"--listen {configured.address}: cannot listen there" in ran.stderr
