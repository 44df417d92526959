"""The copy of the output in a file, and the status line."""

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from toolkit.errors import UserError
from toolkit.files import log
from toolkit.files.log import (
    RedactingStream,
    StatusLine,
    flush_streams,
    redact_streams,
    show_extension,
    shown,
    tee_output,
    wrapped,
)
from toolkit.system.distributed import mute_nonzero_ranks
from toolkit.system.distributed_env import DistributedEnv

TOKEN = "hf_" + "aB3" * 11 + "z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def shown(self) -> list[str]:
        """The lines a person sees."""
        lines = []
        for line in self.getvalue().split("\n"):
            cells: list[str] = []
            for part in line.split("\r"):
                cells[: len(part)] = part
            lines.append("".join(cells).rstrip())
        return lines


def test_both_streams_are_copied_and_still_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "folder" / "log.txt"
    for word in ("out", "again"):
        with tee_output(path), tee_output(tmp_path / f"{word}.txt"):
            print(word)
            print("err", file=sys.stderr)
            # a line is in the file when it is complete
            assert path.read_text().endswith(f"{word}\nerr\n")
    assert path.read_text() == "out\nerr\nagain\nerr\n"
    assert (tmp_path / "again.txt").read_text() == "again\nerr\n"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("out\nagain\n", "err\nerr\n")


def test_overwritten_status_is_dropped_and_does_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with tee_output(path):
        for step in range(1000):
            sys.stdout.write(f"\rstep {step}")
        sys.stdout.write("\rdone     \r\n")
        for step in range(1000):
            sys.stdout.write(f"step {step}\r")
        assert len(sys.stdout._pending) < 20
        sys.stdout.write("unfinished")
    assert path.read_text() == "done\nunfinished\n"


def test_a_terminal_stays_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with tee_output(tmp_path / "log.txt"):
        assert sys.stdout.isatty()
        status = StatusLine()
        status.update("step 1")
        status.note("saved")
        status.update("step 2")
        status.finish("done")
    assert (tmp_path / "log.txt").read_text() == "saved\ndone\n"


def test_text_that_utf8_cannot_hold_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with tee_output(tmp_path / "log.txt"):
        print("caf\udce9.jpg ü")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "caf\\udce9.jpg ü\n"


