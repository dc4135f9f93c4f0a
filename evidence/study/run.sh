#!/usr/bin/env bash
# The list, top to bottom, one process with one thread; every run goes on where it was stopped, so
# the same command begins and continues it. Run it in a clone at the commit of the first runs,
# 0340d27197, with the images in data/cifar10-jpeg:
#
#     git clone . ../study && cd ../study && git checkout 0340d27197
#     cp -r PROJECT/evidence/study/runs PROJECT/evidence/study/runs-checkpoints .
#     bash PROJECT/evidence/study/run.sh PROJECT/evidence/study/list.txt
export OMP_NUM_THREADS=1
while read -r script rest; do
  echo "== $(date +%T) $script $rest"
  # shellcheck disable=SC2086
  python "$script" --dataset imagefolder --data data/cifar10-jpeg --image-size 16 $rest \
    --results runs --checkpoints runs-checkpoints --quiet < /dev/null
done < "$1"
