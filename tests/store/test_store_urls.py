"""URLs of stores."""

from __future__ import annotations

import pytest

from lazyfx_server.store import (
    SharedStoreError,
)
from lazyfx_server.store.opening_shared import open_remote, shown


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "redis",
        "http://host",
        "s3://",
        "redis://host:port/0",
        "redis://[::1/0",
        "redis://host/x",
    ],
)
def test_wrong_urls_are_refused(wrong: str) -> None:
    with pytest.raises(SharedStoreError):
        open_remote(wrong, 600)


def test_urls_are_shown_without_secrets() -> None:
    where = "rediss://user:pass%40word@host:6379/3?password=pass&prefix=x"
    assert shown(where) == "rediss://host:6379/3"
    with pytest.raises(SharedStoreError) as caught:
        open_remote("redis://user:password@host:port/0", 600)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "place", ["user:hid/den", ":12/hidden", ":hid?den", ":hid#den", "hid@d/en"]
)
def test_characters_of_a_password_must_be_encoded(place: str) -> None:
    where = f"redis://{place}@host:6379/0"
    assert "hid" not in shown(where)
    with pytest.raises(SharedStoreError, match="percent-encode") as caught:
        open_remote(where, 600)
    assert "hid" not in str(caught.value)
