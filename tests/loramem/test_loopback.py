import pytest

from loramem.loopback import is_loopback


@pytest.mark.parametrize("host", ["localhost", "memory.localhost", "127.0.0.1", "127.8.9.10", "::1"])
def test_this_machine_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.example", "notlocalhost", "10.0.0.1", "0.0.0.0", "::", "[::1]", "127"])
def test_everything_else_is_elsewhere(host: str) -> None:
    assert not is_loopback(host)
