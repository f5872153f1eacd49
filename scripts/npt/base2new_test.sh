#!/usr/bin/env bash
# Tests on the new classes of a data set what base2new_train.sh trained on its base classes.
#   bash scripts/npt/base2new_test.sh DATASET SEED [KEY VALUE ...]
#   TAU=0.01 bash scripts/npt/base2new_test.sh mini_flowers 1
# Output: output/base2new/test_new/DATASET/shots_16/TRAINER/CFG/seedSEED
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

begin base2new "DATASET SEED" "$@"
evaluate "$(base2new_folder test_new)" new \
    "$(base2new_folder train_base)" "base2new_train.sh $dataset $seed"
