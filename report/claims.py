"""A verdict on each of the papers' claims."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import pandas as pd

from harness.summaries import counted
from report.features import change_by_pruning, distance, share_of_dead, share_of_small_gammas
from report.registry import table
from report.runs import FULL, USUAL
from report.stats import (
    Above,
    Difference,
    Hypothesis,
    Verdict,
    Within,
    by_seed,
    differences,
    judge,
    last_accuracy,
    one_sample,
    p_text,
    p_values,
    paired,
    summary,
    test_accuracy,
)
from report.sweeps import (
    at_chance,
    at_own_rate,
    beside_entries,
    by_place,
    davis_frank_sweeps,
    entries,
    kind_rank,
    kinds_at_own_rate,
    matched,
    network_label,
    of_users,
    published,
    resnets,
    scaled_to,
    sweeps,
    usual_start,
    without_trials,
)
from report.tables import Table

# In short: the papers', and from 12 on this collection's own and its followers'. "bn": a network of
# which only γ and β are trained.
CLAIMS = {
    "1": "bn: accuracy rises with depth",
    "2": "bn beats as many random parameters",
    "3": "bn: depth beats width at equal numbers of parameters",
    "4": "bn: more γ are small, |γ| < 0.01, than under all (points of share)",
    "4b": "bn: a third of the γ are small, within ±5 points",
    "5": "bn: such γ can be set to zero, change within ±0.5",
    "6": "γ and β matter in ordinary training",
    "7": "BatchNorm does better before the activation",
    "8": "a small γ, slowly trained, improves all",
    "9": "all layers frozen is chance, the mean within ±5",
    "10": "the shortcuts hold something back",
    "10b": "the shortcuts hold back more than about as many random entries do",
    "11": "γ and β move further from their start under bn than under all (mean distance)",
    "12": "γ and β of another normalisation, or of none, do as well as BatchNorm's, within ±2",
    "12b": "the deeper the network, the further these are behind BatchNorm's",
    "13": "bn: without weight decay as many features are dead, within ±5 points",
    "13b": "bn: without weight decay less than half as many γ are small",
    "14": "LayerNorm's γ and β add the most to a random transformer",
    "15": "biases alone come within ±2 of all",
    "16": "bn beats as many random parameters, each at its own best rate",
}
SOURCES = {
    **dict.fromkeys(["1", "2", "3", "4", "4b", "5", "6", "9"], "Frankle et al. 2021"),
    "7": "He et al. 2016; Mukherjee 2020",
    "8": "Davis & Frank 2022",
    "10": "Mukherjee 2020",
    "10b": "ours, a control of 10",
    "11": "Davis & Frank 2022",
    "12": "ours, after Giannou et al. 2023 and the reviews of Burkholz 2024",
    "12b": "ours",
    "13": "ours, on a sentence of Frankle et al. 2021",
    "13b": "ours",
    "14": "Lu et al. 2021; Rothermel et al. 2021",
    "15": "Williams et al. 2025",
    "16": "ours, after Rothermel et al. 2021",
}
AT_THE_END = ("4", "4b", "5", "13", "13b")  # claims about what training ends at
SEEDS = {"6": 10, "8": 10}  # asked for, since five had left them open here; five for the others
ABOVE, ABOVE_ONE_SIDED = Above(), Above(level=0.05)
NEGLIGIBLE, AS_GOOD, CLOSE = Within(0.5), Within(2), Within(5)  # points


class Finding(NamedTuple):
    """What one recipe says about one case of a claim.

    in_full: whether the main paper's length alone can say it; remark: what stands behind the
    verdict; rates: the learning rates, where each method has its own. By `in_recipe`: the recipe's
    title, how long it is, how many of the settings that its runs share are the main paper's."""

    claim: str
    case: str
    figure: Difference
    hypothesis: Hypothesis = ABOVE
    in_full: bool = False
    remark: str = ""
    rates: str = ""
    recipe: str = ""
    epochs: int = 0
    usual: int = 0

    def in_recipe(self, title: str, sweep: pd.DataFrame, *varied: str) -> Finding:
        """The finding as that of the recipe of a sweep over the settings `varied`."""
        run = sweep.iloc[0]
        shared = [column for column in USUAL if column not in varied]
        usual = sum(run[column] == USUAL[column] for column in shared) + (not scaled_to(run))
        recipe = f"{title}, {self.rates}" if self.rates else title
        return self._replace(recipe=recipe, epochs=sweep.epochs.max(), usual=usual)

    @property
    def asked(self) -> int:
        """The number of seeds that were asked for beforehand."""
        return SEEDS.get(self.claim, 5)

    @property
    def too_short(self) -> bool:
        return self.in_full and self.epochs < FULL

    @property
    def precedence(self) -> tuple:
        """Of several findings on a case that of the highest speaks."""
        pairs, can_be_judged = self.figure.pairs, self.figure.can_be_judged
        decides = can_be_judged and not self.too_short
        return decides, can_be_judged, pairs >= self.asked, self.epochs, self.usual, pairs


