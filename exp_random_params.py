"""Are γ and β special, or would as many parameters chosen at random do as well? K random entries of
each convolution's output channels are trained instead; K = 2 is exactly as many as BatchNorm has.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152,
section 4: BatchNorm does better.

    python exp_random_params.py --dataset digits --per-channel 2                  # two minutes
    python exp_random_params.py --dataset digits --per-channel 1 4 16 64 all --seeds 0 1 2
    python exp_random_params.py --depth 14 110 --per-channel 2 --also output      # CIFAR-10
"""

import math
import sys
from dataclasses import dataclass

import common
from common import NEVER, flag


def per_channel(text):
    return text if text == "all" else str(common.number(int, 1)(text))


@dataclass
class Settings(common.Settings):
    lists = {"depth": [None], "width": [1], "seed": [0]}

    train: str = "bn"  # --per-channel and --also say what is trained
    per_channel: list[str] = flag(
        ["1", "2", "4", "8", "all"],
        "entries of each output channel, or all",
        per_channel,
        metavar="K",
        record=NEVER,
    )
    also: list[str] = flag(
        [],
        "parts to train beside the random entries",
        choices=("output", "bn"),
        record=NEVER,
    )


def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)  # He-normal weights, γ ~ U[0, 1], β = 0
    common.freeze(model, args.train)  # "random:2": two entries of each output channel
    return common.fit(model, data, args)  # the same recipe for all, BatchNorm's own included


def sweep(args):
    also = "".join(f"+{part}" for part in args.also)
    entries = sorted(args.per_channel, key=lambda k: math.inf if k == "all" else int(k))
    trains = [f"bn{also}", *(f"random:{k}{also}" for k in entries)]  # the same beside each
    depths, widths, seeds = (args.varied[name] for name in ("depth", "width", "seed"))
    runs = common.grid(args, depth=depths, width=widths, train=trains, seed=seeds)
    code, outcomes = common.run_grid(runs, run)
    trains = list(dict.fromkeys(one.train for one in runs))
    for rows in common.tables_of(outcomes, args, "depth", "width"):
        report(rows, trains)
    return code


def report(rows, trains):
    """Accuracies over seeds for each K, and the smallest K that overtakes BatchNorm's γ and β, of
    which the first of `trains` is, on average over the seeds that both have."""
    networks = rows.groupby(["arch", "depth", "width"], dropna=False)
    for (arch, depth, width), network in networks:
        print(f"\n{arch}, {common.shape_label(depth, width)}:")
        print("test accuracy in %, mean ± sample standard deviation (seeds)")
        by_seed = {}
        for train in trains:
            cell = network[network.train == train]
            by_seed[train] = cell.set_index("seed").test_acc
            trained = f"{cell.params_trained.iloc[0]:,} trained" if len(cell) else ""
            print(f"  {train:<20} {common.accuracies(cell)} {trained}")
        bn, *others = trains
        gains = {train: (by_seed[train] - by_seed[bn]).mean() for train in others}
        if all(map(math.isnan, gains.values())):  # no seed has both
            continue
        better = [train for train in others if gains[train] > 0]
        if better:
            print(f"  the smallest K whose mean overtakes {bn}: {better[0]}")
        else:
            print(f"  none of these overtakes {bn}")


def main(argv=None):
    return common.main(sweep, Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
