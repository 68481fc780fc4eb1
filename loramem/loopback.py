"""Which hosts are this machine."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Of a name in lower case or an address, IPv6 without brackets; nothing is looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
