"""Measures of collapse during a test, for any Dassl trainer.

`Measured` is a mixin for trainers; `Recorder` computes the measures batch by batch.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npt import engine, identity, results
from npt.errors import NPTError, OtherRun
from npt.host.features import Adapter, FeatureTap, unwrap
from npt.losses import unit_rows
from npt.results import Results
from npt.terms import ACCURACIES, MEASURES, Batch, Measure, Run, Split, measures_of

if TYPE_CHECKING:
    from dassl.engine import TrainerX
else:
    TrainerX = object  # mixed into the trainers of whichever engine there is


class Recorder:
    """Collects the logits and features of a split, batch by batch, and computes its measures."""

    def __init__(self, tap: FeatureTap | None, run: Run, train_counts: Sequence[int] | None = None):
        self.run, self.train_counts = run, train_counts
        self.why_not = ""  # why features cannot be read, once a batch has shown it
        self.failed: dict[str, str] = {}  # why single measures cannot be computed
        self._labels: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._images: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}  # sums over images, of measures of texts and batches
        self._text_sum: Tensor | float = 0.0  # (K, D) sum over images of unit text features
        self._of_last_text: tuple[Tensor, dict[str, Tensor]] | None = None  # texts, measures
        self._num_classes = 0
        self._tap = tap

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the model's features inside a `with` block, for the next `add`."""
        if self._tap is None:
            yield
        else:
            with self._tap:
                yield

    @torch.no_grad()
    def add(self, output: Tensor, labels: Tensor, batch: dict[str, Any] | None = None) -> None:
        """Add a batch: logits (B, K), labels (B,), and the features of its forward pass."""
        self._labels.append(labels.cpu())
        self._predictions.append(output.max(1)[1].cpu())
        self._num_classes = output.shape[1]
        if self._tap is None or self.why_not:
            return
        try:
            image, text = self._tap.take(batch, self._num_classes)
            self._add_features(Batch(image, text, labels, self.run))
        except NPTError as error:
            self.why_not = str(error)

    def _add_features(self, batch: Batch) -> None:
        unit_text = unit_rows(batch.text).double()  # (K, D) or (B, K, D)
        images = len(batch.image)
        if batch.text.dim() == 3:
            of_texts = self._computed("text", lambda m: _summed_over_images(m, batch.text))
            self._text_sum = self._text_sum + unit_text.sum(0)
        else:
            of_texts = {k: x * images for k, x in self._shared_text(batch.text).items()}
            self._text_sum = self._text_sum + unit_text * images
        of_batch = self._computed("batch", lambda m: m.value(batch).double() * images)
        for name, value in {**of_texts, **of_batch}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._images.append(unit_rows(batch.image).cpu())

    def _computed(self, kind: str, value: Callable[[Measure], Tensor]) -> dict[str, Tensor]:
        """The measures of a kind by name, without those that have failed."""
        found = {}
        for measure in measures_of(kind):
            if measure.name not in self.failed:
                try:
                    found[measure.name] = value(measure)
                except NPTError as error:
                    self.failed[measure.name] = str(error)
                    self._sums.pop(measure.name, None)
        return found

    def _shared_text(self, text: Tensor) -> dict[str, Tensor]:
        """The measures of texts (K, D) that all images share, computed again when they change."""
        last = self._of_last_text
        if last is None or not (last[0] is text or torch.equal(last[0], text)):
            last = (text, self._computed("text", lambda m: m.value(text).double()))
            self._of_last_text = last
        return last[1]

    def split(self) -> Split:
        """The features of all images added so far. NPTError if they could not be read."""
        if self.why_not or not isinstance(self._text_sum, Tensor):
            raise NPTError(self.why_not or "No batch was run, so there are no features.")
        device = self._text_sum.device
        images, labels = torch.cat(self._images), torch.cat(self._labels)
        classifier = self._text_sum / len(images)
        text = unit_rows(classifier).float()
        return Split(images.to(device), text, labels.to(device), classifier)

    def results(self) -> Results:
        """Every accuracy and measure by name; None if it could not be computed."""
        out: Results = dict.fromkeys([*ACCURACIES, *MEASURES])
        if not self._labels:
            return out
        out.update(self._accuracies())
        if self._images and not self.why_not:
            images = sum(map(len, self._images))
            out.update({name: float(x) / images for name, x in self._sums.items()})
            try:
                split = self.split()
                of_split = self._computed("split", lambda m: m.value(split))
                out.update({name: float(x) for name, x in of_split.items()})
            except NPTError as error:
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


