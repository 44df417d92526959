"""`datasets[].from_base`: which images the base model makes as regularisation images,
and where their files are. Imports no torch.

An image is known by how it is made (`BaseImage`): model, prompt, seed, size, steps,
guidance. So each is made once for all jobs of a training folder, and one that is there
is never made again. `jobs.process.image_trainer` makes them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from toolkit.config.sections.dataset import (
    DatasetConfig,
    FromBaseConfig,
    area_of,
    sides_of,
)
from toolkit.config.sections.model_files import single_files
from toolkit.config.sections.prompts import KEYS
from toolkit.config.sections.trainer import DiffusionSection, ImageTrainingSection
from toolkit.contracts.data import PLACEHOLDERS, BaseImage, BucketedSample, Sample, Size
from toolkit.contracts.model import ModelFacts
from toolkit.data.scan.captions import CaptionError, caption_rules, read_text
from toolkit.data.scan.fingerprint import made_digest
from toolkit.data.scan.folder import FolderInfo
from toolkit.data.scan.foreign_syntax import in_words, marks_in
from toolkit.data.scan.found import count_of, shorten
from toolkit.errors import DataErrors, Diagnostic
from toolkit.files.tensor_cache import key_of
from toolkit.files.writing import (
    CACHE_FOLDER,
    atomic_write,
    os_error_as_run_error,
    write_text,
)
from toolkit.system import seeding

FOLDER = "from_base"
"""In the cache: a folder for each base model, whose files are named by how they are
made."""

_PNG_END = bytes(4) + b"IEND\xaeB`\x82"

_FLAG = re.compile(rf" --(?:{'|'.join(KEYS)}) ")

Faults = tuple[tuple[str, str], ...]
"""Files of prompts, each with a warning."""


def made_folders(
    section: ImageTrainingSection,
    family: ModelFacts,
    forgiven: list[Diagnostic] | None = None,
) -> tuple[list[FolderInfo], Faults]:
    """The images that the base model makes for each entry of `datasets` with
    `from_base`, and faults of the prompts.

    Raises DataErrors naming every file of prompts that cannot be used; `forgiven` takes
    them instead.
    """
    folders = list[FolderInfo]()
    faults = list[tuple[str, str]]()
    mistakes = list[Diagnostic]()
    base = ""
    for index, dataset in enumerate(section.datasets):
        from_base = dataset.from_base
        if not from_base:
            continue
        base = base or _base_hash(section, family)
        try:
            prompts = read_prompts(from_base.prompts)
        except CaptionError as error:
            mistakes.append(Diagnostic((from_base.prompts,), error.reason))
            continue
        file = from_base.prompts
        faults += [(file, fault) for fault in _faults(prompts, section.trigger_words())]
        weight = dataset.loss_multiplier * section.train.reg_weight
        rules = caption_rules(dataset, section.trigger_word)
        repeats = dataset.num_repeats or 1
        size = _size(dataset, family)
        samples = tuple(
            Sample(
                str(place_of(section.training_folder, image)),
                image.prompt,
                repeats,
                image.size,
                file,
                rules=rules,
                loss_weight=weight,
                dataset=index,
                made=image,
            )
            for image in base_images(from_base, prompts, size, base, family)
        )
        folders.append(FolderInfo(index, file, repeats, samples, 0, is_reg=True))
    if mistakes and forgiven is None:
        raise DataErrors(mistakes)
    if forgiven is not None:
        forgiven += mistakes
    return folders, tuple(faults)


def read_prompts(file: str) -> list[str]:
    """The prompts of a text file: its lines but for empty ones and those that begin
    with `#`. Raises CaptionError."""
    # Not `splitlines`, which ends a line at characters that no editor shows as an end.
    text = read_text(Path(file).expanduser())
    lines = [line.strip() for line in text.split("\n")]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise CaptionError(
            file,
            "holds no prompt. Write one per line; '#' begins a line that is left out",
        )
    return prompts


def base_images(
    settings: FromBaseConfig,
    prompts: Sequence[str],
    size: Size,
    base: str,
    family: ModelFacts,
) -> Iterator[BaseImage]:
    """The images in the order of the prompts, again from the first one where there are
    more images.

    A seed depends on the prompt and on how often it was used before, not on its place
    in the file: a prompt that is added or removed leaves the images of the others as
    they are.
    """
    steps = settings.sample_steps or family.sample_steps
    given = settings.guidance_scale
    guidance = family.guidance if given is None else given
    uses = Counter[str]()
    for index in range(settings.count or len(prompts)):
        prompt = prompts[index % len(prompts)]
        seed = seeding.key(settings.seed, FOLDER, prompt, uses[prompt]) % 2**32
        uses[prompt] += 1
        yield BaseImage(base, prompt, settings.neg, size, seed, steps, guidance)


def place_of(training_folder: str, image: BaseImage) -> Path:
    """The file of an image that the base model makes, in the cache of the training
    folder. It need not exist. Its caption is next to it, with the suffix `.txt`."""
    folder = Path(training_folder).expanduser() / CACHE_FOLDER / FOLDER
    base = (image.base or "unknown")[:16]
    return folder / base / f"{made_digest(image)[:32]}.png"


def not_made_yet(items: Sequence[BucketedSample]) -> dict[str, Sample]:
    """The images that the base model has still to make: path -> the first sample of
    each."""
    first: dict[str, Sample] = {}
    for sample, _ in items:
        if sample.made:
            first.setdefault(sample.image, sample)
    return {path: each for path, each in first.items() if not _is_whole(Path(path))}


def _is_whole(file: Path) -> bool:
    """Whether an image is there to its last byte: one that a full disk or a broken copy
    cut off is made again."""
    try:
        with file.open("rb") as opened:
            opened.seek(-len(_PNG_END), os.SEEK_END)
            return opened.read() == _PNG_END
    except OSError:  # not there, or shorter
        return False


def write_base_image(file: Path, image: Image.Image, caption: str) -> None:
    """Writes an image and its caption. An image that is there is whole, and its caption
    is there."""
    with os_error_as_run_error(file):
        write_text(file.with_suffix(".txt"), f"{caption}\n")
        with atomic_write(file) as temporary:
            image.save(temporary, format="PNG")


def _base_hash(section: ImageTrainingSection, family: ModelFacts) -> str:
    """The hash of the base model and its settings; empty where the model is not
    downloaded yet."""
    # others have no base model: `DatasetsSection.check`
    assert isinstance(section, DiffusionSection)
    files = family.files_hash(section.model.files_folder(), single_files(section.model))
    return files and key_of(
        files=files, settings=section.base_settings(), dtype=section.train.dtype
    )


def _size(dataset: DatasetConfig, family: ModelFacts) -> Size:
    """The largest of the training sizes."""
    sides = sides_of(max(dataset.resolution, key=area_of))
    return Size(
        *(side // family.size_multiple * family.size_multiple for side in sides)
    )


def _faults(prompts: Sequence[str], triggers: Sequence[str]) -> Iterator[str]:
    """Warnings for prompts of the base model, for the plan and `lint`."""
    for word in (*triggers, *PLACEHOLDERS):
        whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
        with_word = [prompt for prompt in prompts if whole.search(prompt)]
        if with_word:
            yield (
                f"{count_of(len(with_word), 'prompt')} with {word!r}, whose meaning the base model does not know: "
                f"{_quoted(with_word)}. Write what it is an example of instead"
            )
    with_flags = [prompt for prompt in prompts if _FLAG.search(prompt)]
    if with_flags:
        counted = count_of(len(with_flags), "prompt")
        yield (
            f"{counted} with flags, which are part of the text here: {_quoted(with_flags)}. "
            "Give 'neg', 'sample_steps' and 'guidance_scale' of 'from_base', and 'resolution'"
        )
    marks = marks_in(prompts)
    if marks:
        yield f"{count_of(len(prompts), 'prompt')} with {in_words(marks)}"


def _quoted(prompts: Sequence[str]) -> str:
    cut = (p if len(p) <= 40 else f"{p[:40]}..." for p in prompts[:3])
    return shorten(map(repr, cut))
