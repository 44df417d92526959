"""Finds faults in the numbers of a run: slow steps, the loss of one part of the data
that runs away, layers without a gradient, sample images that are all alike or noise, or
turn into texture.

Each detector gets numbers and returns its findings. It does not use a clock, a device
or a file. A fault is reported once, and again only after all was well in between. How
often they are wrong: docs/correctness.md.

`callbacks.anomalies` feeds the detectors; `validation` uses the limit of texture.
"""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import numpy as np
from PIL import Image

from toolkit.errors import Diagnostic
from toolkit.system.readings import Reading


def _diagnostic(kind: str, message: str, cause: str, remedy: str) -> Diagnostic:
    """kind: `step_time`, `loss`, `gradient`, `samples` or `texture`. cause: where it is
    known."""
    return Diagnostic((), message, "warning", kind, cause, remedy)


# ------------------------------------------------------------ step time

SLOW = 1.8
"""Steps are slow from this multiple of their usual time on."""

WELL = 1.3
"""Below this multiple of their usual time steps are well again."""

COLD_STEPS = 10
"""Steps at the start of a process that are not looked at: allocation, files that are
not cached yet."""

WINDOW_STEPS = 20
"""Optimizer steps that have to be slow."""

WINDOW_S = 5.0
"""Seconds that they take at least: below, a system that is busy for a moment would be
reported."""

BUSY_S = 300.0
"""The same where it is the CPU that has less time for this program, which comes and
goes."""

REFERENCE_GROUPS = 10
"""Groups of steps from which the usual time of a shape is known."""


@dataclass(frozen=True)
class _Group:
    """Steps whose time is known as one sum."""

    samples: Counter[str]
    """Shape of a micro-batch -> samples in such ones."""

    steps: int
    step_s: float
    data_s: float
    begin: Reading
    end: Reading
    ratio: float = 1.0
    """Its time as a multiple of the usual."""


class SlowSteps:
    """Compares the time of steps with the usual one of micro-batches of their shapes,
    which is learned from the first steps of the process.

    >>> detector = SlowSteps()
    >>> shape = Counter({"image 512x512": 1})
    >>> times = [0.5] * 60 + [2.0] * 40
    >>> findings = [detector.add(shape, 1, step_s, 0.0, Reading()) for step_s in times]
    >>> [finding.check for finding in findings if finding]
    ['step_time']
    """

    def __init__(self) -> None:
        self._steps = 0
        self._seen: set[str] = set()
        self._reference: list[_Group] = []
        self._known: Counter[str] = Counter()
        self._costs: dict[str, float] = {}
        self._recent: deque[_Group] = deque()
        self._slow_s = 0.0
        self._said = False
        self._reading: Reading | None = None

    def add(
        self,
        samples: Counter[str],
        steps: int,
        step_s: float,
        data_s: float,
        reading: Reading,
        compiled: bool = False,
    ) -> Diagnostic | None:
        """A group of `steps` optimizer steps that took `step_s` seconds each, `data_s`
        of them waiting for data.

        samples: shape of a micro-batch -> samples of the group in such ones. reading:
        at the end of the group. compiled: programs were compiled in it, so that it says
        nothing of other steps.
        """
        self._steps += steps
        # In the first step of a shape kernels are chosen and memory is allocated.
        is_first = compiled or not samples.keys() <= self._seen
        self._seen |= samples.keys()
        begin = self._reading or reading
        self._reading = reading
        if self._steps <= COLD_STEPS or is_first or step_s <= 0:
            return None
        group = _Group(samples, steps, step_s, data_s, begin, reading)
        if any(self._known[shape] < REFERENCE_GROUPS for shape in samples):
            self._learn(group)
            return None
        usual = (
            sum(count * self._costs[shape] for shape, count in samples.items()) / steps
        )
        self._recent.append(replace(group, ratio=step_s / usual))
        while sum(group.steps for group in self._recent) - self._recent[0].steps >= max(
            WINDOW_STEPS, 3 * steps
        ):
            self._recent.popleft()
        return self._judge()

    def _learn(self, group: _Group) -> None:
        self._reference.append(group)
        self._known.update(group.samples.keys())
        self._costs = costs_per_sample(
            [(group.samples, group.step_s * group.steps) for group in self._reference]
        )

    def _judge(self) -> Diagnostic | None:
        recent = list(self._recent)
        if sum(group.steps for group in recent) < WINDOW_STEPS or len(recent) < 3:
            return None
        ratio = median(group.ratio for group in recent)
        if ratio < 1 / SLOW:  # the steps it was learned from were the slow ones
            self._reference = []
            self._known = Counter()
            self._said = False
            self._recent.clear()
            return None
        if ratio < WELL:
            self._slow_s = 0.0
            self._said = False
        took = sum(group.step_s * group.steps for group in recent)
        if (
            ratio < SLOW
            or took < WINDOW_S
            or fmean(group.ratio >= WELL for group in recent) < 0.8
        ):
            self._slow_s = 0.0
            return None
        self._slow_s = (
            self._slow_s + recent[-1].step_s * recent[-1].steps
            if self._slow_s
            else took
        )
        before = _Mean.of(self._reference)
        now = _Mean.of(recent)
        cause, remedy, is_busy = slow_cause(before, now, ratio)
        if self._said or (is_busy and self._slow_s < BUSY_S):
            return None
        self._said = True
        usual = now.step_s / ratio
        return _diagnostic(
            "step_time",
            f"steps take {ratio:.1f} times as long as before: {now.step_s:.2f} s, usually {usual:.2f} s",
            cause,
            remedy,
        )


