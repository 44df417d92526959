"""Forms of jobs that are kept until they are saved."""

from __future__ import annotations

import os
import time

from extensions.tools.ui import drafts
from extensions.tools.ui.state import Ui


def test_old_ones_and_too_many_are_removed(ui: Ui) -> None:
    ids = [f"draft_{number:03}" for number in range(drafts.MOST + 5)]
    for number, id_ in enumerate(ids):
        assert drafts.keep(ui, id_, {"yaml": id_})
        os.utime(ui.own / "drafts" / f"{id_}.json", (time.time() - 1000 + number,) * 2)
    assert [id_ for id_, _ in drafts.known(ui)] == ids[: -drafts.MOST - 1 : -1]
    os.utime(ui.own / "drafts" / f"{ids[-1]}.json", (1.0, 1.0))
    drafts.keep(ui, ids[-2], {"yaml": "again"})
    assert not drafts.read(ui, ids[-1]) and drafts.read(ui, ids[-2])["yaml"] == "again"


def test_only_what_a_form_sends_is_kept(ui: Ui) -> None:
    for id_ in ("", "short", "../../../x1234567", "a" * 41, "٠٠٠٠٠٠٠٠", "a.b.c.d.e"):
        assert not drafts.keep(ui, id_, {"yaml": "x"}) and drafts.read(ui, id_) == {}
        drafts.drop(ui, id_)
    (ui.own / "drafts").mkdir(parents=True)
    (ui.own / "drafts" / "damaged_.json").write_text("{")
    assert drafts.known(ui) == []
    (ui.own / "drafts" / "damaged_.json").unlink()
    (ui.own / "drafts").rmdir()
    (ui.own / "drafts").write_text("in the way")
    assert not drafts.keep(ui, "12345678", {"yaml": "x"}), (
        "the form is answered all the same"
    )
