"""The fifteen data sets of the paper on small copies of their layouts."""

import json
import os
import random
import re
import shutil
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path

import layouts
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import npt  # noqa: F401  (makes `dassl` importable)
from dassl.config import get_cfg_default
from dassl.data import data_manager
from dassl.data.datasets import DATASET_REGISTRY
from npt.datasets import splits
from npt.datasets.base import check_classes
from npt.datasets.catalog import CATALOG, Row
from npt.datasets.paper import DATASETS
from npt.errors import NPTError

ROOT = Path(__file__).parents[2]
SPLIT = [name for name, row in CATALOG.items() if row.split]
VARIANTS = [name for name, row in CATALOG.items() if row.kind == "variant"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Function: the root and the labels of a data set's layout, with or without a split file."""
    made = {}

    def get(name, split=False):
        if (name, split) not in made:
            root = tmp_path_factory.mktemp(name)
            truth = layouts.build(name, root)
            if split:
                layouts.put_split(name, root, truth)
            made[name, split] = root, truth
        return made[name, split]

    return get


def load(name, root, seed=1, **dataset):
    """Load a data set as in a run: set the seed, then build it with the data manager."""
    cfg = get_cfg_default()
    cfg.SEED, cfg.DATASET.NAME, cfg.DATASET.ROOT = seed, name, str(root)
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    cfg.freeze()
    random.seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*this split was made by NPT")
        warnings.filterwarnings("ignore", ".*have no image suffix")
        return data_manager.build_dataset(cfg)


def per_class(items):
    return [count for _, count in sorted(Counter(item.label for item in items or []).items())]


def paths(items):
    return {item.impath for item in items}


def assert_labelled(data, name, root, truth, names):
    """Every image has the label and name that the builder of the layout gave it."""
    images = os.path.join(root, CATALOG[name].folder, CATALOG[name].images)
    offset = layouts.NAMES[name].index(names[0])
    for item in [*data.train_x, *(data.val or []), *data.test]:
        label = truth[os.path.relpath(item.impath, images)]
        assert item.label == label - offset
        assert item.classname == layouts.NAMES[name][label]


# --------------------------------------------------------------------------- names
def test_every_data_set_is_registered_with_its_config_and_prompt():
    assert len(CATALOG) == 15 and set(layouts.NAMES) == set(CATALOG)
    for name, row in CATALOG.items():
        assert DATASET_REGISTRY.get(name) is DATASETS[name]
        file = ROOT / "configs" / "datasets" / f"{row.config}.yaml"
        assert yaml.safe_load(file.read_text())["DATASET"]["NAME"] == name
        assert DATASETS[name].template == row.template and row.template.count("{}") == 1


def test_a_row_without_a_prompt_template_is_an_error():
    row = CATALOG["EuroSAT"]
    values = {field.name: getattr(row, field.name) for field in fields(Row)}
    assert Row(**values) == row
    del values["template"]
    with pytest.raises(TypeError, match="template"):
        Row(**values)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("EuroSAT", "a centered satellite photo of {}."),
        ("Food101", "a photo of {}, a type of food."),
        ("MiniFlowers", "a photo of a {}."),
        ("CustomFolder", "a photo of a {}."),
    ],
)
def test_prompt_templates(name, template):
    assert DATASET_REGISTRY.get(name).template == template


