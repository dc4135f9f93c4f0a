"""A verdict on each of the papers' claims."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pandas as pd

from report.features import change_by_pruning, distance, share_of_dead, share_of_small_gammas
from report.registry import table
from report.stats import (
    Claim,
    Difference,
    accuracy,
    by_seed,
    comparisons,
    judge,
    last_accuracy,
    one_sample,
    p_text,
    p_values,
    paired,
    summary,
)
from report.sweeps import (
    at_own_rate,
    davis_frank_sweeps,
    kind_rank,
    matched,
    network_label,
    of_kinds,
    of_users,
    resnets,
    start_of_any_kind,
    sweeps,
    usual_start,
)
from report.tables import Table

# The papers', in short, and from 12 on this collection's own and its followers'. "bn": a network of
# which only γ and β are trained. Giannou et al. 2023 speak of normalisation layers in general; the
# reviewers of Burkholz 2024 asked where "batch" comes in.
CLAIMS = {
    1: "bn: accuracy rises with depth",
    2: "bn beats as many random parameters",
    3: "bn: depth beats width at equal numbers of parameters",
    4: "bn: a third of the γ are small, |γ| < 0.01, more than under all (points of share)",
    5: "bn: such γ can be set to zero, change within ±0.5",
    6: "γ and β matter in ordinary training",
    7: "BatchNorm does better before the activation",
    8: "a small γ, slowly trained, improves all",
    9: "all layers frozen is chance, the mean within ±5",
    10: "the shortcuts hold something back",
    11: "γ and β move further from their start under bn than under all (mean distance)",
    12: "γ and β of another normalisation, or of none, do as well as BatchNorm's, within ±2",
    13: "bn: without weight decay as many features are dead, within ±5, half as many γ small",
    14: "LayerNorm's γ and β add the most to a random transformer (Lu et al. 2021)",
    15: "biases alone come within ±2 of all (Williams et al. 2025)",
    16: "bn beats as many random parameters, each at its own best rate",
}
THIRD = 100 / 3  # percent of the features that the paper finds switched off
AT_THE_END = (4, 5, 13)  # claims about what training ends at
SEEDS = {6: 10, 8: 10}  # fixed beforehand, from now on; five for the others
ADDED = (6, 8)  # whose last five were made while the first five left the claim open
ONE_SIDED = (8,)  # by the authors' own test
ABOVE = Claim()
NEGLIGIBLE, AS_GOOD, CLOSE = Claim(0.5), Claim(2), Claim(5)  # points


class Finding(NamedTuple):
    """What one recipe says about one case of a claim.

    decides: a pair of networks that is not quite equal can decide `for` the claim alone, or
    `against` it alone; remark: what stands behind the verdict."""

    claim: int
    case: str
    figure: Difference
    test: Claim = ABOVE
    decides: str = "both"
    remark: str = ""
    title: str = ""
    epochs: int = 0

    def of(self, title: str, sweep: pd.DataFrame) -> Finding:
        """The finding as that of a sweep's recipe, to which it may have added."""
        title = ", ".join(filter(None, [title, self.title]))
        return self._replace(title=title, epochs=sweep.epochs.max())

    @property
    def weight(self) -> tuple:
        """Of several findings on a case the heaviest speaks."""
        return self.figure.pairs > 2, self.epochs, self.figure.pairs


@table("exp_bn_only.py --dataset digits")
def claims(runs):
    """A verdict on each claim and case, by data set, corrected within a claim for the number of its
    cases (Holm). Where several recipes have the runs, the longest of three seeds or more speaks,
    else the longest; for claims 4, 5 and 13, which are about what training ends at, the longest
    is shown, too. So many seeds would decide if mean and deviation stayed what they are."""
    for dataset, of_dataset in runs.groupby("dataset"):
        by_case: dict[tuple, list[Finding]] = {}
        for finding in findings(of_dataset):
            by_case.setdefault((finding.claim, finding.case), []).append(finding)
        rows, sentences = [], []
        for claim in sorted({claim for claim, _ in by_case}):
            found = []
            for (of_claim, _), several in by_case.items():
                if of_claim == claim:
                    found += those_that_speak(several)
            verdicts = verdicts_on(found)
            if len(found) > 1:
                sentences.append(f"Claim {claim}: {summary(verdicts)}.")
            for finding, verdict in zip(found, verdicts, strict=True):
                row = {
                    "claim": f"{claim}. {CLAIMS[claim]}",
                    "case": finding.case,
                    "ours": finding.figure,
                    "seeds": finding.figure.pairs,
                    "verdict": verdict,
                    "recipe": finding.title.removeprefix(f"{dataset}, "),
                }
                rows.append(row)
        missing = sorted(set(CLAIMS) - {claim for claim, _ in by_case})
        if missing:
            listed = ", ".join(map(str, missing))
            sentences.append(f"Not run on {dataset}: the claims {listed}.")
        if rows:
            yield Table(dataset, rows, note=" ".join(sentences))