def costs_per_sample(
    groups: Sequence[tuple[Mapping[str, int], float]],
) -> dict[str, float]:
    """Seconds that one sample takes in a micro-batch of each shape, from groups of
    samples by shape and their seconds.

    Least squares of the relative error, drawn a little to one cost for all shapes, so
    that shapes which only come together have one too. Groups that are far off are left
    out then: a pause of the system is not a cost of a shape.
    """
    shapes = sorted({shape for samples, _ in groups for shape in samples})
    counts_GS = np.array(
        [[samples.get(shape, 0) for shape in shapes] for samples, _ in groups],
        dtype=float,
    )
    seconds_G = np.array([seconds for _, seconds in groups])
    for _ in range(3):
        usual_cost = float(np.median(seconds_G / counts_GS.sum(1)))
        weight = 0.1 / usual_cost
        rows = np.eye(len(shapes))
        left = np.vstack([counts_GS / seconds_G[:, None], weight * rows])
        right = np.concatenate(
            [np.ones(len(seconds_G)), np.full(len(shapes), weight * usual_cost)]
        )
        costs_S = np.maximum(
            np.linalg.lstsq(left, right, rcond=None)[0], usual_cost / 100
        )
        off_G = seconds_G / (counts_GS @ costs_S)
        keep_G = (off_G < 1.5 * np.median(off_G)) & (off_G > np.median(off_G) / 1.5)
        # A shape keeps its groups where all of them would go.
        alone_S = ((counts_GS > 0) & keep_G[:, None]).any(0) | ~(counts_GS > 0).any(0)
        keep_G |= ((counts_GS > 0) & ~alone_S).any(1)
        if keep_G.all():
            break
        counts_GS = counts_GS[keep_G]
        seconds_G = seconds_G[keep_G]
    # Some steps are always slower than the best ones.
    return {
        shape: float(cost * np.median(off_G))
        for shape, cost in zip(shapes, costs_S, strict=True)
    }


