"""Are γ and β special, or would as many parameters chosen at random do as well? K random entries of each convolution's output channels are trained
instead; K = 2 is exactly as many as BatchNorm has.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152, section 4: BatchNorm does better.

    python exp_random_params.py --dataset digits --per-channel 2                      # two minutes on one core
    python exp_random_params.py --dataset digits --per-channel 1 2 4 8 16 32 64 all --seeds 0 1 2 3 4
    python exp_random_params.py --depth 14 110 --per-channel 2 --also output          # CIFAR-10
"""
import math
import sys

import common


def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)      # He-normal weights, γ ~ U[0, 1], β = 0
    common.freeze(model, args.train)            # "random:2": two entries of each output channel; γ and β keep their start
    return common.fit(model, data, args)        # the same recipe for all, BatchNorm's own baseline included


def sweep(args):
    common.refuse(args, ["train"], "--per-channel and --also say what is trained")
    also = "".join(f"+{part}" for part in args.also)
    trains = ["bn", *(f"random:{k}{also}" for k in sorted(args.per_channel, key=lambda k: math.inf if k == "all" else int(k)))]
    runs = common.grid(args, depth=args.depth, width=args.width, train=trains, seed=args.seed)
    code = common.run_grid(runs, run)
    if not args.dry_run:
        report(common.last_rows(runs), dict.fromkeys(one.train for one in runs))
    return code


def report(rows, trains):
    """Accuracies over seeds for each K, and the smallest K that overtakes BatchNorm's γ and β."""
    for (arch, depth, width), here in rows.groupby(["arch", "depth", "width"]):
        print(f"\n{arch}{depth}, width {width}: test accuracy in %, mean ± sample standard deviation (seeds)")
        means = {}
        for train in trains:
            accuracies = here[here.train == train].test_acc
            means[train] = accuracies.mean()
            trained = f"{here[here.train == train].params_trained.iloc[0]:,} trained" if len(accuracies) else ""
            print(f"  {train:<20} {common.mean_and_deviation(accuracies):<20} {trained}")
        if means["bn"] == means["bn"]:  # not nan: there is a baseline
            better = [train for train in trains if train != "bn" and means[train] > means["bn"]]
            print(f"  the smallest K whose mean overtakes bn: {better[0]}" if better else "  none of these overtakes bn")


def per_channel(text):
    return text if text == "all" else str(common.number(int, 1)(text))


def main(argv=None):
    parser = common.parser(__doc__, lists=("depth", "width", "seed"))
    parser.add_argument("--per-channel", nargs="+", type=per_channel, default=["1", "2", "4", "8", "all"], metavar="K",
                        help="entries of each output channel, or all (default 1 2 4 8 all)")
    parser.add_argument("--also", nargs="+", choices=["output", "bn"], default=[], help="parts to train beside the random entries")
    parser.set_defaults(train=None)
    return common.main(sweep, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