@table("exp_bn_only.py --dataset digits", source="diverged")
def claims(runs):
    """A verdict on each claim and case, by data set, corrected within a claim, its second part (b)
    with it, for the number of its cases that have three seeds or more and can be judged so (Holm):
    shorter runs cannot say what training at full length ends at, nor a pair of depths that shows a
    claim wrong alone that it is right. Five seeds are asked
    for, ten for claims 6 and 8. Claim 8 is judged by its authors' one-sided test at 5 %, all others
    by the interval. Where several recipes have the runs, one of so many seeds speaks, else one of
    three or more; of several the longest, then that nearest the main paper's. For claims 4, 5 and
    13, which are about what training ends at, the longest is shown, too. So many seeds would decide
    at this mean and this deviation, whatever the other cases say."""
    for dataset, of_dataset in runs[~of_users(runs)].groupby("dataset"):
        by_claim = dict(cases_by_claim(of_dataset))
        rows, sentences = [], []
        for claim, cases in by_claim.items():
            if len(cases) > 1:
                sentences.append(f"Claim {claim}: {summary([case.verdict for case in cases])}.")
            for case in cases:
                longest = max(case.found, key=lambda other: (other.epochs, other.figure.pairs))
                if claim in AT_THE_END and longest.epochs > case.speaks.epochs:
                    few = f"too few to be judged ({counted(longest.figure.pairs, 'seed')})"
                    if longest.figure.can_be_judged:
                        few = f"not judged ({longest.figure.pairs} of {longest.asked} seeds)"
                    rows.append(row_of(longest, few, dataset))
                rows.append(row_of(case.speaks, str(case.verdict), dataset))
        missing = [claim for claim in CLAIMS if claim not in by_claim]
        if missing:
            sentences.append(f"Not run on {dataset}: the claims {', '.join(missing)}.")
        if rows:
            yield Table(dataset, rows, note=" ".join(sentences), titled="data set")


@table("exp_bn_only.py --dataset digits", source="diverged")
def verdicts(runs):
    """What comes of each claim on each data set, over its cases, which the table of claims has one
    by one, with their numbers; nothing where it has not been run. What fewer seeds decide than are
    asked for more seeds can undo."""
    rows = []
    for dataset, of_dataset in runs[~of_users(runs)].groupby("dataset"):
        for claim, cases in cases_by_claim(of_dataset):
            row = {"claim": numbered(claim), "source": SOURCES[claim], "data set": dataset}
            verdict = summary([case.verdict for case in cases])
            early = sum(case.early for case in cases)
            if early:
                which = "" if early == len(cases) else f"{counted(early, 'case')} "
                verdict += f" ({which}by fewer seeds than asked for)"
            rows.append(row | {"verdict": verdict})
    in_order = list(map(numbered, CLAIMS))
    rows.sort(key=lambda row: in_order.index(row["claim"]))
    if rows:
        datasets = sorted({row["data set"] for row in rows})
        yield Table("every data set", rows, "data set", "verdict", datasets)


