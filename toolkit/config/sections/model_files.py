"""What a model's name means, and what its files on this disk say of it: family and
missing parts. Imports no torch.

A hub id is looked up in the hub cache (HF_HOME, HF_HUB_CACHE); nothing here opens a
connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from toolkit.config.reading.field_types import moved_hint, path_hint
from toolkit.config.sections.hub_dataset import snapshot_in
from toolkit.config.sections.stored_quantization import quantized_by
from toolkit.contracts.model import ModelFacts, ModelSection
from toolkit.errors import UserError, did_you_mean
from toolkit.extension import added
from toolkit.files.run_files import FOLDER_METADATA, NEW_MODEL, TINY_MODEL
from toolkit.files.safetensors_io import tensor_sizes
from toolkit.files.unreadable import AGAIN, explained
from toolkit.registry import FAMILIES, load_object

INDEX = "model_index.json"

CAPTIONER = "Qwen/Qwen2.5-VL-7B-Instruct"
"""The model that writes captions where none is named, and `model_type` of those that
can."""

CAPTIONER_TYPES = ("qwen2_5_vl", "qwen3_vl")

SAME_CLASSES = {"Qwen2_5_VLProcessor": "Qwen2VLProcessor"}
"""Class of a part -> the class in `ModelFacts.classes` that does the same."""

OTHERS = {
    "qwen/qwen-image-2.0*": "Qwen-Image-2.0",
    "qwen/qwen-image-controlnet*": "a ControlNet",
    "qwen/qwen*-vl*": "a language model",
    "qwen/qwen[0-9]*": "a language model",
    "krea/flux*": "FLUX",
    "krea/krea-1*": "Krea",
    "black-forest-labs/flux.1*": "FLUX",
    "black-forest-labs/flux.2-dev*": "FLUX",
    "stabilityai/*xl*": "Stable Diffusion XL",
    "stabilityai/*": "Stable Diffusion",
    "stable-diffusion-v1-5/*": "Stable Diffusion",
    "runwayml/*": "Stable Diffusion",
    "wan-ai/*": "Wan",
    "hidream-ai/*": "HiDream",
    "alpha-vllm/lumina-*": "Lumina",
    "tencent/hunyuan*": "Hunyuan",
    "hunyuanvideo-community/*": "Hunyuan",
    "lightricks/ltx*": "LTX",
    "efficient-large-model/sana*": "Sana",
    "pixart-alpha/*": "PixArt",
    "omnigen2/*": "OmniGen",
    "ostris/flex*": "Flex",
    "meituan-longcat/*": "LongCat",
    "compvis/*": "Stable Diffusion",
    "fal/auraflow*": "AuraFlow",
    "ideogram-ai/*": "Ideogram",
    "lodestones/chroma*": "Chroma",
    "comfy-org/*": "weights as ComfyUI keeps them, in single files",
}
"""Hub ids, in small letters, as their owners publish them -> their family. Only for
what is not in the hub cache."""

WEIGHT_FILES = (".safetensors", ".sft", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
SINGLE_FILE_PARTS = ("transformer", "vae", "text_encoder")
"""Parts of a model that a file may be given for, as `model.<part>_path`."""

NO_OWNERS = (
    "models",
    "model",
    "output",
    "outputs",
    "checkpoints",
    "datasets",
    "spaces",
)
"""First parts of a name that mean a folder here: pages of the hub itself, or what
people call their folders."""

# as huggingface_hub's validate_repo_id
_HUB_ID = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)


def families() -> Iterator[ModelFacts]:
    """The families that can be trained, each imported only when its turn comes: those
    of extensions last."""
    yield from map(FAMILIES.load, FAMILIES)
    yield from map(load_object, added("family").values())


def family_names() -> list[str]:
    """The names of `families`, for `model.arch`."""
    return [*FAMILIES, *added("family")]


def family_named(arch: str) -> ModelFacts:
    """The family of this name. Raises UserError for an unknown one."""
    if arch in FAMILIES:
        family: ModelFacts = FAMILIES.load(arch)
    elif arch in added("family"):
        family = load_object(added("family")[arch])
    else:
        known = did_you_mean(arch, family_names())
        raise UserError(f"model.arch: {arch!r} is not supported yet. {known}")
    return family


def named_elsewhere(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names that the layers of a model have in other programs -> the layers. The model
    is of the family all of whose `layer_names` it has; empty: of none."""
    return _named_elsewhere(layers)[1]


