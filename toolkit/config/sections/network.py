"""`network`: the adapter that is trained.

`NetworkConfig` has the kind of network, its rank and alpha, and the patterns that
choose layers. Keys that a kind does not use are reported, by the table of kinds in
`toolkit/contracts/network_kinds.py`.

`toolkit/networks` builds the network from it, and `toolkit/networks/targets.py` applies
the patterns (`matching`). Nothing here knows the layers of a model.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.reading.base import StrictModel
from toolkit.config.reading.field_types import (
    OneOf,
    PathStr,
    StrOrList,
    as_list,
    schema_of_list,
    value_error,
)
from toolkit.config.reading.findings import (
    Findings,
    JobContext,
    below,
    check_path,
    error,
    warning,
)
from toolkit.config.reading.located import ConfigNode, Diagnostics
from toolkit.contracts.network_kinds import ALGORITHMS, KINDS, NetworkKind
from toolkit.errors import UserError, install_command
from toolkit.extension import added

NOT_TRAINED = {
    "tlora": "Its ranks depend on the noise level, which no file says, and its file needs weights that it leaves out.",
    "norm": "It trains LayerNorm and GroupNorm weights, and these models have none.",
    "dylora": "It draws another rank for each forward pass, also where an image is generated.",
}
"""Algorithms of lycoris-lora that cannot be used -> why."""


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise value_error(
            f"{text!r} is not a valid regular expression: {error}."
        ) from error
    return text


LYCORIS = "lycoris-lora==4.1.3"
"""The package of the extra `lycoris`, as pip takes it."""

MATCH_SECONDS = 10.0
"""How long one pattern may take for the names of all layers; usual are milliseconds."""


class _OutOfTime(Exception):
    """Raised by the alarm within a match."""


def _ring(*_: object) -> None:
    raise _OutOfTime


def matching(pattern: str | re.Pattern[str], names: Sequence[str]) -> list[str]:
    """The names that a regular expression matches whole.

    Raises UserError where it takes longer than MATCH_SECONDS: nested repetition can
    take longer than any run. Only the main thread, and not on Windows, has the alarm
    that ends a match.
    """
    compiled = re.compile(pattern)
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        return [name for name in names if compiled.fullmatch(name)]
    earlier = signal.signal(signal.SIGALRM, _ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, MATCH_SECONDS)
        try:
            return [name for name in names if compiled.fullmatch(name)]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime:
        raise UserError(
            f"the pattern {compiled.pattern[:60]!r} is not done with the names of the layers after "
            f"{MATCH_SECONDS:g} s. Remove nested repetition, such as (a+)+."
        ) from None
    finally:
        signal.signal(signal.SIGALRM, earlier)


def _factor(value: int) -> int:
    if value == 0:
        raise value_error(
            "0 is not a valid factor. Use -1 (balanced) or a positive number."
        )
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression."""

Patterns = Annotated[
    tuple[Pattern, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})
]
"""One regular expression or a list of them."""


if TYPE_CHECKING:  # mypy does not accept a computed Literal
    Algo: TypeAlias = str
else:
    Algo = Literal[tuple(ALGORITHMS)]


class NetworkKwargs(StrictModel):
    """`network.network_kwargs`: which layers are adapted, and arguments of LyCORIS's
    algorithms.

    Example:
        network_kwargs: {only_if_contains: [attn]}
    """

    algo: Annotated[
        Algo, OneOf(*ALGORITHMS, spellings={"locon": "lora"}, instead=NOT_TRAINED)
    ] = "lora"
    """With `type: lycoris`, the kind of adapter, by LyCORIS's names; lora, loha and
    lokr are the program's own, the others modules of the package lycoris-lora."""

    constraint: float = Field(default=0.0, ge=0)
    """boft, diag-oft: largest norm of a layer's generators of rotations, times its
    outputs. 0: no limit."""

    rescaled: bool = False
    """boft, diag-oft: also train a factor for each output."""

    only_if_contains: StrOrList = ()
    """Adapt only layers whose dotted name contains one of these strings; empty: all
    layers."""

    ignore_if_contains: StrOrList = ()
    """Skip layers whose dotted name contains one of these strings."""


