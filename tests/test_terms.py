"""Terms and measures as rows: those of the paper, and one of each from outside."""

import json
from types import SimpleNamespace

import pytest
import torch
from small_host import Host, K, batches, config, plain_terms, wrapped
from torch.nn import functional as F

import npt
from dassl.config import defaults as engine_defaults
from npt import terms
from npt.clusters import clusters_of
from npt.config import KEYS
from npt.errors import NPTError
from npt.geometry import language_collapse_degree
from npt.host.features import FeatureTap
from npt.losses import anchor_loss, balanced_isomorphism_loss, clustered_collapse_loss
from npt.terms import MEASURES, TERMS, Batch, Measure, Run, Term, evaluate


def spread(batch: Batch):
    text = F.normalize(batch.text, dim=-1)
    return text.mean(-2).square().sum(-1).mean()


@pytest.fixture
def registered():
    """Register rows for one test."""
    before = dict(TERMS), dict(MEASURES), dict(KEYS)

    yield terms.register

    for table, rows in zip((TERMS, MEASURES, KEYS), before, strict=True):
        added = table.keys() - rows.keys()
        table.clear()
        table.update(rows)
    for path in added:  # of KEYS, the last table
        engine_defaults._C.TRAINER.NPT.pop(path.rpartition(".")[2], None)


def batch_of(images=4, dim=8, weights=(0.3, 0.8), **more) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, dim, generator=generator) for n in (images, K))
    labels = torch.randint(K, (images,), generator=generator)
    return Batch(image, text, labels, Run(config(*weights).TRAINER.NPT, **more))


def test_the_rows_of_the_paper():
    assert [(t.name, t.weight, t.default) for t in TERMS.values()] == [
        ("loss_lc", "W1", 0.3),
        ("loss_mi", "W2", 0.8),
        ("loss_cluster", "W_CLUSTER", 0.0),  # beyond the paper: not computed without a weight
        ("loss_balanced", "W_BALANCED", 0.0),
        ("loss_anchor", "W_ANCHOR", 0.0),
    ]
    assert list(MEASURES) == ["lcd", "lcd_abs", "mid", "mid_abs", "nc1", "nc2", "nc3"]
    assert terms.headings() == {"lcd_abs": "LCD", "mid_abs": "MID"}
    assert list(evaluate(batch_of()).values) == ["loss_lc", "loss_mi", "lcd", "mid"]


def test_the_terms_beyond_the_paper_take_what_they_need_from_the_run():
    frozen = torch.randn(K, 8, generator=torch.Generator().manual_seed(5))
    known = {"encode_frozen": lambda: frozen, "drawn_counts": [3.0, 1.0, 1.0, 1.0, 1.0]}
    batch = batch_of(weights=(0.0, 0.0), **known)
    settings = batch.run.settings
    settings.update({"W_CLUSTER": 0.5, "W_BALANCED": 0.25, "W_ANCHOR": 0.125, "CLUSTER_SIZE": 3})
    found = evaluate(batch)
    clusters = clusters_of(frozen, 3)
    weights = torch.tensor([7 / 15, *[7 / 5] * 4])
    expected = {
        "loss_cluster": clustered_collapse_loss(batch.text, clusters, 1.0, settings.REDUCTION),
        "loss_balanced": balanced_isomorphism_loss(
            batch.image, batch.text, batch.labels, weights, 1.0, 2.0
        ),
        "loss_anchor": anchor_loss(batch.text, frozen),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.values[name], value)
    total = sum(w * x for w, x in zip((0.5, 0.25, 0.125), expected.values(), strict=True))
    torch.testing.assert_close(found.weighted, total)
    with pytest.raises(NPTError, match="not known"):
        unknown = batch_of(weights=(0.0, 0.0))
        unknown.run.settings.W_BALANCED = 1.0
        evaluate(unknown)


def test_a_term_from_outside_is_minimised_and_logged(registered):
    registered(Term("loss_spread", "W_SPREAD", spread))
    cfg = config()
    cfg.TRAINER.NPT.W_SPREAD = 0.5
    (batch,) = batches()
    reference = Host(cfg)
    lc, mi = plain_terms(reference.model, batch, cfg.TRAINER.NPT)
    text = reference.model.text_encoder(reference.model.prompt_learner.bias)
    own = spread(Batch(text, text, batch["label"], Run(cfg.TRAINER.NPT)))
    (reference.loss(batch) + 0.3 * lc + 0.8 * mi + 0.5 * own).backward()
    trainer = wrapped(Host, cfg)
    summary = trainer.forward_backward(batch)
    assert summary["loss_spread"] == pytest.approx(own.item(), rel=1e-5)
    assert list(summary)[2:6] == ["loss_lc", "loss_mi", "loss_spread", "lcd"]
    expected = dict(reference.model.named_parameters())
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-4, atol=1e-6)


