"""The names that users import."""

import subprocess
import sys

import pytest

import lazyfx


@pytest.mark.parametrize("name", lazyfx.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lazyfx, name) is not None


def test_importing_the_package_loads_neither_torch_nor_grpc() -> None:
    program = (
        "import sys, lazyfx; lazyfx.errors.UnavailableError; "
        "sys.exit(bool({'torch', 'grpc'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lazyfx.no_such_name
