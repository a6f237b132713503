"""Names of resources that a server lacks: "blobs/<sha256>", "values/<graph>/<attribute>"."""

from __future__ import annotations

MISSING = "MISSING"


BLOB_SUBJECT = "blobs/"


VALUE_SUBJECT = "values/"