@dataclass(frozen=True)
class _Mean:
    """Groups of steps, as means of a step."""

    step_s: float
    data_s: float
    faults: float
    cpu_s: float
    cpu_wait_s: float
    retries: float
    clock_mhz: float
    last: Reading

    @classmethod
    def of(cls, groups: Sequence[_Group]) -> _Mean:
        steps = sum(group.steps for group in groups)

        def risen(counter: str) -> float:
            rises: list[float] = [
                getattr(group.end, counter) - getattr(group.begin, counter)
                for group in groups
            ]
            return sum(rises)

        return cls(
            sum(group.step_s * group.steps for group in groups) / steps,
            sum(group.data_s * group.steps for group in groups) / steps,
            risen("faults") / steps,
            risen("cpu_s") / steps,
            risen("cpu_wait_s") / steps,
            risen("alloc_retries"),
            median(group.end.clock_mhz for group in groups),
            groups[-1].end,
        )


FAULTS = 50
"""Pages read from the disk again that explain a second: a slow disk takes 10 ms for
each, and reads others as well."""


def slow_cause(before: _Mean, now: _Mean, ratio: float) -> tuple[str, str, bool]:
    """The cause and the remedy of slow steps, and whether the CPU has less time for
    this program.

    The first that explains at least half of the time that was added (of the CPU's: a
    quarter), in the order in which one leads to another.
    """
    added = now.step_s * (1 - 1 / ratio)
    last = now.last
    same = now.step_s / ratio / before.step_s  # the steps before were of other shapes
    waits = now.cpu_wait_s - same * before.cpu_wait_s
    computes = now.cpu_s - same * before.cpu_s
    reads = now.faults - before.faults > max(FAULTS * added, 5)
    full = "Lower batch_size or resolution, or let less of the model stay on the GPU (docs/memory.md)."
    short = (
        "Close other programs, or lower blocks_to_swap and the number of cached images."
    )
    # A quarter of the time is enough for the CPU: a program that shares it also shares
    # its caches and its memory, which nothing counts.
    is_busy = waits + computes > added / 4
    throttled = f" ({', '.join(last.throttled)})" if last.throttled else ""
    beside = "See what runs beside it (top), and the clock and temperature of the CPU."
    for explains, what, remedy in (
        (
            reads and last.swapped,
            f"memory is swapped: {last.swapped / 1e9:.2f} GB of this process are in swap, and each step reads "
            f"{now.faults:.0f} pages back",
            short,
        ),
        (
            reads,
            f"each step reads {now.faults:.0f} pages of memory from the disk again, as memory is short",
            short,
        ),
        (
            now.data_s - before.data_s > added / 2,
            f"waiting for data, {now.data_s:.2f} s of each step and {before.data_s:.2f} s before",
            "Look at the disk or network folder of the images and of _cache, and at what else reads it.",
        ),
        (
            now.retries,
            f"GPU memory is full: PyTorch had to free its cached memory {now.retries} times in these steps",
            full,
        ),
        (
            last.gpu_shares and last.gpu_free < 0.03,
            f"GPU memory is full ({last.gpu_free:.1%} free), and the driver moves it into the system's memory",
            "Close programs that use the GPU, or lower batch_size or resolution (docs/memory.md).",
        ),
        (
            now.clock_mhz and now.clock_mhz < before.clock_mhz / 1.3,
            f"the GPU's clock is {now.clock_mhz:.0f} MHz and was {before.clock_mhz:.0f} MHz{throttled}",
            "Look at its temperature, fans and power limit: nvidia-smi -q -d PERFORMANCE,TEMPERATURE.",
        ),
        (
            is_busy and computes > waits,
            f"the CPU is slower, or shared: a step takes {now.cpu_s:.2f} s of it, {same * before.cpu_s:.2f} s before",
            beside,
        ),
        (
            is_busy,
            f"other programs use the CPU: this one waits {now.cpu_wait_s:.2f} s of each step for it",
            beside,
        ),
    ):
        if explains:
            return what, remedy, remedy == beside
    return (
        "not known",
        "See what else uses the GPU (nvidia-smi), the CPU and the disk (top).",
        False,
    )


# ------------------------------------------------------------ loss

BLOCK = 24
"""Samples of one bucket or dataset that are compared at a time."""

