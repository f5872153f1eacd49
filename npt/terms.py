"""The loss terms and the measures of collapse: one row each.

Loss, log, result.json, the gradient study and the tables loop over `TERMS` and `MEASURES`. A term
of your own is a function, a row and its config key, in a file of yours (docs/terms.md):

    import npt
    from npt.terms import Batch, Term

    def spread(batch: Batch):  # the texts of all classes away from their mean
        text = torch.nn.functional.normalize(batch.text, dim=-1)  # (K, D) or (B, K, D)
        return text.mean(-2).square().sum(-1).mean()

    npt.terms.register(Term("loss_spread", "W_SPREAD", spread))

and `TRAINER.NPT.W_SPREAD 0.1` on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

from npt import config
from npt.checks import LARGEST, number, one_of, whole
from npt.config import ANCHORS
from npt.errors import NPTError
from npt.later import later
from npt.remedies import NODE, balanced_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from npt import class_names, clusters, geometry, losses
    from npt.geometry import Degree, NeuralCollapse
else:  # commands that only name the rows shall not wait for torch
    torch, losses, geometry = later("torch"), later("npt.losses"), later("npt.geometry")
    class_names, clusters = later("npt.class_names"), later("npt.clusters")

ACCURACIES = (  # the figures of predictions, in percent but for the temperature
    *("accuracy", "error_rate", "macro_f1", "class_mean_accuracy", "many", "medium", "few"),
    *("worst_class", "geometric_mean", "harmonic_mean", "ece", "temperature", "ece_scaled"),
)
# Other entries of the log and of result.json, and columns of tables.
RESERVED = {
    *(*ACCURACIES, "seconds", "loss", "loss_clip"),
    *("dataset", "ratio", "label", "trainer", "seed", "seeds", "part", "split", "path", "position"),
    *("train_seconds", "peak_memory_bytes", "base", "new", "source", "hm"),
    *("imbalance_type", "largest_class", "smallest_class", "classes_with_one_image"),
    *("trained_classes", "images", "ratio_obtained", "validation"),
}


# --------------------------------------------------------------------------- arguments of functions
class Run:
    """Facts about the run, in addition to the features of a batch.

    settings: the config node TRAINER.NPT
    class_counts: (K,) images of each class in the training data of this process, or None
    drawn_counts: how often an epoch draws each class, the same unless a sampler balances them
    classnames: the class names, if they are known
    """

    def __init__(
        self,
        settings: Any,
        model: Any = None,
        class_counts: Tensor | None = None,
        encode_frozen: Callable[[], Tensor] | None = None,
        drawn_counts: Sequence[float] | None = None,
        classnames: Sequence[str] = (),
    ):
        self.settings, self.model, self.class_counts = settings, model, class_counts
        self.drawn_counts, self.classnames = drawn_counts, list(classnames)
        self._same: dict[Any, Tensor | None] = {}
        self._encode_frozen = encode_frozen

    @property
    def logit_scale(self) -> Tensor | None:
        """What multiplies the cosines now; None if the model has no parameter `logit_scale`."""
        scale = getattr(self.model, "logit_scale", None)
        return scale.detach().exp() if isinstance(scale, torch.Tensor) else None

    @cached_property
    def frozen_text(self) -> Tensor:
        """(K, D) features of length 1: hand-written prompts in the frozen CLIP. Computed once.

        The CLIP is that of MODEL.BACKBONE.NAME. NPTError if it cannot be loaded.
        """
        if self._encode_frozen is None:
            raise NPTError(
                "There are no frozen text features: this run has no CLIP to compute them."
            )
        return self._encode_frozen()

    @cached_property
    def clusters(self) -> list[Tensor]:
        """The classes in clusters of at most TRAINER.NPT.CLUSTER_SIZE, by their frozen texts."""
        device = self.frozen_text.device
        size = config.setting(self.settings, "CLUSTER_SIZE")
        return [members.to(device) for members in clusters.clusters_of(self.frozen_text, size)]

    def same_prompts(self, text: Tensor, cluster: int | None = None) -> Tensor | None:
        """The pairs (P, 2), in both orders, of classes with the same prompt; None for none.

        text: class features (..., K, D); nothing is known if K is not the number of class names
        cluster: only the pairs in this one of `clusters`, numbered as there
        """
        if not self._of_one_prompt or text.shape[-2] != len(self.classnames):
            return None
        key = (cluster, text.device)
        if key not in self._same:  # made once: a copy to the device would wait for it in every step
            labels = range(text.shape[-2]) if cluster is None else self.clusters[cluster].tolist()
            place = {label: k for k, label in enumerate(labels)}
            groups = [[place[k] for k in group if k in place] for group in self._of_one_prompt]
            pairs = [pair for group in groups for pair in permutations(group, 2)]
            self._same[key] = torch.tensor(pairs, device=text.device) if pairs else None
        return self._same[key]

    @cached_property
    def _of_one_prompt(self) -> list[list[int]]:
        try:
            return class_names.of_one_prompt(self.classnames)
        except NPTError:  # a host without OpenAI's tokenizer
            return []

    @cached_property
    def class_weights(self) -> Tensor:
        """(K,) N / (C n_k): every class counts the same. NPTError if the counts are not known."""
        if self.drawn_counts is None:
            raise NPTError(
                "The number of training images of the classes is not known, so they cannot be "
                "balanced: set TRAINER.NPT.W_BALANCED to 0."
            )
        return torch.tensor(balanced_weights(self.drawn_counts))


@dataclass(frozen=True)
class Batch:
    """The features of one forward pass; rows have any length."""

    image: Tensor  # (B, D)
    text: Tensor  # (K, D), or (B, K, D) if every image has text features of its own
    labels: Tensor  # (B,)
    run: Run


@dataclass(frozen=True)
class Split:
    """The features of a whole split, of length 1, on one device."""

    image: Tensor  # (N, D)
    text: Tensor  # (K, D), the mean over images if each image has its own text features
    labels: Tensor  # (N,)
    classifier: Tensor  # (K, D), that mean before it was scaled to length 1

    @cached_property
    def neural_collapse(self) -> NeuralCollapse:
        return geometry.neural_collapse_metrics(self.image, self.labels, self.classifier)


# --------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class Term:
    """A loss term: its weight times `function(batch)` is added to the trainer's own loss.

    name: in the log and in result.json
    weight: its weight is the config key TRAINER.NPT.<weight>
    function: a scalar of a Batch, with gradient
    default: of the weight; a term with weight 0 whose default is 0 is not computed
    symbol: for the study of gradients
    heading: of its column in tables (its mean over the last epoch); "" for none
    reduces: whether it depends on TRAINER.NPT.REDUCTION
    meaning: what it does, for docs/config.md, where its weight is described
    """

    name: str
    weight: str
    function: Callable[[Batch], Tensor]
    default: float = 0.0
    symbol: str = ""
    heading: str = ""
    reduces: bool = False
    meaning: str = ""

    def __post_init__(self) -> None:
        _check_name("term", self.name)
        _check_name("weight of a term", self.weight)
        if not config.WEIGHT.good(self.default):
            raise NPTError(
                f"The default weight of the term {self.name} is {self.default!r}, but it must be "
                f"{config.WEIGHT.allowed}."
            )

    def weight_in(self, settings: Any) -> float:
        """Its weight under the config node TRAINER.NPT."""
        return settings.get(self.weight, self.default)

    def value(self, batch: Batch) -> Tensor:
        """Its value for a batch. NPTError if the function does not return a scalar tensor."""
        return _scalar(f"term {self.name}", self.function(batch))


@dataclass(frozen=True)
class Measure:
    """A figure of collapse: a scalar, `function` of

    - "text": texts (K, D) or (B, K, D); tests average it over images
    - "batch": a Batch; tests average it over images
    - "split": a Split

    name: in result.json, and in the log if `logged`
    of: "text", "batch" or "split"
    logged: whether each line of the training log has it, for its batch
    heading: of its column in tables; "" for none
    """

    name: str
    of: str
    function: Callable[[Any], Tensor]
    logged: bool = False
    heading: str = ""

    def __post_init__(self) -> None:
        _check_name("measure", self.name)
        if self.of not in ("text", "batch", "split") or (self.logged and self.of == "split"):
            raise NPTError(
                f'The measure {self.name} must be of "text", "batch" or "split", and of one of the '
                f'first two to be logged, but it is of "{self.of}".'
            )

    def value(self, argument: Any) -> Tensor:
        """Its value. NPTError if the function does not return a scalar tensor."""
        return _scalar(f"measure {self.name}", self.function(argument))

    def of_one_batch(self, batch: Batch) -> Tensor:
        """Its value for a batch; not for measures of a split."""
        return self.value(batch.text if self.of == "text" else batch)


def _check_name(what: str, name: Any) -> None:
    taken = isinstance(name, str) and (name in RESERVED or name.endswith("_std"))
    if taken or not (isinstance(name, str) and name.isidentifier()):
        reason = "is taken" if taken else "is not a name of letters, digits and _"
        raise NPTError(f"The name {name!r} of a {what} {reason}: choose another.")


def _scalar(what: str, value: Any) -> Tensor:
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return value
    shape = (
        f"a tensor of shape {tuple(value.shape)}"
        if isinstance(value, torch.Tensor)
        else repr(value)
    )
    raise NPTError(f"The {what} returned {shape}, where a scalar tensor is expected.")


TERMS: dict[str, Term] = {}
MEASURES: dict[str, Measure] = {}


def register(row: Term | Measure) -> None:
    """Add a term, with the config key of its weight, or a measure; it replaces one of its name.

    Call it before the config is made. NPTError if the name, the weight's key or the heading belongs
    to another row.
    """
    if not isinstance(row, (Term, Measure)):
        raise NPTError(f"register takes a Term or a Measure, not {row!r}.")
    others: list[Term | Measure] = [*TERMS.values(), *MEASURES.values()]
    for other in others:
        same_kind = type(other) is type(row)
        if other.name == row.name and not same_kind:
            raise NPTError(f"{row.name} is the name of a term and of a measure: rename one.")
        if row.heading and other.heading == row.heading and other.name != row.name:
            raise NPTError(f'"{row.heading}" is the heading of {other.name} already.')
    if isinstance(row, Measure):
        MEASURES[row.name] = row
        return
    path, before = f"{NODE}.{row.weight}", TERMS.get(row.name)
    owner = next((t.name for t in TERMS.values() if t.weight == row.weight), "another setting")
    if path in config.KEYS and owner != row.name:
        raise NPTError(f"{path} is the weight of {owner} already: choose another.")
    if before is not None and before.weight != row.weight:
        raise NPTError(f"The weight of {row.name} is {NODE}.{before.weight}: keep that name.")
    TERMS[row.name] = row
    meaning = row.meaning and f"weight of {row.symbol or row.name}: {row.meaning}"
    config.add(path, config.Key(float(row.default), meaning, config.WEIGHT))


# --------------------------------------------------------------------------- the paper's terms
def _lc(batch: Batch) -> Tensor:
    settings, same = batch.run.settings, batch.run.same_prompts(batch.text)
    return losses.language_collapse_loss(batch.text, settings.E_W, settings.REDUCTION, same)


def _mi(batch: Batch) -> Tensor:
    s = batch.run.settings
    return losses.multimodal_isomorphism_loss(
        batch.image, batch.text, batch.labels, s.E_W, s.E_H, s.REDUCTION
    )


# No columns in tables: LCD and MID show the same there.
LC = "class texts apart from each other, evenly: towards a simplex ETF (Eq. 5)"
MI = "images onto the text of their class (Eq. 6)"
register(Term("loss_lc", "W1", _lc, default=0.3, symbol="L_LC", reduces=True, meaning=LC))
register(Term("loss_mi", "W2", _mi, default=0.8, symbol="L_MI", reduces=True, meaning=MI))


# --------------------------------------------------------------------------- beyond the paper
def _clustered(batch: Batch) -> Tensor:
    run, s = batch.run, batch.run.settings
    same = [run.same_prompts(batch.text, k) for k in range(len(run.clusters))]
    return losses.clustered_collapse_loss(batch.text, run.clusters, s.E_W, s.REDUCTION, same)


def _balanced(batch: Batch) -> Tensor:
    s = batch.run.settings
    return losses.balanced_isomorphism_loss(
        batch.image, batch.text, batch.labels, batch.run.class_weights, s.E_W, s.E_H
    )


def _anchor(batch: Batch) -> Tensor:
    kind = config.setting(batch.run.settings, "ANCHOR")
    return losses.anchor_loss(batch.text, batch.run.frozen_text, kind)


CLUSTER = "L_LC within clusters of classes with similar names (docs/terms.md)"
BALANCED = "L_MI in which every class counts the same (docs/terms.md)"
AWAY = "distance of class texts from those of the frozen CLIP (docs/terms.md)"
register(
    Term("loss_cluster", "W_CLUSTER", _clustered, symbol="L_cluster", reduces=True, meaning=CLUSTER)
)
register(Term("loss_balanced", "W_BALANCED", _balanced, symbol="L_balanced", meaning=BALANCED))
register(Term("loss_anchor", "W_ANCHOR", _anchor, symbol="L_anchor", meaning=AWAY))
ON = number(0, LARGEST, "(]")  # weights with which a term is computed
config.add(
    f"{NODE}.CLUSTER_SIZE",
    config.Key(8, "the most classes of a cluster", whole(2), (f"{NODE}.W_CLUSTER", ON)),
)
config.add(
    f"{NODE}.ANCHOR",
    config.Key(
        "l1", "the distance: absolute or squared", one_of(*ANCHORS), (f"{NODE}.W_ANCHOR", ON)
    ),
)


# --------------------------------------------------------------------------- the measures
def _lcd(text: Tensor) -> Degree:
    return geometry.language_collapse_degree(text)


def _mid(batch: Batch) -> Degree:
    return geometry.multimodal_isomorphism_degree(batch.image, batch.text, batch.labels)


for _row in (
    # Definitions 2 and 3: as printed, and as deviations
    Measure("lcd", "text", lambda text: _lcd(text).signed, logged=True),
    Measure(
        "lcd_abs",
        "text",
        lambda text: _lcd(text).absolute,
        heading="LCD",
    ),
    Measure("mid", "batch", lambda batch: _mid(batch).signed, logged=True),
    Measure("mid_abs", "batch", lambda batch: _mid(batch).absolute, heading="MID"),
    # Papyan et al. (2020)
    Measure("nc1", "split", lambda split: split.neural_collapse.nc1),
    Measure("nc2", "split", lambda split: split.neural_collapse.nc2),
    Measure("nc3", "split", lambda split: split.neural_collapse.nc3),
):
    register(_row)


# --------------------------------------------------------------------------- loops over the rows
def active_terms(settings: Any) -> list[Term]:
    """The terms that are computed: those with a weight, and those that have one by default."""
    return [t for t in TERMS.values() if t.default > 0 or t.weight_in(settings) > 0]


def any_weight(settings: Any) -> bool:
    """Whether any term is added to the loss. If not, the wrapped trainer runs unchanged."""
    return any(term.weight_in(settings) > 0 for term in TERMS.values())


def logged_measures() -> list[Measure]:
    return [m for m in MEASURES.values() if m.logged]


def measures_of(kind: str) -> list[Measure]:
    """The measures of "text", "batch" or "split"."""
    return [m for m in MEASURES.values() if m.of == kind]


def headings() -> dict[str, str]:
    """The columns that tables have beside accuracies: heading by name."""
    rows: list[Term | Measure] = [*MEASURES.values(), *TERMS.values()]
    return {row.name: row.heading for row in rows if row.heading}


def logged_figures(batch: Batch) -> dict[str, Tensor]:
    """The logged measures of one batch, scalars without gradient."""
    with torch.no_grad():
        return {measure.name: measure.of_one_batch(batch) for measure in logged_measures()}


class Evaluated(NamedTuple):
    """The active terms and logged measures of one batch, scalars of float32 or better."""

    values: dict[str, Tensor]
    weighted: Tensor  # the sum of weight times term, with gradient
    without_gradient: list[str]  # terms with a weight that depend on nothing that is learned


def evaluate(batch: Batch) -> Evaluated:
    """Compute every active term and logged measure; terms with weight 0 have no graph."""
    settings = batch.run.settings
    weighted: Tensor | None = None
    values: dict[str, Tensor] = {}
    without_gradient = []
    for term in active_terms(settings):
        weight = term.weight_in(settings)
        with torch.set_grad_enabled(weight > 0):
            value = values[term.name] = term.value(batch)
        if weighted is None:
            weighted = torch.zeros_like(value)
        if weight > 0:
            weighted = weighted + weight * value
            if not value.requires_grad:
                without_gradient.append(term.name)
    values.update(logged_figures(batch))
    if weighted is None:  # there are no rows
        weighted = torch.zeros((), device=batch.text.device)
    return Evaluated(values, weighted, without_gradient)
