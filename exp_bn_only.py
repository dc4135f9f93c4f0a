"""What can BatchNorm's γ and β do on their own? Train only them, or any other choice of parameters,
and leave the rest at its random start.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm", ICLR 2021, arXiv:2003.00152: on
CIFAR-10 γ and β alone, half a percent of a ResNet-110's parameters, reach 69.5 %, and 82 % at
depth 866.

    python exp_bn_only.py --dataset digits                  # 8x8 digits, no download: half a minute
    python exp_bn_only.py --dataset digits --train output   # the output layer alone: far worse
    python exp_bn_only.py --depth 110 --seed 3              # CIFAR-10 by the paper's recipe
"""

import sys

import common

COMPARE = {  # what to train next, and why
    "bn": ("output", "beside it, the output layer alone"),
    "output": ("all", "and everything together"),
}


def run(args):
    data = common.load_data(args)
    model = common.build_model(args, data)  # He-normal weights, γ ~ U[0, 1], β = 0
    common.freeze(model, args.train)  # "bn": all but γ and β keep their random start
    outcome = common.fit(model, data, args)  # SGD, step schedule; one CSV row per epoch
    if outcome.finished and not args.quiet:
        following, trained = "python plots.py", outcome.rows[-1]["train"]
        if trained in COMPARE:
            train, why = COMPARE[trained]
            following = f"{common.command(args, train=train)}    # {why}"
        print(f"  next           {following}")
    return outcome


def main(argv=None):
    return common.main(run, common.Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
