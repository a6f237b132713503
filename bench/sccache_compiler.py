"""A C++ compiler for Inductor that keeps objects with sccache; bench/training_peers.py runs it.

sccache keeps the output of `-c` only. Inductor compiles and links in one command, so this compiles
to an object, through sccache, and links it.
"""

from __future__ import annotations

import os
import subprocess
import sys


def main() -> int:
    """Run the command line as the compiler would."""
    compiler, given = os.environ["LAZYFX_BENCH_COMPILER"], sys.argv[1:]
    sources = [word for word in given if word.endswith(".cpp")]
    if "-shared" not in given or "-c" in given or len(sources) != 1 or "-o" not in given:
        return subprocess.run([compiler, *given], check=False).returncode
    output = given[given.index("-o") + 1]
    made = f"{output}.o"
    compiling = [
        word
        for word in given
        if word not in ("-shared", output, "-o") and not word.startswith(("-l", "-L", "-Wl,"))
    ]
    sccache = os.environ["LAZYFX_BENCH_SCCACHE"]
    code = subprocess.run([sccache, compiler, "-c", *compiling, "-o", made], check=False).returncode
    if code:
        return code
    linking = [made if word == sources[0] else word for word in given]
    return subprocess.run([compiler, *linking], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
