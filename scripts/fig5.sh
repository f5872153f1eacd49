#!/usr/bin/env bash
# Figure 5: sensitivity to the weights w1 and w2 of the two terms, at tau 0.01.
#   bash scripts/fig5.sh --root DATA              with the paper's data and settings
#   bash scripts/fig5.sh --suite mini             here, with no download
# Time, estimated for one NVIDIA A100 and not measured: 11 h.
# The paper's weights are w1 0.3 and w2 0.8.
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" fig5 "$@"