def test_without_its_weight_a_term_is_not_computed(registered):
    def fail(batch: Batch):
        raise AssertionError("this term is off")

    registered(Term("loss_off", "W_OFF", fail))
    assert "loss_off" not in wrapped(Host, config()).forward_backward(batches()[0])


def test_with_all_weights_zero_the_host_is_what_it_was_and_with_one_it_is_not(registered):
    registered(Term("loss_spread", "W_SPREAD", spread))
    cfg = config(0.0, 0.0)
    plain, ours = Host(cfg), wrapped(Host, cfg)
    other = config(0.0, 0.0)
    other.TRAINER.NPT.W_SPREAD = 0.5
    third = wrapped(Host, other)
    for batch in batches(3):
        plain.forward_backward(batch)
        ours.forward_backward(batch)
        third.forward_backward(batch)
    names = [name for name, _ in plain.model.named_parameters()]
    a, b, c = (dict(t.model.named_parameters()) for t in (plain, ours, third))
    assert all(torch.equal(a[name], b[name]) for name in names)
    assert not all(torch.equal(a[name], c[name]) for name in names)


def test_a_registered_weight_is_a_checked_key_of_every_config(registered):
    from dassl.config import get_cfg_default

    npt.put_in_place()
    for default in (0.5, 0.25):  # the second row replaces the first
        registered(Term("loss_spread", "W_SPREAD", spread, default=default))
        cfg = get_cfg_default()
        assert default == cfg.TRAINER.NPT.W_SPREAD
    cfg.merge_from_list(["TRAINER.NPT.W_SPREAD", -1])
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.W_SPREAD is -1"):
        cfg.freeze()


def test_rows_that_cannot_be(registered):
    with pytest.raises(NPTError, match=r"TRAINER\.NPT\.W1 is the weight of loss_lc"):
        registered(Term("loss_other", "W1", spread))
    with pytest.raises(NPTError, match='but it is of "image"'):
        Measure("m", "image", torch.sum)
    with pytest.raises(NPTError, match="first two to be logged"):
        Measure("m", "split", lambda split: split.text.sum(), logged=True)
    registered(Term("loss_shape", "W_SHAPE", lambda batch: batch.text.sum(-1), default=1.0))
    with pytest.raises(NPTError, match=r"loss_shape returned a tensor of shape \(5,\)"):
        evaluate(batch_of())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Measure("accuracy", "text", torch.sum), "'accuracy' of a measure is taken"),
        (lambda: Term("loss", "W_X", spread), "'loss' of a term is taken"),
        (lambda: Term("lcd", "W_X", spread), "of a term and of a measure"),
        (lambda: Measure("loss_lc", "text", torch.sum), "of a term and of a measure"),
        (lambda: Term("loss x", "W_X", spread), "'loss x' of a term is not a name"),
        (lambda: Term("", "W_X", spread), "is not a name"),
        (lambda: Term("x", "W.X", spread), "'W.X' of a weight of a term is not a name"),
        (lambda: Term("x", "E_W", spread), r"E_W is the weight of another setting already"),
        (lambda: Term("x", "BASE", spread), r"BASE is the weight of another setting already"),
        (lambda: Term("loss_lc", "W_NEW", spread), r"The weight of loss_lc is TRAINER\.NPT\.W1"),
        (lambda: Term("x", "W_X", spread, default=-1), "default weight of the term x is -1"),
        (lambda: Term("x", "W_X", spread, default="1"), "default weight of the term x is '1'"),
        (lambda: Term("x", "W_X", spread, heading="LCD"), '"LCD" is the heading of lcd_abs'),
        (lambda: spread, "takes a Term or a Measure"),
    ],
)
def test_rows_that_collide_with_others_are_refused(registered, make, words):
    with pytest.raises(NPTError, match=words):
        registered(make())
    assert KEYS["TRAINER.NPT.E_W"].default == 1.0