HISTORY_BLOCKS = (3, 10)
"""Blocks before them that they are compared with: at least, at most."""

RISE = math.log(2)
"""The logarithm of the loss has to rise by this much more than for all other images."""

DEVIATIONS = (2.5, 9.0)
"""And by this many standard deviations of what chance does: each block, and all in a
row together, at least two."""

BAND_SAMPLES = 20
"""Samples that the mean of a band is computed from."""

BANDS = 10
"""Bands of the timestep t in [0, 1] whose losses are not compared with each other."""


@dataclass(frozen=True)
class SampleLoss:
    """The loss of one sample.

    >>> sample = SampleLoss({"bucket": "512x512", "dataset": "cats"}, loss=0.12, t=0.4)
    >>> sample.parts["dataset"]
    'cats'
    """

    parts: Mapping[str, str]
    """`bucket` and `dataset` -> which one it belongs to."""

    loss: float
    t: float


class _Part:
    """One bucket or dataset."""

    def __init__(self) -> None:
        self.block: list[float] = []
        self.began = 0
        self.blocks: deque[tuple[int, list[float]]] = deque(maxlen=HISTORY_BLOCKS[1])
        """Blocks that were well: the number of their first sample in the run, and their
        values."""

        self.risen: list[float] = []
        """By how many standard deviations the latest blocks have, where all in a row
        have risen enough."""

        self.said = False


class RunawayLoss:
    """Compares the losses of each bucket and dataset with their own before, and that
    with the same of all other images.

    A value is the logarithm of a loss less the mean of its band of t at first: losses
    differ by a factor of ten over t alone. A mean that followed the losses would fall
    where one part is learned by heart, and the values of all others would rise.

    >>> detector = RunawayLoss()
    >>> detector.add([SampleLoss({"dataset": "cats"}, loss=0.12, t=0.4)])
    []
    """

    MEMORY = 6000

    def __init__(self) -> None:
        self._bands: dict[int, tuple[float, int]] = {}
        self._parts: dict[tuple[str, str], _Part] = {}
        self._values: deque[tuple[int, float, frozenset[tuple[str, str]]]] = deque(
            maxlen=self.MEMORY
        )
        self._count = 0

    def add(self, samples: Iterable[SampleLoss]) -> Iterable[Diagnostic]:
        """Takes the samples of one step; those whose loss is not finite and positive,
        or whose t is not finite, do not count. Returns a diagnostic for each part of
        the data whose loss is found to run away with these samples."""
        findings = []
        for sample in samples:
            if not (
                math.isfinite(sample.loss)
                and math.isfinite(sample.t)
                and sample.loss > 0
            ):
                continue
            value = self._value(sample)
            keys = frozenset(sample.parts.items())
            self._values.append((self._count, value, keys))
            for key in sorted(keys):
                part = self._parts.setdefault(key, _Part())
                part.began = part.began if part.block else self._count
                part.block.append(value)
                if len(part.block) == BLOCK:
                    if finding := self._judge(key, part):
                        findings.append(finding)
                    part.block = []
            self._count += 1
        return findings

    def rises(self) -> bool:
        """Whether the latest losses are clearly above the first ones of their bands, or
        there are none."""
        latest = [value for _, value, _ in list(self._values)[-4 * BLOCK :]]
        return not latest or fmean(latest) > RISE / 3

    def _value(self, sample: SampleLoss) -> float:
        band = min(int(sample.t * BANDS), BANDS - 1)
        logarithm = math.log(sample.loss)
        mean, count = self._bands.get(band, (logarithm, 0))
        if count < BAND_SAMPLES:
            self._bands[band] = (mean + (logarithm - mean) / (count + 1), count + 1)
        return logarithm - mean

    def _judge(self, key: tuple[str, str], part: _Part) -> Diagnostic | None:
        rise = self._rise(key, part)
        if rise is None or rise[0] < RISE or rise[1] < DEVIATIONS[0]:
            if rise is None or rise[0] < RISE / 2:
                part.said = False
            part.risen = []
            part.blocks.append((part.began, part.block))
            return None
        part.risen.append(rise[1])
        if (
            len(part.risen) < 2
            or sum(part.risen) < DEVIATIONS[1]
            or part.said
            or self._is_explained(key, part)
        ):
            return None
        part.said = True
        kind, name = key
        return _diagnostic(
            "loss",
            f"the loss of {kind} {name} is {math.exp(rise[0]):.1f} times what "
            "it was, compared with all other images",
            f"not known; it is this {kind} alone",
            f"Look at the images and captions of this {kind} (run.py lint), or lower its weight or train.lr.",
        )

    def _rise(self, key: tuple[str, str], part: _Part) -> tuple[float, float] | None:
        """By how much the part's block rose more than all others did in the same time,
        also in standard deviations."""
        if len(part.blocks) < HISTORY_BLOCKS[0]:
            return None
        began = part.blocks[0][0]
        ended = part.blocks[-1][0]
        others = [
            (number, value) for number, value, keys in self._values if key not in keys
        ]
        others_then = [value for number, value in others if began <= number <= ended]
        count = sum(number >= part.began for number, _ in others)
        # Where there are few others, some earlier ones are included.
        others_now = [value for _, value in others][-max(count, BLOCK) :]
        if min(len(others_then), len(others_now)) < BLOCK:
            return None
        then = [value for _, block in part.blocks for value in block]
        own_rise = median(part.block) - median(then)
        # Others that fall, as those that are learned by heart, do not raise this one.
        rise = own_rise - max(0.0, median(others_now) - median(others_then))
        compared = (part.block, then, others_then, others_now)
        error = math.sqrt(sum(_error(values) ** 2 for values in compared))
        # Means of blocks scatter more than their values say where few images make up a
        # block.
        between = float(np.std([median(block) for _, block in part.blocks]))
        return rise, rise / max(error, between, 1e-6)

    def _is_explained(self, key: tuple[str, str], part: _Part) -> bool:
        """Whether most of its samples belong to another part that was reported."""
        reported = {
            other for other, state in self._parts.items() if state.said and other != key
        }
        mine = [
            keys
            for number, _, keys in self._values
            if number >= part.began and key in keys
        ]
        shared = [sum(other in keys for keys in mine) for other in reported]
        return any(count > len(mine) / 2 for count in shared)