def family_with(layers: Iterable[str]) -> ModelFacts | None:
    """The family all of whose `layer_names` a model with these layers has."""
    return _named_elsewhere(layers)[0]


def _named_elsewhere(
    layers: Iterable[str],
) -> tuple[ModelFacts | None, dict[str, tuple[str, ...]]]:
    given = set(layers)
    for family in families() if given else ():
        found: dict[str, tuple[str, ...]] = {}
        for name, parts in family.layer_names.items():
            pattern = re.compile(re.escape(parts[0]).replace(r"\*", r"(\d+)"))
            matches = [match for match in map(pattern.fullmatch, given) if match]
            if not matches:
                found = {}
                break
            for match in matches:
                number = match[1] if match.lastindex else ""
                ours = tuple(part.replace("*", number) for part in parts)
                found[name.replace("*", number)] = ours
        if found and all(map(given.issuperset, found.values())):
            return family, found
    return None, {}


def family_of(pipeline: str) -> ModelFacts | None:
    """The first family that trains a model with this `_class_name` of its
    model_index.json; None where no family does."""
    return next((family for family in families() if pipeline in family.pipelines), None)


def published() -> dict[str, ModelFacts]:
    """Hub ids of published models that can be trained -> their family."""
    return {name: family for family in families() for name in family.published}


def published_family(name: str) -> ModelFacts | None:
    """The family of a published model by its hub id, compared without regard to
    capitals; None for any other name."""
    for family in families() if _HUB_ID.fullmatch(name) else ():
        for known in family.published:
            if known.lower() == name.lower():
                return family
    return None


def needed_files() -> list[str]:
    """Patterns of the files of a hub repository that any family needs. Previews and
    other formats are not among them."""
    return [INDEX, *(f"{part}/*" for family in families() for part in family.parts)]


def unneeded_files(given: Iterable[str]) -> list[str]:
    """Patterns of the weight files of these parts in a model folder, which need not be
    downloaded where single files replace the parts.

    >>> unneeded_files(["vae"])
    ['vae/*.safetensors*']
    """
    return [f"{part}/*.safetensors*" for part in given]


def is_needed(file: str, given: Iterable[str] = ()) -> bool:
    """Whether a file of a hub repository is among `needed_files`, and not among
    `unneeded_files`.

    >>> is_needed("vae/config.json"), is_needed("preview.png")
    (True, False)
    >>> is_needed("vae/model.safetensors", given=["vae"])
    False
    """
    if any(fnmatchcase(file, pattern) for pattern in unneeded_files(given)):
        return False
    return file == INDEX or f"{file.split('/')[0]}/*" in needed_files()


def single_files(model: ModelSection) -> dict[str, Path]:
    """Part -> the file of `model.<part>_path`, for the parts that have one. The files
    need not exist."""
    given = {part: getattr(model, f"{part}_path", None) for part in SINGLE_FILE_PARTS}
    return {part: Path(path).expanduser() for part, path in given.items() if path}


def whole_files(model: ModelSection) -> dict[str, Path]:
    """`single_files`, of those that stand for all weights of their part in the model
    folder."""
    return {
        part: file
        for part, file in single_files(model).items()
        if part != "vae" or not is_decoder_only(file)
    }


