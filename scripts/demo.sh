#!/usr/bin/env bash
# A demo that downloads only Python packages: trains and tests CoOp, CoCoOp, CoCoOpNPT, MaPLe and
# MaPLeNPT under imbalance (tau 0.01) on one mini data set, prints a table and plots the features.
# Completed runs are not repeated.
#   bash scripts/demo.sh [KEY VALUE ...]      e.g.  datasets mini_shapes seeds 1,2
# The same on real images: downloads OpenAI's ViT-B/16 (350 MB) and EuroSAT (95 MB), prints an
# estimate of the time, and trains on the GPU if there is one.
#   bash scripts/demo.sh --real eurosat [KEY VALUE ...]
# The results are in output/demo (output/demo_eurosat), or in the folder $OUT; the data sets are in
# data, or in the folder $DATA.
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

name=demo
experiment=configs/experiments/mini/demo.yaml
if [ "${1:-}" = --real ]; then
    name=demo_${2:-}
    experiment=configs/experiments/paper/$name.yaml
    [ -e "$experiment" ] ||
        fail "--real needs a data set with a demo, which is eurosat, not '${2:-}'"
    data=$2
    shift 2
fi
setup report
out=${OUT:-output/$name}
extra=()
if [ "$name" != demo ]; then
    root=${DATA:-data}
    python -m npt.data prepare "$data" ViT-B/16 --root "$root"
    extra=(DATASET.ROOT "$root")
    if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        say "There is no GPU: training in float32 on the CPU"
        extra+=(TRAINER.COOP.PREC fp32 TRAINER.COCOOP.PREC fp32 TRAINER.MAPLE.PREC fp32)
    fi
    python -m npt.experiments estimate "$experiment" --out "$out" \
        "${extra[@]}" "$@"
    printf '\n'
fi
python -m npt.experiments run "$experiment" --out "$out" \
    ${extra[@]+"${extra[@]}"} "$@"
printf '\n'
python -m npt.experiments table "$out" | tee "$out/table.txt"
printf '\n'
labels=(--labels ZeroshotCLIP MaPLe MaPLeNPT) # with KEY VALUE pairs: all trainers
[ $# -eq 0 ] || labels=()
python -m npt.experiments figure "$out" ${labels[@]+"${labels[@]}"}
printf 'The runs, their logs and the figure are in %s\n' "$out"
