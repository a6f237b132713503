from __future__ import annotations

import sys
from pathlib import Path

# Helpers shared by the folders that talk to a running server.
_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "server"), str(_TESTS / "hostile")]
