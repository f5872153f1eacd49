#!/usr/bin/env bash
# Trains on the base classes of a data set (the first half of its classes), and tests on them.
#   bash scripts/npt/base2new_train.sh DATASET SEED [KEY VALUE ...]
#   TAU=0.01 bash scripts/npt/base2new_train.sh mini_flowers 1
# Output: output/base2new/train_base/DATASET/shots_16/TRAINER/CFG/seedSEED
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

begin base2new "DATASET SEED" "$@"
train "$(base2new_folder train_base)" base
