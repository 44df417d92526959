"""Jobs for published models by GPU: one template, `train.yaml.j2`, and a table of models
and GPUs, `examples.toml`.

The job of a small model comes from config/examples/quickstart.yaml instead. What the
folder of the images needs is added: pairs, layers, subfolders, numbers in names. This
module writes no file and checks no image.

`run.py new` and the page (`ui`) fill the template in for a user. `docs/generate.py`
writes config/examples/train_*.yaml with it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, cast

from extensions.tools.shared.effort import USUAL, with_effort
from extensions.tools.shared.pairs import FoundPairs, found_pairs, is_table, listed
from toolkit.config.sections.dataset import DatasetConfig
from toolkit.config.sections.model import ModelConfig
from toolkit.config.sections.model_files import family_named, published_family
from toolkit.contracts.model import ModelFacts
from toolkit.data.pixels.images import ImageError, image_size
from toolkit.data.scan.directory import join
from toolkit.data.scan.folder import find_images
from toolkit.data.scan.found import held_out_folders, named_as_regularisation
from toolkit.data.scan.items import SIZE_MULTIPLE, bucket_for
from toolkit.data.scan.partners import LAYER, LAYER_SUFFIXES
from toolkit.data.scan.repeats import probably_no_repeats
from toolkit.errors import UserError
from toolkit.files.writing import CONFIG_ROOT
from toolkit.models.families import (
    ModelFamily,
    arch_of,
    family_for,
    model_bytes,
    published_families,
    title_of,
)
from toolkit.models.recipes import USUAL_RECIPE, recipe_of
from toolkit.plan.cards import assumed_card
from toolkit.system.nvidia import ACCIDENTAL_CPU_LIMIT
from toolkit.version import COMMAND

NOTES = 44
"""Column at which the comments behind keys begin."""


class Card(NamedTuple):
    """Settings that a GPU of this memory needs.

    >>> MODELS[3].cards[24].qtype
    'int8'
    """

    least_gb: int
    """From this memory on."""

    qtype: str = ""
    """Quantized type of the transformer; empty: bf16."""

    low_vram: bool = False
    match_target_res: bool = False
    swap: int = 0
    """Blocks that wait in main memory."""

    batch_size: int = 1
    sample_side: int = 1024
    level: str = "auto"
    """`train.gradient_checkpointing`."""

    table: bool = True
    """Whether the modulation table may be used: its rows take memory of the GPU."""

    rank: int = 0
    """`network.linear`; 0: the recipe's."""

    quantize_te: bool = False
    """Whether the text encoder is quantized, because it does not fit as it is."""

    for_pairs: Mapping[str, Any] = {}
    """Fields of this class that differ in a job of pairs, whose control images are as
    large as its images."""


class Model(NamedTuple):
    """A published model in the examples.

    >>> MODELS[4].steps, list(MODELS[4].cards)
    (50, [80, 48, 24, 16, 12])
    """

    title: str
    id: str
    arch: str
    file: str
    """Part of the examples' names."""

    run: str
    """Name of the examples' runs, with the GPU behind it."""

    weights: Mapping[str, tuple[str, str]]
    """`qtype` -> how the header names it, and the comment behind the key."""

    layers: str
    """Parts of the names of layers that may be left out."""

    references: str
    """How many control images at most, as a word; empty: none."""

    control_keys: str
    steps: int
    guidance: float
    guidance_note: str
    cards: Mapping[int, Card]
    """Settings by GPU, the largest first."""

    examples: Sequence[int]
    """GPUs with their own example in config/examples."""

    subject: str = "character "
    """What the examples train, with a space behind it."""

    folder: str = "config/examples/photos"
    """Images of the examples."""


def _weights(bf16: float, int8: float, int4: float) -> Mapping[str, tuple[str, str]]:
    return {
        "": ("Unquantized bf16", f"bf16 throughout: the transformer takes {bf16} GB"),
        "int8": (
            "int8 weights",
            f"int8 is nearly lossless; the transformer takes {int8} GB instead of {bf16}",
        ),
        "int4": (
            "int4 weights",
            f"the transformer takes {int4} GB instead of {bf16}; less exact than int8",
        ),
    }


def _models(table: Path) -> tuple[Model, ...]:
    """The models of a table."""
    models: dict[str, Model] = {}
    for name, row in tomllib.loads(table.read_text(encoding="utf-8")).items():
        if "cards" in row:
            row["cards"] = {int(gpu): Card(**c) for gpu, c in row["cards"].items()}
        if "weights_gb" in row:
            row["weights"] = _weights(*row.pop("weights_gb"))
        like = models.get(row.pop("like", ""))
        models[name] = like._replace(**row) if like else Model(**row)
    return (*models.values(),)


