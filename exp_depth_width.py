"""Does a network learn more through γ and β when it is deeper, or when it is wider? Every depth at
width 1, and every width at depth 14.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152,
section 4: both help, and at equal numbers of BatchNorm parameters depth helps more.
`--match-bn-params` pairs each width with the depth that has as many.

    python exp_depth_width.py --dataset digits --depths 14 32 --widths 1 2 --epochs 20   # seconds
    python exp_depth_width.py --dataset digits --widths 3 5 --match-bn-params --seeds 0 1 2 3 4
    python exp_depth_width.py --depths 14 32 56 110 218 434 866 --widths 1 2 4 8 16 32   # CIFAR-10
"""

import sys
from dataclasses import dataclass

import common
from common import NEVER, UserError, changed, flag

SHALLOW = 14  # the depth at which widths are compared


@dataclass
class Settings(common.Settings):
    lists = {"depth": [14, 32, 56, 110], "width": [1, 2, 4, 8], "train": ["bn"], "seed": [0]}

    depth: int | None = changed("depth", None, "of the CIFAR ResNet of He et al., 6n + 2")
    grid: bool = flag(False, "every depth at every width", record=NEVER)
    match_bn_params: bool = flag(
        False,
        "each width above 1, at depth 14, against the depth of width 1 with as many BatchNorm "
        "parameters, which says the depths",
        record=NEVER,
    )

    arch: str = "resnet"  # no flag: the question is of one kind of network


def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)  # He-normal weights, γ ~ U[0, 1], β = 0
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def matched_depth(width):
    """The deepest ResNet of width 1 with no more BatchNorm parameters than one of depth 14 and this
    width: 448n + 224 ≤ 1,120 width, depth 6n + 2."""
    return 6 * ((1120 * width - 224) // 448) + 2


def shapes_of(args):
    """The depths and widths that are compared."""
    if args.grid and args.match_bn_params:
        raise UserError("--grid and --match-bn-params each say what is compared: give one of them")
    if args.match_bn_params and "depth" in args.given:
        raise UserError("--match-bn-params finds each width's depth: leave out --depths")
    depths, widths = args.varied["depth"], args.varied["width"]
    shapes = []
    if args.match_bn_params:
        for width in widths:
            if width > 1:
                shapes += [(SHALLOW, width), (matched_depth(width), 1)]
    elif args.grid:
        for depth in depths:
            shapes += [(depth, width) for width in widths]
    else:
        shapes = [(depth, 1) for depth in depths] + [(SHALLOW, width) for width in widths]
    return list(dict.fromkeys(shapes))


def compare(args):
    runs = []
    for depth, width in shapes_of(args):
        lists = {"depth": [depth], "width": [width]}
        runs += common.grid(args, **lists, train=args.varied["train"], seed=args.varied["seed"])
    code, outcomes = common.run_grid(runs, run)
    for rows in common.tables_of(outcomes, args, "depth", "width", "train"):
        report(rows)
    return code


def report(rows):
    print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
    for train, of_train in rows.groupby("train"):
        shapes = of_train.groupby(["depth", "width"], sort=False, dropna=False)
        for shape, cell in shapes:
            accuracy = common.accuracies(cell)
            trained = f"{cell.params_trained.iloc[0]:,} trained"
            print(f"  {train:<10} {common.shape_label(*shape):<22} {accuracy} {trained}")


def main(argv=None):
    return common.main(compare, Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
