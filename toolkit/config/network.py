"""`network`: the adapter that is trained."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field

from toolkit.config.base import StrictModel
from toolkit.config.field_types import OneOf, PathStr, StrOrList, as_list, schema_of_list, value_error
from toolkit.config.findings import Findings, JobContext, check_path, warning
from toolkit.config.located import ConfigNode, Diagnostics
from toolkit.errors import UserError
from toolkit.networks.kinds import KINDS

IN_LYCORIS = tuple(name for name, kind in KINDS.items() if kind.in_lycoris)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise value_error(f"{text!r} is not a valid regular expression: {error}.") from error
    return text


MATCH_SECONDS = 10.0
"""How long one pattern may take for the names of all layers; usual are milliseconds."""


class _OutOfTime(Exception):
    """Raised by the alarm within a match."""


def _ring(*_: object) -> None:
    raise _OutOfTime


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a regular expression matches whole.

    Raises UserError where it takes longer than MATCH_SECONDS: nested repetition can take longer than any run. Only the
    main thread, and not on Windows, has the alarm that ends a match.
    """
    compiled = re.compile(pattern)
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
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
            f"the pattern {pattern!r} is not done with the names of the layers after {MATCH_SECONDS:g} s. "
            "Remove nested repetition, such as (a+)+."
        ) from None
    finally:
        signal.signal(signal.SIGALRM, earlier)


def _factor(value: int) -> int:
    if value == 0:
        raise value_error("0 is not a valid factor. Use -1 (balanced) or a positive number.")
    return value


Pattern = Annotated[str, AfterValidator(_pattern)]
"""A regular expression."""

Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(as_list), schema_of_list({"type": "string"})]
"""One regular expression or a list of them."""


if TYPE_CHECKING:  # mypy does not accept a computed Literal
    Algo: TypeAlias = str
    Kind: TypeAlias = str
else:
    Algo, Kind = Literal[IN_LYCORIS], Literal[tuple(KINDS)]


class NetworkKwargs(StrictModel):
    """`network.network_kwargs`: which layers are adapted."""

    algo: Annotated[Algo, OneOf(*IN_LYCORIS, spellings={"locon": "lora"})] = "lora"
    """With `type: lycoris`, the kind of adapter, by LyCORIS's names."""

    only_if_contains: StrOrList = ()
    """Adapt only layers whose dotted name contains one of these strings; empty: all layers."""

    ignore_if_contains: StrOrList = ()
    """Skip layers whose dotted name contains one of these strings."""