def those_that_speak(several: list[Finding]) -> list[Finding]:
    """Of the findings on one case."""
    heaviest = max(several, key=lambda finding: finding.weight)
    longest = max(several, key=lambda finding: (finding.epochs, finding.figure.pairs))
    if heaviest.claim in AT_THE_END and longest.epochs > heaviest.epochs:
        return [longest, heaviest]
    return [heaviest]


def verdicts_on(found: list[Finding]) -> list[str]:
    """On the cases of one claim."""
    cases = [(finding.test, finding.figure) for finding in found]
    verdicts = judge(cases, 0.05 if found[0].claim in ONE_SIDED else 0.025)
    shown = []
    for finding, verdict in zip(found, verdicts, strict=True):
        other = {"for": "contradicted", "against": "confirmed"}.get(finding.decides)
        if verdict == other:
            verdict = "open"
        remarks = [finding.remark] if finding.remark else []
        fixed = SEEDS.get(finding.claim, 5)
        if finding.figure.pairs > fixed:
            remarks.append(f"{fixed} seeds were fixed beforehand, the others added later")
        elif finding.claim in ADDED and finding.figure.pairs == fixed:
            remarks.append("the last five seeds were added while it was open")
        word, _, why = verdict.removesuffix(")").partition(" (")
        reasons = "; ".join(filter(None, [why, *remarks]))
        shown.append(f"{word} ({reasons})" if reasons else word)
    return shown


def findings(runs: pd.DataFrame) -> Iterator[Finding]:
    """For each case of a claim and each recipe that has its runs."""
    for title, sweep in sweeps(resnets(usual_start(runs)), "depth", "width", "train"):
        for finding in of_resnets(sweep):
            yield finding.of(title, sweep)
    kinds = of_kinds(runs[~of_users(runs)])
    for title, sweep in sweeps(at_own_rate(kinds), "norm", "lr", "depth"):
        for finding in of_norms(sweep):
            yield finding.of(title, sweep)
    decayed = resnets(usual_start(runs)).query("width == 1 and train == 'bn'")
    for title, sweep in sweeps(decayed, "weight_decay"):
        for finding in of_weight_decay(sweep):
            yield finding.of(title, sweep)
    for title, sweep in sweeps(at_own_rate(runs[runs.arch == "vit"]), "train", "lr"):
        for finding in of_transformers(sweep):
            yield finding.of(title, sweep)
    biased = at_own_rate(runs[(runs.arch == "mlp") & (runs.bn == "none")])
    for title, sweep in sweeps(biased, "train", "lr"):
        network = network_label(sweep.iloc[0])
        for finding in at_own_rates(15, "all", "bias", sweep, network, AS_GOOD):
            yield finding.of(title, sweep)
    fair = at_own_rate(resnets(usual_start(runs)).query("width == 1"))
    for title, sweep in sweeps(fair[fair.train.isin(["bn", "random:2"])], "train", "lr"):
        depth = f"depth {sweep.depth.iloc[0]:g}"
        for finding in at_own_rates(16, "bn", "random:2", sweep, depth, ABOVE):
            yield finding.of(title, sweep)
    placed = resnets(start_of_any_kind(runs[runs.norm == "bn"])).query("width == 1")
    placed = placed.assign(bn=placed.bn.astype(object).fillna("before"))
    for title, sweep in sweeps(placed, "bn", "train"):
        for finding in of_places(sweep):
            yield finding.of(title, sweep)
    before_after = runs[runs.bn.isin(["before", "after"]) & (runs.experiment != "")]
    for title, sweep in sweeps(before_after, "bn", "train"):
        for finding in of_mlps(sweep):
            yield finding.of(title, sweep)
    for title, sweep, baselines, others in davis_frank_sweeps(runs):
        for finding in of_davis_frank(network_label(sweep.iloc[0]), baselines, others):
            yield finding.of(title, sweep)


