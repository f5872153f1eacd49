# Sourced by the scripts of this folder: reads arguments and environment, names the folders, and
# calls train.py.
#
# Environment:
#   TRAINER  trainer; default MaPLeNPT
#   CFG      configs/trainers/TRAINER/CFG.yaml, for XNPT else configs/trainers/X/CFG.yaml; default:
#            that of the trainer and the protocol (tiny on the mini suite)
#   TAU      imbalance ratio, images of the smallest class over those of the largest; default 1
#   SHOTS    images of the largest class; default 16
#   SOURCE   transfer only (xd_*, dg_*): the data set to train on; default imagenet, for tests on the
#            mini suite mini_net
#   DATA     folder of the data sets; the mini suite (mini_*) needs none
#   OUT      first folder of the output; default output
# The folders' names have _tau and the ratio after CFG if TAU is not 1. A stopped training goes on
# with the same command; --overwrite before the pairs starts it anew.
script="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/$(basename -- "$0")"
common="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/_common.sh"
# shellcheck source=scripts/_setup.sh
source "$(dirname -- "$common")/../_setup.sh"

# --------------------------------------------------------------------------- data
default_config() { # PROTOCOL TRAINER: the configuration where CFG is not set; the first that fits
    case "$1 $2" in
        "mini "*) echo tiny ;;
        "transfer MaPLe" | "transfer MaPLeNPT")
            echo vit_b16_c2_ep5_batch4_2ctx_cross_datasets ;;
        "transfer CoCoOpNPT") echo vit_b16_c4_ep5_batch4_cross_datasets ;;
        *" MaPLe" | *" MaPLeNPT") echo vit_b16_c2_ep5_batch4_2ctx ;;
        *" CoCoOp") echo vit_b16_c4_ep10_batch1_ctxv1 ;;
        *" CoCoOpNPT") echo vit_b16_c4_ep5_batch4 ;;
        *" CoOp") echo vit_b16_ep50_ctxv1 ;;
        *" CoOpNPT") echo vit_b16_c4_ep5_batch4_ctxv1 ;;
        *" ZeroshotCLIP") echo vit_b16 ;;
    esac
}

way_to_set() { # KEY: what sets a config key that is part of the output folder's name
    case "$1" in
        DATASET.NUM_SHOTS) echo SHOTS ;;
        DATASET.IMBALANCE_RATIO) echo TAU ;;
        DATASET.SUBSAMPLE_CLASSES) echo "the choice of the script" ;;
        DATASET.NAME) echo DATASET ;;
        TRAINER.NAME) echo TRAINER ;;
        SEED) echo "the argument SEED" ;;
        OUTPUT_DIR) echo OUT ;;
    esac
}

is_trained() { [ "$TRAINER" != ZeroshotCLIP ]; }
is_mini() { case "$1" in mini_*) true ;; *) false ;; esac; }

# --------------------------------------------------------------------------- arguments
begin() { # PROTOCOL "NAMES OF THE ARGUMENTS" ARGUMENT ...
    local protocol=$1 names=$2 argument way
    shift 2
    usage="bash scripts/npt/$(basename -- "$script") $names [KEY VALUE ...]"
    for argument in "$@"; do
        case "$argument" in -h | --help) help && exit 0 ;; esac
    done
    settings=$(show_settings)
    TRAINER=${TRAINER:-MaPLeNPT} CFG=${CFG:-} TAU=${TAU:-1} SHOTS=${SHOTS:-16}
    DATA=${DATA:-} OUT=${OUT:-output}
    dataset=${SOURCE:-imagenet}
    for argument in $names; do
        [ $# -gt 0 ] || fail "there is no $argument: $usage"
        case "$argument" in
            DATASET) dataset=$1 ;;
            SHOTS) SHOTS=$1 ;;
            SEED) seed=$1 ;;
        esac
        shift
    done
    flags=() # of train.py, before the KEY VALUE pairs
    while [[ ${1:-} = -* ]]; do
        flags+=("$1")
        shift
    done
    pairs=("$@")
    for argument in "$@"; do
        way=$(way_to_set "$argument")
        [ -z "$way" ] ||
            fail "$argument is part of the output folder's name: it is set by $way (--help)"
    done
    if ! is_mini "$dataset"; then SOURCE=${SOURCE:-imagenet}; else SOURCE=${SOURCE:-mini_net}; fi
    check_whole SEED "$seed"
    check_whole SHOTS "$SHOTS"
    [ "$SHOTS" != 0 ] || fail "SHOTS is 0, but it must be at least 1: $usage"
    check_dataset "$dataset"
    check_data
    TAU=$(same_ratio "$TAU")
    trained_on=$dataset
    if [ "$protocol" = transfer ]; then
        check_dataset "$SOURCE"
        trained_on=$SOURCE
    fi
    ! is_mini "$trained_on" || protocol=mini
    choose_config "$protocol"
}

help() { # the opening comments of the script and of this file, without their first lines
    sed -n -e 1d -e '/^#/!q' -e 's/^# \{0,1\}//p' "$script"
    printf '\n'
    sed -n -e '/^# Environment/,/^[^#]/s/^# \{0,1\}//p' "$common"
}

show_settings() { # the variables that are set, as words before a command
    local name
    for name in TRAINER CFG TAU SHOTS SOURCE DATA OUT; do
        [ -z "${!name:-}" ] || printf '%s=%q ' "$name" "${!name}"
    done
}

check_whole() { # NAME VALUE
    local whole='^(0|[1-9][0-9]{0,8})$' # in a variable, since bash 3.2 reads no ( in [[ ]]
    [[ $2 =~ $whole ]] ||
        fail "$1 is '$2', but it must be a whole number such as 1: $usage"
}

