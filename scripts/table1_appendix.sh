#!/usr/bin/env bash
# Table 1 in full: base and new accuracy, and that of classes with many, medium and few images.
#   bash scripts/table1_appendix.sh --root DATA              with the paper's data and settings
#   bash scripts/table1_appendix.sh --suite mini             here, with no download
# Time, estimated for one NVIDIA A100 and not measured: none after table1.sh, else 28 h.
# Published averages of MaPLe at tau 1 (its own paper): base 82.28, new 75.14.
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" table1_appendix "$@"
