#!/usr/bin/env bash
# Trains on all classes of ImageNet, or of another SOURCE, for tests on other data sets; tests on it.
#   bash scripts/npt/xd_train.sh SEED [KEY VALUE ...]
#   SOURCE=mini_net TAU=0.01 bash scripts/npt/xd_train.sh 1
# Output: output/imagenet/TRAINER/CFG_16shots/seedSEED
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

begin transfer "SEED" "$@"
train "$(training_folder)" all
