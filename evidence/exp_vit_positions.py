"""Does a random transformer learn more through γ and β where it can tell its patches apart?

exp_norms.py's starts with positions of 0.02, as GPT-2 has them, beside patches of about 1: it
hardly knows where a patch is until they are trained. Here they are 50 times as large, and stay
random.

    python exp_vit_positions.py --dataset digits --train norm+output --lr 0.3 --epochs 40
"""

import sys

import common

from harness.zoo import VisionTransformer


def strong_positions(args, size, classes):
    model = VisionTransformer(6, 1, size, classes)
    model.position.data *= 50
    return model


def build(args, data):
    return common.build_model(args, data, strong_positions)


def run(args):
    data = common.load_data(args)
    model = build(args, data)
    common.freeze(model, args.train)
    return common.fit(model, data, args)


def main(argv=None):
    return common.main(run, common.Settings, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
