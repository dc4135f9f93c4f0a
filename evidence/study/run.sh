#!/usr/bin/env bash
# The study as it is made here: one process with one thread, first the pairs of bf16 and fp32 of
# list.txt, then evidence/study.sh from its first item to its last. Every run goes on where it was
# stopped, so the same command begins and continues it. In a clone of its own, which stays at one
# commit, with the images in data/cifar10-jpeg:
#
#     git clone . ../study && cd ../study
#     cp -r evidence/study/runs evidence/study/runs-checkpoints .
#     bash evidence/study/run.sh
#
# The runs of list.txt were begun at 0340d27197, whose checkpoints later versions open.
export OMP_NUM_THREADS=1
places=(--results runs --checkpoints runs-checkpoints --quiet)
while read -r script rest; do
  echo "== $(date +%T) $script $rest"
  # shellcheck disable=SC2086
  python "$script" --dataset imagefolder --data data/cifar10-jpeg --image-size 16 $rest \
    "${places[@]}" < /dev/null
done < evidence/study/list.txt
bash evidence/study.sh "${places[@]}"
