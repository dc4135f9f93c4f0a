"""What a grid's runs say together, and how a number is told."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.config import Settings
    from harness.runs import Outcome


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def table_of(outcomes: list[Outcome], choose=lambda rows: rows[-1]):
    """The last row, or the one that `choose` takes, of each run, as a pandas table, whose columns
    are numbers where all that is in them is, and text elsewhere."""
    import pandas as pd

    table = pd.DataFrame([outcome.defaults | choose(outcome.rows) for outcome in outcomes])
    # as pandas.read_csv has the runs; a digest is text, also one of digits alone
    digests = dict.fromkeys(["run", "script", "data", "commit"], str)
    as_csv = io.StringIO(table.to_csv(index=False))
    return pd.read_csv(as_csv, dtype=digests, keep_default_na=False, na_values=[""])


def tables_of(outcomes: list[Outcome], args: Settings, *columns: str):
    """`table_of`, as one table for each value of what the grid of `args` varies beside the
    `columns` that a script's report tells apart: only over seeds is anything averaged."""
    table = table_of(outcomes)
    several = [name for name, values in args.varied.items() if len(values) > 1]
    others = [name for name in several if name in table and name not in (*columns, "seed")]
    if not others:
        yield table
        return
    for values, rows in table.groupby(others, sort=False, dropna=False):
        cells = ("" if value != value else value for value in values)  # NaN is an empty one
        told = (f"{name} {cell}" for name, cell in zip(others, cells, strict=True))
        print(f"\n{', '.join(told)}:")
        yield rows


def counted(number: float, what: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,.0f} {what}" + ("" if number == 1 else "s")


def depth_label(depth: float) -> str:
    """A depth, which a network may not have, as a table shows it."""
    return "no depth" if math.isnan(depth) else f"depth {depth:g}"


def shape_label(depth: float, width: float = math.nan) -> str:
    """Depth and width, as far as a network has them, as a report shows them."""
    return depth_label(depth) + ("" if math.isnan(width) else f", width {width:g}")


def mean_and_deviation(accuracies) -> str:
    """A pandas series of accuracies as a table shows it: mean ± sample standard deviation (number
    of seeds)."""
    n = len(accuracies)
    if n == 0:
        return "not run"
    spread = f" ± {rounded(accuracies.std(), 1)}" if n > 1 else ""
    return f"{rounded(accuracies.mean(), 1)}{spread} ({n})"


def accuracies(rows) -> str:
    """The test accuracy of a pandas table's runs, as `mean_and_deviation`, and where all of them
    have a validation split the mean accuracy there, by which a setting is to be chosen."""
    told = f"{mean_and_deviation(rows.test_acc):<18}"
    if len(rows) and rows.val_acc.notna().all():
        return f"{told} (validation {rounded(rows.val_acc.mean(), 1)})"
    return told


def rounded(value: float, digits: int, sign: str = "") -> str:
    """`value` with so many digits after the point. The order in which a mean is summed moves its
    last bits, which do not decide between two numbers that are equally near."""
    return f"{round(value, 9):{sign}.{digits}f}"
