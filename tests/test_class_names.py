"""Class names as CLIP reads them: what is cut, what is the same, what it cannot know."""

import json
import warnings

import clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from own_images import OWN, make_images, train

from npt.class_names import check_names, doubt, of_one_prompt, tokens_of, warn_of_one_prompt
from npt.datasets import mini
from npt.errors import NPTError
from npt.losses import clustered_collapse_loss, language_collapse_loss
from npt.session import silent
from npt.trainers.prompts import class_prompts

END = "<|endoftext|>"
WITHOUT = ("", " ", "_", "a\x07")  # nothing, or a character, that CLIP reads


# --------------------------------------------------------------------------- names that are cut
@pytest.mark.parametrize(
    "name",
    [
        f"cat {END} dog",
        END,
        "<|startoftext|>",
        END.upper(),
        "&lt;|endoftext|&gt;",
        "",
        " ",
        "_",
        "a\x07b",
    ],
)
def test_a_name_that_would_be_cut_or_is_nothing_is_refused(name):
    with pytest.raises(NPTError, match="rename the class") as caught:
        check_names(["dog", name])
    assert "\n" not in str(caught.value)
    with pytest.raises(NPTError):
        class_prompts("X X", ["dog", name])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=200, deadline=None)
def test_what_is_accepted_is_in_the_prompt_whole(name):
    """The end of the prompt is its last token, whatever the name contains."""
    try:
        tokens = class_prompts("a photo of a", [name])[0]
    except NPTError:
        return
    length = 2 + len(tokens_of(f"a photo of a {name}."))
    assert int(tokens.argmax()) == length - 1 and int((tokens >= 49406).sum()) == 2


# --------------------------------------------------------------------------- equal names
SAME = [
    ["crane", "Crane"],
    ["sea lake", "sea_lake"],
    ["sea lake", "sea  lake", "Sea_Lake "],
    ["caf\u00e9", "cafe\u0301"],  # one character, or a letter and an accent
    ["fish & chips", "fish &amp; chips"],
    ["dog", "dog"],
]


@pytest.mark.parametrize("names", SAME)
def test_names_of_one_prompt_are_found(names):
    others = ["a horse", *names, "crane fly"]
    tokens = clip.tokenize([f"X X {name.replace('_', ' ')}." for name in others])
    equal = [k for k in range(len(others)) if torch.equal(tokens[k], tokens[1])]
    assert of_one_prompt(others) == [equal] and len(equal) == len(names)
    with pytest.warns(UserWarning, match="same prompt") as caught:
        warn_of_one_prompt(others)
    assert repr(names[0]) in str(caught[0].message)


def test_other_names_are_not_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_one_prompt(["crane", "cranes", "a crane", "dog", "hot dog", "dog."])


def test_a_warning_of_many_pairs_is_short():
    names = [f"thing {k // 2}" for k in range(1000)]
    with pytest.warns(UserWarning, match="497 more") as caught:
        warn_of_one_prompt(names)
    assert len(str(caught[0].message)) < 400


# --------------------------------------------------------------------------- L_LC without the pairs
@st.composite
def texts_with_pairs(draw):
    k = draw(st.integers(2, 7))
    seed = draw(st.integers(0, 1000))
    groups = draw(st.lists(st.integers(0, 2), min_size=k, max_size=k))
    images = draw(st.sampled_from([(), (3,)]))
    text = torch.randn(*images, k, 5, generator=torch.Generator().manual_seed(seed)).double()
    pairs = [(i, j) for i in range(k) for j in range(k) if i != j and groups[i] == groups[j]]
    return text, torch.tensor(pairs).reshape(-1, 2)


@given(texts_with_pairs(), st.sampled_from(["mean", "class", "sum"]))
@settings(deadline=None)
def test_the_loss_is_the_sum_over_the_other_pairs(case, reduction):
    text, same = case
    k = text.shape[-2]
    unit = torch.nn.functional.normalize(text, dim=-1)
    cosines = (unit @ unit.transpose(-1, -2)).reshape(-1, k, k)
    left_out = set(map(tuple, same.tolist()))
    kept = [(i, j) for i in range(k) for j in range(k) if i != j and (i, j) not in left_out]
    total = sum(
        (((cosines[:, i, j] + 1 / (k - 1)) ** 2).mean() for i, j in kept), torch.zeros(()).double()
    )
    expected = total / {"mean": max(len(kept), 1), "class": k, "sum": 1}[reduction]
    found = language_collapse_loss(text, 1.0, reduction, same)
    assert torch.allclose(found, expected)
    everything = clustered_collapse_loss(text, [torch.arange(k)], 1.0, reduction, [same])
    assert torch.allclose(everything, expected)


