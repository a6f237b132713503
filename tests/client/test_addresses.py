"""Spellings of server addresses that users write."""

from __future__ import annotations

import pytest

import lazyfx
from lazyfx.backend.options import read_options
from lazyfx.errors import AddressError
from lazyfx.shared.addresses import (
    is_loopback,
    read_address,
    read_addresses,
    server_address,
    split_addresses,
)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("localhost", "localhost:8700"),
        ("trainer-cache", "trainer-cache:8700"),
        ("trainer-cache:9000", "trainer-cache:9000"),
        ("lazyfx_server_1:8700", "lazyfx_server_1:8700"),
        ("10.0.0.7", "10.0.0.7:8700"),
        ("[::1]:8700", "[::1]:8700"),
        ("[::1]", "[::1]:8700"),
        ("::1", "[::1]:8700"),
        (" a.example:1 ", "a.example:1"),
        ("dns:///lazyfx-headless:8700", "dns:///lazyfx-headless:8700"),
        ("dns:lazyfx-headless", "dns:lazyfx-headless:8700"),
        ("ipv4:127.0.0.1:8700", "ipv4:127.0.0.1:8700"),
        ("unix:/run/lazyfx.sock", "unix:/run/lazyfx.sock"),
    ],
)
def test_an_address_is_read_as_it_is_meant(written: str, read: str) -> None:
    assert read_address(written) == read
    assert read_address(read) == read
    assert read_options({"address": written}).address == read


@pytest.mark.parametrize(
    "written",
    [
        "", " ", "8700", ":8700", "host:", "host:0", "host:65536", "host:port", "host:8700:1", "a b:1",
        "-host:1", "host:+1", "host:1e3", "host:\u0663", "[::1", "::1]:8700", "[1.2.3.4]:1",
        "user@host:1", "host/path:1", "host\n:1", "\x1b[2Jhost:1", "unix:", "dns:", "dns:///",
        "x" * 600, "dns://8.8.8.8/name:1",
    ],
)  # fmt: skip
def test_anything_else_is_refused_at_once_with_the_right_form(written: str) -> None:
    with pytest.raises(AddressError) as refused:
        lazyfx.connect(written)
    message = str(refused.value)
    assert "127.0.0.1:8700" in message
    assert message.isprintable()
    assert len(message) < 300
    with pytest.raises(ValueError, match=r"options\['address'\]"):
        read_options({"address": written})


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("http://trainer-cache:8700", "write 'trainer-cache:8700'"),
        ("https://trainer-cache:8700/", "tls=True"),
        ("grpc://trainer-cache", "write 'trainer-cache'"),
        ("GRPCS://trainer-cache", "write 'trainer-cache'"),
    ],
)
def test_a_url_is_refused_with_the_address_that_was_meant(url: str, meant: str) -> None:
    with pytest.raises(AddressError, match="gRPC") as refused:
        read_address(url)
    assert meant in str(refused.value)


def test_connect_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAZYFX_ADDRESS", raising=False)
    assert server_address() == "127.0.0.1:8700"
    monkeypatch.setenv("LAZYFX_ADDRESS", "trainer-cache")
    with lazyfx.connect() as client:
        assert client.address == "trainer-cache:8700"
    with lazyfx.connect("localhost") as client:
        assert client.address == "localhost:8700"
    monkeypatch.setenv("LAZYFX_ADDRESS", "http://trainer-cache:8700")
    with pytest.raises(AddressError, match=r"LAZYFX_ADDRESS: .*write 'trainer-cache:8700'"):
        lazyfx.connect()


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("dns:///127.0.0.1:1", True),
        ("unix:/run/x", True),
        ("trainer-cache:1", False),
        ("localhost.example:1", False),
        ("127.0.0.1.example:1", False),
        ("10.0.0.1:1", False),
    ],
)
def test_only_the_text_of_an_address_says_that_it_is_this_machine(address: str, here: bool) -> None:
    assert is_loopback(address) is here


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a", "a:8700"),
        ("a:8700,b", "a:8700,b:8700"),
        (" a:1 , [::1]:2 ", "a:1,[::1]:2"),
        ("127.0.0.1,unix:/run/lazyfx.sock", "127.0.0.1:8700,unix:/run/lazyfx.sock"),
        ("dns:///lazyfx-headless,b:1", "dns:///lazyfx-headless:8700,b:1"),
    ],
)
def test_several_addresses_are_joined_by_commas(
    monkeypatch: pytest.MonkeyPatch, written: str, read: str
) -> None:
    assert read_addresses(written) == read
    assert read_addresses(read) == read
    assert split_addresses(read) == tuple(read.split(","))
    assert read_options({"address": written}).address == read
    monkeypatch.setenv("LAZYFX_ADDRESS", written)
    with lazyfx.connect() as client:
        assert client.address == read


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("a:1,", "empty address"),
        (",", "empty address"),
        ("a:1,,b:1", "empty address"),
        ("a:1 b:1", "cache-0:8700,cache-1:8700"),
        ("a:1;b:1", "cache-0:8700,cache-1:8700"),
        ("a:1,b:x", "'b:x' is not a server address"),
        ("a,a:8700", "names 'a:8700' twice"),
        ("http://a:1,b:1", "is a URL"),
        (",".join(f"h{i}" for i in range(65)), "dns:///NAME:PORT"),
        (["a:1", "b:1"], "write several addresses as one text"),
    ],
)
def test_a_wrong_list_is_refused_with_the_right_form(written: object, told: str) -> None:
    with pytest.raises(AddressError) as refused:
        lazyfx.connect(written)  # type: ignore[arg-type]
    assert told in str(refused.value)
    assert len(str(refused.value)) < 300