def of_resnets(sweep: pd.DataFrame) -> Iterator[Finding]:
    narrow = sweep[sweep.width == 1]
    by_setting = dict(list(narrow.groupby(["train", "depth"])))
    depths = sorted(narrow[narrow.train == "bn"].depth.unique())
    cases = []
    for depth in depths[1:]:
        figure = paired(by_setting["bn", depth], by_setting["bn", depths[0]])
        cases.append((1, f"depth {depth:g} − depth {depths[0]:g}", figure, ABOVE))
    for deep, wide in matched(sweep):
        figure = paired(deep, wide)
        if figure:
            yield of_equal_numbers(deep, wide, figure)
    for depth in sorted(narrow.depth.unique()):
        cells = {train: cell for (train, of), cell in by_setting.items() if of == depth}
        cases += [
            (claim, f"{case}, depth {depth:g}", figure, test)
            for claim, case, figure, test in cases_of_depth(cells)
        ]
    for claim, case, figure, test in cases:
        if figure:
            yield Finding(claim, case, figure, test)


def of_equal_numbers(deep: pd.DataFrame, wide: pd.DataFrame, figure: Difference) -> Finding:
    """A deep network against a wide one with nearly as many BatchNorm parameters: with fewer it can
    decide for depth alone, with more against it alone."""
    more = int(deep.params_trained.iloc[0] - wide.params_trained.iloc[0])
    case = f"depth {deep.depth.iloc[0]:g} − width {wide.width.iloc[0]:g}"
    if not more:
        return Finding(3, case, figure)
    case += f" (deep has {abs(more)} {'more' if more > 0 else 'fewer'})"
    return Finding(3, case, figure, decides="against" if more > 0 else "for")


def cases_of_depth(cells: dict[str, pd.DataFrame]) -> list[tuple]:
    """Claim, case, figure and test of what one network says, whose cells are given by what was
    trained."""
    everything, bn = cells.get("all"), cells.get("bn")
    gamma, beta = (partial(distance, which=which) for which in ("gamma", "beta"))
    return [
        (2, "bn − random:2", paired(bn, cells.get("random:2")), ABOVE),
        (4, "bn − all", paired(bn, everything, share_of_small_gammas), ABOVE),
        (4, "bn − a third", one_sample(bn, share_above_a_third), CLOSE),
        (5, "pruned − as trained", one_sample(bn, change_by_pruning), NEGLIGIBLE),
        (6, "all − all-bn", paired(everything, cells.get("all-bn")), ABOVE),
        (9, "none − chance", one_sample(cells.get("none"), above_chance), CLOSE),
        (10, "bn+shortcut − bn", paired(cells.get("bn+shortcut"), bn), ABOVE),
        *of_control(cells),
        (11, "γ, bn − all", paired(bn, everything, gamma), ABOVE),
        (11, "β, bn − all", paired(bn, everything, beta), ABOVE),
    ]


def of_control(cells: dict[str, pd.DataFrame]) -> Iterator[tuple]:
    """The shortcuts' convolutions against about as many random entries elsewhere."""
    shortcut = cells.get("bn+shortcut")
    for train, cell in cells.items():
        if shortcut is not None and train.startswith("bn+random:"):
            ratio = cell.params_trained.iloc[0] / shortcut.params_trained.iloc[0]
            if 0.75 < ratio < 4 / 3:
                yield 10, f"bn+shortcut − {train}", paired(shortcut, cell), ABOVE


def of_mlps(sweep: pd.DataFrame) -> Iterator[Finding]:
    yield from of_places(sweep)
    network = network_label(sweep.iloc[0])
    cells = dict(list(sweep.groupby(["bn", "train"])))
    for place in ("before", "after"):
        figure = paired(cells.get((place, "bn")), cells.get((place, "random:2")))
        if figure:
            yield Finding(2, f"bn − random:2, {network}, BatchNorm {place}", figure)


def of_places(sweep: pd.DataFrame) -> Iterator[Finding]:
    """BatchNorm before the activation against after it."""
    network = network_label(sweep.iloc[0])
    cells = dict(list(sweep.groupby(["bn", "train"])))
    for train in ("bn", "all"):
        figure = paired(cells.get(("before", train)), cells.get(("after", train)))
        if figure:
            yield Finding(7, f"before − after, {train}, {network}", figure)


