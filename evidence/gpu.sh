#!/usr/bin/env bash
# The first measurements on a GPU, unattended. What they find goes to $OUT (default gpu/): a log of
# each command, the records of bench.py and of the runs. One that fails does not stop the next.
#
#     bash evidence/gpu.sh                      # all steps
#     bash evidence/gpu.sh tests speed          # these
#     MINUTES=5 bash evidence/gpu.sh runs       # the four runs, each as far as it comes in five
#                                               # minutes; the same command goes on
#
# Without a GPU it is a rehearsal: the tests are skipped, the rest is made small on the CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu}
mkdir -p "$out"
places=(--results "$out/results" --checkpoints "$out/checkpoints")
if python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  device=cuda deep=866 images=(10000 2000 500) turns=3 fast=(--graph --compile)
  data=(--dataset "${DATASET:-cifar10}" ${DATA:+--data "$DATA"})
  lengths=(--epochs "${EPOCHS:-160}")
else
  device=cpu deep=32 images=(100 100 100) turns=1 fast=()
  data=(--dataset digits)
  lengths=(--epochs 2)
fi

step() { # NAME COMMAND
  local name=$1 began=$SECONDS
  shift
  echo "== $name: $*"
  "$@" > "$out/$name.log" 2>&1
  echo "   exit code $?, $((SECONDS - began)) s; the end of $out/$name.log:"
  tail -n 3 "$out/$name.log" | sed 's/^/   /'
}

tests() { step tests python -m pytest -q -n 0 tests/test_cuda.py; }

speed() { # eager, graph, compiled, both, each row beside the plain loop
  step speed-14 python bench.py --device $device --depths 14 --images ${images[0]} --turns $turns \
    "${fast[@]}" --results "$out/results"
  step speed-110 python bench.py --device $device --depths 110 --images ${images[1]} \
    --turns $turns "${fast[@]}" --results "$out/results"
  step speed-$deep python bench.py --device $device --depths $deep --images ${images[2]} \
    --turns 1 "${fast[@]}" --results "$out/results"
  step speed-norms python bench.py --device $device --norms bn ln none --images ${images[0]} \
    --turns $turns --results "$out/results"
}

processes() { # several runs at once on one GPU
  step processes python bench.py --device $device --grid --image-size 8 --images ${images[0]} \
    --turns 1 --results "$out/results"
}

precision() { # bf16 against fp32, paired seeds
  for kind in bf16 fp32; do
    step precision-$kind python exp_depth_width.py --device $device --dataset digits --widths 1 \
      --grid --depths 14 56 110 --seeds 0 1 2 --precision $kind "${lengths[@]}" "${places[@]}"
  done
}

runs() { # the papers' recipe, deepest first
  for depth in $deep 434 218 110; do
    [ "$device" = cpu ] && [ "$depth" != $deep ] && continue
    step run-$depth python exp_bn_only.py --device $device --depth "$depth" --quiet \
      "${data[@]}" "${lengths[@]}" "${places[@]}" ${MINUTES:+--time-limit "$MINUTES"}
  done
}

for name in "${@:-tests speed processes precision runs}"; do
  for each in $name; do "$each"; done
done
