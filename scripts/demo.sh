#!/usr/bin/env bash
# A first look, with no download but the Python packages: trains and tests CoOp, CoCoOp, CoCoOpNPT,
# MaPLe and MaPLeNPT under imbalance (tau 0.01) on one mini data set, prints a table and draws the
# features. Run again, it reuses what is there.
#   bash scripts/demo.sh [KEY VALUE ...]      e.g.  datasets mini_shapes seeds 1,2
# Everything goes to output/demo, or the folder that OUT names.
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

setup report
out=${OUT:-output/demo}
python -m npt.experiments run configs/experiments/demo.yaml --out "$out" "$@"
printf '\n'
python -m npt.experiments table "$out" | tee "$out/table.txt"
printf '\n'
labels=(--labels ZeroshotCLIP MaPLe MaPLeNPT) # of another choice of trainers, all
[ $# -eq 0 ] || labels=()
python -m npt.experiments figure "$out" ${labels[@]+"${labels[@]}"}
printf 'Runs with their logs and figures in %s\n' "$out"
