"""The tools: processes that are also commands (`run.py TOOL`). One table of all; a
tool's folder is imported when it is used. A tool imports nothing of another, only what
they share (`shared/`)."""

from pathlib import Path

from toolkit.extension import STAGES, Extension


def _tool(
    stage: str, uid: str, name: str, purpose: str, folder: str = "", command: str = ""
) -> type[Extension]:
    """The extension class of a tool; see `Extension` for the arguments. Of `align` the
    folder, where none is given, is `align`, the section `.align.config:AlignConfig` and
    the process `.align.process:AlignProcess`."""
    place = f".{folder or uid}"
    stem = uid.title().replace("_", "")
    attributes = {
        "uid": uid,
        "name": name,
        "purpose": purpose,
        "stage": stage,
        "command": command,
        "__module__": __name__,
    }
    places = {
        "config": f"{place}.config:{stem}Config",
        "process": f"{place}.process:{stem}Process",
    }
    return type(uid, (Extension,), attributes | places)


BEGIN, AFTER, FILES, _ = STAGES

_TOOLS = [
    _tool(
        BEGIN,
        "new",
        "New job",
        "write a job for a folder of images and this GPU, check it and show its plan",
    ),
    _tool(
        BEGIN,
        "ui",
        "Web page",
        "show all runs live in a browser; edit datasets, start jobs",
    ),
    _tool(
        BEGIN,
        "lint",
        "Check a dataset",
        "find pairs that differ, duplicates, blurred and enlarged images, faults of captions; see what is trained",
    ),
    _tool(
        BEGIN,
        "generate",
        "Generate images",
        "generate images with a model and LoRAs, from text and control images",
    ),
    _tool(
        BEGIN,
        "caption",
        "Caption images",
        "caption a folder of images, or the changes in pairs, with a vision-language model",
    ),
    _tool(
        BEGIN,
        "align",
        "Align pairs",
        "write copies of pairs with each control image aligned to its image",
    ),
    _tool(
        BEGIN,
        "download",
        "Download a model",
        "download a model of the hub before a job needs it",
    ),
    _tool(
        BEGIN,
        "cache",
        "Cache",
        "encode a job's images and captions before it trains; list and prune the cache",
        command=".cache.config:CacheCommand",
    ),
    _tool(
        BEGIN,
        "queue",
        "Queue",
        "run jobs and tools one after another, one per GPU; list, reorder, stop, retry them",
        "ui",
    ),
    _tool(
        BEGIN,
        "datasets",
        "Datasets",
        "list datasets; clone, rename, delete and restore them",
        "ui",
    ),
    _tool(
        BEGIN,
        "jobs",
        "Jobs",
        "list job files; clone, rename, delete and restore them",
        "ui",
    ),
    _tool(
        AFTER,
        "runs",
        "Runs",
        "list runs; train longer, clone, rename, delete and restore them",
        "ui",
    ),
    _tool(
        AFTER,
        "grid",
        "Compare LoRAs",
        "compare LoRA files, strengths, prompts and seeds on one page",
    ),
    _tool(
        AFTER,
        "best",
        "Choose a LoRA file",
        "measure the saved LoRAs of a run and say which to use",
    ),
    _tool(
        AFTER,
        "report",
        "Report",
        "write one page on a run: samples over steps, curves, settings, dataset, files",
    ),
    _tool(
        AFTER,
        "diagrams",
        "Diagrams",
        "plot the losses, learning rates and step times of a run",
    ),
    _tool(
        AFTER,
        "publish",
        "Publish a LoRA",
        "upload a run's LoRA with a model card, samples and its report to the Hugging Face hub",
    ),
    _tool(
        FILES,
        "inspect",
        "Inspect a LoRA file",
        "show the kind, rank, alpha, layers, norms and metadata of a LoRA file",
        "lora_tools",
    ),
    _tool(
        FILES,
        "doctor",
        "Diagnose a LoRA file",
        "say why a LoRA file does nothing or too much: numbers, layers, alpha",
    ),
    _tool(
        FILES,
        "convert",
        "Convert a LoRA file",
        "convert a LoRA file for ComfyUI, diffusers, kohya, musubi-tuner or ai-toolkit",
        "lora_tools",
    ),
    _tool(
        FILES,
        "resize",
        "Resize a LoRA",
        "reduce the rank of a LoRA, or turn a LoHa or LoKr into a LoRA",
        "lora_tools",
    ),
    _tool(
        FILES,
        "merge",
        "Merge LoRAs",
        "merge LoRAs into a model, or several into one file",
        "lora_tools",
    ),
    _tool(
        FILES,
        "extract",
        "Extract a LoRA",
        "extract a LoRA from a model and its fine-tuned version",
        "lora_tools",
    ),
    _tool(
        FILES,
        "post_hoc_ema",
        "Post-hoc EMA",
        "average the LoRA files of a run",
        "lora_tools",
    ),
    _tool(
        FILES,
        "ara",
        "Make an accuracy-recovery adapter",
        "make a LoRA that compensates for a model's quantization error",
    ),
]

AI_TOOLKIT_EXTENSIONS = [
    tool
    for tool in _TOOLS
    if (Path(__file__).parent / tool.process.split(".")[1]).is_dir()
]
"""The tools whose folder is there: each can be left out by deleting it."""
