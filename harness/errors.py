"""What a user can do about a mistake, in one line."""

from __future__ import annotations

import errno
import sys
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """The request cannot be met as asked: one line says what is wrong and what would be right."""

    exit_code = 2


class RunError(Exception):
    """The request was right, but the run cannot go on: one line says why."""

    exit_code = 1


class Locked(RunError):
    """Another process is making the run."""


class Damaged(RunError):
    """A record that cannot be used, and why."""


@contextmanager
def taken_apart():
    """Raises Damaged where a checkpoint whose checksum fits holds something else than a run's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"it does not hold what a run writes ({error!r})") from None


NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)


def cannot_write(folder: Path, error: OSError, instead: str) -> UserError | RunError:
    """What to raise: no folder can have this name, or it cannot be written in for now."""
    kind = UserError if error.errno in NO_FOLDER else RunError
    return kind(f"cannot write in {folder} ({error.strerror}): {instead}")


def warn(message: str) -> None:
    print(f"warning: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` in one line that commands no terminal: what cannot be printed stands as its escape.

    Names of files and classes may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
