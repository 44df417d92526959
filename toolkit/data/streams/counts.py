"""What a plan says of the data before it is read: optimizer steps, and what is known of
a stream.

`optimizer_steps` converts epochs to steps, for folders (`image_data`) and streams
(`stream_dataset`) alike. `StreamPlan` has the facts of a stream that `toolkit.plan`
prints, or writes as JSON. Nothing is opened or read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from textwrap import shorten
from typing import Any

from toolkit.contracts.data import Size


def optimizer_steps(
    steps: int, epochs: float, micro_batches_per_epoch: int, accumulation: int
) -> int:
    """Optimizer steps of the run: `epochs` > 0 decides, rounded up to a whole step;
    else `steps`.

    >>> optimizer_steps(steps=500, epochs=2, micro_batches_per_epoch=25, accumulation=4)
    13
    """
    if epochs > 0:
        return ceil(epochs * micro_batches_per_epoch / accumulation)
    return steps


@dataclass(frozen=True)
class StreamPlan:
    """A stream of shards, of which only the first samples are known.

    >>> size = Size(512, 512)
    >>> plan = StreamPlan(1, "a.tar", "a.tar", 200, "a.tar/1", size, "a cat", largest=size)
    >>> print(plan.lines())
      stream of 1 shard: a.tar; 200 samples as given
        first sample: a.tar/1, 512x512 pixels, caption 'a cat'
        batches of up to 512x512 pixels
    """

    shards: int
    first_shard: str
    last_shard: str
    samples: int
    """Samples of one epoch, as the job says; 0: not known."""

    first_sample: str
    first_size: Size
    first_caption: str
    largest: Size
    """The largest size of a batch."""

    epochs: int | None = None
    """Number of passes over the data, if that sets the number of steps."""

    def to_json(self) -> dict[str, Any]:
        """The stream as plain data for the plan. `samples` is None where it is not
        known; sizes are in pixels."""
        return {
            "shards": self.shards,
            "first_shard": self.first_shard,
            "last_shard": self.last_shard,
            "samples": self.samples or None,
            "largest": {"width": self.largest.width, "height": self.largest.height},
        }

    def lines(self) -> str:
        """The stream as three or four indented lines of the plan."""
        places = " to ".join(dict.fromkeys((self.first_shard, self.last_shard)))
        known = f"{self.samples:,} samples as given"
        count = known if self.samples else "number of samples not known"
        given = f"caption {shorten(self.first_caption, 60)!r}"
        caption = given if self.first_caption else "no caption"
        shards = f"{self.shards:,} shards" if self.shards > 1 else "1 shard"
        lines = [
            f"  stream of {shards}: {places}; {count}",
            f"    first sample: {self.first_sample}, {self.first_size} pixels, {caption}",
            f"    batches of up to {self.largest} pixels",
        ]
        if self.epochs is not None:
            passes = "once" if self.epochs == 1 else f"{self.epochs} times"
            lines.append(
                f"    read through {passes}: how many steps that are is not known"
            )
        return "\n".join(lines)