MODELS = _models(Path(__file__).with_suffix(".toml"))
"""`run.py new` takes the first one without `--model`."""


def all_models() -> tuple[Model, ...]:
    """MODELS, and the published models of the families that have none there."""
    known = {model.arch for model in MODELS}
    others = (family for family in published_families() if family.arch not in known)
    return (
        *MODELS,
        *(
            _by_its_sizes(family.of_title(title), id_)
            for family in others
            for id_, title in family.published.items()
        ),
    )


GPUS = (80, 48, 32, 24, 16, 12, 8, 6)

ROOM_GB = 6
"""On the GPU beside the weights of the transformer, for images of 1024 x 1024."""


def _by_its_sizes(family: ModelFamily, id_: str) -> Model:
    """A published model, with settings that follow from the size of its weights."""
    facts = family.footprint(Path(id_))
    blocks = facts.blocks
    gb = {
        qtype: (facts.stored(facts.linear_params, qtype, 2) + 2 * facts.other_params)
        / 10**9
        for qtype in (None, "int8", "int4")
    }
    text_gb = 2 * (facts.text.linear_params + facts.text.other_params) / 10**9
    cards: dict[int, Card] = {}
    for gpu in GPUS:
        fits = [qtype for qtype in gb if gb[qtype] + ROOM_GB <= gpu]
        qtype = fits[0] if fits else "int4"
        swap = max(0, ceil((gb[qtype] + ROOM_GB - gpu) / gb[qtype] * blocks))
        if swap < blocks:
            cards[gpu] = Card(
                gpu,
                qtype or "",
                low_vram=bool(qtype) and gpu <= 24,
                match_target_res=bool(qtype),
                swap=swap,
                sample_side=1024 if gpu >= 16 else 768,
                quantize_te=text_gb + 1 > gpu and not facts.text_layers,
            )
    most = family.max_references
    stem = family.title.lower().replace("-", "_")
    return Model(
        title=family.title,
        id=id_,
        arch=family.arch,
        file=stem,
        run=stem,
        weights=_weights(*(round(size, 1) for size in gb.values())),
        layers=next(reversed(family.linear_layers(Path(id_)))).split(".")[-2],
        references=str(most) if most else "",
        control_keys=f"ctrl_img_1 to ctrl_img_{most}",
        steps=family.sample_steps,
        guidance=family.guidance,
        guidance_note="this model is made to be sampled without guidance"
        if family.guidance <= 1
        else "1: no guidance, twice as fast",
        cards=cards,
        examples=(),
    )


EXAMPLES = CONFIG_ROOT / "examples"

Edit = tuple[str, str]
"""Regular expression (of whole lines) and what replaces its one match."""

SMALL: tuple[Edit, ...] = (
    (r"^ +# 15 of pipo.*\n", ""),
    (r"(?s)        # 48 of others.*?\n\n", "\n"),
    (
        r"(?s)( +)prompts: .*(?=meta:)",
        r'\1samples:\n\1  - prompt: "[trigger]"    # <- yours\n',
    ),
    (r"^ +num_repeats: .*\n", ""),
    (r"^( +)(training_seed: .*)$", r'\1trigger_word: ""     # <- yours\n\1\2'),
)
"""From the quickstart to a job on a folder, for a model that is as small."""

SMALL_EDIT: tuple[Edit, ...] = (
    (r"linear_alpha: \d+", "linear_alpha: 16"),
    (r"(?<=batch_size: )\d+", "4"),
    (r"(?<=\s)steps: \d+", "steps: 300"),
    (r"optimizer: muon .*", "optimizer: adamw"),
    (
        r"lr: \S+\n +lr_scheduler: .*",
        "lr: 0.003   # for the small model; a real one wants about 0.0001",
    ),
    (r"(?<=save_every: )\d+", "100"),
    (r"(?<=sample_every: )\d+", "100"),
)
"""From the quickstart to the settings of config/examples/mascot_hats.yaml."""

SMALL_SIDE = 128
"""Pixels of a sample of a small model."""

PAIRS_GUIDE = "before_and_after_pairs.md"

WRITTEN = f"Written by `{COMMAND} new`"

WITHOUT_GPU = 24
"""GB of the GPU that a job is written for on a machine without one."""


def model_of(name: str) -> Model:
    """The published model whose examples suit a hub id, folder or file: that model, or
    one of its family."""
    section = ModelConfig(name_or_path=name)
    known = published_family(section.name_or_path)
    arch = (
        arch_of(section)
        or (section.file_note and family_for(section).arch)
        or (known and known.arch)
    )
    same = [model for model in all_models() if model.id == section.name_or_path]
    alike = [model for model in all_models() if model.arch == arch]
    return (*same, *alike, MODELS[0])[0]


