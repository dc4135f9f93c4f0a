"""The tables and figures there are: each is one function under a decorator that says which command
makes its runs. Their order is that of definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Entry(NamedTuple):
    """How one table or figure is made.

    make: the function; its docstring is the table's caption.
    command: makes some of the runs that it needs, if not always all.
    source: what `make` reads: `distinct` runs, each once whichever script made it; those and what
        has `diverged`, too; `all` runs; or the measurements of `bench`.
    sizes: whether a figure has all sizes of a data set's images, instead of one."""

    make: Callable
    command: str
    source: str = "distinct"
    sizes: bool = False


TABLES: dict[str, Entry] = {}
FIGURES: dict[str, Entry] = {}


def table(command: str, source: str = "distinct") -> Callable:
    """Makes a table of the function below it, which takes runs and yields `report.tables.Table`s,
    none where the runs do not suffice."""
    return register(TABLES, command, source)


def figure(command: str, sizes: bool = False, source: str = "distinct") -> Callable:
    """Makes a figure of the function below it, which takes the runs of one data set, with images
    of one size or of all `sizes`, and returns a figure of matplotlib's, None where the runs do not
    suffice."""
    return register(FIGURES, command, source, sizes)


def register(entries: dict[str, Entry], *how) -> Callable:
    def decorator(make: Callable) -> Callable:
        entries[make.__name__] = Entry(make, *how)
        return make

    return decorator