check_dataset() { # NAME
    [[ $1 =~ ^[A-Za-z0-9_-]+$ && -e configs/datasets/$1.yaml ]] ||
        fail "there is no data set '$1': configs/datasets has $(names_in configs/datasets)"
}

check_data() { # the folder of the data sets
    is_mini "$dataset" || [ -n "$DATA" ] ||
        fail "DATA is not set: set it to the folder of the data sets, which has that of $dataset"
    is_mini "$dataset" || [ -d "$DATA" ] || fail "there is no folder '$DATA': correct DATA"
}

same_ratio() { # TAU: the ratio in the same digits however it is written
    local number='^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$'
    { [[ $1 =~ $number ]] &&
        LC_ALL=C awk -v tau="$1" \
            'BEGIN { tau += 0; printf "%.12g", tau; exit !(tau > 0 && tau <= 1) }'; } ||
        fail "TAU is '$1', but it must be a number above 0 and at most 1, such as 0.05"
}

names_in() { # FOLDER: what it has, without .yaml
    local file names=
    for file in "$1"/*; do
        file=${file##*/}
        names="$names${names:+, }${file%.yaml}"
    done
    printf '%s' "$names"
}

choose_config() { # PROTOCOL: sets CFG, its file, and the name of both that folders have
    local base=${TRAINER%NPT} folder folders=$TRAINER choices=
    [ "$base" = "$TRAINER" ] || folders="$base $TRAINER"
    config=
    for folder in $folders; do
        [ ! -d "configs/trainers/$folder" ] ||
            choices="$choices${choices:+, }$(names_in "configs/trainers/$folder")"
    done
    [[ $TRAINER =~ ^[A-Za-z0-9_]+$ && -n $choices ]] || fail "there is no trainer '$TRAINER':" \
        "configs/trainers has $(names_in configs/trainers), and XNPT is X with NPT"
    CFG=${CFG:-$(default_config "$1" "$TRAINER")}
    CFG=${CFG:-$(default_config "$1" "$base")}
    [ -n "$CFG" ] || fail "CFG is not set, and $TRAINER has no default: CFG can be $choices"
    for folder in $folders; do # the trainer's own file before that of the trainer it wraps
        [ ! -f "configs/trainers/$folder/$CFG.yaml" ] || config=configs/trainers/$folder/$CFG.yaml
    done
    [[ $CFG != */* && -n $config ]] ||
        fail "$TRAINER has no configuration '$CFG': CFG can be $choices"
    name=$CFG
    [ "$TAU" = 1 ] || name=${CFG}_tau$TAU
}

# --------------------------------------------------------------------------- folders
base2new_folder() { # train_base, test_new
    printf '%s' "$OUT/base2new/$1/$dataset/shots_$SHOTS/$TRAINER/$name/seed$seed"
}

training_folder() { # of a training on all classes
    printf '%s' "$OUT/$trained_on/$TRAINER/${name}_${SHOTS}shots/seed$seed"
}

transfer_folder() { # a source that the family does not have has a tree of its own
    local tree=evaluation
    case "$SOURCE" in imagenet | mini_net) ;; *) tree=evaluation_from_$SOURCE ;; esac
    printf '%s' "$OUT/$tree/$TRAINER/${name}_${SHOTS}shots/$dataset/seed$seed"
}

# --------------------------------------------------------------------------- runs
train() { # FOLDER CLASSES
    if is_trained; then
        run "$1" "$2"
    else
        say "$TRAINER is not trained: it is tested"
        run "$1" "$2" --eval-only
    fi
}

evaluate() { # FOLDER CLASSES FOLDER_OF_TRAINING "COMMAND OF TRAINING"
    local model=()
    if is_trained; then
        has_ended "$3" "${settings}bash scripts/npt/$4"
        model=(--model-dir "$3")
    fi
    run "$1" "$2" --eval-only ${model[@]+"${model[@]}"}
}

has_ended() { # FOLDER COMMAND: fails unless the training in the folder has ended
    if [ -e "$1/result.json" ]; then
        ! grep -q '^ *"finished": true' "$1/result.json" || return 0
    else # written by a repository of the family
        ! grep -qsxE 'Finish(ed)? training' "$1"/log.txt* || return 0
    fi
    [ ! -e "$1/log.txt" ] || fail "the training in $1 has not ended: finish it with $2"
    fail "there is no training in $1: start it with $2"
}

run() { # FOLDER CLASSES [FLAG ...]: replaces the script by train.py
    local folder=$1 classes=$2 root=()
    shift 2
    [ -z "$DATA" ] || root=(--root "$DATA")
    use_environment
    say "$TRAINER, $CFG, $dataset, tau $TAU, $SHOTS shots, seed $seed: $folder"
    # exec, so that signals reach the run, which saves its state, and its exit code is the script's
    exec python scripts/npt/_train.py ${root[@]+"${root[@]}"} --seed "$seed" --trainer "$TRAINER" \
        --dataset-config-file "configs/datasets/$dataset.yaml" --config-file "$config" \
        --output-dir "$folder" "$@" ${flags[@]+"${flags[@]}"} \
        DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES "$classes" \
        DATASET.IMBALANCE_RATIO "$TAU" ${pairs[@]+"${pairs[@]}"}
}

use_environment() { # as it is, if it has what train.py imports
    # shellcheck disable=SC1091
    if ! environment_active && [ -x .venv/bin/python ]; then . .venv/bin/activate; fi
    if environment_active; then
        check_python python
        if python -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("torch", "torchvision", "yacs", "clip"))))'; then return; fi
    fi
    setup report
}
