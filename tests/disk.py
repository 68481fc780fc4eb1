"""A disk without room, for tests that patch what writes to it."""

import errno


def fill_the_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
