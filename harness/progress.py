"""tqdm's bars."""

import sys

from tqdm import tqdm


def progress_bar(*args, **options) -> tqdm:
    """tqdm's, which writes a line a minute where nobody watches."""
    interval = 0.2 if sys.stderr.isatty() else 60
    return tqdm(*args, dynamic_ncols=True, mininterval=interval, **options)