def _error(values: Sequence[float]) -> float:
    """Standard error of their median, by their median absolute deviation."""
    middle = median(values)
    return (
        1.4826
        * 1.2533
        * median(abs(value - middle) for value in values)
        / math.sqrt(len(values))
    )


# ------------------------------------------------------------ gradients

SILENT_STEPS = 20
"""Optimizer steps in a row in which a layer has no gradient."""

_INSIDE = re.compile(r"\.(?:(?:lora|lokr|hada|dora|oft|boft)_|parametrizations\.)")
"""Begins what lies inside a layer: an adapter's parts, and a weight that is computed
from others."""

_BLOCK = re.compile(r"(?:blocks|layers)\.(\d+)\.")
_TEXT_SIDE = re.compile(r"add(?:ed)?_|txt|text|context")


def layer_of(parameter: str) -> str:
    """The layer of a parameter: the layer that an adapter changes, or else the module
    that holds the parameter.

    >>> layer_of("blocks.0.attn.to_q.lora_A.weight"), layer_of("blocks.0.norm.bias")
    ('blocks.0.attn.to_q', 'blocks.0.norm')
    """
    if match := _INSIDE.search(parameter):
        return parameter[: match.start()]
    return parameter.rpartition(".")[0] or parameter


def _block_number(layer: str) -> int:
    """The number of the block that a layer is in; -1 for a layer outside the blocks."""
    block = _BLOCK.search(layer)
    return int(block[1]) if block else -1


