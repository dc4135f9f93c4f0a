"""tqdm's bars: one for a run's batches, one for the runs of a grid."""

import sys
from contextlib import contextmanager

from tqdm import tqdm

_grids: list[tqdm] = []  # those under way, the innermost last


def progress_bar(*args, **options) -> tqdm:
    """tqdm's, which writes a line a minute where nobody watches."""
    interval = 0.2 if sys.stderr.isatty() else 60
    return tqdm(*args, dynamic_ncols=True, mininterval=interval, **options)


@contextmanager
def grid_bar(**options):
    """The bar of a grid's runs, in which `tell` shows how far the run under way is."""
    with progress_bar(unit=" runs", **options) as bar:
        _grids.append(bar)
        try:
            yield bar
        finally:
            _grids.pop()


def tell(text: str) -> None:
    """Shows `text` in the bar of the grid that this process makes, if it makes one."""
    if _grids:
        _grids[-1].set_postfix_str(text, refresh=sys.stderr.isatty())