class Case(NamedTuple):
    """One case of a claim: what each recipe has found, the finding that speaks, the verdict."""

    found: list[Finding]
    speaks: Finding
    verdict: Verdict

    @property
    def early(self) -> bool:
        """Decided by fewer seeds than are asked for."""
        return self.verdict.word != "open" and self.speaks.figure.pairs < self.speaks.asked


def cases_by_claim(runs: pd.DataFrame) -> Iterator[tuple[str, list[Case]]]:
    """Each claim that runs of one data set speak of, in order, with its cases. Those of its second
    part are corrected together with them."""
    by_number: dict[int, dict[tuple[str, str], list[Finding]]] = {}
    for finding in findings(runs):
        by_case = by_number.setdefault(int(finding.claim.rstrip("b")), {})
        by_case.setdefault((finding.claim, finding.case), []).append(finding)
    for _, by_case in sorted(by_number.items()):
        speaking = [max(found, key=attrgetter("precedence")) for found in by_case.values()]
        cases = zip(by_case.values(), speaking, verdicts_on(speaking), strict=True)
        by_claim: dict[str, list[Case]] = {}
        for case in map(Case._make, cases):
            by_claim.setdefault(case.speaks.claim, []).append(case)
        yield from sorted(by_claim.items())


def numbered(claim: str) -> str:
    return f"{claim}. {CLAIMS[claim]}"


def row_of(finding: Finding, verdict: str, dataset: str) -> dict:
    return {
        "claim": numbered(finding.claim),
        "case": finding.case,
        "ours": finding.figure,
        "seeds": finding.figure.pairs,
        "verdict": verdict,
        "recipe": finding.recipe.removeprefix(f"{dataset}, "),
    }


def verdicts_on(found: list[Finding]) -> list[Verdict]:
    """On the cases of one claim, of which only those that can be judged are counted."""
    long_enough = [finding for finding in found if not finding.too_short]
    given = iter(judge([(finding.hypothesis, finding.figure) for finding in long_enough]))
    verdicts = []
    for finding in found:
        too_short = Verdict("open", (f"not at {FULL} epochs",))
        verdict = too_short if finding.too_short else next(given)
        verdicts.append(verdict.with_reasons(*remarks_on(finding, verdict)))
    return verdicts


def remarks_on(finding: Finding, verdict: Verdict) -> list[str]:
    """What stands behind a verdict: the finding's own remark, and how its seeds came about."""
    remarks = [finding.remark] if finding.remark else []
    pairs, asked = finding.figure.pairs, finding.asked
    if pairs > asked:
        remarks.append(f"{asked} seeds are asked for, the others came later")
    elif asked > 5 and pairs == asked:
        remarks.append(f"{asked} seeds are asked for since five had been seen")
    elif pairs < asked and verdict.word != "open":
        remarks.append(f"{pairs} of {asked} seeds")
    return remarks


# ---------------------------------------------------------------------- what the runs say, by claim


