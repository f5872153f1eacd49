"""What a test says beside accuracy, for any Dassl trainer, and the run's `result.json`."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from npt.errors import NPTError
from npt.features import Adapter, FeatureTap
from npt.geometry import (
    language_collapse_degree,
    multimodal_isomorphism_degree,
    neural_collapse_metrics,
)
from npt.losses import unit_rows

Results = dict[str, float | None]
ACCURACIES = ("accuracy", "error_rate", "macro_f1", "class_mean_accuracy", "many", "medium", "few")
COLLAPSE = ("lcd", "lcd_abs", "mid", "mid_abs", "nc1", "nc2", "nc3")


class Collected(NamedTuple):
    """The features of a whole split, of length one, on the CPU."""

    image: Tensor  # (N, D)
    text: Tensor  # (K, D), the mean over images where each image has its own texts
    labels: Tensor  # (N,)


class Recorder:
    """Gathers, batch by batch, what the measures of a split need."""

    def __init__(self, tap: FeatureTap | None, train_counts: Sequence[int] | None = None):
        self.train_counts = train_counts
        self.why_not = ""  # why there are no features, once that is known
        self._labels: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._images: list[Tensor] = []
        self._degrees: Tensor | float = 0.0  # (4,) sums over images: lcd, lcd_abs, mid, mid_abs
        self._text_sum: Tensor | float = 0.0  # (K, D) sum over images of unit text features
        self._last_text: tuple[Tensor, Tensor] | None = None  # shared texts, and their degrees
        self._num_classes = 0
        self._tap = tap

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While entered, the model's features are heard for the next `add`."""
        if self._tap is None:
            yield
        else:
            with self._tap:
                yield

    @torch.no_grad()
    def add(self, output: Tensor, labels: Tensor, batch: dict[str, Any] | None = None) -> None:
        """Logits (B, K) and labels (B,) of a batch, and the features heard while it was run."""
        self._labels.append(labels.cpu())
        self._predictions.append(output.max(1)[1].cpu())
        self._num_classes = output.shape[1]
        if self._tap is None or self.why_not:
            return
        try:
            self._add_features(*self._tap.take(batch, self._num_classes), labels)
        except (NPTError, ValueError) as error:
            self.why_not = str(error)

    def _add_features(self, image: Tensor, text: Tensor, labels: Tensor) -> None:
        mid = multimodal_isomorphism_degree(image, text, labels)
        if text.dim() == 3:  # image by image: the K x K cosines of a batch may be large
            each = [torch.stack(language_collapse_degree(own)) for own in text]
            lcd = torch.stack(each).double().sum(0)
            self._text_sum = self._text_sum + unit_rows(text).double().sum(0)
        else:
            lcd = self._shared_degrees(text) * len(image)
            self._text_sum = self._text_sum + unit_rows(text).double() * len(image)
        degrees = torch.cat([lcd, torch.stack(mid).double() * len(image)])
        self._degrees = self._degrees + degrees
        self._images.append(unit_rows(image).cpu())

    def _shared_degrees(self, text: Tensor) -> Tensor:
        """LCD of texts that all images share: taken once, while they stay what they are."""
        last = self._last_text
        if last is None or not (last[0] is text or torch.equal(last[0], text)):
            last = (text, torch.stack(language_collapse_degree(text)).double())
            self._last_text = last
        return last[1]

    def collected(self) -> Collected:
        """The features of the split; NPTError where they could not be read."""
        if self.why_not or not self._images:
            raise NPTError(self.why_not or "No batch was run, so there are no features.")
        text = self._text_sum / sum(map(len, self._images))
        return Collected(
            torch.cat(self._images), unit_rows(text.cpu()).float(), torch.cat(self._labels)
        )

    def results(self) -> Results:
        """Every measure by name; None where it could not be taken."""
        out: Results = dict.fromkeys(ACCURACIES + COLLAPSE)
        if not self._labels:
            return out
        out.update(self._accuracies())
        if self._images and not self.why_not:
            degrees = (self._degrees / sum(map(len, self._images))).tolist()
            out.update(zip(COLLAPSE[:4], degrees, strict=True))
            try:
                device = self._text_sum.device
                image, _, labels = self.collected()
                classifier = self._text_sum / len(image)
                nc = neural_collapse_metrics(image.to(device), labels.to(device), classifier)
                out.update(zip(COLLAPSE[4:], map(float, nc), strict=True))
            except ValueError as error:
                self.why_not = str(error)
        return {k: v if v is not None and math.isfinite(v) else None for k, v in out.items()}

    def _accuracies(self) -> Results:
        labels, predictions = torch.cat(self._labels), torch.cat(self._predictions)
        size = max(self._num_classes, int(labels.max()) + 1)

        def count(values: Tensor) -> Tensor:
            return torch.bincount(values, minlength=size).double()

        hits = count(labels[labels == predictions])
        total, guessed = count(labels), count(predictions)
        seen = total > 0
        recall = 100 * hits / total  # NaN where a class has no images
        accuracy = 100 * float(hits.sum() / total.sum())
        out: Results = {
            "accuracy": accuracy,
            "error_rate": 100 - accuracy,
            "macro_f1": 100 * float((2 * hits / (total + guessed))[seen].mean()),
            "class_mean_accuracy": float(recall[seen].mean()),
        }
        if self.train_counts is not None:
            for name, classes in shot_groups(self.train_counts).items():
                inside = [k for k in classes if k < size and seen[k]]
                out[name] = float(recall[inside].mean()) if inside else None
        return out


