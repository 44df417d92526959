"""Which layers an adapter is put on."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.errors import UserError


def select_targets(
    names: Sequence[str], only_if_contains: Sequence[str] = (), ignore_if_contains: Sequence[str] = ()
) -> list[str]:
    """The names that contain one of `only_if_contains` (if any is given) and none of `ignore_if_contains`.

    Raises UserError when nothing is left: training nothing is never meant.
    """
    chosen = [
        name
        for name in names
        if (not only_if_contains or any(part in name for part in only_if_contains))
        and not any(part in name for part in ignore_if_contains)
    ]
    if not chosen:
        raise UserError(
            "network.network_kwargs: only_if_contains / ignore_if_contains leave no layer to train. "
            f"Layer names look like {names[0]!r}."
        )
    return chosen
