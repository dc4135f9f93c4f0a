"""What a user can do about a mistake, in one line."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path


class UserError(Exception):
    """The request cannot be met as asked: one line says what is wrong and what would be right."""

    exit_code = 2


class OtherData(UserError):
    """What stands under a name was made from other data."""


class RunError(Exception):
    """The request was right, but the run cannot go on: one line says why."""

    exit_code = 1


class Locked(RunError):
    """Another process is making the run."""


class Damaged(RunError):
    """A record that cannot be used, and why."""


@contextmanager
def damaged_if_malformed():
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
    tqdm = sys.modules.get("tqdm")  # whose bars leave the line to it
    with tqdm.tqdm.external_write_mode(file=sys.stderr) if tqdm else nullcontext():
        print(f"warning: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` in one line that commands no terminal: what cannot be printed stands as its escape.

    Names of files and classes may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class NothingToShow(Exception):
    """Of a grid: it was a dry run, or none of its runs is finished. `code`: the process's."""

    def __init__(self, code: int):
        super().__init__("no run of this grid is finished, or it was a dry run: nothing to show")
        self.code = code


class Parser(argparse.ArgumentParser):
    """argparse: its errors in one line, the description as it is written, no flag abbreviated."""

    def __init__(self, description: str):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str):
        raise UserError(f"{message} (--help explains)")


def in_one_line(error: Exception) -> str | None:
    """What a user can do about `error`; None where it is a mistake of ours."""
    if isinstance(error, (UserError, RunError)):
        return str(error)
    # PyTorch's allocator on a CPU raises a plain RuntimeError
    unallocated = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    on_a_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, which plots.py is without
    if unallocated or on_a_gpu or isinstance(error, MemoryError):
        return "out of memory: a smaller --batch-size, --width or --depth needs less"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile failed, leave it out ({str(error).splitlines()[0]})"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}: once that is mended, {GO_ON}"
    return None


GO_ON = "the same command goes on after the last complete epoch"


def guarded(work: Callable[[], int], go_on: str = GO_ON) -> int:
    """The exit code of `work()`; whatever stops it costs one line on stderr, and no traceback where
    the user can do something about it. `go_on`: what somebody who has stopped it can count on."""

    def terminate(*_):
        raise SystemExit(128 + signal.SIGTERM)

    def say(line: str, code: int) -> int:
        print(printable(line), file=sys.stderr)
        return code

    before = signal.signal(signal.SIGTERM, terminate)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without γ, any file name
    try:
        return work()
    except NothingToShow as nothing:
        return nothing.code
    except KeyboardInterrupt:
        return say(f"stopped: {go_on}", 128 + signal.SIGINT)
    except SystemExit as stop:  # --help ends so, too
        return say(f"stopped: {go_on}", stop.code) if stop.code else 0
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        return say(f"error: {line}", getattr(error, "exit_code", 1))
    finally:
        signal.signal(signal.SIGTERM, before)