def findings(runs: pd.DataFrame) -> Iterator[Finding]:
    """For each case of a claim and each recipe that has its runs. Diverged runs speak where each
    method has its own rate, as chance, and nowhere else."""
    with_diverged, runs = at_chance(runs), runs[runs.status != "diverged"]
    ours = resnets(usual_start(runs))
    narrow = ours[ours.width == 1]
    depths = [sweep.depth for _, sweep in sweeps(narrow[narrow.train == "bn"], "depth")]
    shallowest = {of_recipe.min() for of_recipe in depths if of_recipe.nunique() > 1}
    of_depths = partial(of_resnets, shallowest=shallowest)
    yield from in_sweeps(of_depths, ours, "depth", "width", "train")
    kinds = kinds_at_own_rate(with_diverged)
    yield from in_sweeps(of_norms, kinds, "norm", "lr", "depth")
    yield from in_sweeps(of_weight_decay, narrow[narrow.train == "bn"], "weight_decay")
    vits = at_own_rate(with_diverged[with_diverged.arch == "vit"])
    yield from in_sweeps(of_transformers, vits, "train", "lr")
    mlps = with_diverged[with_diverged.arch == "mlp"]
    yield from in_sweeps(of_biases, at_own_rate(mlps[mlps.bn == "none"]), "train", "lr")
    usual = resnets(usual_start(with_diverged)).query("width == 1")
    for networks in (usual, mlps[mlps.bn == "before"]):
        fair = at_own_rate(networks[networks.train.isin(["bn", "random:2"])])
        yield from in_sweeps(of_fair_rates, fair, "train", "lr")
    yield from in_sweeps(of_places, by_place(runs), "bn", "train")
    before_after = without_trials(runs[runs.bn.isin(["before", "after"])])
    before_after = before_after[before_after.experiment != ""]  # MLPs and LeNet-5
    before_after = before_after[before_after.val_fraction == 0]
    yield from in_sweeps(of_mlps, before_after, "bn", "train")
    for title, sweep, baselines, others in davis_frank_sweeps(runs):
        for finding in of_davis_frank(network_label(sweep.iloc[0]), baselines, others):
            yield finding.in_recipe(title, sweep)


def in_sweeps(found: Callable, runs: pd.DataFrame, *varied: str) -> Iterator[Finding]:
    """What is `found` in each sweep, as that of its recipe, where there are paired runs."""
    for title, sweep in sweeps(runs, *varied):
        for finding in found(sweep):
            if finding.figure:
                yield finding.in_recipe(title, sweep, *varied)


def of_resnets(sweep: pd.DataFrame, shallowest: set[float]) -> Iterator[Finding]:
    """shallowest: the depths that the others are compared with, each the least of some recipe, so
    that of a case that a short recipe has asked a longer one can speak, too."""
    narrow = sweep[sweep.width == 1]
    by_depth = dict(list(narrow[narrow.train == "bn"].groupby("depth")))
    for shallow, depth in itertools.combinations(sorted(by_depth), 2):
        if shallow in shallowest:
            figure = paired(by_depth[depth], by_depth[shallow])
            yield Finding("1", f"depth {depth:g} − depth {shallow:g}", figure)
    for deep, wide in matched(sweep):
        yield of_equal_numbers(deep, wide)
    for depth, of_depth in narrow.groupby("depth"):
        cells = dict(list(of_depth.groupby("train")))
        for finding in of_one_network(cells):
            yield finding._replace(case=f"{finding.case}, depth {depth:g}")


def of_equal_numbers(deep: pd.DataFrame, wide: pd.DataFrame) -> Finding:
    """A deep network against a wide one with nearly as many BatchNorm parameters: with fewer it can
    decide for depth alone, with more against it alone."""
    more = int(deep.params_trained.iloc[0] - wide.params_trained.iloc[0])
    case = f"depth {deep.depth.iloc[0]:g} − width {wide.width.iloc[0]:g}"
    if not more:
        return Finding("3", case, paired(deep, wide))
    case += f" (deep has {abs(more)} {'more' if more > 0 else 'fewer'})"
    one_sided = Above(decides="against" if more > 0 else "for")
    return Finding("3", case, paired(deep, wide), one_sided)


