"""The tools: processes that are also commands (`run.py TOOL`). One table of all; a tool's folder is imported when it is
used. A tool imports nothing of another, only what they share (`shared/`)."""

from toolkit.extension import Extension


def _tool(uid: str, name: str, purpose: str, config: str, process: str, command: str = "") -> type[Extension]:
    """The extension class of a tool; see `Extension` for the arguments."""
    attributes = {"purpose": purpose, "config": config, "process": process, "command": command}
    return type(uid, (Extension,), {"uid": uid, "name": name, "__module__": __name__, **attributes})


AI_TOOLKIT_EXTENSIONS = [
    _tool(
        "align",
        "Align pairs",
        "write copies of pairs in which each reference lies on its image",
        ".align.config:AlignConfig",
        ".align.process:AlignProcess",
    ),
    _tool(
        "ara",
        "Make an accuracy-recovery adapter",
        "make a LoRA that makes up for what quantizing a model loses",
        ".ara.config:AraConfig",
        ".ara.process:AraProcess",
    ),
    _tool(
        "best",
        "Choose a checkpoint",
        "measure the saved LoRAs of a run and say which to use",
        ".best.config:BestConfig",
        ".best.process:BestProcess",
    ),
    _tool(
        "cache",
        "Cache",
        "encode the images and captions of a job before it trains; see and prune the cache",
        ".cache.config:CacheConfig",
        ".cache.process:CacheProcess",
        ".cache.config:CacheCommand",
    ),
    _tool(
        "caption",
        "Caption images",
        "write captions of a folder of images with a vision-language model, or of the change between pairs",
        ".caption.config:CaptionConfig",
        ".caption.process:CaptionProcess",
    ),
    _tool(
        "diagrams",
        "Diagrams",
        "draw the curves of a run: losses, learning rates, step times",
        ".diagrams.config:DiagramsConfig",
        ".diagrams.process:DiagramsProcess",
    ),
    _tool(
        "doctor",
        "Examine a LoRA file",
        "say why a LoRA file does nothing or too much: numbers, layers, alpha, programs, rounding",
        ".doctor.config:DoctorConfig",
        ".doctor.process:DoctorProcess",
    ),
    _tool(
        "generate",
        "Generate images",
        "generate images with a model and LoRAs, from text and references",
        ".generate.config:GenerateConfig",
        ".generate.process:GenerateProcess",
    ),
    _tool(
        "grid",
        "Compare LoRAs",
        "compare checkpoints, strengths, prompts and seeds on one page",
        ".grid.config:GridConfig",
        ".grid.process:GridProcess",
    ),
    _tool(
        "lint",
        "Lint",
        "check a dataset: pairs, duplicates, blurred and enlarged images, captions, leaks; see what is trained",
        ".lint.config:LintConfig",
        ".lint.process:LintProcess",
    ),
    _tool(
        "inspect",
        "Inspect a LoRA file",
        "see what is in a LoRA file: kind, rank, alpha, layers, norms, metadata",
        ".lora_tools.config:InspectConfig",
        ".lora_tools.process:InspectProcess",
    ),
    _tool(
        "convert",
        "Convert a LoRA file",
        "convert a LoRA file for ComfyUI, diffusers, kohya, musubi-tuner or ai-toolkit",
        ".lora_tools.config:ConvertConfig",
        ".lora_tools.process:ConvertProcess",
    ),
    _tool(
        "resize",
        "Resize a LoRA",
        "make a LoRA of a lower rank of one, or a LoRA of a LoHa or LoKr",
        ".lora_tools.config:ResizeConfig",
        ".lora_tools.process:ResizeProcess",
    ),
    _tool(
        "merge",
        "Merge LoRAs",
        "merge LoRAs into a model, or several into one file",
        ".lora_tools.config:MergeConfig",
        ".lora_tools.process:MergeProcess",
    ),
    _tool(
        "extract",
        "Extract a LoRA",
        "extract a LoRA from a model and its fine-tuned version",
        ".lora_tools.config:ExtractConfig",
        ".lora_tools.process:ExtractProcess",
    ),
    _tool(
        "post_hoc_ema",
        "Post-hoc EMA",
        "average the saved files of a run",
        ".lora_tools.config:PostHocEmaConfig",
        ".lora_tools.process:PostHocEmaProcess",
    ),
    _tool(
        "new",
        "New job",
        "write the job for a folder of images and this GPU, check it and show its plan",
        ".new.config:NewConfig",
        ".new.process:NewProcess",
    ),
    _tool(
        "publish",
        "Publish a LoRA",
        "upload a run's LoRA with a model card, samples and its report to the Hugging Face hub",
        ".publish.config:PublishConfig",
        ".publish.process:PublishProcess",
    ),
    _tool(
        "queue",
        "Queue",
        "run jobs and tools one after another, one per GPU; see, order, stop and retry them",
        ".ui.queue_config:QueueConfig",
        ".ui.queue_process:QueueProcess",
    ),
    _tool(
        "report",
        "Report",
        "see a run on one page: samples over steps, curves, settings, dataset, files",
        ".report.config:ReportConfig",
        ".report.process:ReportProcess",
    ),
    _tool(
        "ui",
        "Web page",
        "show all runs in a browser, live; edit datasets, start jobs",
        ".ui.config:UiConfig",
        ".ui.process:UiProcess",
    ),
]