def shot_groups(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Classes with many, medium and few training images, cut at geometric thirds of the largest.

    With n the largest count: few is n_k <= n^(1/3), medium n_k <= n^(2/3), in exact integers.
    """
    n = max(train_counts)
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(train_counts):
        name = "few" if count**3 <= n else "medium" if count**3 <= n**2 else "many"
        groups[name].append(label)
    return groups


class Measured:
    """Put before a Dassl trainer class: its tests measure collapse too, and leave `result.json`.

    `results` holds the measures of each split tested so far. The features come from the model's
    own forward passes, by hooks on its encoders; the predictions from what the evaluator is given.
    Private names begin with `_measure`, so as not to meet those of the trainers it is mixed into.
    """

    features_adapter: Adapter | None = None  # where the model's encoders do not give its features

    def __init__(self, *args: Any, **kwargs: Any):
        self.results: dict[str, Results] = {}
        self.train_counts: list[int] | None = None  # of each class, once they are known
        self._measure_trains = False  # whether this process trains or resumes
        self._measure_train_seconds: float | None = None
        self._measure_test_seconds = 0.0
        # What result.json held before this process; None until it has been looked at.
        self._measure_earlier: dict[str, Any] | None = None
        reset_peak_memory()
        super().__init__(*args, **kwargs)

    # ---- the engine's life cycle

    def before_train(self) -> None:
        super().before_train()
        counts = Counter(item.label for item in self.dm.dataset.train_x)
        self.train_counts = [counts[label] for label in range(self.num_classes)]
        self._measure_trains = True
        if self.start_epoch == 0:  # a new training: an earlier one's results are not its own
            self._measure_earlier = {}
        self._measure_test_seconds = 0.0
        self._measure_start = time.perf_counter()

    def after_train(self) -> None:
        elapsed = time.perf_counter() - self._measure_start
        self._measure_train_seconds = elapsed - self._measure_test_seconds
        super().after_train()
        self.write_result()

    def test(self, split: str | None = None) -> float:
        name = self._measure_split(split)
        start = time.perf_counter()
        with self._measure_listen() as recorder:
            value = super().test(split)
        seconds = time.perf_counter() - start
        self._measure_test_seconds += seconds
        self._measure_report(recorder, name, seconds)
        return value

    # ---- measuring without the engine's test

    def measure(self, split: str | None = None, store_as: str = "") -> Results:
        """The measures of a split, trained or not, without the engine's own result block.

        With `store_as` they are also kept under that name in `results` and `result.json`: for
        example `measure("test", store_as="before")` ahead of `train()`.
        """
        start = time.perf_counter()
        recorder = self._measure_run(split)
        if store_as:
            return self._measure_report(recorder, store_as, time.perf_counter() - start, show=False)
        return recorder.results()

    def collect(self, split: str | None = None) -> Collected:
        """Unit image and text features and labels of a split, to draw or to analyse."""
        return self._measure_run(split).collected()

    @torch.no_grad()
    def _measure_run(self, split: str | None) -> Recorder:
        recorder = self._measure_recorder()
        name = self._measure_split(split)
        loader = self.val_loader if name == "val" else self.test_loader
        self.set_model_mode("eval")
        # A loader draws a seed from the global state, which training must not miss afterwards.
        with torch.random.fork_rng(devices=[]), recorder.listening():
            for batch in loader:
                inputs, labels = self.parse_batch_test(batch)
                recorder.add(self.model_inference(inputs), labels, batch)
        return recorder

    def _measure_tap(self) -> FeatureTap:
        """One for the model there is now, as it comes to know what texts that model has."""
        model = getattr(self, "model", None)
        if not isinstance(model, nn.Module):
            raise NPTError(
                f"{type(self).__name__} has no module `model` whose features NPT could read; set "
                "self.model in the trainer's build_model."
            )
        tap = getattr(self, "_measure_tap_of_model", None)
        if tap is None or tap.model is not model:
            tap = self._measure_tap_of_model = FeatureTap(model, self.features_adapter)
        return tap

    def _measure_recorder(self) -> Recorder:
        try:
            return Recorder(self._measure_tap(), self.train_counts)
        except NPTError as error:
            recorder = Recorder(None, self.train_counts)
            recorder.why_not = str(error)
            return recorder

    @contextmanager
    def _measure_listen(self) -> Iterator[Recorder]:
        """Listens in on the evaluator, which sees every batch whatever a host has overridden."""
        recorder = self._measure_recorder()
        evaluator, last = self.evaluator, {}
        process, parse = evaluator.process, self.parse_batch_test

        def parsed(batch: dict[str, Any]) -> Any:
            last.update(batch)
            return parse(batch)

        def observed(output: Any, labels: Tensor) -> Any:
            value = process(output, labels)
            recorder.add(output, labels, last)
            return value

        evaluator.process, self.parse_batch_test = observed, parsed
        try:
            with recorder.listening():
                yield recorder
        finally:
            del evaluator.process, self.parse_batch_test

    def _measure_split(self, split: str | None) -> str:
        """As the engine has it: anything but a validation set that exists means the test set."""
        wanted = split or self.cfg.TEST.SPLIT
        return "val" if wanted == "val" and self.val_loader is not None else "test"

    # ---- reporting

    def _measure_report(
        self, recorder: Recorder, name: str, seconds: float, show: bool = True
    ) -> Results:
        results = {**recorder.results(), "seconds": seconds}
        self.results[name] = results
        if show:
            print_results(results)
            if recorder.why_not:
                print(f"Some measures could not be taken: {recorder.why_not}")
        self.write_result()
        return results

    def write_result(self) -> None:
        """Write OUTPUT_DIR/result.json, keeping what earlier processes of this run put there."""
        path = Path(self.cfg.OUTPUT_DIR) / "result.json"
        record: dict[str, Any] = {
            "trainer": self.cfg.TRAINER.NAME,
            "dataset": self.cfg.DATASET.NAME,
            "seed": self.cfg.SEED,
            "config": _plain(self.cfg),
            "versions": versions(),
            "classnames": list(self.dm.dataset.classnames),
            "train_counts": self.train_counts,
            "train_seconds": self._measure_train_seconds,
            **peak_memory(),
        }
        if self._measure_earlier is None:
            self._measure_earlier = _read_same_run(path, record)
        earlier = self._measure_earlier
        if not self._measure_trains:  # only tested here: what training left stays
            for key in ("train_counts", "train_seconds", *peak_memory()):
                record[key] = earlier.get(key, record[key])
        elif self._measure_train_seconds is not None:  # a resumed run counts all its sittings
            record["train_seconds"] += earlier.get("train_seconds") or 0.0
        record["results"] = {**earlier.get("results", {}), **self.results}
        write_json_atomically(path, record)


def print_results(results: Results) -> None:
    """The lines that follow the engine's own result block."""

    def percent(name: str) -> str:
        return "-" if results[name] is None else f"{results[name]:.1f}%"

    def figure(name: str) -> str:
        return "-" if results[name] is None else f"{results[name]:.4f}"

    print(f"* class-mean accuracy: {percent('class_mean_accuracy')}")
    print(f"* many/medium/few accuracy: {' / '.join(map(percent, ('many', 'medium', 'few')))}")
    for name in ("lcd", "mid"):
        print(f"* {name}: {figure(name)} (absolute {figure(name + '_abs')})")
    print(f"* nc1: {figure('nc1')} nc2: {figure('nc2')} nc3: {figure('nc3')}")


def versions() -> dict[str, str]:
    """What a result depends on."""
    import npt
    from npt import engine

    found = engine.describe()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "clip": _clip_version(),
        "npt": npt.__version__,
        "engine": f"{found.name} {found.version}",
    }


def _clip_version() -> str:
    for name in ("clip", "clip-anytorch", "openai-clip"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def reset_peak_memory() -> None:
    """Let the peaks of `peak_memory` count from now, where the system can (Linux; CUDA)."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process, and what torch allocated at most on the GPU, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        host = None
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    return {"peak_memory_bytes": host, "peak_gpu_memory_bytes": gpu}


def write_json_atomically(path: Path, record: dict[str, Any]) -> None:
    """A reader, or a crash, meets the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_same_run(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What `path` holds, if it tells of the same run, whatever was tested; else nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = ("trainer", "dataset", "seed", "classnames")
    if not isinstance(found, dict) or any(found.get(key) != record[key] for key in same):
        return {}
    old, new = ({**x.get("config", {}), "TEST": None} for x in (found, record))
    return found if old == json.loads(json.dumps(new)) else {}


def _plain(node: Any) -> Any:
    """A config tree as JSON can hold it."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node