def of_one_network(cells: dict[str, pd.DataFrame]) -> Iterator[Finding]:
    """What one network says, whose `cells` are given by what was trained."""
    everything, bn, shortcut = (cells.get(train) for train in ("all", "bn", "bn+shortcut"))
    gamma, beta = (partial(distance, which=which) for which in ("gamma", "beta"))
    yield Finding("2", "bn − random:2", paired(bn, cells.get("random:2")))
    yield Finding("4", "bn − all", paired(bn, everything, share_of_small_gammas))
    third = one_sample(bn, share_above_the_papers)
    yield Finding("4b", "bn − a third", third, CLOSE, in_full=True)
    yield Finding("5", "pruned − as trained", one_sample(bn, change_by_pruning), NEGLIGIBLE)
    yield Finding("6", "all − all-bn", paired(everything, cells.get("all-bn")))
    yield Finding("9", "none − chance", one_sample(cells.get("none"), above_chance), CLOSE)
    yield Finding("10", "bn+shortcut − bn", paired(shortcut, bn))
    for train, cell in cells.items():  # about as many random entries elsewhere as control
        if entries(train) and beside_entries(train) == "bn" and shortcut is not None:
            ratio = cell.params_trained.iloc[0] / shortcut.params_trained.iloc[0]
            if 0.75 < ratio < 4 / 3:
                yield Finding("10b", f"bn+shortcut − {train}", paired(shortcut, cell))
    yield Finding("11", "γ, bn − all", paired(bn, everything, gamma))
    yield Finding("11", "β, bn − all", paired(bn, everything, beta))


def of_mlps(sweep: pd.DataFrame) -> Iterator[Finding]:
    yield from of_places(sweep)
    network = network_label(sweep.iloc[0])
    cells = dict(list(sweep.groupby(["bn", "train"])))
    for place in ("before", "after"):
        figure = paired(cells.get((place, "bn")), cells.get((place, "random:2")))
        yield Finding("2", f"bn − random:2, {network}, BatchNorm {place}", figure)


def of_places(sweep: pd.DataFrame) -> Iterator[Finding]:
    """BatchNorm before the activation against after it."""
    network = network_label(sweep.iloc[0])
    cells = dict(list(sweep.groupby(["bn", "train"])))
    for train in ("bn", "all"):
        figure = paired(cells.get(("before", train)), cells.get(("after", train)))
        yield Finding("7", f"before − after, {train}, {network}", figure)


def of_davis_frank(network: str, baselines: dict, others: list) -> Iterator[Finding]:
    """By the authors' own test, which is one-sided."""
    for (start, c, norm), cell in others:
        baseline = baselines[norm]
        figure = paired(cell, baseline)
        if (start, c) == (0.1, 100) and figure:
            case = f"γ from 0.1, rate / 100, input {norm} − usual, {network}"
            one, two = p_values(cell, baseline)
            remark = f"one-sided p = {p_text(one)}, two-sided {p_text(two)}"
            remark = f"{remark}, {counted(len(others), 'comparison')}"
            yield Finding("8", case, figure, ABOVE_ONE_SIDED, remark=remark)
            figure = paired(cell, baseline, last_accuracy)
            yield Finding("8", f"{case}, last epoch", figure, ABOVE_ONE_SIDED)


def of_norms(sweep: pd.DataFrame) -> Iterator[Finding]:
    """BatchNorm against each other kind at each depth; and whether the gap grows with depth."""
    cells = dict(list(sweep.groupby(["norm", "depth"])))
    for kind in sorted(set(sweep.norm) - {"bn"}, key=kind_rank):
        depths = sorted(depth for norm, depth in cells if norm == kind and ("bn", depth) in cells)
        if not depths:
            continue
        gaps = {depth: differences(cells["bn", depth], cells[kind, depth]) for depth in depths}
        rates = rates_of(sweep[sweep.norm == "bn"], sweep[sweep.norm == kind])
        for depth, of_depth in gaps.items():
            if len(of_depth):
                figure = Difference.of(of_depth)
                case = f"bn − {kind}, depth {depth:g}"
                remark = remark_on_lost(cells[kind, depth])
                yield Finding("12", case, figure, AS_GOOD, remark=remark, rates=rates)
        low = depths[0]
        growths = {depth: (gaps[depth] - gaps[low]).dropna() for depth in depths[1:]}
        grown = {depth: Difference.of(growth) for depth, growth in growths.items() if len(growth)}
        if grown:  # from the shallowest depth to the deepest that can be judged
            high = max(grown, key=lambda depth: (grown[depth].can_be_judged, depth))
            case = f"bn − {kind}: depth {high:g} − depth {low:g}"
            remark = remark_on_lost(cells[kind, low], cells[kind, high])
            yield Finding("12b", case, grown[high], remark=remark, rates=rates)


