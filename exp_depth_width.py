"""Does a network learn more through γ and β when it is deeper, or when it is wider? Every depth at width 1, and every width at depth 14.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152, section 4: both help, and at equal numbers of
BatchNorm parameters depth helps more. `--match-bn-params` pairs each width with the depth that has as many.

    python exp_depth_width.py --dataset digits --depths 14 32 --widths 1 2 --epochs 20       # half a minute on one core
    python exp_depth_width.py --dataset digits --widths 3 5 --match-bn-params --seeds 0 1 2 3 4
    python exp_depth_width.py --depths 14 32 56 110 218 434 866 --widths 1 2 4 8 16 32       # CIFAR-10, all of it
"""
import sys

import common

SHALLOW = 14  # the depth at which widths are compared


def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)      # He-normal weights, γ ~ U[0, 1], β = 0
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def matched_depth(width):
    """The deepest ResNet of width 1 with no more BatchNorm parameters than one of depth 14 and this width: 448n + 224 ≤ 1,120 width, depth 6n + 2."""
    return 6 * ((1120 * width - 224) // 448) + 2


def compare(args):
    if args.match_bn_params:
        shapes = [shape for width in args.width if width > 1 for shape in ((SHALLOW, width), (matched_depth(width), 1))]
    elif args.grid:
        shapes = [(depth, width) for depth in args.depth for width in args.width]
    else:
        shapes = [(depth, 1) for depth in args.depth] + [(SHALLOW, width) for width in args.width]
    runs = [one for depth, width in dict.fromkeys(shapes) for one in common.grid(args, depth=[depth], width=[width], train=args.train, seed=args.seed)]
    code = common.run_grid(runs, run)
    if not args.dry_run:
        report(common.last_rows(runs), dict.fromkeys(shapes))
    return code


def report(rows, shapes):
    print("\ntest accuracy in %, mean ± sample standard deviation (seeds)")
    for train, here in rows.groupby("train"):
        for depth, width in shapes:
            these = here[(here.depth == depth) & (here.width == width)]
            trained = f"{these.params_trained.iloc[0]:,} trained" if len(these) else ""
            print(f"  {train:<10} depth {depth:<5} width {width:<4} {common.mean_and_deviation(these.test_acc):<20} {trained}")


def main(argv=None):
    parser = common.parser(__doc__, lists=("depth", "width", "train", "seed"), archs=("resnet",))
    parser.add_argument("--grid", action="store_true", help="every depth at every width")
    parser.add_argument("--match-bn-params", action="store_true", help="each width above 1, at depth 14, against the depth of width 1 with as many BatchNorm parameters; --depths has no part in it")
    parser.set_defaults(depth=[14, 32, 56, 110], width=[1, 2, 4, 8])
    return common.main(compare, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