def test_a_data_set_registered_by_the_host_is_not_replaced(python):
    code = (
        "import npt\n"
        "from dassl.data.datasets import DATASET_REGISTRY as R\n"
        "Own = type('EuroSAT', (), {})\nR.register(Own)\n"
        "import npt.datasets\n"
        "assert R.get('EuroSAT') is Own and R.get('SUN397').row.folder == 'sun397'\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------- lists
@pytest.mark.parametrize("name", CATALOG)
def test_all_images_without_a_split_file(name, layout):
    root, truth = layout(name)
    data = load(name, root)
    names = layouts.NAMES[name]
    assert data.classnames == names and data.num_classes == len(names)
    for part, count in zip((data.train_x, data.val, data.test), layouts.MADE[name], strict=True):
        assert per_class(part) == [count] * len(names) * bool(count)
    assert data.class_frequency == dict.fromkeys(range(len(names)), layouts.MADE[name][0])
    assert_labelled(data, name, root, truth, names)
    used = paths(data.train_x) | paths(data.val or []) | paths(data.test)
    assert len(used) == len(truth)
    if CATALOG[name].kind == "split":
        assert len(used) == len(data.train_x) + len(data.val) + len(data.test)


@pytest.mark.parametrize("name", SPLIT)
def test_all_images_of_a_split_file(name, layout):
    root, truth = layout(name, split=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there must be no warning
        data = load(name, root)
    assert per_class(data.train_x) == [6] * 5
    assert per_class(data.val) == [2] * 5
    assert len(data.test) == len(truth) - 40
    assert_labelled(data, name, root, truth, layouts.NAMES[name])


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize("which", ["base", "new"])
def test_base_and_new_halves(name, which, layout):
    root, truth = layout(name)
    data = load(name, root, SUBSAMPLE_CLASSES=which)
    half = 2 if name in ("ImageNetA", "ImageNetR") else 3  # of 3 and of 5, rounded up
    names = layouts.NAMES[name][:half] if which == "base" else layouts.NAMES[name][half:]
    assert data.classnames == names
    for part, count in zip((data.train_x, data.val, data.test), layouts.MADE[name], strict=True):
        assert per_class(part) == [count] * len(names) * bool(count)
    assert_labelled(data, name, root, truth, names)


# --------------------------------------------------------------------------- draws
# The results of random.seed(1), then random.sample(range(6), 2) for each of five classes, then
# random.sample(range(2), 2) for each: first training, then validation.
DRAWN = {
    "train": [[1, 4], [0, 2], [0, 3], [3, 5], [5, 3]],
    "val": [[0, 1], [1, 0], [1, 0], [0, 1], [1, 0]],
}


@pytest.mark.parametrize("name", SPLIT)
def test_a_seed_draws_the_same_images_as_in_coop(name, layout):
    root, truth = layout(name, split=True)
    split = json.loads((root / CATALOG[name].folder / CATALOG[name].split).read_text())
    expected = {}
    for part, drawn in DRAWN.items():
        by_class = {}  # classes are drawn in order of their first appearance in the file
        for path, label, _ in split[part]:
            by_class.setdefault(label, []).append(path)
        groups = zip(by_class.values(), drawn, strict=True)
        expected[part] = [group[k] for group, ks in groups for k in ks]
    images = os.path.join(root, CATALOG[name].folder, CATALOG[name].images)
    for _ in range(2):  # the second time gives the same
        data = load(name, root, NUM_SHOTS=2)
        for part, items in (("train", data.train_x), ("val", data.val)):
            assert [os.path.relpath(d.impath, images) for d in items] == expected[part]
    assert len(data.test) == len(truth) - 40


def test_imagenet_is_drawn_from_sorted_names(layout):
    root, _ = layout("ImageNet")
    data = load("ImageNet", root, seed=7, NUM_SHOTS=2)
    # random.seed(7), then random.sample(range(10), 2) for each class; sorted: 1, 10, 2, 3, ...
    order = [1, 10, 2, 3, 4, 5, 6, 7, 8, 9]
    drawn = [[5, 2], [6, 0], [1, 8], [1, 5], [9, 0]]
    expected = [
        f"{wnid}_train{order[k]}.JPEG"
        for wnid, ks in zip(layouts.WNIDS, drawn, strict=True)
        for k in ks
    ]
    assert [Path(d.impath).name for d in data.train_x] == expected
    assert per_class(data.val) == per_class(data.test) == [4] * 5  # neither is drawn from


@pytest.mark.parametrize("name", [n for n in CATALOG if n not in VARIANTS])
def test_validation_has_at_most_four_images_per_class(name, layout):
    root, _ = layout(name)
    counts = layouts.MADE[name]
    for shots in (1, 4, 16):
        data = load(name, root, NUM_SHOTS=shots)
        assert per_class(data.train_x) == [min(shots, counts[0])] * 5
        if name != "ImageNet":
            assert per_class(data.val) == [min(shots, 4, counts[1])] * 5


@pytest.mark.parametrize("name", VARIANTS)
def test_all_images_of_a_variant_are_used(name, layout):
    root, truth = layout(name)
    data = load(name, root, NUM_SHOTS=1)
    assert len(data.test) == len(truth) and data.val is None


# --------------------------------------------------------------------------- imbalance
@pytest.mark.parametrize("name", [n for n in CATALOG if n not in VARIANTS])
def test_imbalance_nests_and_changes_neither_classes_nor_test_images(name, layout):
    root, _ = layout(name)
    sizes = {
        1.0: [4, 4, 4, 4, 4],
        0.5: [4, 3, 2, 2, 2],  # 4 * 0.5^(k/4): 4, 3.36, 2.83, 2.38, 2
        0.25: [4, 2, 2, 1, 1],  # 4, 2.83, 2, 1.41, 1
        0.01: [4, 1, 1, 1, 1],  # 4, 1.26, 0.4, 0.13, 0.04: at least one image
    }
    drawn = {ratio: load(name, root, NUM_SHOTS=4, IMBALANCE_RATIO=ratio) for ratio in sizes}
    for ratio, data in drawn.items():
        assert per_class(data.train_x) == sizes[ratio]
        assert data.classnames == layouts.NAMES[name] and data.num_classes == 5
        assert paths(data.test) == paths(drawn[1.0].test)
    for larger, smaller in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.01)):
        assert paths(drawn[smaller].train_x) <= paths(drawn[larger].train_x)


