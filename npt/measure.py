"""`Measured`, a mixin for any Dassl trainer: what a test measures, and the record of the run."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npt import bars, engine, identity, results, tracking
from npt.backbones.openai import openai_clip
from npt.calibration import Scaling
from npt.class_names import check_names, warn_of_one_prompt
from npt.course import Course, Entry
from npt.errors import NPTError, OtherRun, sentence
from npt.host.features import Adapter, FeatureTap, unwrap
from npt.host.steps import arguments_of
from npt.imbalance import summary_of_counts
from npt.precision import use_tf32
from npt.randomness import random_state_kept
from npt.recorder import Recorder
from npt.remedies import drawn_counts
from npt.results import END_OF_TRAINING, Results
from npt.terms import Run, Split

if TYPE_CHECKING:
    from dassl.engine import TrainerX
else:
    TrainerX = object  # mixed into the trainers of whichever engine there is


def end_lines_missing(trainer: type) -> list[str]:
    """The lines of END_OF_TRAINING that no `after_train` of the trainer's classes prints."""
    methods = (vars(cls).get("after_train") for cls in trainer.__mro__)
    codes = (getattr(method, "__code__", None) for method in methods)
    printed = {text for code in codes if code is not None for text in code.co_consts}
    return [line for line in END_OF_TRAINING if line not in printed]


def tests_by_inference(trainer: type) -> bool:
    """Whether the tests of a Measured trainer are the engine's, of `model_inference`."""
    hosts = trainer.__mro__[trainer.__mro__.index(Measured) + 1 :]
    tester = next((cls.__module__ for cls in hosts if "test" in vars(cls)), "")
    return tester.partition(".")[0] == "dassl"


