#!/usr/bin/env bash
# Long tails: remedies such as class weights, NPT, and both, at tau 0.0625 and 0.01 (docs/long-tail.md).
#   bash scripts/long_tail.sh --suite mini          here, with no download: about 80 minutes on 2 cores
#   bash scripts/long_tail.sh --root DATA           on the paper's base-to-new data sets
# Not of the paper, and not part of all.sh.
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" long_tail "$@"