def vae_file(path: str) -> str:
    """The file with the weights of a VAE that a folder holds, in it or in its `vae`, or
    a model of the hub in the hub cache; any other path as it is."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        snapshot = (
            None if looks_like_a_path(path) else snapshot_in(repository_folder(path))
        )
        if snapshot is None:
            return path
        folder = snapshot
    for place in (folder / "vae", folder):
        named = [place / name for name in WEIGHT_NAMES if (place / name).is_file()]
        files = named[:1] or sorted(place.glob("*.safetensors"))
        if len(files) == 1:
            return str(files[0])
    return path


def vae_file_fault(path: str) -> str:
    """Why a `vae_path` names no file, with the remedy; empty: it names one. path: as
    `vae_file` leaves it."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return f"{path!r} holds no file of one VAE. Give the safetensors file."
    if folder.exists() or looks_like_a_path(path):
        return ""
    if _is_cached(path):
        return f"{path!r}, of the hub, holds no file of one VAE. Give the safetensors file."
    return f"{path!r} is not in the hub cache. Run 'hf download {path}' first, or give a file."


def is_decoder_only(file: Path) -> bool:
    """Whether a file has the decoder of a VAE and no encoder, as texture-fix decoders
    are published; False for one that cannot be read, and for a shard."""
    try:
        names = tensor_sizes(file)
    except UserError:
        return False
    has_decoder = any(name.startswith("decoder.") for name in names)
    return (
        has_decoder
        and not any(name.startswith("encoder.") for name in names)
        and "-of-" not in file.name
    )


# ---------------------------------------------------------------- a LoRA on the hub

HUB_LORA = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:/(.+\.safetensors))?", re.ASCII)
"""`owner/repo`, or one of its files: `owner/repo/file.safetensors`."""

LORA_NAME = "pytorch_lora_weights.safetensors"
"""What diffusers and SimpleTuner call the LoRA of a repository; it counts before files
with other names."""


def hub_lora(name: str) -> tuple[str, str]:
    """Repository and file of a LoRA that is named as on the hub. The file is empty
    where only the repository is named. Both are empty for a path.

    >>> hub_lora("owner/name/file.safetensors"), hub_lora("file.safetensors")
    (('owner/name', 'file.safetensors'), ('', ''))
    """
    match = HUB_LORA.fullmatch(name)
    if match is None or Path(name).expanduser().exists() or looks_like_a_path(match[1]):
        return "", ""
    return match[1], match[2] or ""


def lora_among(repository: str, files: Iterable[str]) -> str:
    """The LoRA of a repository with these files. Raises UserError where there is none,
    or more than one.

    >>> lora_among("owner/name", ["README.md", "maya.safetensors"])
    'maya.safetensors'
    """
    weights = sorted(file for file in files if file.endswith(".safetensors"))
    top = [file for file in weights if "/" not in file]
    if LORA_NAME in top:
        return LORA_NAME
    if len(top) == 1:
        return top[0]
    if not weights:
        raise UserError(
            f"{repository!r}, of the hub, has no safetensors file. Give a repository with a LoRA."
        )
    some = ", ".join(weights[:5]) + (
        f" and {len(weights) - 5} more" if len(weights) > 5 else ""
    )
    raise UserError(
        f"{repository!r}, of the hub, has {some}. Give one of them, as '{repository}/{weights[0]}'."
    )


def lora_file(name: str) -> str:
    """The file of a LoRA that is named as on the hub, if the hub cache has it; any
    other name as it is. Raises UserError where it is not clear which of the
    repository's files is meant."""
    repository, file = hub_lora(name)
    snapshot = snapshot_in(repository_folder(repository)) if repository else None
    if snapshot is None:
        return name
    file = file or lora_among(repository, _listed_files(repository, snapshot))
    return str(snapshot / file) if (snapshot / file).is_file() else name


