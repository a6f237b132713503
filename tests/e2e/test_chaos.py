"""Each fault once, under load, and the books afterwards; `make chaos` goes on for minutes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from chaos.__main__ import run


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server here")
def test_each_fault_once(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    assert run(tmp_path, seed, jobs=2000, seconds=25.0, short=True) == []