@pytest.mark.parametrize("order", ["random", "frequency"])
def test_orders_of_imbalance(order, layout):
    root, _ = layout("EuroSAT")
    data = load("EuroSAT", root, NUM_SHOTS=4, IMBALANCE_RATIO=0.25, IMBALANCE_ORDER=order)
    assert sorted(per_class(data.train_x)) == [1, 1, 2, 2, 4]
    if order == "frequency":  # equal frequencies: by label
        assert per_class(data.train_x) == [4, 2, 2, 1, 1]


def test_imbalance_of_the_base_classes(layout):
    root, _ = layout("UCF101")
    data = load("UCF101", root, NUM_SHOTS=8, IMBALANCE_RATIO=0.25, SUBSAMPLE_CLASSES="base")
    assert per_class(data.train_x) == [8, 4, 2]
    assert data.classnames == layouts.NAMES["UCF101"][:3]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["EuroSAT", "ImageNet", "FGVCAircraft"]),
    shots=st.integers(1, 8),
    seed=st.integers(0, 99),
    ratios=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    order=st.sampled_from(["label", "random", "frequency"]),
    which=st.sampled_from(["all", "base", "new"]),
)
def test_the_draw_of_a_ratio_is_a_subset_of_that_of_a_larger_one(
    layout, name, shots, seed, ratios, order, which
):
    root, _ = layout(name)
    small, large, balanced = (
        load(
            name,
            root,
            seed=seed,
            NUM_SHOTS=shots,
            IMBALANCE_RATIO=ratio,
            IMBALANCE_ORDER=order,
            SUBSAMPLE_CLASSES=which,
        )
        for ratio in (*sorted(ratios), 1.0)
    )
    assert paths(small.train_x) <= paths(large.train_x) <= paths(balanced.train_x)
    assert {d.label for d in small.train_x} == set(range(balanced.num_classes))
    assert small.classnames == balanced.classnames