def apart(dataset: Any) -> bool:
    """Whether a data set has validation images, and none of them is a test image.

    Images are told apart by their paths; without paths the answer is no.
    """

    def paths(part: str) -> set[str]:
        items = getattr(dataset, part, None) or ()
        return {os.path.abspath(getattr(item, "impath", "")) for item in items}

    val = paths("val")
    return bool(val) and os.path.abspath("") not in val and not val & paths("test")


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
        self._measure_per_class: dict[str, Any] = {}  # of each split, like `results`
        self._measure_confusion: dict[str, Any] = {}
        self._measure_trains = False  # whether this process trains or resumes
        self._measure_finished = False  # whether the training has ended
        self._measure_train_seconds: float | None = None
        self._measure_seconds_before = 0.0  # of training, in earlier processes
        self._measure_test_seconds = 0.0
        self._measure_earlier: dict[str, Any] | None = None  # the record before this process
        self._measure_wrote = False  # whether this trainer has written a record
        self._measure_digest: str | None = None  # of the data
        self._measure_model: Any = None  # the model that was loaded: folder, epoch, time
        self._measure_origin: dict[str, Any] = {}  # the record in its folder
        # The pass over the validation images that the temperature of the current model is from:
        self._measure_validation: tuple[Recorder, float] | None = None  # with its seconds
        self._measure_knowledge: Run | None = None  # of the current model
        self._measure_course = Course()
        results.reset_peak_memory()
        cfg = kwargs["cfg"] if "cfg" in kwargs else args[0]
        use_tf32(cfg.get("MODEL", {}).get("TF32", False))
        super().__init__(*args, **kwargs)
        self._measure_check_names()

    def _measure_classnames(self) -> list[str]:
        """The class names; none where the data set of a host has none, or other things."""
        dataset = getattr(getattr(self, "dm", None), "dataset", None)
        names = list(getattr(dataset, "classnames", ()))
        return names if all(isinstance(name, str) for name in names) else []

    def _measure_check_names(self) -> None:
        """NPTError for a class name that would be cut; a warning for two with one prompt."""
        try:
            openai_clip()
        except NPTError:  # a host without OpenAI's tokenizer
            return
        names = self._measure_classnames()
        check_names(names)
        if not self._measure_contexts_differ(getattr(self, "model", None)):
            warn_of_one_prompt(names)

    def host_s(self, method: str) -> Callable[..., Any]:
        """A method as the host's own class has it, bound to this trainer."""
        hosts = type(self).__mro__[type(self).__mro__.index(Measured) + 1 :]
        own = next(vars(cls)[method] for cls in hosts if method in vars(cls))
        return own.__get__(self)

    # ---- the engine's life cycle

    def before_train(self, *args: Any, **kwargs: Any) -> Any:
        self._measure_check_folder()
        value = super().before_train(*args, **kwargs)
        self.train_counts = self.count_training_images()
        self._measure_trains = True
        going_on = self.start_epoch > 0 or getattr(self, "first_batch", 0) > 0
        self._measure_finished = 0 < self.max_epoch <= self.start_epoch
        self._measure_earlier = results.readable(self._measure_folder) if going_on else {}
        self._measure_test_seconds = 0.0
        self._measure_start = time.perf_counter()
        self.write_result()  # so that the folder says from now on which run it has
        return value

    def init_writer(self, *args: Any, **kwargs: Any) -> Any:
        value = super().init_writer(*args, **kwargs)
        tracking.track(self)  # on an installed Dassl; the embedded engine has done it
        return value

    def after_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self._measure_course.close()
        return super().after_epoch(*args, **kwargs)

    def after_train(self, *args: Any, **kwargs: Any) -> Any:
        self._measure_train_seconds = self._measure_seconds()
        self._measure_finished = True
        self._measure_validation = None
        best = self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST
        if best:  # the figures of the last epoch, which is not the model that is kept
            for entry, splits in self._measure_by_split().items():
                splits.pop("val", None)
                (self._measure_earlier or {}).get(entry, {}).pop("val", None)
        self.write_result()
        for line in end_lines_missing(type(self)):  # of an installed Dassl
            print(line)
        value = super().after_train(*args, **kwargs)
        if best and self.val_loader is not None:
            recorder, seconds = self._measure_validation or self._measure_timed("val")
            self._measure_report(recorder, "val", seconds, show=False)
        self._measure_validation = None
        self.write_result()
        return value

    def _measure_seconds(self) -> float:
        """The time spent on training so far, in all processes of this run, without tests."""
        here = time.perf_counter() - self._measure_start - self._measure_test_seconds
        return self._measure_seconds_before + here

    def progress_state(self) -> dict[str, Any]:
        """What a checkpoint of the embedded engine keeps for a run that goes on."""
        more = {"seconds": self._measure_seconds(), "course": self._measure_course.state()}
        return {**super().progress_state(), **more}

    def load_progress_state(self, state: dict[str, Any]) -> None:
        super().load_progress_state(state)
        self._measure_seconds_before = float(state.get("seconds", 0.0))
        self._measure_course.load_state(state.get("course", {}))

    def figures_so_far(self) -> dict[str, float]:
        """As the engine's, with LCD and MID where the trainer does not report them itself."""
        return {**super().figures_so_far(), **self._measure_course.so_far()}

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
        self._measure_validation = None
        self._measure_origin = results.readable(Path(directory))
        if epoch is None and self._measure_origin.get("finished") is False:
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

    def test(self, *args: Any, **kwargs: Any) -> Any:
        split = arguments_of(super().test, args, kwargs).get("split")
        name = self._measure_split(split)
        start = time.perf_counter()
        scaling = self._measure_scaling() if name == "test" else None
        began = time.perf_counter()  # without the pass over the validation images
        reported = [-1]  # the number of batches that were reported

        def report() -> None:
            if reported[0] != recorder.batches:
                reported[0] = recorder.batches
                self._measure_report(recorder, name, time.perf_counter() - began)

        with self._measure_recording(scaling, report) as recorder:
            value = super().test(*args, **kwargs)
        self._measure_test_seconds += time.perf_counter() - start  # they are no training, either
        report()
        return value

    def count_training_images(self) -> list[int]:
        """Images of each class in this process's training data."""
        counts = Counter(item.label for item in self.dm.dataset.train_x)
        return [counts[label] for label in range(self.num_classes)]

    # ---- measuring without the engine's test

    def measure(self, split: str | None = None, store_as: str = "") -> Results:
        """Compute the figures of a split, without the engine's own test and its output.

        With `store_as` they are also stored under that name in `results` and result.json, for
        example `measure("test", store_as="before")` before `train()`. No temperature is fitted.
        """
        recorder, seconds = self._measure_timed(split)
        if store_as:
            return self._measure_report(recorder, store_as, seconds, show=False)
        return recorder.results()

    def collect(self, split: str | None = None) -> Split:
        """The image and text features and the labels of a split."""
        return self._measure_timed(split)[0].split()

    @torch.no_grad()
    def _measure_timed(
        self, split: str | None, keep_scores: bool = False
    ) -> tuple[Recorder, float]:
        """A recorder of one pass over a split, and its seconds."""
        start = time.perf_counter()
        recorder = self._measure_recorder()
        recorder.scores = [] if keep_scores else None
        name = self._measure_split(split)
        loader = self.val_loader if name == "val" else self.test_loader
        assert loader is not None
        self.set_model_mode("eval")
        # A loader draws a seed from the global random state, which training must find unchanged.
        shown = bars.batches(loader, name)
        with random_state_kept(), recorder.recording(), shown as batches:
            for batch in batches:
                inputs, labels, *_ = self.parse_batch_test(batch)
                recorder.add(self.model_inference(inputs), labels, batch)
        return recorder, time.perf_counter() - start

    def _measure_scaling(self) -> Scaling | None:
        """The temperature of this model, from its scores of the validation images.

        None unless it was trained on these classes, the validation images are no test images, and
        a pass here gives the scores that a test gives.
        """
        self._measure_validation = None
        known = self._measure_knows_classes() and tests_by_inference(type(self))
        if self.val_loader is None and known:
            print("There are no validation images, so no temperature is fitted (no ece_scaled)")
        if self.val_loader is None or not known or not apart(self.dm.dataset):
            return None
        try:
            self._measure_validation = self._measure_timed("val", keep_scores=True)
            return self._measure_validation[0].scaling()
        except Exception as error:  # such as a damaged image, which the test does not need
            if (why := sentence(error)) is None:
                raise
            print(f"No temperature could be fitted on the validation images: {why}")
            return None

    def _measure_knows_classes(self) -> bool:
        """Whether the current model was trained on the classes of this data set."""
        if self._measure_model is None:
            return self._measure_trains and self._measure_finished
        here = {
            "task": results.TRAINING,
            "dataset": self.cfg.DATASET.NAME,
            "classnames": list(self.dm.dataset.classnames),
        }
        return all(self._measure_origin.get(key) == value for key, value in here.items())

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
            tap = self._measure_tap_of_model = FeatureTap(model, self.features_adapter, self)
        tap.products.classes = getattr(self, "num_classes", None)
        return tap

    def _measure_recorder(self, scaling: Scaling | None = None) -> Recorder:
        more = (self.knowledge(), self.train_counts, scaling)
        try:
            return Recorder(self._measure_tap(), *more)
        except NPTError as error:
            recorder = Recorder(None, *more)
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
                None if counts is None else drawn_counts(counts, self.cfg),
                () if self._measure_contexts_differ(model) else self._measure_classnames(),
            )
        return self._measure_knowledge

    def _measure_contexts_differ(self, model: Any) -> bool:
        """Whether each class learns a context of its own, so that equal names differ as prompts."""
        encoder = getattr(model, "text_encoder", None)
        own = getattr(encoder, "class_specific", None)  # of our own models
        if own is not None:
            return bool(own)
        nodes = [node for node in self.cfg.TRAINER.values() if isinstance(node, dict)]
        return any(node.get("CSC", False) and not node.get("CTX_INIT", "") for node in nodes)

    def _frozen_text(self, device: torch.device) -> Tensor:
        from npt.trainers.prompts import Classes
        from npt.trainers.zsclip import frozen_text_features

        classes = Classes.of(self.dm.dataset)
        return frozen_text_features(self.cfg.MODEL.BACKBONE.NAME, classes, device)

    @contextmanager
    def _measure_recording(
        self, scaling: Scaling | None, report: Callable[[], None]
    ) -> Iterator[Recorder]:
        """Record every batch inside a `with` block, at `evaluator.process`.

        All tests pass their batches there, whichever other methods a host overrides. `report` is
        called when the evaluator has its figures: some hosts end the process right after that.
        """
        recorder = self._measure_recorder(scaling)
        evaluator = self.evaluator
        last: list[Any] = [None]  # the batch that was parsed last
        process, evaluate, parse = evaluator.process, evaluator.evaluate, self.parse_batch_test

        def parsed(batch: Any, *args: Any, **kwargs: Any) -> Any:
            last[0] = batch
            return parse(batch, *args, **kwargs)

        def observed(*args: Any, **kwargs: Any) -> Any:
            value = process(*args, **kwargs)
            given = arguments_of(process, args, kwargs) or dict(
                enumerate((*args, *kwargs.values()))
            )
            output, labels, *_ = (*given.values(), None, None)
            recorder.add(output, labels, last[0])
            return value

        def evaluated(*args: Any, **kwargs: Any) -> Any:
            figures = evaluate(*args, **kwargs)
            report()
            return figures

        # Instance attributes hide the methods until they are deleted again.
        evaluator.process, evaluator.evaluate = observed, evaluated
        self.__dict__["parse_batch_test"] = parsed
        try:
            with recorder.recording():
                yield recorder
        finally:
            del evaluator.process, evaluator.evaluate, self.parse_batch_test

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
        self._measure_per_class[name] = recorder.per_class(list(self.dm.dataset.classnames))
        self._measure_confusion[name] = recorder.confusion()
        tracking.add_results(self, name, figures)
        if show:
            results.print_results(figures)
            nothing = (
                "" if recorder.batches else "the test handed nothing to self.evaluator.process"
            )
            reasons = (nothing, recorder.no_scores, recorder.why_not, *recorder.failed.values())
            for problem in dict.fromkeys(filter(None, reasons)):
                print(f"Some measures could not be computed: {problem}")
            if self.cfg.TEST.PER_CLASS_RESULT:
                results.print_classes(self._measure_per_class[name])
        self.write_result()
        return figures

    def _measure_by_split(self) -> dict[str, dict[str, Any]]:
        """The entries of the record that have something for each split."""
        return {
            "results": self.results,
            "per_class": self._measure_per_class,
            "confusion": self._measure_confusion,
        }

    def training_figures(self) -> Results:
        """Means over the last epoch trained, by name. For subclasses."""
        return {}

    def _measure_epochs(self, earlier: Iterable[Entry]) -> list[Entry]:
        """The entry of each epoch; `earlier` those on record, of processes before this one."""
        known = {entry["epoch"]: entry for entry in (*earlier, *self._measure_course.entries())}
        return [known[epoch] for epoch in sorted(known)]

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
            "train_summary": summary_of_counts(self.train_counts) if self.train_counts else None,
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
        record["course"] = self._measure_epochs(earlier.get("course", ()))
        record.update(results.peak_memory())
        for entry, splits in self._measure_by_split().items():
            record[entry] = {**earlier.get(entry, {}), **splits}
        results.write(path, record)
        self._measure_wrote = True
