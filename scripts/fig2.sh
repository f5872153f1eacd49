#!/usr/bin/env bash
# Figure 2: measures of collapse, LCD and MID, against accuracy on the ten data sets of Table 2.
#   bash scripts/fig2.sh --root DATA              with the paper's data and settings
#   bash scripts/fig2.sh --suite mini             here, with no download
# Time, estimated for one NVIDIA A100 and not measured: 22 h; 1 h after table2.sh.
# The paper says: the closer to collapse, the more accurate.
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" fig2 "$@"