class NetworkConfig(StrictModel):
    """`network`: the adapter that is trained and its size.

    Example:
        network: {type: lora, linear: 32, linear_alpha: 32}
    """

    type: Annotated[
        str,
        OneOf(
            *KINDS,
            spellings={"lycoris": "lora", "fullrank": "full"},
            instead=dict.fromkeys(
                ("lora+", "loraplus", "lora_plus", "lora-plus"),
                "Write 'type: lora', and 'loraplus_lr_ratio: 16' below it.",
            ),
            more=partial(added, "network"),
        ),
    ] = "lora"
    """Kind of adapter; `lycoris`: the one that `network_kwargs.algo` names. LoRA files
    load in ComfyUI, diffusers, DiffSynth and mflux, the others in ComfyUI only (ia3: in
    none). full: no adapter; the model itself is trained and saved as a model folder,
    and a layer is any module with parameters, biases and norms included. boft,
    diag-oft, glora, ia3 and lycoris-full (LyCORIS's `full`) need the package
    lycoris-lora."""

    linear: int = Field(default=16, ge=1, le=100_000)
    """Rank r of each adapted layer; the file size is proportional to it. boft,
    diag-oft: the largest block."""

    linear_alpha: float = Field(
        default_factory=lambda given: float(given.get("linear", 16)),
        ge=0,
        le=65504,  # the largest number of float16, in which files are saved
        json_schema_extra={"default": "linear"},
    )
    """The adapter is scaled by linear_alpha / linear. 0: it has no effect (one
    warning). LoKr layers with a full-rank second factor are not scaled."""

    dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability of an input of the adapter to be zeroed during training; 0: off."""

    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a rank of the adapter (LoHa, LoKr: an output) is dropped for one
    image in training; 0: off."""

    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the adapter of a layer is skipped in one forward call in
    training; 0: off."""

    loraplus_lr_ratio: float = Field(default=0.0, ge=0, le=1e6)
    """LoRA+: ratio of the learning rate of the up matrices (B) of a LoRA or DoRA to that of the others; typically 4 to
    16. 0 or 1: the same rate."""

    scale_weight_norms: float = Field(default=0.0, ge=0)
    """Maximum Frobenius norm of the change of a layer's weight; larger ones are scaled down after each step. Typically
    1. 0: off. metrics.jsonl has `max_norm/keys_scaled`, `max_norm/average_key_norm` and `max_norm/max_key_norm`.
    """

    factor: Annotated[int, AfterValidator(_factor)] = Field(default=-1, ge=-1)
    """LoKr: size of the first Kronecker factor, for inputs and for outputs (rounded
    down to a divisor); -1: as close as possible to the second. A larger factor means
    fewer parameters, up to the balanced one. 0 is an error."""

    lokr_full_rank: bool = False
    """LoKr: do not decompose the second factor, whatever `linear` is; otherwise it is
    left whole only where decomposing it would save nothing."""

    include_patterns: Patterns = ()
    """Regular expressions that match full layer names: these layers are adapted, even
    if an exclude pattern matches them too. Without exclude patterns, only these layers
    are adapted; with them, these layers are exceptions to the exclusion, as in
    musubi-tuner."""

    exclude_patterns: Patterns = ()
    """Regular expressions that match full layer names: these layers are not adapted."""

    pretrained_lora_path: PathStr | None = None
    """A LoRA file (.safetensors) to start from when there is nothing to resume."""

    network_kwargs: NetworkKwargs = Field(default_factory=NetworkKwargs)
    """Which layers are adapted."""

    on_resume: ClassVar = {
        **dict.fromkeys(
            (
                "type",
                "linear",
                "factor",
                "lokr_full_rank",
                "include_patterns",
                "exclude_patterns",
                "network_kwargs",
            ),
            "impossible",
        ),
        "pretrained_lora_path": "harmless",  # it has done its work by then
    }
    common_words: ClassVar = {
        **dict.fromkeys(("dim", "r", "network_rank", "lora_rank"), "linear"),
        **dict.fromkeys(
            ("target_modules", "modules"), "network_kwargs.only_if_contains"
        ),
    }
    lone_key: ClassVar = "type"
    saved_weights: ClassVar[tuple[str, ...]] = ("pretrained_lora_path",)

    @staticmethod
    def _kind_name(node: ConfigNode | None) -> str:
        return str(node.value).strip().lower() if node else "lora"

    @classmethod
    def rewrite(
        cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics
    ) -> dict[str, ConfigNode]:
        """`type: lycoris` becomes the kind that `network_kwargs.algo` names."""
        kwargs = entries.get("network_kwargs")
        given = entries.get("type")
        algo = kwargs.child("algo") if kwargs else None
        if algo and not algo.is_blank:
            kind = cls._kind_name(given)
            named = cls._kind_name(algo)
            if kind == "lycoris" and named in ALGORITHMS:
                entries["type"] = replace(algo, value=ALGORITHMS[named])
            elif (
                kind != "lycoris"
                and named not in ("lora", "locon")
                and ALGORITHMS.get(named) != kind
            ):
                diagnostics.error(
                    algo,
                    "applies to 'type: lycoris' only. Say it by network.type.",
                    at_key=True,
                )
        elif given and str(given.value).strip().lower() == "lycoris":
            diagnostics.warn(
                given,
                "no network_kwargs.algo is given: a plain LoRA is trained. Write 'type: lora'.",
            )
        return entries

    def check(self, job: JobContext) -> Findings:
        """Keys of another kind, what LyCORIS's algorithms cannot do, a file that is
        missing."""
        kind = KINDS[self.type]
        if self.factor != -1 and self.type != "lokr":
            yield warning("factor", "has no effect: it concerns LoKr only.")
        yield from below("network_kwargs", self._arguments_of_others(kind))
        yield from self.unused(
            " ".join(kind.without_effect), f" with network.type '{self.type}'."
        )
        if kind.library_class:
            yield from self._limits_of_library(kind)
        yield from check_path(
            "pretrained_lora_path",
            self.pretrained_lora_path,
            "Give a LoRA file.",
            job,
            file=True,
        )

    def _arguments_of_others(self, kind: NetworkKind) -> Findings:
        """Arguments that the algorithm's class does not declare."""
        for name in ("constraint", "rescaled"):
            if not self.network_kwargs.is_default(name) and name not in kind.settings:
                others = ", ".join(
                    other for other, entry in KINDS.items() if name in entry.settings
                )
                yield error(
                    name,
                    f"is no argument of '{self.type}': it is one of {others}. Remove it.",
                )

    def _limits_of_library(self, kind: NetworkKind) -> Findings:
        """Reports keys that a module class of lycoris-lora does not support."""
        if find_spec("lycoris") is None:
            yield error(
                "type",
                f"'{self.type}' needs the package lycoris-lora (the extra 'lycoris'), which is not installed. "
                f"Run: {install_command(LYCORIS)}",
            )
        if self.scale_weight_norms:
            yield error(
                "scale_weight_norms",
                f"the change of '{self.type}' cannot be scaled down by its weights. Remove it.",
            )
        if self.pretrained_lora_path is not None:
            yield error(
                "pretrained_lora_path",
                f"'{self.type}' cannot start from a file. Remove it, or give the file as model.base_loras.",
            )
        if self.linear_alpha == 0 and "linear_alpha" not in kind.without_effect:
            yield error(
                "linear_alpha",
                f"'{self.type}' takes 0 for the rank. Give the value that is meant.",
            )
        if self.type == "diag-oft" and self.network_kwargs.rescaled:
            yield warning(
                "network_kwargs.rescaled",
                "ComfyUI ignores these factors in a file of diag-oft; with boft it uses them.",
            )

    @property
    def trains_model(self) -> bool:
        """Whether the model's own weights are trained instead of an adapter's."""
        return KINDS[self.type].trains_model

    def size(self) -> str:
        """The settings that decide the size and strength of the adapter on a layer, in
        words; "model" where the model itself is trained."""
        if self.trains_model:
            return "model"
        given = (
            "" if "linear_alpha" in self.model_fields_set else " (not given: the rank)"
        )
        rank = f"rank {self.linear}, alpha {self.linear_alpha:g}{given}"
        if "linear" in KINDS[self.type].without_effect:
            return "without a rank"
        if "linear_alpha" in KINDS[self.type].without_effect:
            return f"with blocks of at most {self.linear}"
        if self.type != "lokr":
            return rank
        factor = "balanced" if self.factor == -1 else f"factor {self.factor}"
        return (
            f"{factor}, second factor whole"
            if self.lokr_full_rank
            else f"{factor}, {rank}"
        )
