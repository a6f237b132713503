"""Puts the models, the captures and the random graphs on the path."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
for folder in (TESTS, TESTS / "wire", TESTS / "properties"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
