#!/usr/bin/env bash
# A first look, with no download but the Python packages: trains and tests CoOp, CoCoOp, CoCoOpNPT,
# MaPLe and MaPLeNPT under imbalance (tau 0.01) on one mini data set, prints a table and draws the
# features. Run again, it reuses what is there.
#   bash scripts/demo.sh [KEY VALUE ...]      e.g.  datasets mini_shapes seeds 1,2
# The same on real images: downloads OpenAI's ViT-B/16 (350 MB) and EuroSAT (95 MB), says how long
# it will take, and trains on the GPU if there is one.
#   bash scripts/demo.sh --real eurosat [KEY VALUE ...]
# Everything goes to output/demo (demo_eurosat), or the folder that OUT names; data sets to data, or
# the folder that DATA names.
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

name=demo
if [ "${1:-}" = --real ]; then
    name=demo_${2:-}
    [ -e "configs/experiments/$name.yaml" ] ||
        fail "--real takes the name of a data set that has a demo: eurosat, not '${2:-}'"
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
        say "There is no GPU: training in float32 on the processor"
        extra+=(TRAINER.COOP.PREC fp32 TRAINER.COCOOP.PREC fp32 TRAINER.MAPLE.PREC fp32)
    fi
    python -m npt.experiments estimate "configs/experiments/$name.yaml" --out "$out" \
        "${extra[@]}" "$@"
    printf '\n'
fi
python -m npt.experiments run "configs/experiments/$name.yaml" --out "$out" \
    ${extra[@]+"${extra[@]}"} "$@"
printf '\n'
python -m npt.experiments table "$out" | tee "$out/table.txt"
printf '\n'
labels=(--labels ZeroshotCLIP MaPLe MaPLeNPT) # of another choice of trainers, all
[ $# -eq 0 ] || labels=()
python -m npt.experiments figure "$out" ${labels[@]+"${labels[@]}"}
printf 'Runs with their logs and figures in %s\n' "$out"
