"""Every way to merge: its purpose, where it is from, what it cannot do, and its function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import RecipeError
from peftkit.merge.methods import from_data, gram, in_core, steps
from peftkit.merge.methods.parameters import (
    NoParameters,
    Parameters,
    Scaled,
    read_parameters,
)
from peftkit.recipe.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from peftkit.merge.methods.inputs import Inputs

Kind = Literal["entry-wise", "gram", "core", "data"]
Weights = Literal["any", "positive", "none"]


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a method was published."""

    paper: str
    year: int
    arxiv: str = ""
    """Its number there; empty where it is older than that or was never there."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to merge changes of one base."""

    name: str
    purpose: str
    kind: Kind
    """What it looks at, and with that how its function is called.

    `entry-wise`: `function(parameters)` is an `EntryWise` for `merge_blocks` and `merge_layers`.
    `gram`: `function(gram, weights, parameters)` is what each change of a layer is multiplied by.
    `core`: `function(layers, inputs, parameters)` yields each layer's name and factors.
    `data`: each has a signature of its own.
    """
    function: Callable[..., Any]
    reference: Reference
    parameters: type[Parameters] = NoParameters
    weights: Weights = "any"
    """`any` number, only `positive` ones, or `none`: all must be 1."""
    least: int = 1
    """The fewest inputs."""
    most: int = 1 << 30
    """The most inputs."""
    limits: tuple[str, ...] = ()
    """What it cannot do, and where it differs from others of that name."""

    def read(self, given: Mapping[str, Any]) -> Parameters:
        """Its parameters from the keys of a recipe.

        Raises:
            RecipeError: a key is unknown, or a value out of range.
        """
        return read_parameters(self.parameters, given, self.name)

    def check(self, inputs: Inputs) -> None:
        """Refuse inputs that it cannot merge.

        Raises:
            RecipeError: there are too few or too many, or a weight means nothing to it.
        """
        if not self.least <= len(inputs) <= self.most:
            exact = "exactly" if self.least == self.most else "at least"
            raise RecipeError(
                f"method `{self.name}`: expected {exact} {self.least} adapters, got {len(inputs)}"
            )
        for name, weight in zip(inputs.names, inputs.weights, strict=True):
            if self.weights == "positive" and weight <= 0:
                raise RecipeError(
                    f"method `{self.name}`: `{name}` has the weight `{weight:g}`; expected more "
                    "than 0",
                    hint="`task-arithmetic` and `ties` take negative weights",
                )
            if self.weights == "none" and weight != 1:
                raise RecipeError(
                    f"method `{self.name}`: `{name}` has the weight `{weight:g}`, but the method "
                    "finds weights of its own; expected 1"
                )


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        RecipeError: none is; it says which one is nearest.
    """
    if name not in METHODS:
        raise RecipeError(
            f"no method `{name}`{did_you_mean(name, list(METHODS))}",
            hint=f"there are: {', '.join(METHODS)}",
        )
    return METHODS[name]


_TA = Reference("Editing models with task arithmetic", 2022, "2212.04089")
_TIES = Reference("TIES-Merging: resolving interference when merging models", 2023, "2306.01708")
_DARE = Reference("Language models are super Mario", 2023, "2311.03099")
_CRUMBS = Reference("Model Breadcrumbs", 2023, "2312.06795")
_DELLA = Reference("DELLA-Merging", 2024, "2406.11617")
_SCE = Reference("FuseChat: knowledge fusion of chat models", 2024, "2408.07990")
_SLERP = Reference("Animating rotation with quaternion curves", 1985)
_KARCHER = Reference("Riemannian center of mass and mollifier smoothing", 1977)
_STOCK = Reference("Model Stock: all we need is just a few fine-tuned models", 2024, "2403.19522")
_CORE = Reference("Accurate and efficient low-rank model merging in core space", 2025, "2509.17786")
_KNOTS = Reference("Model merging with SVD to tie the knots", 2024, "2410.19735")
_TSV = Reference("Task singular vectors: reducing task interference", 2024, "2412.00081")
_ISO = Reference("No task left behind: isotropic model merging", 2025, "2502.04959")
_WUDI = Reference("Whoever started the interference should end it", 2025, "2503.08099")
_FISHER = Reference("Merging models with Fisher-weighted averaging", 2021, "2111.09832")
_REGMEAN = Reference("Dataless knowledge fusion by merging weights", 2022, "2212.09849")
_SOUP = Reference("Model soups", 2022, "2203.05482")

_DENSE = "the result has full rank: as an adapter it must be cut, at a cost"
_AXES = "where two singular values are almost equal the axes could be others: see `Space.gap`"
_TRIM = "at least one entry of each trimmed part stays, unless `keep` is 0"
_VOTES = "taking the negative of every input gives the negative, but for ties that go to plus"

_ALL = (
    Method("sum", "Add what was learned, each part times its weight.", "entry-wise", steps.add_up,
           _TA, steps.Sum, limits=("normalizing takes weights of at least 0",)),
    Method("task-arithmetic", "Add what was learned, and scale the whole.", "entry-wise",
           steps.scale_sum, _TA, Scaled),
    Method("ties", "Keep the largest changes, and merge those that agree on a sign.", "entry-wise",
           steps.ties, _TIES, steps.Ties, limits=(_DENSE, _TRIM, _VOTES,
           "`combine: weighted_mean` takes positive weights")),
    Method("ties@paper", "TIES as published: one trim of the whole model.", "entry-wise",
           steps.ties_of_paper, _TIES, steps.Kept, limits=(_DENSE, _TRIM,
           "keeps exactly the share; the authors' code keeps one entry more, and all of a size",
           "the paper has no weights; here changes vote with theirs")),
    Method("ties@mergekit", "TIES as in mergekit 0.1.4.", "entry-wise", steps.ties_of_mergekit,
           _TIES, steps.Kept, weights="positive", limits=(_DENSE, _TRIM,
           "weights cancel where one change is left: a negative one would not subtract")),
    Method("ties@peft", "TIES as in peft 0.21, on changes as they act.", "entry-wise",
           steps.ties_of_peft, _TIES, steps.Kept, limits=(_DENSE, _TRIM,
           "weights take no part in the election", "peft's `ties` on factors is another thing")),
    Method("magnitude", "Add the largest changes alone.", "entry-wise", steps.trim, _TIES,
           steps.Magnitude, limits=(_DENSE, _TRIM)),
    Method("breadcrumbs", "Add changes without outliers and without noise.", "entry-wise",
           steps.breadcrumbs, _CRUMBS, steps.Breadcrumbs, limits=(_DENSE, _TRIM,
           "mergekit drops everything where `top` rounds to no entry")),
    Method("dare", "Drop entries by chance, and make up for them.", "entry-wise", steps.dare, _DARE,
           steps.Dare, limits=(_DENSE, "right on average over seeds: compare several",
           "divides by the probability, as in the paper; mergekit matches a norm instead")),
    Method("dare-ties", "Drop entries by chance, then merge those that agree on a sign.",
           "entry-wise", steps.dare_ties, _DARE, steps.DareTies, limits=(_DENSE, _VOTES,
           "right on average over seeds: compare several",
           "divides by the probability, as in the paper; mergekit matches a norm instead")),
    Method("della", "Drop small entries more often, then merge those that agree on a sign.",
           "entry-wise", steps.della, _DELLA, steps.Della, limits=(_DENSE, _VOTES,
           "`window` is the whole width; mergekit's `epsilon` is half of it",
           "divides by each probability, as in the paper; mergekit matches a norm instead")),
    Method("della-linear", "Drop small entries more often, and add the rest.", "entry-wise",
           steps.della_linear, _DELLA, steps.DellaLinear, limits=(_DENSE,
           "`window` is the whole width; mergekit's `epsilon` is half of it",
           "divides by each probability, as in the paper; mergekit matches a norm instead")),
    Method("sce", "Keep where changes differ most, and weigh each by its size.", "entry-wise",
           steps.sce, _SCE, steps.Sce, weights="none", least=2, limits=(_DENSE,
           "a share of all entries; mergekit takes it of those that differ at all")),
    Method("slerp", "Go from one change to another on the arc between them.", "gram", gram.slerp,
           _SLERP, weights="positive", least=2, most=2, limits=(
           "two inputs only; no arc between opposite ones",
           "on changes; mergekit's `slerp` is on weights, where the arc is a straight line")),
    Method("karcher", "The mean direction of several changes.", "gram", gram.karcher, _KARCHER,
           gram.Karcher, weights="positive", limits=("none where directions cancel",)),
    Method("model-stock", "The mean, shortened by how little the changes agree.", "gram",
           gram.model_stock, _STOCK, weights="none", least=2, limits=(
           "of changes at right angles nothing is left, and of opposite ones nothing either",)),
    Method("core", "The weighted sum in the space that all changes share.", "core",
           in_core.layer_by_layer(in_core.linear), _CORE, limits=("the same as `sum`",)),
    Method("knots", "The weighted sum along the output directions that all share.", "core",
           steps.knots_sum, _KNOTS, limits=("the same as `sum`",)),
    Method("svd-trim", "Add the strongest directions of each change.", "core",
           in_core.layer_by_layer(in_core.svd_trim), _TSV, in_core.Trim),
    Method("tsv", "Make the directions of each change orthogonal to the others', and add.", "core",
           in_core.layer_by_layer(in_core.tsv), _TSV, Scaled, limits=(
           "directions that are equal are shared; the authors' code pads them with any others",)),
    Method("iso-c", "Add, then make all directions equally strong.", "core",
           in_core.layer_by_layer(in_core.iso_c), _ISO, Scaled, limits=(
           "the mean is over the directions there are, not over those of the whole weight",)),
    Method("wudi", "Disturb each change least on the inputs that it reacts to.", "core",
           in_core.layer_by_layer(in_core.wudi), _WUDI, Scaled, weights="none", limits=(
           "the minimum itself, where the authors take 300 steps toward it",
           "of runs of one seed, which react to almost the same inputs, it is far too large")),
    Method("knots-ties", "TIES along the output directions that all changes share.", "core",
           steps.knots_ties, _KNOTS, steps.Ties, limits=(_TRIM, _AXES)),
    Method("core-ties", "TIES along the directions that all changes share on both sides.", "core",
           steps.core_ties, _CORE, steps.Ties, limits=(_TRIM, _AXES,
           "the axes are those of the changes, not of the factors that they are written as")),
    Method("fisher", "The mean, each entry weighed by how much it matters to a task.", "data",
           from_data.fisher, _FISHER, weights="positive", limits=("needs importances by entry",)),
    Method("regmean", "Be nearest to each one's outputs on its own inputs.", "data",
           from_data.regmean, _REGMEAN, from_data.RegMean, weights="positive", limits=(
           "needs activations of every layer; for matrices alone",)),
    Method("greedy-soup", "The mean of those that make it no worse.", "data",
           from_data.greedy_soup, _SOUP, weights="none", limits=(
           "needs a score for every try; that score is no held-out result any more",)),
)  # fmt: skip
METHODS = {method.name: method for method in _ALL}
"""Every method by its name."""
