"""Reads /metrics and lists what changed between two readings."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping

from lazyfx.errors import LazyfxError

_SAMPLE = re.compile(r"^(?P<series>[a-zA-Z_:][\w:]*(?:\{.*\})?) (?P<value>\S+)$")
# Buckets are redundant with _count and _sum; _created is a timestamp.
_LEFT_OUT = re.compile(r"_(bucket|created)(\{|$)")


def read_metrics(url: str) -> dict[str, float]:
    """Read values by series, in page order.

    Args:
        url: URL of /metrics; proxies in the environment are ignored.

    Raises:
        LazyfxError: It cannot be read.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10.0) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise LazyfxError(f"{url} cannot be read: {error}") from error
    samples = (_SAMPLE.match(line) for line in text.splitlines())
    return {s["series"]: float(s["value"]) for s in samples if s}


def changed_lines(
    before: Mapping[str, float], after: Mapping[str, float], prefix: str
) -> list[str]:
    """Lines of changed series with the prefix, as `series value`."""
    return [
        f"{series} {value:.6g}"
        for series, value in after.items()
        if series.startswith(prefix)
        and not _LEFT_OUT.search(series)
        and value != before.get(series, 0.0)
    ]
