"""Text of unknown origin neither acts on a screen nor hides."""

import io
import json
import sys
import unicodedata

import pytest
from rich.console import Console

from hsa_factory import cli
from hsa_factory.visible_text import escape_hidden, show_hidden, show_hidden_line


HOSTILE = (
    "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\x00\r\u202e\u2066\u061c\u200b\u2060\ufeff\u00ad\u2028\u3164\U000e0041\ud800"
)
KEPT = ["plain text\n\twith lines", "苹果　全角", "👨‍👩‍👧 ❤️‍🔥 1️⃣", "می‌خواهم", "क्‍ष", "e\u0301", "\u00a0"]


def test_what_acts_or_hides_is_shown_by_its_number():
    shown = show_hidden(f"a{HOSTILE}b")
    assert shown.startswith("a<U+001B>[2J<U+001B>]0;title<U+0007><U+009B>31m<U+007F><U+0000><U+000D><U+202E>")
    assert shown.endswith("<U+3164><U+E0041><U+D800>b")
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in shown)
    shown.encode("utf-8")


def test_every_control_and_format_character_is_shown():
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp") and chr(code) not in "\n\t":
            assert show_hidden(chr(code)) == f"<U+{code:04X}>"
    for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0xDC80, 0xE0001, 0x1160, 0x034F):
        assert show_hidden(f"x{chr(code)}") == f"x<U+{code:04X}>"


@pytest.mark.parametrize("text", KEPT)
def test_writing_stays_as_it_is(text):
    assert show_hidden(text) == text


def test_joiners_that_join_nothing_are_shown():
    assert show_hidden("pass\u200dword x\ufe0f 👍\ufe0f\ufe0f") == "pass<U+200D>word x<U+FE0F> 👍\ufe0f<U+FE0F>"


def test_lines_of_tables_are_one_line():
    assert show_hidden_line("a\nb\tc") == "a<U+000A>b<U+0009>c"


@pytest.mark.parametrize("text", [HOSTILE, *KEPT, "\\\x1b\\", '"\u202e"'])
def test_json_reads_as_before(text):
    serialized = escape_hidden(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(serialized) == {text: [text]}
    assert show_hidden(serialized) == serialized and not set(serialized) & set("\x7f\x9b\u202e")
    serialized.encode("utf-8")


def test_errors_that_quote_data(capsys):
    assert cli.main([f"no{HOSTILE}"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\u202e" not in said and "\x9b" not in said


def test_tracebacks_that_quote_data(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    cli.main(["--version"])
    try:
        raise RuntimeError(f"sample 3: {HOSTILE}")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and "RuntimeError: sample 3: <U+001B>[2J" in said and "\x1b" not in said


def test_names_in_tables_are_neither_markup_nor_control():
    pytest.importorskip("llamafactory")
    from hsa_factory.llamafactory.data.report import DataReport, DatasetAccount, serialize_accounts

    report = DataReport()
    report.add(
        serialize_accounts({"[red]x\x1b[31m\u202e:smile:": DatasetAccount(samples=3, messages=4, marker_cut=1)})
    )
    console = Console(width=200, record=True, file=io.StringIO())
    report.print(console)
    printed = console.export_text()
    assert printed.count("[red]x<U+001B>[31m<U+202E>:smile:") == 3
    assert not set(printed) & set("\x1b\u202e")
