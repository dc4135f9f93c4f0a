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

from harness.summaries import counted, rounded

ACCURACY = "test accuracy (%)"  # as tables and figures call it
LEVEL = 0.95  # of intervals
MANY = 1_000  # seeds; more are not named


class Mean(NamedTuple):
    """Over seeds: the mean, the sample standard deviation (NaN of one), the number of seeds."""

    mean: float
    sd: float
    seeds: int

    @classmethod
    def of(cls, runs: pd.DataFrame, value: Callable | None = None) -> Mean:
        """Of `runs`, which differ in the seed: of what `value` says of each, where it says
        something; by default of the test accuracy in percent."""
        values = by_seed(runs, value) if value else runs.test_acc
        return cls(values.mean(), values.std(), len(values))

    @classmethod
    def of_rows(cls, table: pd.DataFrame) -> list[Mean]:
        """Of each row of a table that has a column for each seed."""
        rows = zip(table.mean(axis=1), table.std(axis=1), strict=True)
        return [cls(mean, sd, table.shape[1]) for mean, sd in rows]

    def __str__(self):
        return self.text(digits=1)

    def text(self, digits: int) -> str:
        if not self.seeds:
            return ""
        spread = f" ± {rounded(self.sd, digits)}" if self.seeds > 1 else ""
        return f"{rounded(self.mean, digits)}{spread} ({self.seeds})"


class SmallMean(Mean):
    """Of numbers below one."""

    def __str__(self):
        return self.text(digits=2)


class Difference(NamedTuple):
    """Over pairs of equal seed: the mean difference, its 95 % interval, the number of pairs, and
    their sample standard deviation (NaN of one)."""

    mean: float
    low: float
    high: float
    pairs: int
    sd: float

    @classmethod
    def of(cls, differences: pd.Series) -> Difference:
        mean, pairs = differences.mean(), len(differences)
        if pairs < 2:
            return cls(mean, -math.inf, math.inf, pairs, math.nan)
        with warnings.catch_warnings(action="ignore"):  # equal differences have no t, but a mean
            interval = stats.ttest_1samp(differences, 0).confidence_interval(LEVEL)
        return cls(mean, interval.low, interval.high, pairs, differences.std())

    @property
    def can_be_judged(self) -> bool:
        """Two pairs may be equal by chance."""
        return self.pairs > 2

    def __str__(self):
        digits = 1 if abs(self.mean) >= 1 else 2
        text = signed(self.mean, digits)
        if self.pairs > 1:
            text += f" ({signed(self.low, digits)} to {signed(self.high, digits)})"
        return text


def signed(value: float, digits: int) -> str:
    """`value` with its sign, also where it is rounded to zero, and so many digits after the
    point."""
    return rounded(value + 0, digits, sign="+").replace("-", "−")  # + 0: zero has no minus


# ------------------------------------------------------------------------------------- differences


def test_accuracy(run) -> float:
    return run.test_acc


def validation_accuracy(run) -> float:
    return run.val_acc


def last_accuracy(run) -> float:
    """Of Davis & Frank's method, which reports that of the best validation epoch."""
    return run.record.epochs.test_acc.iloc[-1]


def by_seed(runs: pd.DataFrame | None, value: Callable) -> pd.Series:
    """`value` of each of `runs` by its seed, without those that have none."""
    if runs is None or runs.empty:
        return pd.Series(dtype=float)
    return runs.set_index("seed").apply(value, axis=1).astype(float).dropna()


def differences(
    a: pd.DataFrame | None, b: pd.DataFrame | None, value: Callable = test_accuracy
) -> pd.Series:
    """`value` of the runs `a` minus that of the runs `b`, for each seed that both have."""
    return (by_seed(a, value) - by_seed(b, value)).dropna()


def paired(
    a: pd.DataFrame | None, b: pd.DataFrame | None, value: Callable = test_accuracy
) -> Difference | None:
    """The `differences` over seeds; None where no seed is in both."""
    found = differences(a, b, value)
    return Difference.of(found) if len(found) else None


def one_sample(runs: pd.DataFrame | None, value: Callable) -> Difference | None:
    """`value`, itself a difference from zero, over the seeds of `runs`; None where none has it."""
    values = by_seed(runs, value)
    return Difference.of(values) if len(values) else None


def p_values(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float]:
    """Of the paired t-tests that the runs `a` are more accurate than the runs `b`, one-sided, and
    that they differ, two-sided; NaN of fewer than three pairs."""
    difference = paired(a, b)
    if difference is None or not difference.can_be_judged:
        return math.nan, math.nan
    more, less = above(difference, 0), below(difference, 0)
    return more, min(1.0, 2 * min(more, less))


def p_text(p: float) -> str:
    return "too few seeds" if math.isnan(p) else f"{p:.3g}"


# ---------------------------------------------------------------------------------------- verdicts


ONE_SIDE = (1 - LEVEL) / 2  # of a two-sided interval: the level of a one-sided test


