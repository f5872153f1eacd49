#!/usr/bin/env bash
# Tests on all classes of another data set what xd_train.sh trained.
#   bash scripts/npt/xd_test.sh DATASET SEED [KEY VALUE ...]
#   SOURCE=mini_net TAU=0.01 bash scripts/npt/xd_test.sh mini_flowers 1
# Output: output/evaluation/TRAINER/CFG_16shots/DATASET/seedSEED
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

begin transfer "DATASET SEED" "$@"
evaluate "$(transfer_folder)" all "$(training_folder)" "xd_train.sh $seed"