@pytest.mark.parametrize(("rank", "text"), [(0, "a line\n"), (1, "")])
def test_only_the_first_process_shows_what_is_logged_and_none_outside_the_block(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rank: int,
    text: str,
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with shown():
        mute_nonzero_ranks(DistributedEnv(rank=rank, world_size=2))
        OWN.info("a line")
    caplog.set_level(logging.INFO)
    OWN.info("outside")
    assert (stream.getvalue(), caplog.messages) == (text, ["outside"])


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the log"), tee_output(tmp_path):
        pass


def test_status_is_one_line_on_a_terminal() -> None:
    terminal = Terminal()
    status = StatusLine(terminal)
    status.update("a long state")
    status.update("short")
    assert terminal.shown() == ["short"]
    status.note("a note")
    assert terminal.shown() == ["a note", "short"]
    status.finish("done")
    assert terminal.shown() == ["a note", "done", ""]


def test_a_plan_is_broken_between_words_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "31")
    text = "zuzu\n  output/zuzu/a-long-folder/pictures: 15 x 10 = 150 samples"
    assert wrapped(text, io.StringIO()) == text
    assert wrapped(text, Terminal()).splitlines() == [
        "zuzu", "  output/zuzu/a-long-folder/pictures:", "    15 x 10 = 150 samples",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (41, "step 140/240 58% | loss 0.0904 | avg 0.1"),
        (40, "step 140/240 58% | loss 0.0904"),
        (32, "step 140/240 58% | loss 0.0904"),
        (30, "step 140/240 58%"),
        (17, "step 140/240 58%"),
        (
            9,
            "step 140",
        ),  # never more than fits: a line that wraps cannot be overwritten
    ],
)
def test_a_status_line_keeps_whole_parts(
    monkeypatch: pytest.MonkeyPatch, columns: int, shown: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    StatusLine(terminal).update("step 140/240 58% | loss 0.0904 | avg 0.1")
    assert terminal.shown() == [shown]


def test_status_elsewhere_is_a_plain_line_every_ten_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    status = StatusLine(stream, clock=lambda: now[0])
    for now[0] in (0.0, 9.9, 10.0, 19.9, 25.0):
        status.update(f"at {now[0]}")
    status.note("note")
    status.finish("end")
    # over soon as a rule: its first line can wait
    for now[0] in (
        26.0,
        34.0,
        36.0,
        37.0,
    ):
        status.update(f"image at {now[0]}", at_once=False)
    status.finish()
    status.update("image", at_once=False)
    status.update("step 1")
    assert (
        stream.getvalue()
        == "at 0.0\nat 10.0\nat 25.0\nnote\nend\nimage at 36.0\nstep 1\n"
    )


# ------------------------------------------------------------ secrets


EVIL = "a\x1b[2J\x1b]0;t\x07\x00\x7f\x9b1A\u202eb\u2066\u2028\x85"
SHOWN = r"a\u001b[2J\u001b]0;t\u0007\u0000\u007f\u009b1A\u202eb\u2066\u2028\u0085"
HARMLESS = "tab\t\u200d\N{FAMILY} \u05d0 \u00e9 \u3042"
PIECES = (f"a {TOKEN[:9]}", TOKEN[9:20], f"{TOKEN[20:]} b", "\nunfinished")
STREAMED: dict[str, tuple[type[io.StringIO], tuple[str, ...], tuple[str, ...]]] = {
    # what: (stream, what is written, what stands there after each)
    **{
        f"a secret, {kind.__name__}": (
            kind, (f"a {TOKEN} b {TOKEN}\n", f"{TOKEN}\n"),
            ("a <redacted> b <redacted>\n", "a <redacted> b <redacted>\n<redacted>\n"),
        )
        for kind in (io.StringIO, Terminal)
    },
    **{
        f"control characters, {kind.__name__}": (
            kind, (f"{json.dumps(EVIL, ensure_ascii=False)} {HARMLESS}\n",), (f'"{SHOWN}" {HARMLESS}\n',),
        )
        for kind in (io.StringIO, Terminal)
    },
    "a secret in pieces": (io.StringIO, PIECES, ("", "", "", "a <redacted> b\n")),
    "a terminal shows everything at once": (
        Terminal, ("\rstep 1", "Name: "), ("\rstep 1", "\rstep 1Name: "),
    ),
    "a pipe gets progress one state late": (
        io.StringIO, ("\rstep 0", "\rstep 1", "\rstep 2", "\r\n"),
        ("\r", "\rstep 0\r", "\rstep 0\rstep 1\r", "\rstep 0\rstep 1\rstep 2\r\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", STREAMED)
def test_what_is_written_is_shown_without_secrets_and_control_characters(
    what: str,
) -> None:
    kind, pieces, seen = STREAMED[what]
    stream = kind()
    out, after = RedactingStream(stream), []
    for piece in pieces:
        out.write(piece)
        out.flush()
        after.append(stream.getvalue())
    assert tuple(after) == seen and out.isatty() == (kind is Terminal)
    out.release()
    assert stream.getvalue().endswith("unfinished") == (pieces is PIECES)
    lines = kind()
    RedactingStream(lines).writelines([f"{TOKEN}\n", "end\n"])
    assert lines.getvalue() == "<redacted>\nend\n"
    assert json.loads(f'"{SHOWN}"') == EVIL, "JSON stays the same data"


PLAIN = """  warning: lr: high
  warning: this will not start: no room
next: run.py report output/x
config/a.yaml: written
job.yaml:14:9: train.lr: wrong
  --set train.lr: wrong
"""
COLOURED = """  \x1b[1;33mwarning\x1b[0m: lr: high
  \x1b[1;31mwarning: this will not start\x1b[0m: no room
\x1b[1;32mnext\x1b[0m: run.py report output/x
config/a.yaml: written
\x1b[1;31mjob.yaml:14:9\x1b[0m: train.lr: wrong
  --set train.lr: wrong
"""


@pytest.mark.parametrize(
    ("stream", "environment", "shown"),
    [
        (Terminal, {}, COLOURED),
        (Terminal, {"NO_COLOR": "1"}, PLAIN),
        (Terminal, {"TERM": "dumb"}, PLAIN),
        (Terminal, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, PLAIN),
        (io.StringIO, {}, PLAIN),
        (io.StringIO, {"FORCE_COLOR": "1"}, COLOURED),
    ],
)
def test_errors_and_results_have_colours_on_a_terminal_and_in_no_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    environment: dict[str, str],
    shown: str,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = stream()
    monkeypatch.setattr(sys, "stdout", RedactingStream(out))
    with tee_output(tmp_path / "log.txt"):
        *said, first, second = PLAIN.splitlines()
        print(*said, sep="\n")
        with log.of_an_error():
            print(first, second, sep="\n")
    assert out.getvalue() == shown
    assert (tmp_path / "log.txt").read_text() == PLAIN


def test_a_log_is_without_secrets_in_pieces_and_in_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(KeyError), tee_output(tmp_path / "log.txt"):
        sys.stdout.write("a ")
        sys.stdout.writelines((TOKEN[:9], TOKEN[9:], "\n"))
        raise KeyError(TOKEN)
    text = (tmp_path / "log.txt").read_text()
    assert text.startswith("a <redacted>\nTraceback") and text.endswith(
        "KeyError: '<redacted>'\n"
    )
    assert "aB3" not in text


def test_what_follows_an_error_begins_a_line_below_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(KeyError), tee_output(tmp_path / "log.txt"):
        StatusLine().update("encoding 2 of 6 images")
        raise KeyError("a")
    print("Stopped.")
    assert terminal.shown() == ["encoding 2 of 6 images", "Stopped.", ""]
    assert (tmp_path / "log.txt").read_text().startswith("encoding 2 of 6 images\nTr")


def test_a_status_line_is_drawn_without_secrets_also_where_it_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    status = StatusLine(RedactingStream(terminal))
    status.update(f"encoding photo of {TOKEN}")
    assert terminal.shown() == ["encoding photo of <redacted>"]
    status.update("step 2")
    assert terminal.shown() == ["step 2"]
    status.finish(f"done {TOKEN}")
    assert terminal.shown() == ["done <redacted>", ""]


def test_the_streams_of_the_process_are_wrapped_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    redact_streams()
    wrapped = sys.stdout
    redact_streams()
    assert sys.stdout is wrapped
    print(TOKEN, end="")
    print(TOKEN, file=sys.stderr)
    flush_streams()
    assert (out.getvalue(), err.getvalue()) == ("<redacted>", "<redacted>\n")


# ------------------------------------------------------------ control characters


def test_a_foreign_carriage_return_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", RedactingStream(terminal))
    with shown(), tee_output(tmp_path / "log.txt"):
        status = StatusLine()
        status.update("image a\rb\x1b[K")
        assert terminal.shown() == [r"image a\u000db\u001b[K"]
        OWN.info("loss\rdone\x1b[1A %s", TOKEN)
        status.finish("all\rgone")
    assert terminal.shown()[:2] == [
        r"loss\u000ddone\u001b[1A <redacted>",
        r"all\u000dgone",
    ]
    assert (
        tmp_path / "log.txt"
    ).read_text() == "loss\\u000ddone\\u001b[1A <redacted>\nall\\u000dgone\n"


def test_the_bars_of_a_download_still_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", RedactingStream(terminal := Terminal()))
    with tee_output(tmp_path / "log.txt"):
        for _ in tqdm(range(2), file=sys.stderr, position=1, mininterval=0):
            pass
    assert "\x1b[A" in terminal.getvalue() and "\\u001b" not in terminal.getvalue()
    assert "\\u001b" not in (tmp_path / "log.txt").read_text()


# ------------------------------------------------------------ logging


OWN = logging.getLogger("toolkit.some.module")


def test_what_is_logged_is_printed_as_it_is_and_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown():
        OWN.info("before")
        with tee_output(tmp_path / "log.txt"):
            print("printed")
            OWN.info("50 % of 3")
            OWN.warning("warning: two\nlines")
            OWN.debug("a detail")
            for name in ("jobs.job", "extensions.sd_trainer.process"):
                logging.getLogger(name).info(name)
    copied = "printed\n50 % of 3\nwarning: two\nlines\njobs.job\nextensions.sd_trainer.process\n"
    assert capsys.readouterr() == (f"before\n{copied}", "")
    assert (tmp_path / "log.txt").read_text() == copied


@pytest.mark.parametrize("is_verbose", [False, True])
def test_a_log_has_the_whole_text_of_what_is_printed_in_short(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_verbose: bool,
) -> None:
    monkeypatch.setattr(log, "is_verbose", is_verbose)
    with shown(), tee_output(tmp_path / "log.txt"):
        logging.getLogger("toolkit.t").info("plan", extra={log.IN_LOG: "plan\nall"})
        print("on")
    assert (tmp_path / "log.txt").read_text() == "plan\nall\non\n"
    assert capsys.readouterr().out == (
        "plan\nall\non\n" if is_verbose else "plan\non\n"
    )


def test_libraries_log_as_they_did(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = (root.level, [*root.handlers])
    with shown():
        assert (root.level, root.handlers) == before
        logging.getLogger("transformers.loading").info("loading")
        logging.getLogger("toolkits").warning("of another program")
        OWN.info("once")
    assert capsys.readouterr().out == "once\n"
    # a handler of the root logger does not get ours again
    assert caplog.messages[-1] == "of another program"


def test_a_logged_line_stays_above_the_status_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", RedactingStream(terminal))
    status = StatusLine()
    with shown():
        OWN.info("first")
        status.update("step 1, a long state")
        OWN.info("second")
        assert terminal.shown() == ["first", "second", "step 1, a long state"]
        status.finish("done")
        OWN.info("third")
    assert terminal.shown() == ["first", "second", "done", "third", ""]


def test_a_status_line_on_another_stream_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    StatusLine(terminal).update("step 1")
    with shown():
        OWN.info("a line")
    assert (capsys.readouterr().out, terminal.shown()) == ("a line\n", ["step 1"])


def test_extensions_of_other_folders_are_shown_whenever_they_are_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_extension("extension_early_1")
    with shown():
        show_extension("extension_late_2")
        for name in (
            "extension_early_1",
            "extension_late_2.process",
            "extension_of_nobody",
        ):
            logging.getLogger(name).info(name)
    assert capsys.readouterr().out == "extension_early_1\nextension_late_2.process\n"


def test_a_stream_that_fails_ends_the_work_as_for_a_print(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with shown(), pytest.raises(ValueError, match="closed"):
        OWN.info("a line")
