#!/usr/bin/env bash
# Trains on SHOTS images of every class of a data set, and tests on all its classes.
#   bash scripts/npt/few_shot.sh DATASET SHOTS SEED [KEY VALUE ...]
#   TRAINER=CoOp bash scripts/npt/few_shot.sh mini_flowers 4 1
# Output: output/DATASET/TRAINER/CFG_4shots/seedSEED, for 4 SHOTS
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

begin few_shot "DATASET SHOTS SEED" "$@"
train "$(training_folder)" all
