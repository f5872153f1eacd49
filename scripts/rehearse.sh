#!/usr/bin/env bash
# Runs every script with the paper's configs, so that real data bring no surprise: all protocols,
# evaluations and table cells, in minutes and without a GPU. The data sets are copies of the fifteen
# layouts with a few small images, CLIP is a small random one (scripts/_rehearsal.py); one seed, one
# epoch, float32. The numbers mean nothing.
#   bash scripts/rehearse.sh [OUT]               OUT: output/rehearsal
out=${1:-output/rehearsal}
case "$out" in /*) ;; *) out=$PWD/$out ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

setup report
pairs=()
while IFS= read -r word; do pairs+=("$word"); done < <(python scripts/_rehearsal.py "$out")
[ ${#pairs[@]} -gt 0 ] || fail "the small data sets could not be made in $out"

failed=()
rehearse() { # SCRIPT ARGUMENT ...
    say "== $*"
    bash "scripts/$@" "${pairs[@]}" || failed+=("$1")
}

export DATA="$out/data" OUT="$out/family"
for name in table1 table1_appendix table2 table3 table4 fig1 fig2 fig4 fig5 all; do
    rehearse "$name.sh" --out "$out/runs" --seeds 1
done
rehearse npt/base2new_train.sh eurosat 1
rehearse npt/base2new_test.sh eurosat 1
rehearse npt/xd_train.sh 1
rehearse npt/xd_test.sh dtd 1
rehearse npt/dg_test.sh imagenet_a 1
rehearse npt/few_shot.sh eurosat 4 1
python scripts/parse_test_res.py "$OUT/base2new/test_new/eurosat/shots_16/MaPLeNPT/"* --test-log
if [ ${#failed[@]} -gt 0 ]; then
    say "failed: ${failed[*]}"
    exit 1
fi
! grep -q "What is missing" "$out/runs/report/README.md" || fail "the report has missing cells"
say "All scripts ran; the report is $out/runs/report/README.md"