def _listed_files(repository: str, snapshot: Path) -> list[str]:
    """The files of a hub repository, by the list that a download left; without one
    those that are in the cache."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(repository)]
    except CachedRepoTreeNotFoundError:
        files = snapshot.rglob("*.safetensors")
        return [path.relative_to(snapshot).as_posix() for path in files]


def _remedy() -> str:
    return f"Give a folder in diffusers layout, or a hub id such as {next(iter(published()))!r}."


def _another(name: str, what: str) -> str:
    titles = dict.fromkeys(
        title for family in families() for title in family.published.values()
    )
    family_kinds = [
        f"{family.title}s of its own" for family in families() if not family.published
    ]
    kinds = [*titles, "what is made from them", *family_kinds]
    return (
        f"{name!r} is another model{what}, and this program trains "
        f"{', '.join(kinds[:-1])}, and {kinds[-1]}. {_remedy()}"
    )


def looks_like_a_path(name: str) -> bool:
    """Whether a name means a local folder or file, existing or not, and not
    `owner/name` on the hub.

    So does a name whose first part is a folder here, unless the hub cache knows it or
    it is in `published`.
    """
    if (
        not _HUB_ID.fullmatch(name)
        or "--" in name
        or ".." in name
        or name.endswith(".git")
    ):
        return True
    owner = name.split("/")[0]
    if Path(name).suffix.lower() in WEIGHT_FILES or owner.lower() in NO_OWNERS:
        return True
    return (
        Path(owner).is_dir()
        and not published_family(name)
        and not _other_family(name)
        and not _is_cached(name)
    )


def model_fault(name: str, revision: str | None, given: Collection[str] = ()) -> str:
    """The fault of a `model.name_or_path`, with its remedy, judged by the files on this
    disk; empty: nothing.

    given: parts that need no weights there.
    """
    if looks_like_a_path(name) or Path(name).is_dir():
        return path_fault(name, given)
    return hub_fault(name, revision, given)


# ---------------------------------------------------------------- folders


class ModelFolder:
    """A model in diffusers format, read from its file names, small files and the
    headers of weights.

    Example::

        folder = ModelFolder(Path("models/Qwen-Image-Edit-2509"))
        fault = folder.fault()  # empty where the model can be trained
    """

    def __init__(self, path: Path, name: str = "") -> None:
        """name: what messages call it, as the user wrote it."""
        self.path = path
        self.name = name or str(path)
        self.index = path / INDEX

    def pipeline(self) -> str:
        """`_class_name` of model_index.json. Raises UserError, which names the file,
        when it has none."""
        pipeline = read_model_json(self.index, default={}).get("_class_name")
        if not isinstance(pipeline, str) or not pipeline:
            raise UserError(
                f"{self.index}: has no '_class_name', so it is not a model index. {AGAIN}"
            )
        return pipeline

    def index_fault(self) -> str:
        """Why a model with this model_index.json cannot be trained; empty: it can."""
        try:
            pipeline = self.pipeline()
        except UserError as error:
            return str(error)
        return (
            ""
            if family_of(pipeline)
            else _another(self.name, f": {self.index} says {pipeline!r}")
        )

    def parts_fault(self) -> str:
        """Parts that are missing; empty: none, or of a family that cannot be
        trained."""
        family = family_of(self.pipeline())
        missing = []
        for part, file in (family.parts if family else {}).items():
            if not (self.path / part).is_dir():
                missing.append(f"{part}/")
                continue
            for names in file.split():
                patterns = names.split("|")
                if not any(_has_file(self.path / part, name) for name in patterns):
                    missing.append(f"{part}/{names.replace('|', ' or ')}")
        if not missing:
            return ""
        verb = "is" if len(missing) == 1 else "are"
        return f"{self.name!r}: {', '.join(missing)} {verb} missing in {self.path}. Copy or download the whole model."

    def class_fault(self) -> str:
        """A part that is of another class, or has another setting, than its family has;
        empty: none. The class of a tokenizer has another name in each version of
        transformers, so says nothing."""
        family = family_of(self.pipeline())
        assert family is not None  # else the index has a fault
        of_index = read_model_json(self.index, default={})
        for part, expected in family.classes.items():
            path = self.path / part / "config.json"
            entry = of_index.get(part)
            config = read_model_json(path) if path.is_file() else {}
            if isinstance(entry, list) and entry[:1] not in (
                ["diffusers"],
                ["transformers"],
            ):
                # a class of somebody's own code; what it is made of is looked at
                # elsewhere
                entry = None
            listed = [
                names[-1:] if isinstance(names, list) else []
                for names in (config.get("architectures"), entry)
            ]
            class_names = [
                (path, config.get("_class_name")),
                *((path, name) for name in listed[0]),
            ]
            for place, name in (
                *class_names,
                *((self.index, name) for name in listed[1]),
            ):
                if (
                    isinstance(name, str)
                    and part != "tokenizer"
                    and SAME_CLASSES.get(name, name) != expected
                ):
                    return f"{place}: {part} is {name!r}, of another model; a {family.title} has {expected!r}. {AGAIN}"
            for key, value in family.settings.items():
                of_part, name = key.split("/")
                if of_part == part and config.get(name, value) != value:
                    return (
                        f"{path}: {name}: "
                        f"{json.dumps(config[name])} is of another model; a {family.title} has {json.dumps(value)}. "
                        f"{AGAIN}"
                    )
        return ""

    def quantization_fault(self, given: Collection[str] = ()) -> str:
        """A part whose weights another program has quantized; empty: none, as far as
        the configs are here.

        given: parts that need no weights here. Raises UserError for a file that cannot
        be read."""
        family = family_of(self.pipeline())
        parts = family.weight_parts if family else ()
        faults = (
            quantization_fault(self.path / part) for part in parts if part not in given
        )
        return next(filter(None, faults), "")

    def fault(self, given: Collection[str] = ()) -> str:
        """What is wrong: another model, missing parts, parts of different models, JSON
        that cannot be read or holds wrong values, quantized weights, or weights that
        are missing or cut off; empty: nothing that shows without reading weights.

        given: parts that need no weights here."""
        try:
            fault = self.index_fault() or self.class_fault() or self.parts_fault()
            if fault:
                return fault
            family = family_of(self.pipeline())
            assert family is not None  # else the index has a fault
            for part in family.parts:
                for path in sorted((self.path / part).glob("*.json")):
                    read_model_json(path)
            fault = self.quantization_fault(given)
            if fault:
                return fault
            for part in family.weight_parts:
                for path in weight_files(self.path / part) if part not in given else ():
                    tensor_sizes(path)
            return family.config_error(self.path)
        except UserError as error:
            return str(error)
        except OSError as error:  # a folder that may not be entered
            path = Path(error.filename or self.path)
            return f"{path}: {explained(path, error, 'not readable', AGAIN)}"

    def learned_sizes(self) -> list[tuple[int, int]]:
        """Width and height of the images that a model has seen which began with random
        weights, the most frequent first; none for others, which know all sizes, and
        where it is not recorded."""
        if (
            not (self.path / NEW_MODEL).is_file()
            or not (self.path / FOLDER_METADATA).is_file()
        ):
            return []
        recorded = read_model_json(self.path / FOLDER_METADATA, {}).get(
            "ss_bucket_info", "{}"
        )
        try:
            buckets = sorted(
                json.loads(recorded)["buckets"].values(),
                key=lambda bucket: -int(bucket["count"]),
            )
            sizes = []
            for bucket in buckets:
                width, height = bucket["resolution"]
                sizes.append((int(width), int(height)))
            return sizes
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            return []

    def default_sizes(self) -> list[tuple[int, int]]:
        """Sizes of images to generate, as `learned_sizes`, where those of its family do
        not suit: a tiny model would take minutes for them."""
        return self.learned_sizes() or (
            [(128, 128)] if (self.path / TINY_MODEL).is_file() else []
        )

    def size_note(self, sizes: Iterable[tuple[int, int]]) -> str | None:
        """A note on images of these sizes that the model has never seen; None where
        there are none."""
        learned = self.learned_sizes()
        if not learned:
            return None
        shortest = min(map(min, learned))
        longest = max(map(max, learned))
        for width, height in sizes:
            if min(width, height) < shortest or max(width, height) > longest:
                return (
                    f"{width}x{height}: "
                    f"the model was trained on sides of {shortest} to {longest} pixels. Others will look poor."
                )
        return None


def path_fault(name: str, given: Collection[str] = ()) -> str:
    """The fault of the local model folder `name`, with its remedy; empty: none that the
    names of its files show.

    given: see `model_fault`.
    """
    path = Path(name).expanduser()
    if path.is_dir() and (path / INDEX).is_file():
        return ModelFolder(path, name).fault(given)
    if path.is_dir() or path.is_file() or path.suffix.lower() in WEIGHT_FILES:
        # A model folder that it lies in, or that lies in it.
        beside = (
            folder
            for folder in (*path.parents, *_subfolders(path))
            if (folder / INDEX).is_file()
        )
        offer = _offer(next(beside, None)) + lora_words(path) + _remedy()
        if path.is_dir():
            return f"{name!r} holds no {INDEX}. {offer}"
        if path.is_file():
            return f"{name!r} is a file and no model folder. {offer}"
        if "Did you mean" not in offer:
            offer = _offer(_nearest_file(path)) + _remedy()
        return f"{name!r} does not exist (working directory: {Path.cwd()}). {offer}{moved_hint(name)}"
    hint = path_hint(name)
    near = f"{hint} " if hint else _offer(_nearest_folder(path)) or near_id(name)
    if "/" not in name and "\\" not in name and not name.startswith((".", "~")):
        return f"{name!r} is neither a folder nor a hub id (working directory: {Path.cwd()}). {near}{_remedy()}"
    fault = f"{name!r} does not exist (working directory: {Path.cwd()}). {near}{_remedy()}{moved_hint(name)}"
    if _HUB_ID.fullmatch(name) and Path(name.split("/")[0]).is_dir():
        fault += f" If it is one: {name.split('/')[0]!r} is a folder here, so run `hf download {name}` first."
    return fault


def lora_words(path: Path) -> str:
    """The remedy for a LoRA file, or a folder of LoRA files, that is given as a model;
    empty for other paths."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    try:
        is_lora = bool(files) and any("lora" in name for name in tensor_sizes(files[0]))
    except UserError:
        return ""
    if is_lora:
        return "It is a LoRA: give the model, and the file as model.base_loras or network.pretrained_lora_path. "
    return ""


