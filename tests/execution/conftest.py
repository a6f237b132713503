from __future__ import annotations

import sys
from pathlib import Path

# Workers import the job functions by name, as they would import an installed module.
sys.path.insert(0, str(Path(__file__).parent))
