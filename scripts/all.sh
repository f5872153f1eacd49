#!/usr/bin/env bash
# All tables and figures of the paper; runs that several of them need are run once.
#   bash scripts/all.sh --root DATA              with the paper's data and settings
#   bash scripts/all.sh --suite mini             here, with no download
#   bash scripts/all.sh --rehearse [OUT]         every script on small copies of the data sets, with
#                                                the paper's configs: see rehearse.sh
# Time, estimated for one NVIDIA A100 and not measured: 77 h.
# What to expect is said in the script of each table.
if [ "${1:-}" = --rehearse ]; then
    shift
    exec bash "$(dirname "${BASH_SOURCE[0]}")/rehearse.sh" "$@"
fi
source "$(dirname "${BASH_SOURCE[0]}")/_reproduce.sh" all "$@"
