"""What a job says of several processes: what excludes what, and how a step is shared. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from toolkit.config.process import Finding
from toolkit.network_kinds import KINDS
from toolkit.optim.choice import NUMBER_BY_NUMBER
from toolkit.place import place_of

FSDP = "'train.parallel: fsdp'"


def check_parallel(section: Any) -> Iterable[Finding]:
    """Mistakes of a job that several processes are to run."""
    train, processes = section.train, place_of().size
    if processes == 1:
        return
    if train.fused_backward_pass:
        message = (
            f"true steps each parameter before the gradients of all {processes} processes are added up. Write false."
        )
        yield Finding(("train", "fused_backward_pass"), message)
    if train.parallel == "fsdp":
        yield from _check_shared_out(section, processes)


def _check_shared_out(section: Any, processes: int) -> Iterable[Finding]:
    """What a model that is shared out rules out: all processes have to make the same passes over its blocks."""
    train, model, network = section.train, section.model, section.network
    if train.batch_size > 1:  # items of unlike sizes take several passes
        message = f"{train.batch_size}: with {FSDP} write 1, and more gradient_accumulation."
        yield Finding(("train", "batch_size"), message)
    if train.gradient_accumulation % processes:
        message = f"{train.gradient_accumulation}: with {FSDP} give a multiple of the {processes} processes."
        yield Finding(("train", "gradient_accumulation"), message)
    if network.trains_model:
        yield from _check_trained_parts(section)
    if KINDS[network.type].needs_base:
        message = f"'type: dora' needs the norms of whole weights, and {FSDP} shares them out. Use lora, loha or lokr."
        yield Finding(("network", "type"), message)
    excluded = {
        ("model", "quantize"): (model.quantize, "FSDP2 shares out parameters, and quantized weights are none"),
        ("model", "blocks_to_swap"): (model.blocks_to_swap, "the blocks are on the GPUs, a share on each"),
        ("model", "modulation_table"): (model.modulation_table is True, "the table's weights are shared out too"),
        ("train", "compile"): (train.compile.enabled, "compiled blocks do not gather their weights"),
    }
    for path, (given, reason) in excluded.items():
        if given:
            yield Finding(path, f"not with {FSDP}: {reason}. Leave one of them out.")


def _check_trained_parts(section: Any) -> Iterable[Finding]:
    """What needs whole weights, where each process trains some rows of them."""
    train = section.train
    if train.optimizer not in NUMBER_BY_NUMBER:
        message = (
            f"{train.optimizer!r} may look at more of a weight than one number of it, and {FSDP} shares the weights "
            f"out. Use one of {', '.join(NUMBER_BY_NUMBER)}."
        )
        yield Finding(("train", "optimizer"), message)
    if section.save.mem_eff_save:
        message = f"true writes the weights from where they are, and {FSDP} has them in all processes. Write false."
        yield Finding(("save", "mem_eff_save"), message)


def note_parallel(section: Any) -> Iterable[Finding]:
    """Keys that are given and do nothing."""
    if place_of().alone:
        for key in ("parallel", "ddp_timeout"):
            if getattr(section.train, key) != type(section.train).model_fields[key].default:
                yield Finding(("train", key), "has no effect with one process. Start several with torchrun.")


def sharing(train: Any) -> Iterator[str]:
    """How the samples of a step are shared out."""
    processes = place_of().size
    if processes == 1:
        return
    count, size = train.gradient_accumulation, train.batch_size
    what = f"{processes} processes share the {count} x {size} images of each step"
    cut = min(-(-processes // count), size)
    each = count * cut
    if each < processes:
        idle = processes - each
        yield f"{what}: {idle} have nothing to do. A gradient_accumulation of {processes} gives each one batch."
    elif each % processes:
        yield f"{what}: some compute {each // processes + 1} batches, the others {each // processes}, and wait."
    else:
        uneven = f" or {size // cut + 1}" if size % cut else ""
        yield f"{what}: {each // processes} x {size // cut}{uneven} each"
