"""All import names that code of the CoOp family uses, and all defaults of the config."""

import importlib
import subprocess
import sys

import pytest

from npt.engine import EMBEDDED

NAMES = {
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "build_data_loader DataManager DatasetWrapper build_dataset",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.engine": "TRAINER_REGISTRY TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet "
    "build_trainer",
    "dassl.engine.trainer": "TRAINER_REGISTRY TrainerX TrainerXU TrainerBase SimpleTrainer "
    "SimpleNet build_trainer MetricMeter AverageMeter SummaryWriter",
    "dassl.utils": "setup_logger set_random_seed collect_env_info mkdir_if_missing check_isfile "
    "listdir_nohidden read_json write_json read_image load_pretrained_weights load_checkpoint "
    "save_checkpoint resume_from_checkpoint count_num_param open_all_layers "
    "open_specified_layers MetricMeter AverageMeter Registry tolist_if_not check_availability",
    "dassl.utils.meters": "MetricMeter AverageMeter",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.registry": "Registry",
    "dassl.utils.tools": "read_image set_random_seed",
    "dassl.utils.torchtools": "load_checkpoint save_checkpoint",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.radam": "RAdam",
    "dassl.optim.lr_scheduler": "ConstantWarmupScheduler LinearWarmupScheduler",
    "dassl.metrics": "compute_accuracy",
    "dassl.evaluation": "EVALUATOR_REGISTRY EvaluatorBase build_evaluator Classification",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.config.defaults": "_C",
    "dassl.modeling": "build_backbone build_head BACKBONE_REGISTRY HEAD_REGISTRY",
    "dassl.modeling.ops.utils": "sharpen_prob create_onehot sigmoid_rampup linear_rampup "
    "ema_model_update",
}

DEFAULTS = {
    "": dict(VERSION=1, OUTPUT_DIR="./output", RESUME="", SEED=-1, USE_CUDA=True, VERBOSE=True),
    "INPUT": dict(
        SIZE=(224, 224),
        INTERPOLATION="bilinear",
        TRANSFORMS=(),
        NO_TRANSFORM=False,
        PIXEL_MEAN=[0.485, 0.456, 0.406],
        PIXEL_STD=[0.229, 0.224, 0.225],
        CROP_PADDING=4,
        RRCROP_SCALE=(0.08, 1.0),
        CUTOUT_N=1,
        CUTOUT_LEN=16,
        GN_MEAN=0,
        GN_STD=0.15,
        RANDAUGMENT_N=2,
        RANDAUGMENT_M=10,
        COLORJITTER_B=0.4,
        COLORJITTER_C=0.4,
        COLORJITTER_S=0.4,
        COLORJITTER_H=0.1,
        RGS_P=0.2,
        GB_P=0.5,
        GB_K=21,
    ),
    "DATASET": dict(
        ROOT="",
        NAME="",
        SOURCE_DOMAINS=(),
        TARGET_DOMAINS=(),
        NUM_LABELED=-1,
        NUM_SHOTS=-1,
        VAL_PERCENT=0.1,
        STL10_FOLD=-1,
        CIFAR_C_TYPE="",
        CIFAR_C_LEVEL=1,
        ALL_AS_UNLABELED=False,
    ),
    "DATALOADER": dict(NUM_WORKERS=4, K_TRANSFORMS=1, RETURN_IMG0=False),
    "DATALOADER.TRAIN_X": dict(
        SAMPLER="RandomSampler", BATCH_SIZE=32, N_DOMAIN=0, N_INS=16, DROP_LAST=True
    ),
    "DATALOADER.TRAIN_U": dict(
        SAME_AS_X=True,
        SAMPLER="RandomSampler",
        BATCH_SIZE=32,
        N_DOMAIN=0,
        N_INS=16,
        DROP_LAST=True,
    ),
    "DATALOADER.TEST": dict(SAMPLER="SequentialSampler", BATCH_SIZE=32),
    "MODEL": dict(INIT_WEIGHTS=""),
    "MODEL.BACKBONE": dict(NAME="", PRETRAINED=True),
    "MODEL.HEAD": dict(NAME="", HIDDEN_LAYERS=(), ACTIVATION="relu", BN=True, DROPOUT=0.0),
    "OPTIM": dict(
        NAME="adam",
        LR=3e-4,
        WEIGHT_DECAY=5e-4,
        MOMENTUM=0.9,
        SGD_DAMPNING=0,
        SGD_NESTEROV=False,
        RMSPROP_ALPHA=0.99,
        ADAM_BETA1=0.9,
        ADAM_BETA2=0.999,
        STAGED_LR=False,
        NEW_LAYERS=(),
        BASE_LR_MULT=0.1,
        LR_SCHEDULER="single_step",
        STEPSIZE=(-1,),
        GAMMA=0.1,
        MAX_EPOCH=10,
        WARMUP_EPOCH=-1,
        WARMUP_TYPE="linear",
        WARMUP_CONS_LR=1e-5,
        WARMUP_MIN_LR=1e-5,
        WARMUP_RECOUNT=True,
    ),
    "TRAIN": dict(CHECKPOINT_FREQ=0, PRINT_FREQ=10, COUNT_ITER="train_x"),
    "TEST": dict(
        EVALUATOR="Classification",
        PER_CLASS_RESULT=False,
        COMPUTE_CMAT=False,
        NO_TEST=False,
        SPLIT="test",
        FINAL_MODEL="last_step",
    ),
    "TRAINER": dict(NAME=""),
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    imported = importlib.import_module(module)
    for name in NAMES[module].split():
        assert getattr(imported, name) is not None, f"{module}.{name}"


@pytest.mark.parametrize("node", DEFAULTS)
def test_defaults(node):
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    for part in filter(None, node.split(".")):
        cfg = cfg[part]
    for key, value in DEFAULTS[node].items():
        assert cfg[key] == value, key
        assert isinstance(cfg[key], type(value)) or isinstance(value, int), key


def test_no_other_defaults():
    """In a process without npt, because npt adds its own keys."""
    code = "import json, dassl.config; print(json.dumps(dassl.config.get_cfg_default()))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=EMBEDDED, capture_output=True, text=True, check=True
    )
    import json

    found = json.loads(out.stdout)
    for path, values in DEFAULTS.items():
        node = found
        for part in filter(None, path.split(".")):
            node = node[part]
        children = {p.rpartition(".")[2] for p in DEFAULTS if p.rpartition(".")[0] == path and p}
        assert set(node) == set(values) | children, path


def test_get_cfg_default_gives_copies():
    from dassl.config import get_cfg_default

    one = get_cfg_default()
    one.OPTIM.LR = 1.0
    assert get_cfg_default().OPTIM.LR == 3e-4


def test_clean_cfg():
    from yacs.config import CfgNode

    from dassl.config import clean_cfg, get_cfg_default

    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16})
    cfg.TRAINER.OTHER = CfgNode({"X": 1})
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) - {"NPT"} == {"NAME", "COOP"}  # npt keeps its node, if it is imported


def test_import_is_light():
    """torch is the only slow import of the engine."""
    code = (
        "import sys, dassl.engine, dassl.evaluation; "
        "print([m for m in ('torchvision', 'sklearn', 'tensorboard', 'npt') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=EMBEDDED, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
