"""Any value of any key ends in a run with finite figures, or in one sentence.

The keys are those of the default tree, so that a new key is tried without being listed here.
"""

import itertools
import json
import math

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from yacs.config import CfgNode

import npt  # noqa: F401  lets dassl be imported
from dassl.config import get_cfg_default
from dassl.data.samplers import SAMPLERS
from dassl.data.transforms import AVAI_CHOICES
from dassl.optim.lr_scheduler import SCHEDULERS
from dassl.optim.optimizer import OPTIMIZERS
from dassl.utils.errors import UserError
from npt import cli
from npt.config import check, find_config
from npt.errors import NPTError, sentence


# --------------------------------------------------------------------------- keys and values
def leaves(node, prefix=""):
    """Every key below a node, with its default."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


DEFAULTS = dict(leaves(get_cfg_default()))

WHOLE = st.sampled_from([-(10**18), -1, 0, 1, 2, 3, 64, 2**31, 2**32, 10**12, 10**400])
NUMBERS = st.sampled_from(
    [
        *(-0.5, -0.0, 5e-324, 1e-30, 0.5, 0.999, 1.0, 1.5, 2.0, 1e30, 1e38, 1e39, 1e300),
        *(math.nan, math.inf, -math.inf),
    ]
)
WORDS = st.sampled_from(
    [
        *("", " ", "\n", "none", "_ _", "test", "val", "best_val", "constant", "front", "class"),
        *("\u00e9\u4e2d", "\U0001f33c", "\u202e", "a\ud800b", "a\0b", "x" * 300),
        *("{}", "{'a': 1}", "{[]: 1}", "%s", "$HOME", "~", "0x", "1e999", "'", "-1", "()"),
        *("[" * 3000, "-" * 3000 + "1", "9" * 5000, "(" * 99 + ")" * 99, "a photo of " * 60),
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), WHOLE, NUMBERS, WORDS)
LISTS = st.one_of(
    st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=4),
    st.lists(NUMBERS, min_size=2, max_size=3),
    st.lists(WHOLE, min_size=2, max_size=3),
    st.lists(st.sampled_from(AVAI_CHOICES), max_size=5),
)
VALUES = st.one_of(SCALARS, LISTS, LISTS.map(tuple))


def near(default):
    """Values of the default's own type, which more often are accepted."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.one_of(WHOLE, st.integers(-3, 40))
    if isinstance(default, float):
        return st.one_of(NUMBERS, st.floats())
    return WORDS if isinstance(default, str) else LISTS


def with_value(key, value):
    """The default config with a value, whatever it is."""
    cfg = get_cfg_default()
    *above, name = key.split(".")
    node = cfg
    for part in above:
        node = node[part]
    node[name] = value
    return cfg


def values_of(key):
    """Values to try for a key: half of them of its own type."""
    return st.one_of(near(DEFAULTS[key]), VALUES)


# --------------------------------------------------------------------------- the freeze alone
@settings(max_examples=1000, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(sorted(DEFAULTS)).flatmap(lambda k: st.tuples(st.just(k), values_of(k))))
def test_freezing_accepts_a_value_or_says_why_not(pair):
    key, value = pair
    cfg = with_value(key, value)
    try:
        cfg.freeze()
    except Exception as error:
        said = sentence(error)
        assert said and said.startswith(f"{key} is ") and "must be" in said, repr(error)
    else:
        no_number = isinstance(value, float) and not math.isfinite(value)
        of_our_trainers = key.startswith(("TRAINER.C", "TRAINER.M", "DATASET.SUBSAMPLE"))
        assert of_our_trainers or not (value is None or no_number)


@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_no_key_takes_none(key):
    cfg = with_value(key, None)
    with pytest.raises((NPTError, UserError), match=f"^{key} is None, but it must be"):
        cfg.freeze()
        check(cfg)  # as our trainers do for their own keys