def remark_on_lost(*cells: pd.DataFrame) -> str:
    lost = sum((cell.status == "diverged").sum() for cell in cells)
    return f"{lost} diverged, here at chance" if lost else ""


def of_weight_decay(sweep: pd.DataFrame) -> Iterator[Finding]:
    """γ and β alone without weight decay, against the paper's 1e-4."""
    cells = dict(list(sweep.groupby("weight_decay")))
    without, usual = cells.get(0.0), cells.get(1e-4)
    depth = f"depth {sweep.depth.iloc[0]:g}"
    case = f"share of dead features without decay − with, {depth}"
    yield Finding("13", case, paired(without, usual, share_of_dead), CLOSE)
    case = f"½ · share of |γ| < 0.01 with decay − share without, {depth}"
    yield Finding("13b", case, paired(usual, without, small_gammas_halved_with_decay))


def small_gammas_halved_with_decay(run) -> float:
    return share_of_small_gammas(run) * (0.5 if run.weight_decay else 1.0)


def of_transformers(sweep: pd.DataFrame) -> Iterator[Finding]:
    """What LayerNorm's γ and β add to the output, against what input and positions add then; and
    γ and β alone against as many random entries."""
    steps = ["output", "norm+output", "norm+output+input", "norm+output+input+position"]
    cells = [sweep[sweep.train == step] for step in steps]
    by_step = [by_seed(cell, test_accuracy) for cell in cells]
    accuracies = pd.concat(dict(zip(steps, by_step, strict=True)), axis=1)
    rates = rates_of(*(cell for cell in cells if len(cell)))
    gains = accuracies.diff(axis=1)
    for word, what in zip(steps[2:], ("input", "position"), strict=True):
        further = (gains["norm+output"] - gains[word]).dropna()
        if len(further):
            figure = Difference.of(further)
            case = f"what norm adds to output − what {what} adds then"
            yield Finding("14", case, figure, rates=rates)
    network = network_label(sweep.iloc[0])
    yield from at_own_rates("16", "norm", "random:2", sweep, network, ABOVE)


def of_biases(sweep: pd.DataFrame) -> Iterator[Finding]:
    run = sweep.iloc[0]
    case, decay = network_label(run), run.weight_decay
    if decay != USUAL["weight_decay"]:  # which holds biases back: a case of its own
        case += f", weight decay {decay:g}"
    yield from at_own_rates("15", "all", "bias", sweep, case, AS_GOOD)


def of_fair_rates(sweep: pd.DataFrame) -> Iterator[Finding]:
    run = sweep.iloc[0]
    network = f"depth {run.depth:g}" if run.arch == "resnet" else network_label(run)
    yield from at_own_rates("16", "bn", "random:2", sweep, network, ABOVE)


def at_own_rates(
    claim: str, a: str, b: str, sweep: pd.DataFrame, where: str, hypothesis: Hypothesis
) -> Iterator[Finding]:
    """On `a` − `b`, what was trained, each at its one learning rate."""
    cells = dict(list(sweep.groupby("train")))
    if a in cells and b in cells:
        figure, rates = paired(cells[a], cells[b]), rates_of(cells[a], cells[b])
        yield Finding(claim, f"{a} − {b}, {where}", figure, hypothesis, rates=rates)


def rates_of(*cells: pd.DataFrame) -> str:
    return "rates " + ", ".join(f"{cell.lr.iloc[0]:g}" for cell in cells)


# ------------------------------------------------------------------------------- values of one run


def above_chance(run) -> float:
    """Points of test accuracy above guessing."""
    return run.test_acc - 100 / run.classes


def share_above_the_papers(run) -> float:
    """Points above the share of the features that the main paper finds switched off, a third."""
    paper = published("cifar10", "small_gammas").value.iloc[0]
    return share_of_small_gammas(run) - paper
