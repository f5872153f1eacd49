#!/usr/bin/env bash
# Figure 1: text features (arrows) and image features (points) of EuroSAT's new classes.
#   bash scripts/fig1.sh --root DATA              with the paper's data and settings
#   bash scripts/fig1.sh --suite mini             here, with no download
# Time, estimated for one NVIDIA A100 and not measured: 17 min; none after table1.sh.
# The texts of MaPLe+NPT are spread more evenly than those of MaPLe (the paper's Figure 1).
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" fig1 "$@"
