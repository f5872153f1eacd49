"""Steps on a GPU, without one: what they launch, and that they do not wait for it.

The trainers take a step on the CPU, as an epoch's first, and are then moved to torch's device
"meta" (benchmarks/launches.py).
"""

import contextlib
import sys
import warnings
from pathlib import Path

import pytest
import torch
from clip_recipe import random_clip, random_prompts
from trainer_kit import NODES, build, config, random_batches

from npt.course import Course
from npt.encoders import TextEncoder, memory, text
from npt.encoders.packing import place_context
from npt.trainer import NPTMixin

NAMES = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("cat", "dog", "big ship")]
KINDS = [None, NPTMixin]
REMEDIES = (
    *("TRAINER.NPT.LOGIT_ADJUST", 1.0, "TRAINER.NPT.CLASS_WEIGHT", "balanced"),
    *("TRAINER.NPT.FOCAL_GAMMA", 2.0),
)


@pytest.fixture(scope="module")
def launches():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        import launches

        yield launches
    for name in ("launches", "step", "_checkout"):
        sys.modules.pop(name, None)


@pytest.fixture
def on_device(launches):
    """A function that builds a trainer which has taken a step, and moves it to "meta"."""

    def make(name, kind=None, *pairs, batches=2):
        cfg = config(name, "tiny", *pairs)
        loader = random_batches(len(NAMES), batches, 4)
        with contextlib.redirect_stdout(None):
            trainer = build(cfg, NAMES, loader, kind=kind)
        trainer.num_batches, trainer.batch_idx = 100, 0
        trainer.set_model_mode("train")
        trainer.forward_backward(batch())
        trainer._measure_course, trainer._measure_knowledge = Course(), None
        trainer.device = launches.META
        trainer.model.to(launches.META)
        learned = trainer.model.prompt_learner.parameters()
        trainer.optim = torch.optim.SGD(learned, 1e-3, momentum=0.9, foreach=True)
        trainer._optims = dict.fromkeys(trainer._optims, trainer.optim)
        trainer.forward_backward(batch())  # fills what is kept from step to step
        return trainer

    with launches.pretended(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features without values fit no logits
        yield make


def batch():
    return {"img": torch.randn(4, 3, 32, 32), "label": torch.tensor([0, 1, 2, 8])}


def of_step(launches, trainer):
    with launches.Operations() as seen:
        trainer.forward_backward(batch())
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NODES)
def test_neither_a_training_step_nor_a_batch_of_a_test_waits(on_device, launches, name, kind):
    trainer = on_device(name, kind)
    assert of_step(launches, trainer).waits == []
    trainer.set_model_mode("eval")
    recorder = trainer._measure_recorder()  # the engine's evaluator waits itself, as in Dassl
    with torch.no_grad(), recorder.recording():
        for first in (True, False):
            with launches.Operations() as seen:
                images, labels = trainer.parse_batch_test(batch())
                recorder.add(trainer.model_inference(images), labels, batch())
            if not first:  # the first one finds out where the features are
                assert seen.waits == []


@pytest.mark.parametrize("name, kind", [("CoOp", None), ("MaPLe", NPTMixin)])
def test_no_step_with_remedies_waits(on_device, launches, name, kind):
    assert of_step(launches, on_device(name, kind, *REMEDIES)).waits == []


@pytest.mark.parametrize("method, share", [("coop", 1), ("cocoop", 0.34), ("maple", 0.9)])
def test_a_step_launches_no_more_than_upstreams(launches, monkeypatch, method, share):
    """CoCoOp's encodes the texts of four images at once; for one image, see docs/gpu.md."""
    for name, value in {**launches.SMALL, "LAYERS": 12}.items():  # the number of layers counts
        monkeypatch.setattr(launches.step, name, value)
    case = (method, "train", 5, 4)
    plain, fast = (launches.count(case, kind, "fp32") for kind in ("plain", "fast"))
    assert fast <= share * plain


