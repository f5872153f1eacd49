#!/usr/bin/env bash
# Tests on a variant of ImageNet what xd_train.sh trained: imagenetv2, imagenet_sketch, imagenet_a or
# imagenet_r, or with SOURCE=mini_net a variant of it.
#   bash scripts/npt/dg_test.sh DATASET SEED [KEY VALUE ...]
#   SOURCE=mini_net TAU=0.01 bash scripts/npt/dg_test.sh mini_net_a 1
# Output: output/evaluation/TRAINER/CFG_16shots/DATASET/seedSEED
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"

begin transfer "DATASET SEED" "$@"
case "$dataset" in
    imagenetv2 | imagenet_sketch | imagenet_a | imagenet_r) ;;
    mini_net_v2 | mini_net_sketch | mini_net_a | mini_net_r) ;;
    *) fail "'$dataset' is not imagenetv2, imagenet_sketch, imagenet_a or imagenet_r: use xd_test.sh" ;;
esac
evaluate "$(transfer_folder)" all "$(training_folder)" "xd_train.sh $seed"
