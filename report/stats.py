"""Means over seeds, differences over paired seeds, and what these say.

Averages are over seeds and nothing else. A difference is that of runs with the same seed, which
share their random start and the order of their batches; its interval is Student's t's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from scipy import stats

LEVEL = 0.95  # of intervals
SIGNIFICANT = 0.05
MANY = 10_000  # seeds; more are not named


class Mean(NamedTuple):
    """Over seeds: the mean, the sample standard deviation (NaN of one), the number of seeds."""

    mean: float
    sd: float
    seeds: int

    @classmethod
    def of(cls, runs: pd.DataFrame) -> Mean:
        """Of the test accuracy in percent of `runs`, which differ in the seed."""
        return cls(runs.test_acc.mean(), runs.test_acc.std(), len(runs))

    @classmethod
    def of_rows(cls, table: pd.DataFrame) -> list[Mean]:
        """Of each row of a table that has a column for each seed."""
        rows = zip(table.mean(axis=1), table.std(axis=1), strict=True)
        return [cls(mean, sd, table.shape[1]) for mean, sd in rows]

    def __str__(self):
        spread = f" ± {self.sd:.1f}" if self.seeds > 1 else ""
        return f"{self.mean:.1f}{spread} ({self.seeds})"


class Difference(NamedTuple):
    """Over pairs of equal seed: the mean difference, its 95 % interval, the number of pairs, and
    about how many would decide its sign if mean and deviation stayed as they are."""

    mean: float
    low: float
    high: float
    pairs: int
    needed: float

    @classmethod
    def of(cls, differences: pd.Series) -> Difference:
        mean, pairs = differences.mean(), len(differences)
        if pairs < 2:
            return cls(mean, -math.inf, math.inf, pairs, math.nan)
        with warnings.catch_warnings(action="ignore"):  # equal differences have no t, but a mean
            interval = stats.ttest_1samp(differences, 0).confidence_interval(LEVEL)
        half = (interval.high - interval.low) / 2
        needed = pairs * (half / mean) ** 2 if mean else math.inf
        return cls(mean, interval.low, interval.high, pairs, needed)

    def __str__(self):
        digits = 1 if abs(self.mean) >= 1 else 2
        text = signed(self.mean, digits)
        if self.pairs > 1:
            text += f" ({signed(self.low, digits)} to {signed(self.high, digits)})"
        return text


def signed(value: float, digits: int) -> str:
    """`value` with its sign and so many digits after the point."""
    return f"{round(value, digits) + 0:+.{digits}f}".replace("-", "−")  # + 0: no negative zero


# ------------------------------------------------------------------------------------- differences


def accuracy(run) -> float:
    return run.test_acc


def by_seed(runs: pd.DataFrame | None, value: Callable) -> pd.Series:
    """`value` of each of `runs` by its seed, without those that have none."""
    if runs is None or runs.empty:
        return pd.Series(dtype=float)
    return runs.set_index("seed").apply(value, axis=1).astype(float).dropna()


def paired(
    a: pd.DataFrame | None, b: pd.DataFrame | None, value: Callable = accuracy
) -> Difference | None:
    """`value` of the runs `a` minus that of the runs `b`, over the seeds that both have; None where
    there is no such seed."""
    differences = (by_seed(a, value) - by_seed(b, value)).dropna()
    return Difference.of(differences) if len(differences) else None


def one_sample(runs: pd.DataFrame | None, value: Callable) -> Difference | None:
    """`value`, itself a difference from zero, over the seeds of `runs`; None where none has it."""
    values = by_seed(runs, value)
    return Difference.of(values) if len(values) else None


def p_value(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """Of the one-sided paired t-test that the runs `a` are more accurate than the runs `b`; NaN of
    fewer than three pairs."""
    accuracies = [by_seed(runs, accuracy) for runs in (a, b)]
    pairs = pd.concat(accuracies, axis=1, join="inner")
    if len(pairs) < 3:
        return math.nan
    with warnings.catch_warnings(action="ignore"):  # equal differences have no t
        return stats.ttest_rel(pairs.iloc[:, 0], pairs.iloc[:, 1], alternative="greater").pvalue


def p_text(p: float) -> str:
    return "too few seeds" if math.isnan(p) else f"{p:.3g}"


def comparisons(number: int) -> str:
    return "1 comparison" if number == 1 else f"{number} comparisons"


# ---------------------------------------------------------------------------------------- verdicts


def by_sign(difference: Difference) -> str:
    """On the claim that the difference is above zero, by the side on which its interval lies."""
    if difference.pairs < 2:
        return "open (1 seed)"
    if difference.low > 0:
        return "confirmed"
    if difference.high < 0:
        return "contradicted"
    if difference.needed < MANY:
        return f"open (about {math.ceil(difference.needed):,} seeds would decide)"
    return "open"


def by_interval(difference: Difference, margin: float) -> str:
    """On the claim that the difference is at most `margin` away from zero, by whether its interval
    lies within or wholly outside."""
    if difference.pairs < 2:
        return "open (1 seed)"
    if -margin <= difference.low and difference.high <= margin:
        return "confirmed"
    if difference.low > margin or difference.high < -margin:
        return "contradicted"
    return "open"


def by_mean(difference: Difference, margin: float) -> str:
    """On the claim that the mean is at most `margin` away from zero."""
    return "confirmed" if abs(difference.mean) <= margin else "contradicted"


def by_p(p: float, number: int) -> str:
    """On the claim that the difference is above zero, by the p-value of a one-sided test that is
    one of `number`."""
    if math.isnan(p):
        return f"open ({p_text(p)})"
    verdict = "open"
    if p <= SIGNIFICANT:
        verdict = "confirmed"
    elif p >= 1 - SIGNIFICANT:
        verdict = "contradicted"
    return f"{verdict} (one-sided p = {p_text(p)}, {comparisons(number)})"