# --------------------------------------------------------------------------- generated splits
@pytest.mark.parametrize("name", SPLIT)
def test_a_missing_split_is_made_once_with_a_warning(name, tmp_path):
    layouts.build(name, tmp_path)
    file = tmp_path / CATALOG[name].folder / CATALOG[name].split
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(tmp_path)
    random.seed(3)
    state = random.getstate()
    with pytest.warns(UserWarning, match=r"are not comparable with published ones.*https://"):
        first = data_manager.build_dataset(cfg)
    assert random.getstate() == state  # so that the few-shot draw is the same as in later runs
    stored = file.read_bytes()
    with pytest.warns(UserWarning, match="are not comparable"):  # every run warns
        second = data_manager.build_dataset(cfg)
    assert file.read_bytes() == stored
    assert [d.impath for d in first.train_x] == [d.impath for d in second.train_x]
    assert [p.name for p in file.parent.iterdir() if p.name.endswith("tmp")] == []


def test_a_generated_split_does_not_depend_on_seed_and_folder(tmp_path):
    stored = []
    for root in (tmp_path / "one", tmp_path / "other"):
        layouts.build("EuroSAT", root)
        load("EuroSAT", root, seed=len(stored))
        stored.append((root / "eurosat" / CATALOG["EuroSAT"].split).read_bytes())
    assert stored[0] == stored[1]


def test_a_generated_split_that_cannot_be_saved_is_used_from_memory(tmp_path, monkeypatch):
    layouts.build("EuroSAT", tmp_path)

    def refuse(path, record):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("npt.datasets.splits.write_json", refuse)
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "EuroSAT", str(tmp_path)
    with pytest.warns(UserWarning, match="cannot be written"):
        data = data_manager.build_dataset(cfg)
    assert per_class(data.train_x) == [5] * 5


def test_lists_writes_no_split_file(tmp_path):
    layouts.build("EuroSAT", tmp_path)
    lists = DATASETS["EuroSAT"].lists(tmp_path / "eurosat")
    assert {part: len(lists[part]) for part in lists} == {"train": 25, "val": 10, "test": 15}
    assert [p.name for p in (tmp_path / "eurosat").iterdir()] == ["2750"]


@pytest.mark.parametrize("name", [n for n, row in CATALOG.items() if row.needs])
def test_a_missing_official_file_is_named(name, tmp_path):
    layouts.build(name, tmp_path)
    row = CATALOG[name]
    (tmp_path / row.folder / row.needs[-1]).unlink()
    with pytest.raises(NPTError, match=re.escape(row.needs[-1])) as error:
        load(name, tmp_path)
    assert row.split in str(error.value)


@pytest.mark.parametrize("name", [n for n in CATALOG if CATALOG[n].needs and n not in VARIANTS])
def test_a_damaged_official_file_is_an_error_of_one_sentence(name, tmp_path):
    layouts.build(name, tmp_path)
    row = CATALOG[name]
    (tmp_path / row.folder / row.needs[-1]).write_bytes(b"\x80 damaged\n")
    with pytest.raises(NPTError) as error:
        load(name, tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path / row.folder) in str(error.value)


NEEDED = [(n, file) for n, row in CATALOG.items() if n not in VARIANTS for file in row.needs]


@pytest.mark.parametrize(("name", "file"), NEEDED)
def test_damaged_official_files_are_a_split_or_one_sentence(name, file, tmp_path):
    layouts.build(name, tmp_path)
    folder = tmp_path / CATALOG[name].folder
    path = folder / file
    content, draw = path.read_bytes(), random.Random(0)

    def check(changed):
        path.write_bytes(changed)
        try:
            lists = DATASETS[name].lists(folder)
            check_classes(lists, folder)
        except NPTError as error:
            assert str(folder) in str(error)

    slow = file.endswith(".mat")  # read by another process, because scipy may crash
    for length in (0, len(content) // 2, len(content) - 1)[: 2 if slow else 3]:
        check(content[:length])
    for _ in range(3 if slow else 20):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 5])):
            changed[draw.randrange(len(content))] = draw.choice([0, 10, 32, 47, 57, 255])
        check(changed)
    lines = (b"inf", b"a nan 1 1", b"a -1 1 1", b"/", b"\0", b"[" * 100_000, b"1 " * 1000)
    for line in () if slow else lines:
        check(line)
        check(content + b"\n" + line)
    path.unlink()
    path.mkdir()
    with pytest.raises(NPTError, match=re.escape(str(path))):
        DATASETS[name].lists(folder)