def example_text(model: Model, gpu: int, peak: str) -> str:
    """An example for a GPU of the table. peak: planned GB."""
    card = model.cards[gpu]
    text = _fill(
        model,
        card,
        gpu=gpu,
        peak=peak,
        written=False,
        pairs=False,
        recipe=recipe_of(model.title, family_named(model.arch)),
        name=f"{model.run}_{gpu}gb",
        card=assumed_card(gpu).name,
        trigger='"mychr"',
        folder=model.folder,
        id=model.id,
    )
    family = family_named(model.arch)
    return _of_images(text, model.folder, family, None, "", card.sample_side)


def written_job(
    name: str,
    folder: str,
    trigger: str,
    model: str,
    gpu: int,
    pairs: FoundPairs | None = None,
    instruction: str = "",
    effort: str = USUAL,
    gpu_name: str = "",
) -> str:
    """The job of a user for a GPU of so many GB. folder: of images, or a table that
    names them. model: hub id or local folder; empty: the first of MODELS. A model that
    is small enough for any machine gets the settings of the quickstart. pairs: of
    `found_pairs`, where control images are elsewhere than it looks by itself.
    instruction: the caption of images without one. effort: of EFFORTS. Raises UserError
    for a model's folder of no known family, and for a GPU that is too small for the
    model."""
    pairs = pairs or found_pairs(folder)
    folder = pairs.place if pairs else folder
    fields = {
        "name": _quoted(name),
        "folder": _quoted(folder),
        "trigger": _quoted(trigger),
    }
    if is_small(model):
        family = family_for(ModelConfig(name_or_path=model))
        is_edit = bool(pairs) and not family.stacks_layers
        text = _small_job(family, _quoted(model), is_edit=is_edit, **fields)
        text = with_effort(text, effort, folder)
        return _of_images(text, folder, family, pairs, instruction, SMALL_SIDE)
    like = model_of(model) if model else MODELS[0]
    family = cast("ModelFamily", family_named(like.arch))
    # An unknown model gets the family of the example.
    with suppress(UserError):
        family = family_for(ModelConfig(name_or_path=model or like.id))
    if family.sample_sigmas:
        like = like._replace(steps=family.sample_steps)
    card = next((card for card in like.cards.values() if gpu >= card.least_gb), None)
    if card is None:
        least = min(card.least_gb for card in like.cards.values())
        raise UserError(
            f"gpu: {like.title} does not fit a GPU of {gpu} GB, whatever its settings: the smallest has {least} GB. "
            f"Write the job for one that you rent or borrow with --gpu {least} or more, or give a smaller --model."
        )
    fields["id"] = _quoted(model or like.id)
    fields["card"] = gpu_name or assumed_card(gpu).name
    title = title_of(ModelConfig(name_or_path=model or like.id), family)
    is_edit = bool(pairs) and not family.stacks_layers
    recipe = recipe_of(title, family) or recipe_of(like.title, family) or USUAL_RECIPE
    if is_edit:
        card = card._replace(**card.for_pairs)
    text = _fill(like, card, written=True, pairs=is_edit, recipe=recipe, **fields)
    text = f"# {WRITTEN}. Guide: docs/{PAIRS_GUIDE if is_edit else 'first_character.md'}\n{text}"
    text = with_effort(text, effort, folder)
    return _of_images(text, folder, family, pairs, instruction, card.sample_side)


def _of_images(
    text: str,
    folder: str,
    family: ModelFacts,
    pairs: FoundPairs | None,
    instruction: str,
    side: int,
) -> str:
    """A job with the keys that the images of its folder need. side: of a sample, in
    pixels."""
    if instruction:
        text = _with_keys(text, [f"          default_caption: {_quoted(instruction)}"])
    if family.stacks_layers:
        layers = layers_in(folder)
        if layers is None:
            layers = FoundLayers(f"layers_suffix: {LAYER}", "", 4)
        text = _with_layers(text, layers)
    elif pairs:
        text = _with_pairs(text, pairs, instruction, side)
    if is_table(folder):
        return text.replace("        - folder_path: ", "        - captions_file: ", 1)
    return _with_subfolders(_with_numbers(text, folder), folder)


def is_small(model: str) -> bool:
    """Whether a model (hub id or local folder) can be trained on any machine; empty:
    the first of MODELS, which cannot."""
    if not model:
        return False
    return model_bytes(ModelConfig(name_or_path=model)) <= ACCIDENTAL_CPU_LIMIT


