# Sourced by the scripts of tables and figures, with the name of the experiment and their arguments:
#   source _reproduce.sh NAME "$@"
caller=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

name=$1 extras=report
shift
for argument in "$@"; do
    case "$argument" in
        -h | --help)
            sed -n '2s/^# //p' "$0"
            cat <<'HELP'

  --suite paper|mini   the paper's data sets and CLIP (default), or small ones that are made here
  --root DATA          folder of the data sets (or the variable DATA)
  --out DIR            folder of the runs and of the report (default: output/SUITE)
  --seeds 1,2,3        seeds
  --methods A,B        only these methods, as MaPLe,MaPLe+NPT
  --datasets A,B       only these data sets, as eurosat,dtd
  --ratios A,B         other imbalance ratios, as 0.25,0.0625
  --settings paper|published
                       train other methods as the NPT paper says, or as their own papers did
                       (default: as in the paper's tables: published at tau 1, paper below)
  --control            tables: below tau 1, also each method on as many images in all, balanced
  --dry-run            list the runs, with state, estimated time and disk
  --jobs N             runs at a time (default: one per GPU, or per core)
  --slurm PARTITION [--time T] [--mem M] [--gpus N] [--account A] [--max-jobs N]
                       as jobs of a cluster with SLURM (docs/cluster.md)
  KEY VALUE ...        config keys in upper case, for every run

Runs that are complete are not repeated; the same command goes on where it stopped.
HELP
            exit 0
            ;;
        --slurm | --slurm=*) extras=report,cluster ;;
    esac
done
setup "$extras"
# Paths in the arguments are those of the caller; the package is that of this checkout.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
cd "$caller"
exec python -m npt.experiments reproduce "$name" "$@"