def test_terms_and_figures_launch_little(on_device, launches):
    """The terms of NPT, their gradient and what is logged: a tenth of a step of twelve layers."""
    plain, added = (of_step(launches, on_device("CoOp", kind)) for kind in KINDS)
    assert sum(added.launches.values()) - sum(plain.launches.values()) <= 110


def test_a_wait_is_seen(on_device, launches):
    trainer = on_device("CoOp")
    with launches.Operations() as seen:
        loss = trainer.forward_backward(batch())["loss"]
        assert loss.item() and bool(loss > 0) and loss.cpu() == 0
        torch.zeros(3).to(launches.META)
    assert [line.split()[0] for line in seen.waits] == [
        *("_local_scalar_dense", "_local_scalar_dense", "_to_copy", "_to_copy")
    ]
    assert all("test_launches.py" in line for line in seen.waits)


def test_an_epoch_is_read_where_it_is_printed(on_device, launches, capsys):
    trainer = on_device("CoOp", NPTMixin, "TRAIN.PRINT_FREQ", 3, batches=6)
    trainer.start_epoch, trainer.epoch, trainer.max_epoch = 0, 0, 2
    with launches.Operations() as seen:
        trainer.run_epoch()
    printed = [line for line in capsys.readouterr().out.splitlines() if "batch [" in line]
    assert len(printed) == 2 and len(seen.waits) == 2
    assert all("_read_steps" in line for line in seen.waits)


def test_texts_of_unchanged_prompts_are_kept_without_comparing_them(launches):
    encoder = TextEncoder(random_clip(0), place_context(random_prompts(1, [1, 2, 3], 2), 2))
    encoder.to(launches.META)
    ctx = torch.nn.Parameter(torch.empty(2, 64, device=launches.META))
    with launches.pretended(), torch.no_grad():
        encoder(ctx)
        with launches.Operations() as again:
            encoder(ctx)
        assert again.waits == [] and dict(again.launches) == {"clone": 1}
        ctx.grad = torch.zeros_like(ctx)
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1).step()
        with launches.Operations() as after_a_step:  # some optimizers change `.data`
            encoder(ctx)
        ctx.mul_(2)
        with launches.Operations() as changed:
            encoder(ctx)
    for seen in (after_a_step, changed):
        assert [line.split()[0] for line in seen.waits] == ["equal"]


def test_as_many_images_in_a_pass_as_a_quarter_of_the_memory_holds(launches, monkeypatch):
    encoder = TextEncoder(random_clip(0), place_context(random_prompts(1, [2] * 50, 2), 2))
    encoder.to(launches.META)
    ctx = torch.empty(6, 1, 2, 64, device=launches.META)
    chunk = encoder.chunks[0]
    image = chunk.n_tokens * memory.pass_bytes(64, 4, chunk.keys_per_query)
    asked = []

    def free(device):
        asked.append(device)
        return 4 * 2.5 * image

    monkeypatch.setattr(text, "free_bytes", free)
    passes = []
    handle = chunk.register_forward_pre_hook(lambda module, args: passes.append(len(args[1][0])))
    with launches.pretended(), torch.no_grad():
        encoder(ctx)
        assert passes == [2, 2, 2] and asked == [launches.META]
        encoder(ctx[:1])
        assert asked == [launches.META]
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_made_once_with_rows_that_fused_attention_takes(dtype):
    encoder = TextEncoder(random_clip(0), place_context(random_prompts(1, [2] * 50, 2), 2))
    chunk = encoder.chunks[0]
    first = chunk._masks(3, dtype)
    assert all(x is y for x, y in zip(first, chunk._masks(3, dtype), strict=True))
    for made, mask in zip(first, (chunk.mask, chunk.read_mask), strict=True):
        assert made.stride(-2) % 8 == 0 and made.dtype == dtype
        assert torch.equal(made, mask.to(dtype).repeat(3, 1, 1, 1))