def read_model_json(
    path: Path, default: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A JSON file of a model folder. default: what stands for a file that holds
    something else than an object.

    Raises UserError, which names the file, when it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("it is not a file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: {explained(path, error, 'not readable', AGAIN)}"
        ) from error
    if isinstance(content, dict):
        return content
    if default is None:
        raise UserError(f"{path}: holds no JSON object. {AGAIN}")
    return default


ORIGINAL_MODEL = "Give the bf16 model that it was made from."
_MADE_FROM = "Give the bf16 model that it was made from, or a bf16 file as model"
ORIGINAL_WEIGHTS = {
    "transformer": f"{_MADE_FROM}.transformer_path; model.quantize and qtype quantize it while it is loaded.",
    "text_encoder": f"{_MADE_FROM}.text_encoder_path; model.quantize_te and qtype_te quantize it while it is loaded.",
    "vae": f"{_MADE_FROM}.vae_path.",
}
"""Part -> the remedy where its weights are quantized."""


def quantization_fault(part: Path, name: str = "", remedy: str = "") -> str:
    """Why the weights in the folder of a part are not read: another program has
    quantized them; empty: none has, or the part has no config.json here.

    name: of the part, where the folder is not called so. remedy: where it is not one of
    ORIGINAL_WEIGHTS. Raises UserError for a config.json that cannot be read.
    """
    config = part / "config.json"
    method = (
        quantized_by(read_model_json(config, default={})) if config.is_file() else ""
    )
    if not method:
        return ""
    name = name or part.name
    remedy = remedy or ORIGINAL_WEIGHTS.get(name, ORIGINAL_MODEL)
    return f"{config}: the {name} is quantized by {method}, which is not read. {remedy}"


WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""A part's weights, or with `.index.json` the index of its shards, as diffusers and
transformers name them."""


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of a part: one, or the shards of its index.

    Raises UserError, which names what is missing or outside of the folder, and for
    weights that another program has quantized.
    """
    if fault := quantization_fault(part):
        raise UserError(fault)
    indexes = (part / f"{name}.index.json" for name in WEIGHT_NAMES)
    index = next((path for path in indexes if path.is_file()), None)
    if index is None:
        files = [path for name in WEIGHT_NAMES if (path := part / name).is_file()]
        if not files:
            raise UserError(
                f"{part}: has no weights ({' or '.join(WEIGHT_NAMES)}). Copy or download the whole model."
            )
        return files
    weight_map = read_model_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(n, str) for n in weight_map.values())
    ):
        raise UserError(f"{index}: has no 'weight_map' from weights to files. {AGAIN}")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name or "\\" in name]:
        raise UserError(
            f"{index}: {outside[0]!r} is not the name of a file in this folder. {AGAIN}"
        )
    if missing := [name for name in names if not (part / name).is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{part}: missing weight files: {missing[0]}{more}. {AGAIN}")
    return [part / name for name in names]


def where_else(name: str) -> str:
    """Words for a hub id that the hub does not give, which may be a folder that is not
    there."""
    meant = f"If a local folder is meant, it is not there (working directory: {Path.cwd()}). "
    return meant + (_offer(_nearest_folder(Path(name))) or near_id(name))


def near_id(name: str) -> str:
    """Words that offer the id of a published model that is spelt like `name`, or ends
    it; empty: none is."""
    ids = {known.lower(): known for known in published()}
    ids |= {known.split("/")[1].lower(): known for known in published()}
    wanted = name.lower().strip("/")
    close = [known for known in ids if wanted.endswith(f"/{known}")]
    if not close:
        close = get_close_matches(wanted, ids, n=1, cutoff=0.85)
    return f"Did you mean {ids[close[0]]!r}? " if close else ""


def _offer(folder: Path | None) -> str:
    return f"Did you mean {str(folder)!r}? " if folder else ""


def _has_file(folder: Path, pattern: str) -> bool:
    return any(path.is_file() for path in folder.glob(pattern))


def _nearest_folder(path: Path) -> Path | None:
    """The folder whose path is spelt most like `path`, part by part; else `path` as
    seen from a folder above."""
    nearest = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (nearest / part).is_dir():
            names = {
                folder.name.lower(): folder.name for folder in _subfolders(nearest)
            }
            close = get_close_matches(part.lower(), names, n=1)
            if not close:
                break
            part = names[close[0]]
        nearest = nearest / part
    else:
        return nearest
    above = (Path("../" * up) / path for up in range(1, len(Path.cwd().parts)))
    if path.is_absolute():
        return None
    return next((folder for folder in above if (folder / INDEX).is_file()), None)


def _nearest_file(path: Path) -> Path | None:
    """The file of weights whose name is spelt most like that of `path`, in its folder
    or the one spelt most like it."""
    folder = path.parent if path.parent.is_dir() else _nearest_folder(path.parent)
    if not folder:
        return None
    names = [
        file.name for file in folder.iterdir() if file.suffix.lower() in WEIGHT_FILES
    ]
    close = get_close_matches(path.name, names, n=1, cutoff=0.85)
    return folder / close[0] if close else None


def _subfolders(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return  # not there, no folder, or not ours to read: nothing to offer


# ---------------------------------------------------------------- hub ids


def hub_fault(name: str, revision: str | None, given: Collection[str] = ()) -> str:
    """The fault of the hub model `name`, by the hub cache or by its published name;
    empty: none is known.

    given: see `model_fault`.
    """
    folder = cached_snapshot(name, revision, given)
    if folder and not (folder / INDEX).is_file():
        return no_index(name, folder)
    if folder:
        return ModelFolder(folder, name).fault(given)
    if index := cached_index(name, revision):
        # An interrupted download is completed by the run, unless the hub is offline.
        model_folder = ModelFolder(index.parent, name)
        try:
            fault = model_folder.index_fault() or model_folder.quantization_fault(given)
        except UserError as error:
            return str(error)
        return fault or (model_folder.parts_fault() if is_offline() else "")
    family = _other_family(name)
    return _another(name, f" ({family})") if family else ""


def no_index(name: str, folder: Path) -> str:
    """The message, with its remedy, about a hub repository without a model_index.json.
    name: as the job gives it. folder: its files on this disk."""
    return f"{name!r} holds no {INDEX} ({folder}). {_remedy()}"


def cached_index(name: str, revision: str | None) -> Path | None:
    """The model_index.json of a hub model in the hub cache, at this revision; None
    where it is not cached. Nothing is downloaded."""
    if not _is_cached(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, INDEX, revision=revision)
    return Path(file) if isinstance(file, str) else None


def hub_cache() -> Path:
    """The folder that models are downloaded to, as huggingface_hub reads it from the
    environment (HF_HUB_CACHE, HF_HOME). It need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests to the hub, as huggingface_hub read it
    when it was imported."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def downloaded_bytes(name: str) -> int:
    """Bytes of a hub model that are in the hub cache, those of an interrupted download
    included: once, though a part may have two names (`toolkit.models.hub`)."""
    blobs = repository_folder(name).glob("blobs/*")
    stats = [path.stat() for path in blobs if not path.is_symlink()]
    return sum({one.st_ino: one.st_size for one in stats}.values())


def listed_bytes(
    name: str, revision: str | None, given: Collection[str] = ()
) -> int | None:
    """Bytes of the needed files of a hub model, by the list that an earlier download
    left; None: there is none.

    given: parts whose weights are not needed.
    """
    if not _is_cached(name):
        return None
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(name, revision=revision)
    except CachedRepoTreeNotFoundError:
        return None
    return sum(file.size for file in files if is_needed(file.path, given))


def cached_snapshot(
    name: str, revision: str | None, given: Collection[str] = ()
) -> Path | None:
    """The folder of a hub model in the hub cache, at this revision; None unless it is
    complete but for the weights of the parts `given`.

    Complete is what has all files of the repository, or, where the cache has no list of
    them, all parts.
    """
    if not _is_cached(name):
        return None
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        LocalEntryNotFoundError,
    )

    try:
        path = snapshot_download(
            name,
            revision=revision,
            local_files_only=True,
            allow_patterns=needed_files(),
            ignore_patterns=unneeded_files(given),
        )
        if not (Path(path) / INDEX).is_file() or ModelFolder(Path(path)).parts_fault():
            get_cached_repo_tree(name, revision=revision)
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        return None
    return Path(path)


def local_index(name: str, revision: str | None) -> Path | None:
    """The model_index.json of a local folder or of a hub id, as far as it is on this
    disk."""
    folder = Path(name).expanduser()
    if folder.is_dir() or looks_like_a_path(name):
        return folder / INDEX if (folder / INDEX).is_file() else None
    return cached_index(name, revision)


def _other_family(name: str) -> str:
    """The family by which a hub id is published that cannot be trained; empty: none is
    known."""
    if published_family(name):
        return ""
    for pattern, family in OTHERS.items():
        if fnmatchcase(name.lower(), pattern):
            return family
    return ""


def repository_folder(name: str) -> Path:
    """The folder of a hub model in the hub cache."""
    return hub_cache() / f"models--{name.replace('/', '--')}"


def _is_cached(name: str) -> bool:
    return repository_folder(name).is_dir()