# --------------------------------------------------------------------------- runs
# What makes a key matter: the transforms that read it, the schedule that reads it, ...
COMPANIONS = {
    "INPUT.": st.tuples(
        st.just("INPUT.TRANSFORMS"), st.lists(st.sampled_from(AVAI_CHOICES), min_size=1).map(str)
    ),
    "OPTIM.": st.one_of(
        st.tuples(st.just("OPTIM.NAME"), st.sampled_from(list(OPTIMIZERS))),
        st.tuples(st.just("OPTIM.LR_SCHEDULER"), st.sampled_from(list(SCHEDULERS))),
        st.tuples(st.just("OPTIM.WARMUP_TYPE"), st.sampled_from(["linear", "constant"])),
        st.tuples(st.just("OPTIM.SGD_NESTEROV"), st.just("True")),
        st.tuples(st.just("OPTIM.STAGED_LR"), st.just("True")),
    ),
    "DATALOADER.": st.tuples(
        st.just("DATALOADER.TRAIN_X.SAMPLER"), st.sampled_from(list(SAMPLERS))
    ),
    "TEST.": st.tuples(st.just("TEST.FINAL_MODEL"), st.just("best_val")),
}
# Legal values that only take long: epochs, processes, and the images of the whole data set.
SMALL = {"OPTIM.MAX_EPOCH": 3, "DATALOADER.NUM_WORKERS": 1}
EXAMPLES = 5  # runs for each key in the slow test
TRAINERS = {"TRAINER.COOP.": "CoOp", "TRAINER.MAPLE.": "MaPLeNPT"}


@st.composite
def cases(draw, key):
    """A trainer, a value for the key, pairs beside it, and whether a file or a pair holds it."""
    value = draw(values_of(key))
    if isinstance(value, int) and value > SMALL.get(key, math.inf):
        value = SMALL[key]
    pairs = next((p for prefix, p in COMPANIONS.items() if key.startswith(prefix)), None)
    beside = [] if pairs is None else list(draw(pairs))
    own = [trainer for prefix, trainer in TRAINERS.items() if key.startswith(prefix)]
    trainer = draw(st.sampled_from(own or ["CoCoOpNPT", "ZeroshotCLIP", "MaPLe"]))
    return trainer, value, beside if beside[:1] != [key] else [], draw(st.booleans())


def outcome(folder, key, trainer, value, beside, in_file) -> str:
    """Run train.py's program with a value; what is wrong with how it ended, or ""."""
    method = {"CoCoOpNPT": "CoCoOp", "MaPLeNPT": "MaPLe"}.get(trainer, trainer)
    file = find_config(f"configs/trainers/{method}/tiny.yaml")
    words = ["--trainer", trainer, "--seed", "1", "--output-dir", str(folder / "run")]
    words += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
    pairs = ["DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"]
    pairs += ["DATALOADER.NUM_WORKERS", "0", "USE_CUDA", "False", *beside]
    if in_file:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        node = content
        *above, name = key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[name] = list(value) if isinstance(value, tuple) else value
        try:
            text = yaml.safe_dump(content)
        except ValueError:  # Python writes no numbers of thousands of digits
            return ""
        file = folder / "config.yaml"
        file.write_text(text, encoding="utf-8")
        pairs = [
            word
            for pair in zip(pairs[::2], pairs[1::2], strict=True)
            if pair[0] != key
            for word in pair
        ]
    else:
        pairs += [key, value if isinstance(value, str) else repr(value)]
    return ended(folder, [*words, "--config-file", str(file), *pairs])


def ended(folder, argv) -> str:
    """What is wrong with how a command ended, or ""."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if code == 0:
        records = [json.loads(p.read_text()) for p in folder.rglob("result.json")]
        figures = [x for r in records for part in r["results"].values() for x in part.values()]
        bad = [x for x in figures if isinstance(x, float) and not math.isfinite(x)]
        return f"figures {bad}" if bad else ""
    return "" if code == 2 else f"exit code {code}"


@pytest.fixture
def tried(tmp_path, capsys, monkeypatch):
    """Run train.py's program with drawn values of a key; every run must end as it should."""
    monkeypatch.chdir(tmp_path)  # for values that name a folder
    # Not plain numbers, which a value may be that names a folder.
    folders = (tmp_path / f"run of the fuzz test {i}" for i in itertools.count())

    def of_key(key, examples, derandomize):
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=derandomize,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases(key))
        def one(case):
            folder = next(folders)
            folder.mkdir()
            capsys.readouterr()
            wrong = outcome(folder, key, *case)
            said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
            assert not wrong and len(said) <= 1, (key, case, wrong, said)

        one()

    return of_key


@pytest.mark.parametrize("key", sorted(DEFAULTS)[::20])
def test_a_few_runs(tried, key):
    tried(key, 2, derandomize=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("key", sorted(DEFAULTS))
def test_many_runs(tried, key):
    tried(key, EXAMPLES, derandomize=False)