class NetworkConfig(StrictModel):
    """`network`: the adapter that is trained and its size."""

    type: Annotated[Kind, OneOf(*KINDS, spellings={"lycoris": "lora", "fullrank": "full"})] = "lora"
    """Kind of adapter; `lycoris`: the one that `network_kwargs.algo` names. LoRA files load in ComfyUI, diffusers,
    DiffSynth and mflux, the others in ComfyUI only. full: no adapter; the model itself is trained and saved as a model
    folder, and a layer is any module with parameters, biases and norms included."""

    linear: int = Field(default=16, ge=1, le=100_000)
    """Rank r of each adapted layer; the file size is proportional to it."""

    linear_alpha: float = Field(
        default_factory=lambda given: float(given.get("linear", 16)),
        ge=0,
        le=65504,  # the largest number of float16, in which files are saved
        json_schema_extra={"default": "linear"},
    )
    """The adapter is scaled by linear_alpha / linear. 0: it has no effect (one warning). LoKr layers with a full-rank
    second factor are not scaled."""

    dropout: float = Field(default=0.0, ge=0, le=1)
    """Probability of an input of the adapter to be zeroed during training; 0: off."""

    rank_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a rank of the adapter (LoHa, LoKr: an output) is dropped for one image in training; 0: off."""

    module_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the adapter of a layer is skipped in one forward call in training; 0: off."""

    loraplus_lr_ratio: float = Field(default=0.0, ge=0, le=1e6)
    """LoRA+: ratio of the learning rate of the up matrices (B) of a LoRA or DoRA to that of the others; typically 4 to
    16. 0 or 1: the same rate."""

    scale_weight_norms: float = Field(default=0.0, ge=0)
    """Maximum Frobenius norm of the change of a layer's weight; larger ones are scaled down after each step. Typically
    1. 0: off. metrics.jsonl has `max_norm/keys_scaled`, `max_norm/average_key_norm` and `max_norm/max_key_norm`."""

    factor: Annotated[int, AfterValidator(_factor)] = Field(default=-1, ge=-1)
    """LoKr: size of the first Kronecker factor, for inputs and for outputs (rounded down to a divisor); -1: as close as
    possible to the second. A larger factor means fewer parameters, up to the balanced one. 0 is an error."""

    lokr_full_rank: bool = False
    """LoKr: do not decompose the second factor, whatever `linear` is; otherwise it is left whole only where
    decomposing it would save nothing."""

    include_patterns: Patterns = ()
    """Regular expressions that match full layer names: these layers are adapted, even if an exclude pattern matches
    them too. Without exclude patterns, only these layers are adapted; with them, these layers are exceptions to the
    exclusion, as in musubi-tuner."""

    exclude_patterns: Patterns = ()
    """Regular expressions that match full layer names: these layers are not adapted."""

    pretrained_lora_path: PathStr | None = None
    """A LoRA file (.safetensors) to start from when there is nothing to resume."""

    network_kwargs: NetworkKwargs = Field(default_factory=NetworkKwargs)
    """Which layers are adapted."""

    on_resume: ClassVar = {
        **dict.fromkeys(
            ("type", "linear", "factor", "lokr_full_rank", "include_patterns", "exclude_patterns", "network_kwargs"),
            "impossible",
        ),
        "pretrained_lora_path": "harmless",  # it has done its work by then
    }
    lone_key: ClassVar = "type"
    saved_weights: ClassVar[tuple[str, ...]] = ("pretrained_lora_path",)

    @classmethod
    def rewrite(cls, entries: dict[str, ConfigNode], diagnostics: Diagnostics) -> dict[str, ConfigNode]:
        """`type: lycoris` becomes the kind that `network_kwargs.algo` names."""
        kwargs, given = entries.get("network_kwargs"), entries.get("type")
        if kwargs and (algo := kwargs.child("algo")) and not algo.is_blank:
            kind, named = (str(node.value).strip().lower() if node else "lora" for node in (given, algo))
            if kind == "lycoris" and named in IN_LYCORIS:
                entries["type"] = replace(algo, value=named)
            elif kind != "lycoris" and named not in ("lora", "locon", kind):
                diagnostics.error(algo, "applies to 'type: lycoris' only. Say it by network.type.", at_key=True)
        return entries

    def check(self, job: JobContext) -> Findings:
        """A factor of another kind, a file that is missing."""
        if self.factor != -1 and self.type != "lokr":
            yield warning("factor", "has no effect: it concerns LoKr only.")
        yield from check_path("pretrained_lora_path", self.pretrained_lora_path, "Give a LoRA file.", job, file=True)

    @property
    def trains_model(self) -> bool:
        """Whether the model's own weights are trained instead of an adapter's."""
        return KINDS[self.type].trains_model

    def size(self) -> str:
        """What decides the size and the strength of the adapter on a layer, in words; nothing without one."""
        if self.trains_model:
            return "model"
        given = "" if "linear_alpha" in self.model_fields_set else " (not given: the rank)"
        rank = f"rank {self.linear}, alpha {self.linear_alpha:g}{given}"
        if self.type != "lokr":
            return rank
        factor = "balanced" if self.factor == -1 else f"factor {self.factor}"
        return f"{factor}, second factor whole" if self.lokr_full_rank else f"{factor}, {rank}"