def of_davis_frank(network: str, baselines: dict, others: list) -> Iterator[Finding]:
    for (start, c, norm), cell in others:
        baseline = baselines[norm]
        figure = paired(cell, baseline)
        if (start, c) == (0.1, 100) and figure:
            case = f"γ from 0.1, rate / 100, input {norm} − usual, {network}"
            one, two = p_values(cell, baseline)
            remark = f"one-sided p = {p_text(one)}, two-sided {p_text(two)}"
            yield Finding(8, case, figure, remark=f"{remark}, {comparisons(len(others))}")
            figure = paired(cell, baseline, last_accuracy)
            yield Finding(8, f"{case}, last epoch", figure)


def of_norms(sweep: pd.DataFrame) -> Iterator[Finding]:
    """BatchNorm against each other kind at each depth; and whether the gap grows with depth."""
    cells = dict(list(sweep.groupby(["norm", "depth"])))
    for kind in sorted(set(sweep.norm) - {"bn"}, key=kind_rank):
        depths = sorted(depth for norm, depth in cells if norm == kind and ("bn", depth) in cells)
        if not depths:
            continue
        gaps = {depth: gap(cells["bn", depth], cells[kind, depth]) for depth in depths}
        rates = rates_of(sweep[sweep.norm == "bn"], sweep[sweep.norm == kind])
        for depth, differences in gaps.items():
            if len(differences):
                figure = Difference.of(differences)
                case = f"bn − {kind}, depth {depth:g}"
                yield Finding(12, case, figure, AS_GOOD, title=rates)
        if len(depths) > 1:
            low, high = depths[0], depths[-1]
            growth = (gaps[high] - gaps[low]).dropna()
            if len(growth):
                figure = Difference.of(growth)
                case = f"bn − {kind}: depth {high:g} − depth {low:g}"
                yield Finding(12, case, figure, AS_GOOD, title=rates)


def gap(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """Points of accuracy by which the runs `a` are ahead of the runs `b`, for each seed of both."""
    return (by_seed(a, accuracy) - by_seed(b, accuracy)).dropna()


def of_weight_decay(sweep: pd.DataFrame) -> Iterator[Finding]:
    """γ and β alone without weight decay, against the paper's 1e-4."""
    cells = dict(list(sweep.groupby("weight_decay")))
    without, usual = cells.get(0.0), cells.get(1e-4)
    depth = f"depth {sweep.depth.iloc[0]:g}"
    figure = paired(without, usual, share_of_dead)
    if figure:
        case = f"share of dead features without decay − with, {depth}"
        yield Finding(13, case, figure, CLOSE)
    figure = paired(usual, without, lambda run: share_of_small_gammas(run) * half_without(run))
    if figure:
        case = f"½ · share of |γ| < 0.01 with decay − share without, {depth}"
        yield Finding(13, case, figure)


def half_without(run) -> float:
    return 0.5 if run.weight_decay else 1.0


def of_transformers(sweep: pd.DataFrame) -> Iterator[Finding]:
    """What LayerNorm's γ and β add to the output, against what input and positions add then."""
    steps = ["output", "norm+output", "norm+output+input", "norm+output+input+position"]
    cells = [sweep[sweep.train == step] for step in steps]
    by_step = [by_seed(cell, accuracy) for cell in cells]
    accuracies = pd.concat(dict(zip(steps, by_step, strict=True)), axis=1)
    rates = rates_of(*(cell for cell in cells if len(cell)))
    gains = accuracies.diff(axis=1)
    for word, what in zip(steps[2:], ("input", "position"), strict=True):
        differences = (gains["norm+output"] - gains[word]).dropna()
        if len(differences):
            figure = Difference.of(differences)
            case = f"what norm adds to output − what {what} adds then"
            yield Finding(14, case, figure, title=rates)


def at_own_rates(claim: int, a: str, b: str, sweep: pd.DataFrame, where: str, test: Claim) -> list:
    """The finding on `a` − `b`, what was trained, each at its one learning rate; none without
    paired runs."""
    cells = dict(list(sweep.groupby("train")))
    figure = paired(cells.get(a), cells.get(b))
    if figure is None:
        return []
    rates = rates_of(cells[a], cells[b])
    return [Finding(claim, f"{a} − {b}, {where}", figure, test, title=rates)]


def rates_of(*cells: pd.DataFrame) -> str:
    return "rates " + ", ".join(f"{cell.lr.iloc[0]:g}" for cell in cells)


# ------------------------------------------------------------------------------- values of one run


def above_chance(run) -> float:
    """Points of test accuracy above guessing."""
    return run.test_acc - 100 / run.classes


def share_above_a_third(run) -> float:
    return share_of_small_gammas(run) - THIRD
