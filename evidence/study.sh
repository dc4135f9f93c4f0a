#!/usr/bin/env bash
# The study at depth, from the first item of its list to the last. Every run that is finished is
# left as it is and every other goes on where it was stopped, so the same command begins, continues
# and completes it, in as many processes as there are cores or GPUs: start it once for each.
#
#     bash evidence/study.sh                                   # 16 pixels, 30 epochs
#     ITEMS="3 5" bash evidence/study.sh                       # of its list these alone
#     SIZE=32 EPOCHS=160 bash evidence/study.sh                # the papers' images and length
#                                  (items 4 and 10 have 32 pixels anyway, item 10 160 epochs)
#     DATA=data/my-images bash evidence/study.sh --device cuda # further flags go to every run
#     python plots.py --with evidence
#
# On a CPU: OMP_NUM_THREADS=1, once for each core. Runs in bf16 and in fp32 are different runs, and
# are never compared: --precision fp32 makes all of them alike on processors of either kind.
set -uo pipefail
cd "$(dirname "$0")/.."
epochs=(--epochs "${EPOCHS:-30}")
five=(--seeds 0 1 2 3 4)
three=(--seeds 0 1 2)
more=("$@")

at() { # PIXELS SCRIPT FLAGS: at 32 pixels, which CIFAR has by itself, nothing is scaled
  local pixels=$1 scaled=()
  read -ra script <<< "$2"
  shift 2
  if [ "$pixels" != 32 ]; then scaled=(--image-size "$pixels"); fi
  python "${script[@]}" --dataset imagefolder --data "${DATA:-data/cifar10-jpeg}" "${scaled[@]}" \
    "$@" "${more[@]}" || [ $? = 1 ] || exit 1 # 1: a run of the grid has diverged
}

study() { at "${SIZE:-16}" "$@"; }

depths() { study exp_depth_width.py --widths 1 --grid "${epochs[@]}" "$@"; }

item_1() { # γ and β alone, by depth
  depths --depths 14 32 56 110 "${five[@]}"
}

item_2() { # is it the normalisation? Each kind at the rate that is the best of 0.03, 0.1 and 0.3 on
  # a validation split, at 16 pixels and 30 epochs; where these are others, see what the first says
  study exp_norms.py --norm none bn calibrated ln gn:4 --lr 0.1 0.3 0.03 --val-fraction 0.1 \
    "${epochs[@]}" --seeds 0
  at_its_rate none 0.1
  at_its_rate calibrated 0.03
  at_its_rate ln 0.3
  at_its_rate gn:4 0.03
  study exp_norms.py --norm none --lr 0.1 --depths 110 "${epochs[@]}" --seeds 0 1
  study exp_norms.py --norm calibrated --lr 0.03 --depths 110 "${epochs[@]}" --seeds 0 1
}

at_its_rate() { # KIND RATE
  study exp_norms.py --norm "$1" --lr "$2" --depths 14 "${epochs[@]}" "${five[@]}"
  study exp_norms.py --norm "$1" --lr "$2" --depths 32 56 "${epochs[@]}" "${three[@]}"
}

item_3() { # why features die: without weight decay, with the papers' and with more
  for seed in 0 1 2; do
    for decay in 0 1e-4 5e-4; do
      study exp_norms.py --norm bn --watch --weight-decay $decay "${epochs[@]}" --seeds $seed
    done
  done
  study exp_norms.py --norm bn --watch --train all "${epochs[@]}" "${three[@]}"
}

item_4() { # beside the published figures: images of 32 pixels
  at 32 exp_depth_width.py --widths 1 --grid "${epochs[@]}" --depths 56 110 --seeds 0
}

item_5() { # what else can be trained; bn+random:4 has somewhat fewer, :5 more than bn+shortcut
  depths --depths 14 --train bn all all-bn bn+output bn+shortcut output shortcut gamma beta \
    random:2 bn+random:4 bn+random:5 "${five[@]}"
  study exp_depth_width.py --depths 14 --widths 1 --grid --train none "${five[@]}"
}

item_6() { # as deep as the papers
  depths --depths 218 --seeds 0 1
  depths --depths 434 866 --seeds 0
}

item_7() { # item 5 at depth 56
  depths --depths 56 --train all all-bn random:2 bn+shortcut output "${three[@]}"
}

item_8() { # depth against width at equal numbers of parameters
  study exp_depth_width.py --match-bn-params --widths 3 "${epochs[@]}" "${five[@]}"
  study exp_depth_width.py --match-bn-params --widths 5 "${epochs[@]}" "${three[@]}"
}

item_9() { # random parameters, starts, Davis and Frank
  local frankle="exp_bn_init.py frankle"
  study exp_random_params.py --depths 14 --per-channel 1 4 8 16 32 all "${epochs[@]}" "${three[@]}"
  study "$frankle" --gamma-init ones symmetric constant:0.1 "${epochs[@]}" "${three[@]}"
  study "$frankle" --beta-init ones "${epochs[@]}" "${three[@]}"
  study "$frankle" --weight-init he_uniform orthogonal binary "${epochs[@]}" "${three[@]}"
  study "exp_bn_init.py davis_frank" --network cifar_resnet14 "${epochs[@]}" --seeds 1 2 3 4 5
}

item_10() { # the papers' length
  at 32 exp_depth_width.py --depths 14 --widths 1 --grid --seeds 0 1 2 3 4
}

items=${ITEMS:-1 2 3 4 5 6 7 8 9 10}
for item in $items; do
  if ! declare -F "item_$item" > /dev/null; then
    echo "error: ITEMS: the list has no item $item: give some of 1 to 10" >&2
    exit 2
  fi
done
for item in $items; do "item_$item"; done
