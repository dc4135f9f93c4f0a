"""A verdict on each of the papers' claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pandas as pd

from report.registry import table
from report.stats import (
    Difference,
    by_interval,
    by_mean,
    by_p,
    by_sign,
    one_sample,
    p_value,
    paired,
)
from report.sweeps import davis_frank_sweeps, matched, network_label, resnets, sweeps, usual_start
from report.tables import Table

CLAIMS = {  # the papers', in short; "bn" stands for a network of which only γ and β are trained
    1: "bn: accuracy rises with depth",
    2: "bn beats as many random parameters",
    3: "bn: depth beats width at equal numbers of parameters",
    4: "bn switches off more features, |γ| < 0.01, than all (points of share)",
    5: "bn: such γ can be set to zero, change within ±0.5",
    6: "γ and β matter in ordinary training",
    7: "BatchNorm does better before the activation",
    8: "a small γ, slowly trained, improves all",
    9: "all layers frozen is chance, the mean within ±5",
    10: "the shortcuts hold something back",
    11: "γ and β move further from their start under bn than under all (mean distance)",
}
SMALL = 0.01  # of γ
negligible = partial(by_interval, margin=0.5)
chance = partial(by_mean, margin=5)


class Finding(NamedTuple):
    """What one recipe says about one case of a claim."""

    claim: int
    case: str
    figure: Difference
    verdict: str
    title: str = ""
    epochs: int = 0

    def of(self, title: str, sweep: pd.DataFrame) -> Finding:
        """The finding as that of a sweep's recipe."""
        return self._replace(title=title, epochs=sweep.epochs.max())

    @property
    def weight(self) -> tuple:
        """Where several recipes have the runs, that of the greatest weight speaks."""
        return self.figure.pairs > 2, self.epochs, self.figure.pairs


@table("exp_bn_only.py --dataset digits")
def claims(runs):
    """A verdict on each claim and case, by data set. Where several recipes have the runs, the
    longest of three seeds or more speaks, else the longest."""
    for dataset, of_dataset in runs.groupby("dataset"):
        heaviest: dict[tuple, Finding] = {}
        for finding in findings(of_dataset):
            case = finding.claim, finding.case
            if case not in heaviest or finding.weight > heaviest[case].weight:
                heaviest[case] = finding
        rows = []
        for finding in sorted(heaviest.values(), key=lambda finding: finding.claim):
            row = {
                "claim": f"{finding.claim}. {CLAIMS[finding.claim]}",
                "case": finding.case,
                "ours": finding.figure,
                "seeds": finding.figure.pairs,
                "verdict": finding.verdict,
                "recipe": finding.title.removeprefix(f"{dataset}, "),
            }
            rows.append(row)
        missing = sorted(set(CLAIMS) - {claim for claim, _ in heaviest})
        note = f"Not run on {dataset}: the claims {', '.join(map(str, missing))}."
        if rows:
            yield Table(dataset, rows, note=note if missing else "")


def findings(runs: pd.DataFrame) -> Iterator[Finding]:
    """For each case of a claim and each recipe that has its runs."""
    for title, sweep in sweeps(resnets(usual_start(runs)), "depth", "width", "train"):
        for finding in of_resnets(sweep):
            yield finding.of(title, sweep)
    before_after = runs[runs.bn.isin(["before", "after"])]
    for title, sweep in sweeps(before_after, "bn", "train"):
        for finding in of_mlps(sweep):
            yield finding.of(title, sweep)
    for title, sweep, baseline, others in davis_frank_sweeps(runs):
        for finding in of_davis_frank(network_label(sweep.iloc[0]), baseline, others):
            yield finding.of(title, sweep)