def test_a_whole_number_as_default_weight_makes_a_key_of_floats(registered):
    registered(Term("loss_spread", "W_SPREAD", spread, default=1))
    assert type(KEYS["TRAINER.NPT.W_SPREAD"].default) is float


def test_an_entry_that_the_trainer_reports_itself_is_refused(registered):
    registered(Term("acc", "W_ACC", spread, default=0.1))  # as Host does
    with pytest.raises(NPTError, match="reports acc itself: rename that term"):
        wrapped(Host, config()).forward_backward(batches()[0])


@pytest.mark.parametrize("returned", [1.0, None, torch.ones(2)])
def test_a_value_that_is_not_a_scalar_tensor_is_named(registered, returned):
    registered(Measure("m", "text", lambda text: returned, logged=True))
    with pytest.raises(NPTError, match="The measure m returned"):
        evaluate(batch_of())
    terms.MEASURES.pop("m")
    registered(Term("t", "W_T", lambda batch: returned, default=1.0))
    with pytest.raises(NPTError, match="The term t returned"):
        evaluate(batch_of())


@pytest.mark.parametrize("style", ["loss", "logits"])
def test_terms_that_are_not_finite_stop_the_training(registered, style):
    registered(Term("loss_nan", "W_NAN", lambda b: b.text.sum() * float("nan"), default=0.1))
    with pytest.raises(NPTError, match=r"not a number \(.*loss_nan nan"):
        wrapped(Host, config(), style).forward_backward(batches()[0])


def test_a_term_without_gradient_is_a_warning_once(registered):
    registered(Term("loss_fixed", "W_FIXED", lambda b: b.text.detach().mean(), default=0.1))
    trainer = wrapped(Host, config(0.0, 0.0))
    with pytest.warns(UserWarning, match="loss_fixed has a weight, but depends on nothing") as all_:
        for batch in batches(2):
            trainer.forward_backward(batch)
    assert len(all_) == 1


def given(model, batch):
    return npt.Features(batch["image"], batch["text"])


def test_a_measure_that_fails_leaves_the_others(registered):
    from npt.measure import Recorder

    def fails(text):
        raise NPTError("m_bad cannot be computed here")

    registered(Measure("m_bad", "text", fails))
    recorder = Recorder(FeatureTap(torch.nn.Identity(), given), Run(None))
    for b in (batch_of(4), batch_of(2)):
        recorder.add(b.image @ b.text.T, b.labels, {"image": b.image, "text": b.text})
    found = recorder.results()
    assert found["m_bad"] is None and "m_bad cannot" in recorder.failed["m_bad"]
    assert all(found[name] is not None for name in ("lcd", "mid", "nc1"))


def test_measures_of_texts_batches_and_splits_from_outside(registered):
    from npt.measure import Recorder

    registered(Measure("m_text", "text", lambda t: language_collapse_degree(t).signed * 2))
    registered(Measure("m_batch", "batch", lambda b: b.labels.double().mean(), logged=True))
    registered(Measure("m_split", "split", lambda s: s.labels.double().mean()))

    first, second = batch_of(4), batch_of(2)
    recorder = Recorder(FeatureTap(torch.nn.Identity(), given), Run(None))
    for b in (first, second):
        logits = b.image @ b.text.T
        recorder.add(logits, b.labels, {"image": b.image, "text": b.text})
    found = recorder.results()
    labels = torch.cat([first.labels, second.labels]).double().mean().item()
    assert found["m_batch"] == pytest.approx(labels) and found["m_split"] == pytest.approx(labels)
    assert found["m_text"] == pytest.approx(2 * found["lcd"], abs=1e-6)
    assert "m_batch" in evaluate(first).values


def test_what_a_run_knows(registered):
    seen = SimpleNamespace(calls=0)

    def encode():
        seen.calls += 1
        return torch.eye(K, 8)

    def uses(batch: Batch):
        assert batch.run.class_counts.tolist() == [3, 1, 1, 1, 1]
        assert float(batch.run.logit_scale) == pytest.approx(100)
        return (batch.text - batch.run.frozen_text).abs().sum(-1).mean()

    registered(Term("loss_frozen", "W_FROZEN", uses, default=0.1))
    model = SimpleNamespace(logit_scale=torch.tensor(100.0).log())
    known = {"class_counts": torch.tensor([3, 1, 1, 1, 1]), "model": model}
    batch = batch_of(**known, encode_frozen=encode)
    assert evaluate(batch).values["loss_frozen"] > 0
    evaluate(batch)
    assert seen.calls == 1  # computed once, and only because the term asked
    with pytest.raises(NPTError, match="no frozen text features"):
        evaluate(batch_of(**known))


