#!/usr/bin/env bash
# Table 3: ablation at tau 0.01, MaPLe with each term alone and with both, on three tasks.
#   bash scripts/table3.sh --root DATA              with the paper's data and settings
#   bash scripts/table3.sh --suite mini             here, with no download
# Time, estimated for one NVIDIA A100 and not measured: 8 h.
# The paper's base-to-new averages: MaPLe 69.38, MaPLe+LC 70.02, MaPLe+MI 70.43, MaPLe+NPT 71.85
# (its Table 3).
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" table3 "$@"