MASCOTS = "tiny_mascots"
"""Folder of the small model of this repository."""

_CAMERA = frozenset(
    {".jpg", ".jpeg", ".heic", ".heif", ".avif", ".webp", ".tif", ".tiff"}
)
_LOOKED_AT = 12
_LARGE = 512


def are_photographs(folder: str) -> bool:
    """Whether the images of a folder, or of its first subfolder with images, are
    probably photographs, which a model of flat drawings cannot learn: at least half
    have a format of cameras, or a side above 512 pixels. Twelve images are examined."""
    for listing in listed(folder):
        if listing.images:
            names = [*listing.images.values()][:_LOOKED_AT]
            paths = [listing.path(of_stem[0]) for of_stem in names]
            return 2 * sum(map(_is_photograph, paths)) >= len(paths)
    return False


def _is_photograph(path: str) -> bool:
    if os.path.splitext(path)[1].lower() in _CAMERA:
        return True
    with suppress(ImageError, OSError):
        return max(image_size(path)) > _LARGE
    return False


class FoundLayers(NamedTuple):
    """How the layers of a folder's images are named.

    Example::

        layers = layers_in("datasets/posters")
        if layers:
            print(layers.key)  # such as `layers_suffix: _layer`
    """

    key: str
    """The line of a dataset that names them so."""

    image: str
    """The first image that has layers."""

    layers: int
    """How many layers that image has."""


def layers_in(folder: str) -> FoundLayers | None:
    """How the layers of the images in a folder, or in a subfolder, are named next to
    the images. None: no image has layers."""
    listings = listed(folder)
    own = listings[:1] if any(each.images for each in listings[:1]) else listings
    for images, suffix in product(own, LAYER_SUFFIXES):
        known = images.numbered_behind(suffix)
        stem = next((stem for stem in images.images if stem in known), "")
        if stem:
            first = images.path(images.images[stem][0])
            return FoundLayers(f"layers_suffix: {suffix}", first, len(known[stem]))
    return None


def numbers_in(folder: str) -> str:
    """Why the numbers in a folder's name, or in the names of its subfolders with
    images, are probably not repeats; empty: they may be, or no name has a number."""
    if any(listing.images for listing in listed(folder)[:1]):
        return probably_no_repeats([os.path.basename(os.path.abspath(folder))])
    filled = _filled_in(folder)
    return probably_no_repeats([n for n in filled if not named_as_regularisation(n)])


def _with_numbers(text: str, folder: str) -> str:
    """A job that takes numbers that are probably no repeats as parts of names."""
    why = numbers_in(folder)
    if not why:
        return text
    key = "          num_repeats: 1"
    note = f"the numbers of its folders {why}; without this key: repeats"
    return _with_keys(text, [_noted(key, note)])


def left_out_in(folder: str) -> list[str]:
    """The subfolders of a folder that a job leaves out, because their names mark them
    as validation or test images."""
    return held_out_folders(_filled_in(folder))


def _filled_in(folder: str) -> list[str]:
    """The subfolders with images, where the folder itself has none."""
    filled = [each.folder for each in listed(folder) if each.images]
    return [] if folder in filled else list(map(os.path.basename, filled))


def _with_subfolders(text: str, folder: str) -> str:
    """A job for a folder some of whose subfolders hold regularisation images, or images
    for validation and test: each of the others becomes a dataset."""
    names = _filled_in(folder)
    left_out = left_out_in(folder)
    places = [join(folder, name) for name in names if name not in left_out]
    are_reg = [named_as_regularisation(place) for place in places]
    if not left_out and (not any(are_reg) or all(are_reg)):
        return text
    block = re.search(r"(?m)^        - folder_path: .*\n(?:          .*\n)*", text)
    assert block  # the template has one
    tables = _tables_above(folder)
    entries = ""
    for place, is_reg in sorted(
        zip(places, are_reg, strict=True), key=lambda pair: pair[1]
    ):
        entries += block[0].replace(_quoted(folder), _quoted(place), 1)
        if place in tables:
            entries += f"          captions_file: {_quoted(tables[place])}\n"
        if is_reg:
            entries += "          is_reg: true\n"
    return text.replace(block[0], entries, 1)


def _tables_above(folder: str) -> dict[str, str]:
    """Subfolder -> the table in the folder itself that has captions for its images."""
    images = find_images(DatasetConfig(folder_path=folder))[0]
    above = os.path.dirname(join(folder, "x"))
    return {
        os.path.dirname(image.path): image.table
        for image in images
        if os.path.dirname(image.table) == above
    }