def steps_to_wait(module_dropout: float, rank_dropout: float, rank: int) -> int:
    """Optimizer steps after which a layer that was always dropped by chance is one of
    10^12; at least `SILENT_STEPS`.

    A layer is dropped in a step when its module is, or all `rank` ranks are. Where it
    is always dropped (a chance of 1) the result is `SILENT_STEPS` too.

    >>> steps_to_wait(module_dropout=0.9, rank_dropout=0.0, rank=16)
    263
    """
    chance = module_dropout + (1 - module_dropout) * rank_dropout ** max(1, rank)
    return max(
        SILENT_STEPS, math.ceil(-12 / math.log10(chance)) if 0 < chance < 1 else 0
    )


class SilentLayers:
    """Finds layers without a gradient.

    In a model with a stream of text and one of the image, what follows the last
    attention on the side of the text reaches no pixel: these layers of the last block
    never have a gradient.

    >>> detector = SilentLayers(["blocks.0.q.lora_A.weight", "blocks.1.q.lora_A.weight"])
    >>> steps = {"blocks.0.q.lora_A.weight": 20, "blocks.1.q.lora_A.weight": 0}
    >>> detector.add(steps, absent=()).message
    '1 of 2 layers (blocks.0.q) had no gradient for 20 steps'
    """

    def __init__(self, parameters: Iterable[str], wait: int = SILENT_STEPS) -> None:
        """wait: optimizer steps."""
        self.wait = wait
        self._layer_of = {name: layer_of(name) for name in sorted(parameters)}
        self._layers = frozenset(self._layer_of.values())
        self._last = max(map(_block_number, self._layers), default=-1)
        self._alive: set[str] = set()
        self._said: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are looked at."""
        return tuple(self._layer_of)

    def add(self, steps: Mapping[str, int], absent: Iterable[str]) -> Diagnostic | None:
        """steps: parameter -> optimizer steps in a row without a gradient. absent:
        those where there was none at all, as nothing that is learned depends on
        them."""
        silent_for: dict[str, int] = {}
        for name, steps_in_a_row in steps.items():
            layer = self._layer_of[name]
            silent_for[layer] = min(
                silent_for.get(layer, steps_in_a_row), steps_in_a_row
            )
        alive = {layer for layer, count in silent_for.items() if not count}
        silent = {layer for layer, count in silent_for.items() if count >= self.wait}
        self._alive |= alive
        self._said -= alive
        if silent != self._layers:
            silent = {layer for layer in silent if not self._is_end_of_text(layer)}
        new = sorted(silent - self._said)
        if not new:
            return None
        self._said |= silent
        if silent == self._layers:
            which = f"all {len(silent)} layers"
        else:
            which = f"{len(silent)} of {len(self._layers)} layers"
            which += f" ({', '.join(new[:3])}{', ...' if len(new) > 3 else ''})"
        unused = {self._layer_of[name] for name in absent}
        cause = "the gradient is exactly zero: an input or the scale is zero, masks hide all, or float16 underflows"
        if unused.issuperset(new):
            cause = "the loss does not depend on them: the model does not use these layers, or they are frozen"
        return _diagnostic(
            "gradient",
            f"{which} had no gradient for {self.wait} steps",
            cause,
            "They learn nothing: leave them out (network_kwargs.ignore_if_contains), or look at what feeds them.",
        )

    def _is_end_of_text(self, layer: str) -> bool:
        block = _BLOCK.search(layer)
        is_last = block is not None and int(block[1]) == self._last
        return is_last and layer not in self._alive and bool(_TEXT_SIDE.search(layer))


# ------------------------------------------------------------ samples

THUMBNAIL = 32
"""Pixels of the side of the small images that are compared."""


@dataclass(frozen=True)
class SampleFeatures:
    """Features that show whether an image is like another, and whether it is noise.

    >>> features_of(Image.new("RGB", (512, 512), "red")).roughness
    0.0
    """

    thumbnail: np.ndarray
    """[THUMBNAIL, THUMBNAIL, 3] in 0..255."""

    roughness: float
    """Half the mean square difference of neighbours, as a share of the variance: 1 of
    white noise, 0.1 to 0.5 of images; 0 of an image of one colour. A neighbour is 8
    pixels away: what a decoder makes of one latent."""

    texture: float
    """As `texture_of`."""


def features_of(image: Image.Image) -> SampleFeatures:
    """The features of one sample image."""
    small = image.convert("RGB")
    cell = 8 if min(small.size) >= 96 else 4
    grid = small.convert("L").resize(
        (max(2, small.width // cell), max(2, small.height // cell)),
        Image.Resampling.BOX,
    )
    grey = np.asarray(grid, dtype=float)
    variance = float(grey.var())
    steps = np.concatenate(
        [np.diff(grey, axis=0).ravel() ** 2, np.diff(grey, axis=1).ravel() ** 2]
    )
    thumbnail = np.asarray(
        small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=float
    )
    return SampleFeatures(
        thumbnail,
        float(steps.mean() / 2 / variance) if variance > 1 else 0.0,
        texture_of(image),
    )


HIGH = 0.125
"""Cycles per pixel: a quarter of the Nyquist frequency. Higher frequencies are
texture."""

TILE = 16
"""Pixels of the side of an area."""

FLAT = 0.25
"""Share of the areas that count as flat: the ones with the least energy below HIGH."""

FLOOR = 2.0
"""Deviation (of 255) below which an area has no texture: JPEG and rounding cause it."""


def texture_of(image: Image.Image) -> float:
    """Share of spectral energy above HIGH in the flat areas of an image: 0 to 0.1 of
    most, 0.9 of a fine pattern.

    0 for an image whose width or height is less than TILE pixels.

    >>> texture_of(Image.new("RGB", (64, 64), "red"))
    0.0
    """
    grey_HW = np.asarray(image.convert("L"), dtype=float)
    rows, columns = (side // TILE for side in grey_HW.shape)
    if not rows * columns:
        return 0.0
    cut_HW = grey_HW[: rows * TILE, : columns * TILE]
    tiles_NTT = (
        cut_HW.reshape(rows, TILE, columns, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    )
    window_T = np.hanning(TILE + 2)[1:-1]
    window_TT = np.outer(window_T, window_T) / np.mean(window_T**2)
    energy_NTT = (
        np.abs(
            np.fft.fft2((tiles_NTT - tiles_NTT.mean((1, 2), keepdims=True)) * window_TT)
        )
        ** 2
        / TILE**4
    )
    radius_TT = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None])
    high_N = energy_NTT[:, radius_TT > HIGH].sum(1)
    low_N = energy_NTT[:, radius_TT <= HIGH].sum(1)
    flat = np.argsort(low_N)[: max(1, round(FLAT * len(low_N)))]
    high = high_N[flat].mean()
    low = low_N[flat].mean()
    return float(high / (high + low + FLOOR**2))


def difference(samples: Sequence[tuple[str, SampleFeatures]]) -> float | None:
    """Median over all pairs with different texts of the root mean square difference of
    their thumbnails, 0..255; None where all texts are the same.

    >>> black = features_of(Image.new("RGB", (96, 96), "black"))
    >>> white = features_of(Image.new("RGB", (96, 96), "white"))
    >>> difference([("a cat", black), ("a dog", white)])
    255.0
    """
    pairs = [
        float(np.sqrt(np.mean((a.thumbnail - b.thumbnail) ** 2)))
        for index, (text, a) in enumerate(samples)
        for other, b in samples[index + 1 :]
        if text != other
    ]
    return median(pairs) if pairs else None


ALIKE = 6.0
"""Sample images of different prompts are alike below this difference."""

DIFFERENT = 20.0
"""They are reported only if they once differed by this much."""

RISE_OF_SAMPLES = 0.1
"""How far the texture of sample images may rise above the first ones."""

RISE_OF_PREDICTED = 0.5
"""How far `validation/texture` may rise above the first one."""

NOISE = 0.8
"""Sample images are noise above this roughness."""

IMAGE = 0.6
"""They are reported only if their roughness once was below this one."""


class RisingTexture:
    """Compares the texture of images with the texture of the first ones. It counts only
    while the loss does not rise, which would be another fault: a network that draws a
    pattern everywhere may well have the lower loss.

    >>> detector = RisingTexture("the sample images", rise=0.1)
    >>> detector.add([0.1], loss_rises=False)
    >>> detector.add([0.5], loss_rises=False).message
    'the sample images turn into texture: high frequencies 0.50, at first at most 0.10'
    """

    def __init__(self, what: str, rise: float) -> None:
        """what: the images, in the plural. rise: how far above all of the first ones
        their median may be."""
        self._what = what
        self._rise = rise
        self._first = math.nan
        self._said = False

    def add(self, textures: Sequence[float], loss_rises: bool) -> Diagnostic | None:
        """textures: of a set of images. The first set is the one that later sets are
        compared with."""
        if math.isnan(self._first):
            self._first = max(textures)
        now = median(textures)
        if now <= self._first + self._rise or loss_rises:
            self._said = self._said and now > self._first + self._rise
            return None
        if self._said:
            return None
        self._said = True
        return _diagnostic(
            "texture",
            f"{self._what} turn into texture: high frequencies {now:.2f}, at first at most {self._first:.2f}",
            "the images of the dataset have it, or the network collapses into it, which the loss does not show",
            "If they have none, take an earlier file, and set train.assistant or lower train.lr (docs/models.md).",
        )


class SampleSets:
    """Compares each set of sample images with the best one before it: a model that is
    not trained yet makes noise, and may make the same of every prompt.

    >>> detector = SampleSets()
    >>> image = Image.new("RGB", (512, 512), "red")
    >>> detector.add([("a cat", features_of(image))])
    []
    """

    def __init__(self) -> None:
        self._difference = 0.0
        self._roughness = math.inf
        self._texture = RisingTexture("the sample images", RISE_OF_SAMPLES)
        self._said: set[str] = set()

    def add(
        self, samples: Sequence[tuple[str, SampleFeatures]], loss_rises: bool = True
    ) -> Iterable[Diagnostic]:
        """samples: the text of each image of a set, and its features. loss_rises: since
        the run began."""
        if not samples:
            return []
        differ = difference(samples)
        rough = median(features.roughness for _, features in samples)
        findings = []
        is_noise = rough > NOISE and self._roughness <= IMAGE
        is_alike = (
            differ is not None and differ < ALIKE and self._difference >= DIFFERENT
        )
        if self._is_new("noise", is_noise):
            findings.append(
                _diagnostic(
                    "samples",
                    f"the sample images are noise: roughness {rough:.2f} of 1, before {self._roughness:.2f}",
                    _BROKEN,
                    _EARLIER,
                )
            )
        if self._is_new("alike", is_alike and not is_noise):
            findings.append(
                _diagnostic(
                    "samples",
                    f"the sample images of different prompts are all alike: they differ by {differ:.1f} of 255"
                    + f", before by up to {self._difference:.0f}",
                    _BROKEN,
                    _EARLIER,
                )
            )
        textured = self._texture.add(
            [features.texture for _, features in samples], loss_rises or bool(findings)
        )
        if textured:
            findings.append(textured)
        self._difference = max(self._difference, differ or 0.0)
        if rough:
            self._roughness = min(self._roughness, rough)
        return findings

    def _is_new(self, what: str, is_wrong: bool) -> bool:
        is_new = is_wrong and what not in self._said
        self._said = self._said | {what} if is_wrong else self._said - {what}
        return is_new


_BROKEN = "the weights went wrong since then; mostly the learning rate is too high"
_EARLIER = "Stop, take an earlier file or state, and go on with a lower train.lr."