def test_frozen_text_is_computed_once_and_changes_no_training(registered):
    """For a plain trainer, too, by a measure; with autocast on and inside inference mode."""
    from trainer_kit import build
    from trainer_kit import config as full_config

    def drift(batch: Batch):
        return (batch.text - batch.run.frozen_text).norm()

    def train(measured: bool):
        if measured:
            registered(Measure("drift", "batch", drift, logged=True))
        torch.manual_seed(3)
        trainer = build(full_config("MaPLe", "tiny"), ["a", "b", "c"])
        if measured:
            before = torch.get_rng_state()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                text = trainer.knowledge().frozen_text
            assert torch.equal(before, torch.get_rng_state())
            assert text.dtype == torch.float32 and not text.is_inference()
            assert trainer.knowledge().frozen_text is text
            assert trainer.knowledge().class_counts.sum() > 0
        trainer.num_batches, trainer.batch_idx = 2, 0
        trainer.set_model_mode("train")
        for batch in trainer.train_loader_x:
            trainer.forward_backward(batch)
        return trainer.measure("test"), trainer.model.prompt_learner.state_dict()

    (_, plain), (found, measured) = train(False), train(True)
    assert found["drift"] is not None
    assert all(torch.equal(plain[key], measured[key]) for key in plain)


# --------------------------------------------------------------------------- from a user's file
MINE = """
import sys
import torch
import npt
from npt.terms import Measure, Term


def frozen(batch):
    text = torch.nn.functional.normalize(batch.text, dim=-1)
    assert len(batch.run.class_counts) == text.shape[-2] and batch.run.logit_scale > 1
    return (text - batch.run.frozen_text).abs().sum(-1).mean()


npt.terms.register(Term("loss_frozen", "W_FROZEN", frozen, symbol="L_F", heading="frozen"))
npt.terms.register(
    Measure("length", "text", lambda x: x.norm(dim=-1).mean(), logged=True, heading="length")
)

if __name__ == "__main__":
    from npt.experiments.__main__ import main

    sys.exit(main())
"""
EXPERIMENT = """
trainers: {MaPLeNPT: {config: configs/trainers/MaPLe/tiny.yaml}}
datasets: [mini_flowers]
shots: 1
opts: {OPTIM.MAX_EPOCH: 2, DATALOADER.NUM_WORKERS: 0, TRAINER.NPT.W_FROZEN: 0.1}
"""


@pytest.mark.slow
def test_a_users_file_adds_both_and_they_are_in_log_result_gradients_and_table(python, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    out = tmp_path / "out"
    done = python(tmp_path / "mine.py", "run", tmp_path / "mine.yaml", "--out", out, "--jobs", 1)
    assert done.returncode == 0, done.stderr
    (base,) = out.rglob("base/result.json")
    result = json.loads(base.read_text())
    assert result["headings"].items() >= {"loss_frozen": "frozen", "length": "length"}.items()
    assert result["training"]["loss_frozen"] > 0 and result["training"]["loss_lc"] > 0
    assert result["results"]["test"]["length"] > 0
    log = (base.parent / "log.txt").read_text()
    lines = [line for line in log.splitlines() if line.startswith("epoch [2/2]")]
    assert lines and all("loss_frozen" in line and "length" in line for line in lines)
    assert f"* length: {result['results']['test']['length']:.4f}" in log
    plain = python("-m", "npt.experiments", "table", out)  # without the user's file
    heads = next(x.split() for x in plain.stdout.splitlines() if x.split()[:1] == ["base"])
    assert heads == ["base", "new", "harmonic", "mean", "LCD", "MID", "length", "frozen"]
    assert f"{result['training']['loss_frozen']:.4f}" in plain.stdout
    flags = ["--trainer", "MaPLeNPT", "--config-file", "configs/trainers/MaPLe/tiny.yaml"]
    flags += ["--dataset-config-file", "configs/datasets/mini_flowers.yaml"]
    flags += ["DATASET.NUM_SHOTS", 1, "TRAINER.NPT.W_FROZEN", 0.1, "DATALOADER.NUM_WORKERS", 0]
    table = python(tmp_path / "mine.py", "gradients", "--batches", 1, *flags)
    assert "w_frozen L_F" in table.stdout and "w1 L_LC" in table.stdout, table.stderr