def test_a_crash_of_scipy_is_one_sentence(tmp_path, monkeypatch):
    layouts.build("OxfordFlowers", tmp_path)
    monkeypatch.setattr(splits, "_READ_MAT", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(NPTError, match=r"imagelabels\.mat: scipy crashed"):
        load("OxfordFlowers", tmp_path)


@pytest.mark.parametrize("label", ["Infinity", "1.5"])
def test_labels_of_mat_files_are_whole_numbers(label, tmp_path):
    from scipy.io import savemat

    layouts.build("OxfordFlowers", tmp_path)
    labels = [[1.0, 2.0, float(label)]]
    savemat(tmp_path / "oxford_flowers" / "imagelabels.mat", {"labels": labels})
    with pytest.raises(NPTError, match="official files of OxfordFlowers"):
        load("OxfordFlowers", tmp_path)


def test_a_split_made_by_npt_is_verified(tmp_path):
    layouts.build("EuroSAT", tmp_path)
    load("EuroSAT", tmp_path)
    file = tmp_path / "eurosat" / CATALOG["EuroSAT"].split
    split = json.loads(file.read_text())
    split["train"][3][1] ^= 1
    split["train"][3][2] = split["train"][20][2]
    file.write_text(json.dumps(split))
    with pytest.raises(NPTError, match=re.escape(str(file)) + " was changed after NPT had made it"):
        load("EuroSAT", tmp_path)
    del split["sha256"]
    file.write_text(json.dumps(split))
    with pytest.raises(NPTError, match="has the names"):
        load("EuroSAT", tmp_path)  # used as it is


def test_mat_files_require_scipy(tmp_path, monkeypatch):
    layouts.build("OxfordFlowers", tmp_path)
    monkeypatch.setattr(splits.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NPTError, match="pip install scipy"):
        load("OxfordFlowers", tmp_path)


# --------------------------------------------------------------------------- errors
def test_missing_folders_and_images_are_named(layout, tmp_path):
    with pytest.raises(NPTError, match=r"DATASET\.ROOT"):
        load("EuroSAT", "")
    with pytest.raises(NPTError, match="eurosat is missing"):
        load("EuroSAT", tmp_path)
    (tmp_path / "eurosat").mkdir()
    with pytest.raises(NPTError, match="2750 is missing"):
        load("EuroSAT", tmp_path)
    layouts.put_split("EuroSAT", tmp_path, {f"Forest/{k}.jpg": 0 for k in range(9)})
    with pytest.raises(NPTError, match=r"Forest/\d\.jpg is missing, although EuroSAT lists it"):
        load("EuroSAT", tmp_path)


@pytest.fixture
def faulty(tmp_path):
    """Function: change the split of EuroSAT in place, then load EuroSAT."""
    truth = layouts.build("EuroSAT", tmp_path)
    split = layouts.put_split("EuroSAT", tmp_path, truth)

    def run(change):
        change(split)
        file = tmp_path / "eurosat" / CATALOG["EuroSAT"].split
        file.write_text(json.dumps(split))
        return load("EuroSAT", tmp_path)

    return run


def _rename(rows, label, name):
    rows[:] = [[p, k, name if k == label else n] for p, k, n in rows]


def _drop(rows, label):
    rows[:] = [row for row in rows if row[1] != label]


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda s: _drop(s["train"], 1), 'Class 1 ("Forest") has no training image'),
     (lambda s: [_drop(rows, 1) for rows in s.values()], "No image has the label 1"),
     (lambda s: [_rename(rows, 2, "") for rows in s.values()], "Label 2 has no class name"),
     (lambda s: [_rename(rows, 2, None) for rows in s.values()], "Label 2 has no class name"),
     (lambda s: _rename(s["test"], 3, "Motorway"),
      'Label 3 has the names "Highway or Road" and "Motorway"'),
     (lambda s: s["train"].append(["x.jpg", -1, "x"]), "is below 0"),
     (lambda s: s.pop("test"), 'it has no list "test"'),
     (lambda s: s["train"].append([7, 1, "Forest"]), "is not a split file"),
     (lambda s: s["test"].clear(), "lists no images under test")],
)  # fmt: skip
def test_errors_in_a_split_file(faulty, change, message):
    with pytest.raises(NPTError, match=re.escape(message)) as error:
        faulty(change)
    assert "eurosat" in str(error.value)


