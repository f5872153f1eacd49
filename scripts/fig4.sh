#!/usr/bin/env bash
# Figure 4: gain of MaPLe+NPT over MaPLe by data set, on base and on new classes.
#   bash scripts/fig4.sh --root DATA              with the paper's data and settings
#   bash scripts/fig4.sh --suite mini             here, with no download
# Time, estimated for one NVIDIA A100 and not measured: none after table1.sh, else 9 h.
# The paper's averages at tau 0.01, harmonic mean: MaPLe 69.38, MaPLe+NPT 71.85.
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" fig4 "$@"