class Above(NamedTuple):
    """The hypothesis that a mean difference is above zero. A one-sided t-test at `level` speaks for
    it, and one at 2.5 % against it: where both are at 2.5 %, the side of zero on which its 95 %
    interval lies.

    decides: networks that are not quite equal can speak `for` it alone, or `against` it alone."""

    level: float = ONE_SIDE
    decides: str = "both"

    def p_values(self, difference: Difference) -> tuple[float, float]:
        """Of what speaks for it, and of what speaks against it; NaN of too few pairs, and of what
        the networks cannot decide."""
        if not difference.can_be_judged:
            return math.nan, math.nan
        return (
            math.nan if self.decides == "against" else above(difference, 0),
            math.nan if self.decides == "for" else below(difference, 0),
        )

    def seeds_to_decide(self, difference: Difference, cases: int = 1) -> float:
        """`least_seeds` of one of so many cases, whatever the others say; NaN where the mean is on
        the side that decides nothing."""
        speaks_for = difference.mean > 0
        if self.decides == ("against" if speaks_for else "for"):
            return math.nan
        level = self.level if speaks_for else ONE_SIDE
        return least_seeds(abs(difference.mean), difference.sd, level / cases)


class Within(NamedTuple):
    """The hypothesis that a mean difference is at most `margin` away from zero (equivalence), by
    two one-sided t-tests at 2.5 % each: that its 95 % interval lies within ±margin speaks for it,
    that it lies wholly outside against it."""

    margin: float
    level = ONE_SIDE  # of each of the two tests

    def p_values(self, difference: Difference) -> tuple[float, float]:
        """Of what speaks for it, and of what speaks against it; NaN of too few pairs."""
        if not difference.can_be_judged:
            return math.nan, math.nan
        inside = max(above(difference, -self.margin), below(difference, self.margin))
        outside = min(above(difference, self.margin), below(difference, -self.margin))
        return inside, outside

    def seeds_to_decide(self, difference: Difference, cases: int = 1) -> float:
        """`least_seeds` of one of so many cases, whatever the others say."""
        distance = abs(abs(difference.mean) - self.margin)
        return least_seeds(distance, difference.sd, self.level / cases)


Hypothesis = Above | Within


def least_seeds(distance: float, sd: float, level: float) -> float:
    """The least number of pairs that would decide at `level` if their mean stayed at this
    `distance` from the bound, and their deviation as it is; infinite where MANY would not."""
    for n in range(3, MANY + 1):
        if stats.t.isf(level, n - 1) * sd / math.sqrt(n) < distance:
            return n
    return math.inf


def above(difference: Difference, bound: float) -> float:
    """The p-value of the one-sided t-test that the mean difference lies above `bound`."""
    spread, distance = difference.sd / math.sqrt(difference.pairs), difference.mean - bound
    if not spread:  # equal differences
        return 0.0 if distance > 0 else 1.0
    return float(stats.t.sf(distance / spread, difference.pairs - 1))


def below(difference: Difference, bound: float) -> float:
    return above(difference._replace(mean=-difference.mean), -bound)


def holm(p_values: list[float]) -> list[float]:
    """Adjusted for their number (Holm, 1979); those that are NaN do not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


class Verdict(NamedTuple):
    """A word, one of WORDS, and the reasons that a table gives for it."""

    word: str
    reasons: tuple[str, ...] = ()

    def with_reasons(self, *more: str) -> Verdict:
        return Verdict(self.word, (*self.reasons, *more))

    def __str__(self):
        return f"{self.word} ({'; '.join(self.reasons)})" if self.reasons else self.word


WORDS = ("confirmed", "contradicted", "open")


def judge(cases: list[tuple[Hypothesis, Difference]]) -> list[Verdict]:
    """A verdict on each case of one claim, corrected by Holm for the number of cases."""
    both = [hypothesis.p_values(difference) for hypothesis, difference in cases]
    corrected = [holm([pair[side] for pair in both]) for side in (0, 1)]
    judged = sum(difference.can_be_judged for _, difference in cases)
    verdicts = []
    for (hypothesis, difference), p, *adjusted in zip(cases, both, *corrected, strict=True):
        alone, word = decided(p, hypothesis), decided(adjusted, hypothesis)
        reasons = []
        if not difference.can_be_judged:
            reasons.append(counted(difference.pairs, "seed"))
        elif not word:
            reasons += [f"alone {alone}, but one of {judged} cases"] if alone else []
            reasons.append(seeds_needed(hypothesis.seeds_to_decide(difference, judged)))
        verdicts.append(Verdict(word or "open", tuple(reasons)))
    return verdicts


def seeds_needed(number: float) -> str:
    if math.isnan(number):
        return "no number of seeds would decide"
    about = f"more than {MANY:,}" if math.isinf(number) else f"about {number}"
    return f"{about} seeds would decide"


def decided(p_values, hypothesis: Hypothesis) -> str:
    """By the p-values of what speaks for the claim and of what speaks against it, either of which
    may be NaN; empty where neither suffices."""
    supporting, opposing = p_values
    if supporting <= hypothesis.level:
        return "confirmed"
    return "contradicted" if opposing <= ONE_SIDE else ""


def summary(verdicts: list[Verdict]) -> str:
    """Of all cases of a claim."""
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in WORDS}
    parts = [f"{word} in {count}" for word, count in counts.items() if count]
    if len(parts) == 1:
        return verdicts[0].word
    return f"{', '.join(parts)} of {len(verdicts)} cases"