def test_images_in_two_parts_give_a_warning(faulty):
    with pytest.warns(UserWarning, match=r"^2 images are in both train and test .* too good"):
        faulty(lambda split: split["test"].extend(split["train"][:2]))


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [("ImageNet", "images/train/n09999999/a.JPEG", "n09999999 has no class name"),
     ("ImageNet", "images/val/n09999999/a.JPEG", "n09999999 has no class name"),
     ("ImageNetA", "imagenet-a/n09999999/a.jpg", "n09999999 has no class name"),
     ("ImageNetV2", "imagenetv2-matched-frequency-format-val/5/a.jpg", "5 has no class name")],
)  # fmt: skip
def test_a_folder_without_a_class_name(name, place, message, tmp_path):
    layouts.build(name, tmp_path)
    layouts.put_image(tmp_path / CATALOG[name].folder / place)
    with pytest.raises(NPTError, match=message):
        load(name, tmp_path)


def test_imagenet_with_different_classes_in_train_and_val(tmp_path):
    layouts.build("ImageNet", tmp_path)
    images = tmp_path / "imagenet" / "images"
    (images / "val" / "n01440764").rename(tmp_path / "elsewhere")
    with pytest.raises(NPTError, match="val/n01440764 is missing"):
        load("ImageNet", tmp_path)
    (tmp_path / "elsewhere").rename(images / "val" / "n01440764")
    shutil.rmtree(images / "train" / "n01484850")
    with pytest.raises(NPTError, match="val/n01484850 is not among the training classes"):
        load("ImageNet", tmp_path)
    (images / "train" / "n01484850").mkdir()
    with pytest.raises(NPTError, match="train/n01484850 contains no image"):
        load("ImageNet", tmp_path)
    shutil.rmtree(images / "val")
    layouts.put_image(images / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(NPTError, match="val has no folders: sort the images"):
        load("ImageNet", tmp_path)


def test_classnames_without_a_name_or_without_lines(tmp_path):
    layouts.build("ImageNetR", tmp_path)
    file = tmp_path / "imagenet-rendition" / "classnames.txt"
    file.write_text("n01440764 tench\nn01443537\n")
    with pytest.raises(NPTError, match=r"no class name after n01443537 in line 2"):
        load("ImageNetR", tmp_path)
    file.write_text("\n")
    with pytest.raises(NPTError, match="contains no class names"):
        load("ImageNetR", tmp_path)


def test_files_that_are_not_images_are_ignored_with_a_warning(tmp_path):
    layouts.build("ImageNetA", tmp_path)
    (tmp_path / "imagenet-adversarial" / "imagenet-a" / "n01443537" / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match=r"1 files in .* such as n01443537/notes\.txt"):
        DATASETS["ImageNetA"].lists(tmp_path / "imagenet-adversarial")


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(tmp_path):
    from dassl.utils import read_image

    file = tmp_path / "broken.jpg"
    file.write_bytes(b"no image")
    with pytest.raises(OSError, match=r"broken\.jpg"):
        read_image(str(file))