def _summed_over_images(measure: Measure, text: Tensor) -> Tensor:
    """A measure of (B, K, D) texts, image by image: the K x K cosines of a batch are large."""
    return torch.stack([measure.value(x) for x in text]).double().sum()


def shot_groups(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Labels of the classes with many, medium and few training images.

    With n the largest count, a class of n_k images is "few" for n_k <= n^(1/3), "medium" for
    n_k <= n^(2/3), else "many"; compared in exact integers.
    """
    n = max(train_counts)
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(train_counts):
        name = "few" if count**3 <= n else "medium" if count**3 <= n**2 else "many"
        groups[name].append(label)
    return groups


# The line before the last test: parsers of the CoOp family look for the one or the other.
END_OF_TRAINING = ("Finish training", "Finished training")


def end_lines_missing(trainer: type) -> list[str]:
    """The lines of END_OF_TRAINING that no `after_train` of the trainer's classes prints."""
    methods = (vars(cls).get("after_train") for cls in trainer.__mro__)
    codes = (getattr(method, "__code__", None) for method in methods)
    printed = {text for code in codes if code is not None for text in code.co_consts}
    return [line for line in END_OF_TRAINING if line not in printed]


class Measured(TrainerX):
    """A mixin for Dassl trainers: tests also compute measures of collapse and write result.json.

    `results` has the figures of each split tested so far. Features are recorded by forward hooks
    on the model's encoders, predictions where they reach the evaluator. Private names begin with
    `_measure`, to avoid those of the trainer classes it is combined with.
    """

    features_adapter: Adapter | None = None  # for models whose encoders do not give the features

    def __init__(self, *args: Any, **kwargs: Any):
        self.results: dict[str, Results] = {}
        self.train_counts: list[int] | None = None  # images of each class that were trained on
        self._measure_trains = False  # whether this process trains or resumes
        self._measure_finished = False  # whether the training has ended
        self._measure_train_seconds: float | None = None
        self._measure_seconds_before = 0.0  # of training, in earlier processes
        self._measure_test_seconds = 0.0
        self._measure_earlier: dict[str, Any] | None = None  # the record before this process
        self._measure_wrote = False  # whether this trainer has written a record
        self._measure_digest: str | None = None  # of the data
        self._measure_model: Any = None  # the model that was loaded: folder, epoch, time
        self._measure_knowledge: Run | None = None  # of the current model
        results.reset_peak_memory()
        super().__init__(*args, **kwargs)

    # ---- the engine's life cycle

    def before_train(self) -> None:
        self._measure_check_folder()
        super().before_train()
        self.train_counts = self.count_training_images()
        self._measure_trains = True
        going_on = self.start_epoch > 0 or getattr(self, "first_batch", 0) > 0
        self._measure_finished = 0 < self.max_epoch <= self.start_epoch
        self._measure_earlier = results.readable(self._measure_folder) if going_on else {}
        self._measure_test_seconds = 0.0
        self._measure_start = time.perf_counter()
        self.write_result()  # so that the folder says from now on which run it has

    def after_train(self) -> None:
        self._measure_train_seconds = self._measure_seconds()
        self._measure_finished = True
        best = self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST
        if best:  # the figures of the last epoch, which is not the model that is kept
            self.results.pop("val", None)
            (self._measure_earlier or {}).get("results", {}).pop("val", None)
        self.write_result()
        for line in end_lines_missing(type(self)):  # of an installed Dassl
            print(line)
        super().after_train()
        if best and self.val_loader is not None:
            self.measure("val", store_as="val")
        self.write_result()

    def _measure_seconds(self) -> float:
        """The time spent on training so far, in all processes of this run, without tests."""
        here = time.perf_counter() - self._measure_start - self._measure_test_seconds
        return self._measure_seconds_before + here

    def progress_state(self) -> dict[str, Any]:
        """What a checkpoint of the embedded engine keeps for a run that goes on."""
        return {**super().progress_state(), "seconds": self._measure_seconds()}

    def load_progress_state(self, state: dict[str, Any]) -> None:
        super().load_progress_state(state)
        self._measure_seconds_before = float(state.get("seconds", 0.0))

    @property
    def _measure_folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    def _measure_check_folder(self) -> None:
        """OtherRun if the output folder is another run's; on an installed Dassl only a warning."""
        if self._measure_wrote:
            return  # the record there is this trainer's
        try:
            results.check_folder(self._measure_folder, self.cfg, self._measure_data())
        except OtherRun as error:
            if engine.describe().name == "embedded":
                raise
            warnings.warn(f"{error}. {type(self).__name__} writes there all the same", stacklevel=3)

    def _measure_data(self) -> str | None:
        """The checksum of the data set's lists; None if the trainer has none."""
        if self._measure_digest is None and hasattr(self, "dm"):
            self._measure_digest = identity.data_digest(self.dm.dataset, self.cfg)
        return self._measure_digest

    def _measure_loaded(self, directory: Any, epoch: int | None) -> None:
        """Note which model is loaded. Subclasses call it in `load_model`."""
        if not directory or not isinstance(directory, (str, os.PathLike)):
            return  # nothing was loaded, or in a host's own way
        models = Path(directory).glob("*/model*")
        if epoch is None and results.readable(Path(directory)).get("finished") is False:
            warnings.warn(
                f"The training in {directory} has not ended: the figures of this test are those of "
                "a model on the way. Run its command again first, or name --load-epoch",
                stacklevel=3,
            )
        self._measure_model = {
            "folder": os.path.abspath(directory),
            "epoch": epoch,
            "modified": max((path.stat().st_mtime_ns for path in models), default=None),
        }

    def test(self, split: str | None = None) -> float:
        name = self._measure_split(split)
        start = time.perf_counter()
        with self._measure_recording() as recorder:
            value = super().test(split)
        seconds = time.perf_counter() - start
        self._measure_test_seconds += seconds
        self._measure_report(recorder, name, seconds)
        return value

    def count_training_images(self) -> list[int]:
        """Images of each class in this process's training data."""
        counts = Counter(item.label for item in self.dm.dataset.train_x)
        return [counts[label] for label in range(self.num_classes)]

    # ---- measuring without the engine's test

    def measure(self, split: str | None = None, store_as: str = "") -> Results:
        """Compute the figures of a split, without the engine's own test and its output.

        With `store_as` they are also stored under that name in `results` and result.json, for
        example `measure("test", store_as="before")` before `train()`.
        """
        start = time.perf_counter()
        recorder = self._measure_run(split)
        if store_as:
            return self._measure_report(recorder, store_as, time.perf_counter() - start, show=False)
        return recorder.results()

    def collect(self, split: str | None = None) -> Split:
        """The image and text features and the labels of a split."""
        return self._measure_run(split).split()

    @torch.no_grad()
    def _measure_run(self, split: str | None) -> Recorder:
        recorder = self._measure_recorder()
        name = self._measure_split(split)
        loader = self.val_loader if name == "val" else self.test_loader
        assert loader is not None
        self.set_model_mode("eval")
        # A loader draws a seed from the global random state, which training must find unchanged.
        with torch.random.fork_rng(devices=[]), recorder.recording():
            for batch in loader:
                inputs, labels = self.parse_batch_test(batch)
                recorder.add(self.model_inference(inputs), labels, batch)
        return recorder

    def _measure_tap(self) -> FeatureTap:
        """The FeatureTap of the current model; it is kept, since it learns about that model."""
        model = getattr(self, "model", None)
        if not isinstance(model, nn.Module):
            raise NPTError(
                f"{type(self).__name__} has no module `model` to read features from; set "
                "self.model in the trainer's build_model."
            )
        tap = getattr(self, "_measure_tap_of_model", None)
        if tap is None or tap.model is not model:
            tap = self._measure_tap_of_model = FeatureTap(model, self.features_adapter)
        return tap

    def _measure_recorder(self) -> Recorder:
        run = self.knowledge()
        try:
            return Recorder(self._measure_tap(), run, self.train_counts)
        except NPTError as error:
            recorder = Recorder(None, run, self.train_counts)
            recorder.why_not = str(error)
            return recorder

    def knowledge(self) -> Run:
        """What terms and measures may use in addition to the features of a batch."""
        model = getattr(self, "model", None)
        if isinstance(model, nn.Module):
            model = unwrap(model)
        if self._measure_knowledge is None or self._measure_knowledge.model is not model:
            parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
            device = next((p.device for p in parameters), torch.device("cpu"))
            counts = self.count_training_images() if hasattr(self, "dm") else None
            self._measure_knowledge = Run(
                self.cfg.TRAINER.get("NPT"),
                model,
                None if counts is None else torch.tensor(counts, device=device),
                lambda: self._frozen_text(device),
            )
        return self._measure_knowledge

    def _frozen_text(self, device: torch.device) -> Tensor:
        from npt.trainers.zsclip import frozen_text_features

        return frozen_text_features(self.cfg.MODEL.BACKBONE.NAME, self.dm.dataset, device)

    @contextmanager
    def _measure_recording(self) -> Iterator[Recorder]:
        """Record every batch inside a `with` block, at `evaluator.process`.

        All tests pass their batches there, whichever other methods a host overrides.
        """
        recorder = self._measure_recorder()
        evaluator = self.evaluator
        last: dict[str, Any] = {}  # the batch that was parsed last
        process, parse = evaluator.process, self.parse_batch_test

        def parsed(batch: dict[str, Any]) -> Any:
            last.update(batch)
            return parse(batch)

        def observed(output: Any, labels: Tensor) -> Any:
            value = process(output, labels)
            recorder.add(output, labels, last)
            return value

        # Instance attributes hide the methods until they are deleted again.
        evaluator.process, self.__dict__["parse_batch_test"] = observed, parsed
        try:
            with recorder.recording():
                yield recorder
        finally:
            del evaluator.process, self.parse_batch_test

    def _measure_split(self, split: str | None) -> str:
        """As in the engine: "val" if it is asked for and there are such images, else "test"."""
        wanted = split or self.cfg.TEST.SPLIT
        return "val" if wanted == "val" and self.val_loader is not None else "test"

    # ---- reporting

    def _measure_report(
        self, recorder: Recorder, name: str, seconds: float, show: bool = True
    ) -> Results:
        figures = {**recorder.results(), "seconds": seconds}
        self.results[name] = figures
        if show:
            results.print_results(figures)
            for problem in filter(None, (recorder.why_not, *recorder.failed.values())):
                print(f"Some measures could not be computed: {problem}")
        self.write_result()
        return figures

    def training_figures(self) -> Results:
        """Means over the last epoch trained, by name. For subclasses."""
        return {}

    def write_result(self) -> None:
        """Write the record of the training, or of this evaluation, into OUTPUT_DIR.

        Figures that earlier processes of the same run have written are kept. See
        `results.place_of_evaluation` for the name of the file.
        """
        record: dict[str, Any] = {
            "task": results.TRAINING if self._measure_trains else results.EVALUATION,
            **results.describe(self.cfg, list(self.dm.dataset.classnames)),
            "data": self._measure_data(),
            "train_counts": self.train_counts,
        }
        path = self._measure_folder / results.RESULT
        if self._measure_trains:
            record["finished"] = self._measure_finished
            record["train_seconds"] = self._measure_train_seconds
        else:
            record["model"] = self._measure_model
            path, self._measure_earlier = results.place_of_evaluation(self._measure_folder, record)
        earlier = self._measure_earlier or {}
        record["training"] = self.training_figures() or earlier.get("training", {})
        record.update(results.peak_memory())
        record["results"] = {**earlier.get("results", {}), **self.results}
        results.write(path, record)
        self._measure_wrote = True