def _with_pairs(text: str, pairs: FoundPairs, instruction: str, side: int) -> str:
    """A job that learns the edit of pairs, and makes it with the control images of its
    first and last pair."""
    keys = [f"          {key}" for key in pairs.lines()]
    if pairs.without_caption and not instruction:
        missing = (
            '          # default_caption: "turn the photo into a drawing"   # '
            f"{pairs.without_caption} have no caption"
        )
        keys += [f"{missing}: say what the edit is   <- yours"]
    note = "the instruction, and images before the edit; better some that are not trained   <- yours"
    drawn = [f"        samples:  # {note}"]
    for image in dict.fromkeys((pairs.images[0], pairs.images[-1])):
        prompt = " ".join((image.caption or instruction).split())
        drawn.append(f"          - prompt: {_quoted(prompt)}")
        for slot, path in enumerate(image.references, 1):
            name = f"ctrl_img_{slot}" if len(image.references) > 1 else "ctrl_img"
            drawn.append(f"            {name}: {_quoted(path)}")
        # In the shape of the image. The check reports an image that cannot be read.
        with suppress(ImageError, OSError):
            bucket = bucket_for(image_size(image.path), side, SIZE_MULTIPLE).bucket
            drawn += [
                f"            width: {bucket.width}",
                f"            height: {bucket.height}",
            ]
    return _with_samples(_with_keys(text, keys), drawn)


def _with_samples(text: str, lines: Sequence[str]) -> str:
    """A job with other samples."""
    drawn = "".join(f"{line}\n" for line in lines)
    return re.sub(
        r"(?ms)^        samples:\n.*?(?=^meta:)", lambda _: drawn, text, count=1
    )


def _with_layers(text: str, naming: FoundLayers) -> str:
    """A job that learns the layers of its images, and takes the first image apart as
    its sample."""
    key = _noted(
        f"          {naming.key}", "the layers of each image: docs/datasets.md"
    )
    sample = [
        _noted(
            f"        layers: {naming.layers}",
            "so many does a sample take its image apart into",
        ),
        "        samples:",
        _noted('          - prompt: "[trigger]"', "what is in the image   <- yours"),
        _noted(
            f"            ctrl_img: {_quoted(naming.image)}",
            "the image to take apart   <- yours",
        ),
    ]
    return _with_samples(_with_keys(text, [key]), sample)


def _with_keys(text: str, lines: Sequence[str]) -> str:
    """A job with further lines in its first dataset."""
    added = "".join(f"{line}\n" for line in lines)
    return re.sub(
        r"(?m)^        - folder_path: .*\n",
        lambda match: match[0] + added,
        text,
        count=1,
    )


def _small_job(
    family: ModelFacts, model: str, name: str, folder: str, trigger: str, is_edit: bool
) -> str:
    """The quickstart, changed to a job for a small model on a folder."""
    example = EXAMPLES / "quickstart.yaml"
    yours = {
        r"(?<=config:\n)  name: \S+": f"  name: {name}",
        r"trigger_word: \S+": f"trigger_word: {trigger}",
        r"folder_path: \S+": f"folder_path: {folder}",
        r"name_or_path: \S+": f"name_or_path: {model}",
    }
    if family.sample_sigmas:  # distilled, for its own steps and guidance
        yours[r"sample_steps: \S+"] = f"sample_steps: {family.sample_steps}"
        yours[r"guidance_scale: \S+"] = f"guidance_scale: {family.guidance:g}"
    if family.stacks_layers:  # which sees the image in its own size
        yours[r" +model_kwargs: .*\n"] = ""
    text = example.read_text(encoding="utf-8")
    edits = [*SMALL]
    if is_edit:
        edits += SMALL_EDIT
    edits += yours.items()
    for pattern, replacement in edits:
        filled = replacement.replace("\\", "\\\\") if pattern in yours else replacement
        text, count = re.subn(pattern, filled, text, flags=re.MULTILINE)
        assert count == 1, f"{example.name}: {pattern!r} matches {count} times"
    _, _, body = text.partition("\njob: ")
    # The comments name the folder of the run, and its name may change.
    body = body.replace("output/quickstart/", "output/<name>/")
    guide = PAIRS_GUIDE if is_edit else "first_character.md"
    return f"# {WRITTEN} from config/examples/{example.name}. Guide: docs/{guide}\njob: {body}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is one of YAML


def _fill(m: Model, c: Card, **values: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["note"] = _noted
    return environment.get_template("train.yaml.j2").render(m=m, c=c, **values)


def _noted(line: str, note: str) -> str:
    """A line with its comment."""
    if len(line) < NOTES:
        return f"{line.ljust(NOTES)}# {note}"
    return f"{line}   # {note}"