def of_resnets(sweep: pd.DataFrame) -> Iterator[Finding]:
    narrow = sweep[sweep.width == 1]
    by_setting = dict(list(narrow.groupby(["train", "depth"])))
    depths = sorted(narrow[narrow.train == "bn"].depth.unique())
    cases = []
    if len(depths) > 1:
        low, high = depths[0], depths[-1]
        figure = paired(by_setting["bn", high], by_setting["bn", low])
        cases.append((1, f"depth {high:g} − depth {low:g}", figure, by_sign))
    for deep, wide in matched(sweep):
        case = f"depth {deep.depth.iloc[0]:g} − width {wide.width.iloc[0]:g}"
        cases.append((3, case, paired(deep, wide), by_sign))
    for depth in sorted(narrow.depth.unique()):
        cells = {train: cell for (train, of), cell in by_setting.items() if of == depth}
        cases += [
            (claim, f"{case}, depth {depth:g}", figure, rule)
            for claim, case, figure, rule in cases_of_depth(cells)
        ]
    for claim, case, figure, rule in cases:
        if figure:
            yield Finding(claim, case, figure, rule(figure))


def cases_of_depth(cells: dict[str, pd.DataFrame]) -> list[tuple]:
    """Claim, case, figure and rule of what one network says, whose cells are given by what was
    trained."""
    everything, bn = cells.get("all"), cells.get("bn")
    gamma, beta = (partial(distance, which=which) for which in ("gamma", "beta"))
    return [
        (2, "bn − random:2", paired(bn, cells.get("random:2")), by_sign),
        (4, "bn − all", paired(bn, everything, share_of_small_gammas), by_sign),
        (5, "pruned − as trained", one_sample(bn, change_by_pruning), negligible),
        (6, "all − all-bn", paired(everything, cells.get("all-bn")), by_sign),
        (9, "none − chance", one_sample(cells.get("none"), above_chance), chance),
        (10, "bn+shortcut − bn", paired(cells.get("bn+shortcut"), bn), by_sign),
        (11, "γ, bn − all", paired(bn, everything, gamma), by_sign),
        (11, "β, bn − all", paired(bn, everything, beta), by_sign),
    ]


def of_mlps(sweep: pd.DataFrame) -> Iterator[Finding]:
    network = network_label(sweep.iloc[0])
    cells = dict(list(sweep.groupby(["bn", "train"])))
    cases = []
    for train in ("bn", "all"):
        figure = paired(cells.get(("before", train)), cells.get(("after", train)))
        cases.append((7, f"before − after, {train}, {network}", figure))
    for place in ("before", "after"):
        figure = paired(cells.get((place, "bn")), cells.get((place, "random:2")))
        cases.append((2, f"bn − random:2, {network}, BatchNorm {place}", figure))
    for claim, case, figure in cases:
        if figure:
            yield Finding(claim, case, figure, by_sign(figure))


def of_davis_frank(network: str, baseline: pd.DataFrame, others: list) -> Iterator[Finding]:
    for (start, c, norm), cell in others:
        figure = paired(cell, baseline)
        if (start, c) == (0.1, 100) and figure:
            case = f"γ from 0.1, rate / 100, input {norm} − usual, {network}"
            verdict = by_p(p_value(cell, baseline), len(others))
            yield Finding(8, case, figure, verdict)


# ------------------------------------------------------------------------------- values of one run


def above_chance(run) -> float:
    """Points of test accuracy above guessing."""
    return run.test_acc - 100 / run.classes


def share_of_small_gammas(run) -> float:
    """Percent of all channels; NaN where γ was not kept."""
    channels = run.record.table("channels")
    return math.nan if channels is None else 100 * (channels.gamma.abs() < SMALL).mean()


def distance(run, which: str) -> float:
    """Mean distance of γ or β (`which`: gamma, beta) from its start; NaN where it was not kept."""
    channels = run.record.table("channels")
    if channels is None:
        return math.nan
    return (channels[which] - channels[f"{which}_init"]).abs().mean()


def change_by_pruning(run) -> float:
    """Points of test accuracy gained when small γ are set to zero; NaN where it was not
    measured."""
    pruned = run.record.table("pruning")
    if pruned is None:
        return math.nan
    return pruned.test_acc[pruned.threshold == SMALL].iloc[0] - pruned.test_acc.iloc[0]