def test_equal_texts_get_no_gradient_from_their_pair():
    one = torch.randn(4, generator=torch.Generator().manual_seed(0))
    text = torch.stack([one, one, -one.flip(0)]).requires_grad_()
    same = torch.tensor([[0, 1], [1, 0]])
    language_collapse_loss(text, same=same).backward()
    assert torch.isfinite(text.grad).all()
    assert torch.allclose(text.grad[0], text.grad[1])
    assert float(language_collapse_loss(text[:2].detach(), same=same)) == 0


@pytest.mark.parametrize("trainer, method", [("MaPLeNPT", "MaPLe"), ("CoCoOpNPT", "CoCoOp")])
def test_a_training_leaves_the_pair_out(tmp_path, trainer, method):
    """Two folders with one name: a warning, and L_LC of the other pairs."""
    images = make_images(tmp_path / "images")
    (images / "classnames.json").write_text(
        json.dumps({p.name: "Blue sky" if p.name == "violet" else p.name.replace("_", " ")
                    for p in images.iterdir() if p.is_dir()})
    )  # fmt: skip
    from npt.terms import TERMS

    seen = []
    term = TERMS["loss_lc"]
    keep = term.function

    def function(batch):
        seen.append((batch.text.detach(), keep(batch).detach()))
        return keep(batch)

    object.__setattr__(term, "function", function)
    try:
        with silent(), pytest.warns(UserWarning, match="same prompt"):
            train(tmp_path / "out", trainer, method, *OWN, images, "TRAINER.NPT.W_CLUSTER", 0.1)
    finally:
        object.__setattr__(term, "function", keep)
    text, value = seen[0]
    pair = torch.tensor([[0, 5], [5, 0]])  # blue sky and violet
    assert torch.allclose(value, language_collapse_loss(text, same=pair))
    assert not torch.allclose(value, language_collapse_loss(text))


# --------------------------------------------------------------------------- names CLIP cannot know
@pytest.mark.parametrize(
    "name",
    ["n01440764", "class 07", "Class_3", "0", "17", "#4", "label-2", "a3f9c27e11", "ab", "Q", "??",
     "other", "New Folder (2)", "n01440764_tench", "/m/01g317",
     "12345-6", "007_x", "001.Black_footed_Albatross", "0xdeadbeef", "IMG_2031", "DSC00012",
     "Type A", "SKU-99281", "P-00123", "ILSVRC2012_val_00000293", "c3", "k_17", "类别一", "кот",
     "xqzvkjwpt", "550e8400-e29b-41d4-a716-446655440000", "id12"],
)  # fmt: skip
def test_codes_are_doubted(name):
    assert doubt(name)


REAL = [
    "C-47", "A310", "CRJ-200", "Il-76", "F-16", "1993 Geo Metro Convertible", "café", "🐱",
    "2 of hearts",
    "2012 Audi R8 Coupe", "707-320", "A300B4", "DC-9-30", "F-16A/B", "Spitfire", "MD-11", "C-130",
    "Highway or Road", "ox", "joint", "yin yang", "apply eye makeup", "Blow Dry Hair", "pad thai",
    "cd player", "T-shirt", "hot dog", "macaw", "bird of paradise", "siamese", "english setter",
    "Permanent Crop Land", "chow mein", "waterlilly", "dalmatian", "tench", "zigzagged",
    "Boeing 717", "Fokker 100", "BAE 146-200", "tailed frog", "golden retriever",
]  # fmt: skip


def test_names_of_published_data_sets_are_not_doubted():
    of_mini = {name for row in mini.ROWS.values() for _, name in row.classes}
    doubted = {name for name in {*REAL, *of_mini} if doubt(name)}
    assert doubted <= {"ox"}  # of two letters
