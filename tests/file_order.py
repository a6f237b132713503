"""Which process of a test run takes which files, and in which order.

The files that take longest are the first to run, so that no process is left with one of them when
the others have finished. `python tests/file_order.py REPORT...` prints the table below anew, from
the files that pytest writes with `--junitxml`.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final
from xml.etree import ElementTree

# Files that capture the same graphs, which takes longer than to test them: one process runs them.
_TOGETHER: Final = (
    ("lazy/test_pickling", "lazy/test_other_formats", "lazy/test_python_files"),
    ("passes/test_library", "passes/test_real_models", "passes/test_casts", "passes/test_verify"),
)

# Seconds of each file on two cores, from _LEAST_SECONDS on.
_LEAST_SECONDS: Final = 7
_SECONDS: Final = {
    "passes/test_zoo": 115,
    "training/test_native": 110,
    "training/test_aot_inductor": 110,
    "training/test_swapping": 104,
    "training/test_floats": 100,
    "numerics/test_zoo": 80,
    "properties/test_digest_truth": 75,
    "hostile/test_native_text": 70,
    "wire/test_round_trip": 67,
    "hostile/test_native_lowering": 60,
    "training/test_fail_open": 60,
    "e2e/test_conformance": 60,
    "training/test_ray": 60,
    "training/test_wrappers": 60,
    "numerics/test_models": 60,
    "training/test_kernel_cache_bert": 60,
    "e2e/test_versions": 57,
    "passes/test_library": 52,
    "hostile/test_corpus_requests": 51,
    "training/test_waiting": 50,
    "hostile/test_native_artifacts": 50,
    "training/test_models": 50,
    "contract/test_stores": 48,
    "lazy/test_pickling": 46,
    "client/test_closing": 45,
    "lazy/test_saved_operators": 43,
    "e2e/test_lifecycle": 42,
    "passes/test_matching": 40,
    "fuzz/test_fuzz": 40,
    "training/test_kernel_cache": 40,
    "training/test_native_fleet": 40,
    "training/test_prefetch": 40,
    "hostile/test_more_cases": 38,
    "lazy/test_saved_models": 37,
    "e2e/test_chaos": 37,
    "server/test_settings": 37,
    "hostile/test_evaluated_operators": 32,
    "passes/test_nested_writes": 31,
    "wire/test_zoo": 31,
    "passes/test_real_models": 31,
    "training/test_native_tier": 30,
    "hostile/test_native_leftovers": 29,
    "execution/test_process_executor": 28,
    "lazy/test_other_formats": 25,
    "hostile/test_corpus_graphs": 25,
    "wire/test_digest": 24,
    "cli/test_demo": 23,
    "e2e/test_torchscript": 22,
    "client/test_forking": 20,
    "training/test_passes_backend": 20,
    "training/test_desugared": 20,
    "hostile/test_sandbox": 20,
    "e2e/test_moved_state": 19,
    "store/test_remote_faults": 17,
    "wire/test_coverage": 17,
    "upstream/test_upstream_identity": 17,
    "server/test_native_start": 17,
    "server/test_streams": 16,
    "client/test_diagnosing": 16,
    "client/test_replicas": 15,
    "e2e/test_shared_store": 13,
    "cli/test_batch": 13,
    "wire/test_values": 13,
    "upstream/test_upstream_away": 12,
    "passes/test_fuse_conv_bn": 12,
    "contract/test_executors": 12,
    "passes/test_verify": 11,
    "training/test_settings": 11,
    "server/test_nursery": 11,
    "hostile/test_hostile_server": 11,
    "server/test_story": 11,
    "execution/test_owners": 11,
    "wire/test_higher_order": 11,
    "lazy/test_python_files": 11,
    "contract/test_leases": 11,
    "client/test_prefetched": 10,
    "training/test_shortcuts": 10,
    "e2e/test_exported_program": 10,
    "hostile/test_hostile_upstream": 9,
    "hostile/test_transport": 9,
    "server/test_bad_requests": 9,
    "e2e/test_killed_workers": 9,
    "properties/test_written_literals": 8,
    "deploy/test_kubernetes": 8,
    "passes/test_fuse_attention": 8,
    "cli/test_optimize": 8,
    "cli/test_operator_mistakes": 8,
    "client/test_blocking": 8,
    "hostile/test_identity": 7,
    "wire/test_leaf_modules": 7,
    "passes/test_casts": 7,
    "e2e/test_fleet": 7,
    "hostile/test_bounds_of_requests": 7,
    "hostile/test_signatures": 7,
    "training/test_warm_ranks": 7,
}

_FIRST: Final = {file: files[0] for files in _TOGETHER for file in files}


def unit(node_id: str) -> str:
    """The name of what one process runs as a whole: the file of a test, or the first of several."""
    file = node_id.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    return _FIRST.get(file, file)


def seconds(unit: str) -> int:
    """How long a unit takes; 0 if that is not long."""
    return sum(_SECONDS.get(file, 0) for file in {unit, *_FIRST} if _FIRST.get(file, file) == unit)


def _measured(reports: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            module = str(case.get("classname")).partition(".Test")[0]
            file = module.removeprefix("tests.").replace(".", "/")
            found[file] += float(str(case.get("time")))  # type: ignore[assignment]
    return found


if __name__ == "__main__":
    for file, measured in _measured(sys.argv[1:]).most_common():
        if measured >= _LEAST_SECONDS:
            sys.stdout.write(f'    "{file}": {measured:.0f},\n')
