"""Passes of third parties, and pipelines with names, through a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.errors import InvalidRequestError
from lazyfx.shared.pass_spelling import parse, spell
from lazyfx_server.passes import Registry
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.plugins import PluginError, load_plugins, registry_with

SAMPLE = Path(__file__).parents[1] / "sample_plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample plugin installed by pip."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SAMPLE, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", folder / "site", source],
        check=True,
    )  # fmt: skip
    return folder / "site"


def with_path(*folders: Path) -> dict[str, str]:
    path = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def double(x):  # type: ignore[no-untyped-def]
    return x * 2 + 1


def refused_start(launch, *flags: str, environment: dict[str, str]) -> str:
    with pytest.raises(RuntimeError) as caught:
        launch(*flags, environment=environment)
    return str(caught.value)


@pytest.fixture(scope="module")
def plugged(launch_for_file, site: Path):
    return launch_for_file(
        "--workers", "1", "--pass-plugins", "sample",
        "--pipelines", "twice=sample_double,dead_code_elimination; "
        "mine=until_stable{at_most=3}(sample_double)",
        environment=with_path(site),
    )  # fmt: skip


def test_an_enabled_plugin_is_listed_and_runs(plugged) -> None:
    with lazyfx.connect(plugged.address) as client:
        listed = {p.name: p for p in client.passes()}
        assert listed["sample_double"].origin == "lazyfx-sample 1.2.3"
        assert listed["dead_code_elimination"].origin.startswith("lazyfx ")
        assert listed["sample_double"].options[0].summary == "The factor to look for."
        module = client.compile(symbolic_trace(double), ["sample_double"])
        assert module.report.passes[0].note == "1 products"
        assert module.report.recompiles.performed == 0
        x = torch.randn(3)
        torch.testing.assert_close(module(x), double(x))
        reading = client.compile(symbolic_trace(double), ["sample_reading"])
        (row,) = reading.report.passes
        assert (row.recompiles.performed, row.runs) == (1, 1)
        assert row.forced[0].startswith("code at __init__.py:")


def test_nothing_is_loaded_that_is_not_enabled(launch, site: Path) -> None:
    server = launch("--workers", "1", environment=with_path(site))
    with lazyfx.connect(server.address) as client:
        assert not [p.name for p in client.passes() if p.name.startswith("sample")]
        with pytest.raises(
            InvalidRequestError, match="no pass or pipeline is named 'sample_double'"
        ):
            client.compile(symbolic_trace(double), ["sample_double"])


def test_a_changed_plugin_is_another_key(launch, site: Path, tmp_path: Path) -> None:
    store = tmp_path / "shared"
    changed = shutil.copytree(site, tmp_path / "changed")
    code = changed / "lazyfx_sample/__init__.py"
    code.write_text(code.read_text() + "# another line\n")
    found = []
    for folder in (site, site, changed):
        flags = ("--workers", "1", "--pass-plugins", "sample")
        server = launch(*flags, store=store, environment=with_path(folder))
        with lazyfx.connect(server.address) as client:
            found.append(client.compile(symbolic_trace(double), ["sample_double"]).cache.reason)
        server.stop()
    # All use one store: results of other code are not used.
    assert found == ["NEW_GRAPH", "", "NEW_PIPELINE"]


@pytest.mark.parametrize("problem", ["missing", "twice", "name", "broken", "other"])
def test_each_defect_of_a_plugin_has_its_own_message(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    copy = shutil.copytree(site, tmp_path / "copy")
    code = copy / "lazyfx_sample/__init__.py"
    expected = {
        "missing": "no installed distribution provides the passes 'missing'",
        "twice": "provided by lazyfx-sample 1.2.3 and lazyfx-sample2 1.2.3; uninstall one",
        "name": "two passes are named 'remove_dropout'; disable one of them",
        "broken": "the passes 'sample': ZeroDivisionError",
        "other": "which is not a frozen dataclass derived from Pass",
    }
    if problem == "twice":
        info = next(copy.glob("*.dist-info"))
        second = shutil.copytree(info, copy / "lazyfx_sample2-1.2.3.dist-info")
        metadata = (second / "METADATA").read_text()
        (second / "METADATA").write_text(metadata.replace("lazyfx-sample", "lazyfx-sample2"))
    elif problem == "name":
        code.write_text(code.read_text().replace('"sample_double"', '"remove_dropout"'))
    elif problem == "broken":
        code.write_text("1 / 0\n")
    elif problem == "other":
        code.write_text("PASSES = (dict,)\n")
    monkeypatch.syspath_prepend(str(copy))
    monkeypatch.delitem(sys.modules, "lazyfx_sample", raising=False)
    with pytest.raises(PluginError) as caught:
        registry_with(load_plugins(["missing" if problem == "missing" else "sample"]))
    monkeypatch.delitem(sys.modules, "lazyfx_sample", raising=False)
    assert expected[problem] in str(caught.value)


def test_a_plugin_that_cannot_be_used_stops_the_start(launch) -> None:
    message = refused_start(launch, "--pass-plugins", "no_such_plugin", environment={})
    assert (
        "lazyfx serve: --pass-plugins no_such_plugin: no installed package provides passes"
        in message
    )


def test_pipelines_have_names(plugged) -> None:
    with lazyfx.connect(plugged.address) as client:
        named = client.pipelines()
        assert set(named) == {"default", "inference", "training", "twice", "mine"}
        assert named["mine"] == "until_stable{at_most=3}(sample_double)"
        model = symbolic_trace(double)
        by_name = client.compile(model, ["twice"])
        spelled = client.compile(model, ["sample_double", "dead_code_elimination"])
        assert by_name.report.pipeline == named["twice"]
        assert (spelled.cache.status, spelled.key) == ("hit", by_name.key)
        with pytest.raises(InvalidRequestError, match="takes no options"):
            client.compile(model, [lazyfx.pass_spec("default", x=1)])


@pytest.mark.parametrize("name", ["default", "inference", "training"])
def test_the_built_in_pipelines_keep_results(plugged, name: str) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Dropout(), torch.nn.ReLU()
    ).eval()
    x = torch.randn(1, 1, 4, 4)
    program = torch.export.export(model, (x,))
    with lazyfx.connect(plugged.address) as client:
        module = client.compile(program, [name], verify=True)
        assert module.report.recompiles.performed == 0
        torch.testing.assert_close(module(x), model(x))


def test_each_defect_of_a_pipeline_has_its_own_message() -> None:
    registry = Registry()
    for own, message in (
        ({"tidy": "no_such_pass"}, "pipeline 'tidy': .*no pass is named 'no_such_pass'"),
        ({"tidy": "a,,b"}, "pipeline 'tidy': passes: expected a pass name"),
        ({"remove_dropout": "constant_fold"}, "a pass has this name"),
    ):
        with pytest.raises(ValueError, match=message):
            NamedPipelines(registry, own)
    own = {"tidy": "constant_fold{max_bytes=1048576}"}
    described = {p.name: p.spelling for p in NamedPipelines(registry, own).describe()}
    assert described["tidy"] == "constant_fold", "canonical: defaults are left out"
    for spelling in described.values():
        assert spell(parse(spelling)) == spelling
