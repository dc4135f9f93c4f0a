"""tqdm's bars: one for a run's batches, one for the runs of a grid."""

import sys
from contextlib import contextmanager

from tqdm import tqdm

_grids: list["GridBar"] = []  # those under way, the innermost last


def how_often() -> float:
    """Seconds between two drawings of a bar: where nobody watches it is a line a minute."""
    return 0.2 if sys.stderr.isatty() else 60


def progress_bar(*args, **options) -> tqdm:
    return tqdm(*args, dynamic_ncols=True, mininterval=how_often(), **options)


class GridBar(tqdm):
    """Of a grid's runs. An epoch is a part of one, so that the time left is known after the first;
    it goes by the epochs made here, not by those that a run had before."""

    FORMAT = (
        "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}{postfix}]"
    )

    def __init__(self, **options):
        options |= {"mininterval": how_often(), "miniters": 0, "smoothing": 0}
        super().__init__(dynamic_ncols=True, bar_format=self.FORMAT, **options)
        self.ended = self.n

    def end_run(self) -> None:
        """One run more is there, whoever made it."""
        if self.disable:
            return
        self.ended += 1
        self.initial += self.ended - self.n  # tqdm's rate is that of what is beyond `initial`
        self.n = self.ended
        self.postfix = None
        self.update(0)


@contextmanager
def grid_bar(**options):
    """The bar of a grid's runs, in which `tell` shows how far the run under way is."""
    with GridBar(**options) as bar:
        _grids.append(bar)
        try:
            yield bar
        finally:
            _grids.pop()


def tell(text: str, share: float) -> None:
    """Shows `text`, and that another `share` of a run is made, in the bar of the grid that this
    process makes, if it makes one."""
    if _grids:
        bar = _grids[-1]
        bar.set_postfix_str(text, refresh=False)
        bar.update(min(share, bar.ended + 1 - bar.n))  # shares do not add up to the last bit
