"""Each fault once, under load, and the books afterwards; `make chaos` goes on for minutes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from chaos import reconciling
from chaos.__main__ import run
from chaos.load import Books


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")
def test_each_fault_once(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    assert run(tmp_path, seed, jobs=2000, seconds=25.0, short=True) == []


def test_books_show_a_graph_that_two_servers_of_a_store_have_compiled() -> None:
    books = Books()
    books.missed("b", 1)
    books.missed("c", 2)
    assert reconciling.of_misses(books, ["b", "c"], 0) == []
    books.missed("c", 1)
    assert reconciling.of_misses(books, ["b", "c"], 1) == []
    assert "{1: 2}" in reconciling.of_misses(books, ["b", "c"], 0)[0]
    assert reconciling.of_misses(books, ["b"], 0) == []


def test_books_show_a_job_without_an_end() -> None:
    books = Books()
    assert [books.begin(2) for _ in range(3)] == [1, 2, 0]
    books.end("hit", 0.1)
    assert reconciling.of_books(books) == ["2 jobs were begun, and 1 ended"]
    books.end("UNAVAILABLE", 0.1)
    assert reconciling.of_books(books) == []
    books.begin(3)
    books.end("miss", 0.1, wrong="graph 1 computes something else")
    assert reconciling.of_books(books) == ["graph 1 computes something else"]


def test_only_empty_shared_folders_may_be_left(tmp_path: Path) -> None:
    (tmp_path / "torchinductor_user").mkdir()
    (tmp_path / "lazyfx-workers-0").mkdir()
    assert reconciling.left_behind(tmp_path) == []
    file = tmp_path / "torchinductor_user" / "made"
    file.write_bytes(b"")
    assert reconciling.left_behind(tmp_path) == [file]
    folder = tmp_path / "lazyfx-job"
    folder.mkdir()
    assert set(reconciling.left_behind(tmp_path)) == {file, folder}
