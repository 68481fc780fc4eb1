"""loramem: what gateway and trainer agree on."""

__version__ = "0.1.0"
