"""Puts the maker, the captures and the models on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent, HERE.parent / "wire"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
