"""What a user sees of each broken data file, stored and streamed: its name, the line or row, and what is wrong."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from test_data import IDS, TOKENIZER

from llada.data.formats import prepare_rows
from llada.data.loading import load_rows
from llada.errors import DataError

GOOD = b'{"text": "abc"}\n'
FAR = 12_000  # rows before the bad one; the readers look at 10,000 to begin with


def parquet(values: list, kind=None, **options) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(values, kind)}), sink, **options)
    return sink.getvalue().to_pybytes()


def torn_inside(rows: int) -> bytes:
    """A file of many row groups, one of which in its middle is overwritten."""
    whole = parquet([f"abc{row}" for row in range(rows)], row_group_size=1000)
    middle = len(whole) // 2
    return whole[:middle] + b"\xff" * 3000 + whole[middle + 3000 :]


# name, content, what the message says after the path
REFUSED = [
    ("empty.jsonl", b"", ": the file has no rows"),
    ("blank.jsonl", b"  \n\n ", ": the file has no rows"),
    ("empty_objects.jsonl", b"{}\n{}\n", ": the file has no rows"),
    ("cut.jsonl", GOOD * 3 + b'{"text": "ab', ": line 4 is not JSON: Unterminated string starting at (column 10)"),
    ("cut_escape.jsonl", GOOD + b'{"text": "\\ud8', ": line 2 is not JSON: Invalid \\uXXXX escape (column 12)"),
    ("latin1.jsonl", GOOD + b'{"text": "\xe9"}\n', " is not UTF-8 text: line 2 has the byte 0xe9"),
    ("utf16.jsonl", GOOD.decode().encode("utf-16"), " is not UTF-8 text: line 1 has the byte 0xff"),
    ("binary.jsonl", bytes(range(256)), ": line 1 is not JSON: "),
    ("zipped.jsonl", gzip.compress(GOOD, mtime=0), " is not UTF-8 text: line 1 has the byte 0x8b"),
    ("nul.jsonl", b'{"text": "a\0b"}\n', ": line 1 is not JSON: Invalid control character at (column 12)"),
    ("nul_tail.jsonl", GOOD * 2 + b"\0" * 99, ": line 3 is not JSON: Expecting value (column 1)"),
    ("twice.jsonl", GOOD + b'{"text": "a", "text": "b"}\n', ": line 2 has the name 'text' twice in one object"),
    ("twice_inside.jsonl", b'{"m": {"a": 1, "a": 2}}\n', ": line 1 has the name 'a' twice in one object"),
    ("half.jsonl", b'{"text": "a\\ud800b"}\n', ": line 1 has half of a surrogate pair, which is no character: "),
    ("scalar.jsonl", GOOD + b"5\n", ": line 2 is no object of columns and values: 5"),
    ("array.jsonl", b"[1, 2]\n", ": row 0 (counted from 0) is no object of columns and values: 1"),
    ("nested.jsonl", b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", ": line 1 is nested too deeply"),
    ("single_quotes.jsonl", b"{'text': 'a'}\n", ": line 1 is not JSON: Expecting property name enclosed in double"),
    ("csv_as.jsonl", b"text\na\n", ": line 1 is not JSON: Expecting value (column 1)"),
    ("comma.jsonl", GOOD[:-1] + b",\n", ": line 1 is not JSON: Extra data (column 16)"),
    ("far_cut.jsonl", GOOD * FAR + b'{"text": }\n' + GOOD, f": line {FAR + 1} is not JSON: Expecting value"),
    ("far_latin1.jsonl", GOOD * FAR + b'{"text": "\xe9"}\n', f" is not UTF-8 text: line {FAR + 1} has the byte 0xe9"),
    ("far_twice.jsonl", GOOD * FAR + b'{"text": "a", "text": "b"}\n', f": line {FAR + 1} has the name 'text' twice"),
    ("empty.json", b"", ": the file has no rows"),
    ("no_rows.json", b"[]", ": the file has no rows"),
    ("cut.json", b'[{"text": "a"},\n{"text": "b"', ": line 2 is not JSON: Expecting ',' delimiter (column 13)"),
    ("mixed.json", b'[{"text": "a"}, 3]', ": row 1 (counted from 0) is no object of columns and values: 3"),
    ("latin1.json", b'[{"text": "a"},\n{"text": "\xe9"}]', " is not UTF-8 text: line 2 has the byte 0xe9"),
    ("empty.csv", b"", ": the file has no rows"),
    ("head.csv", b"text,b\n\n", ": the file has no rows"),
    ("ragged.csv", b"text,b\na,b\nc,d,e\n", " cannot be read as .csv: Error tokenizing data. C error: Expected 2"),
    ("quote.csv", b'text\n"abc\ndef\n', " cannot be read as .csv: Error tokenizing data. C error: EOF inside string"),
    ("latin1.csv", b"text\na\n\xe9\n", " is not UTF-8 text: line 3 has the byte 0xe9 at its byte 1"),
    ("latin1_head.csv", b"t\xe9xt\na\n", " is not UTF-8 text: line 1 has the byte 0xe9 at its byte 2"),
    ("twice.csv", b"text,text\na,b\n", ": its first line names the column 'text' twice"),
    ("far_ragged.csv", b"text,b\n" + b"a,b\n" * FAR + b"a,b,c\n", f"Expected 2 fields in line {FAR + 2}, saw 3"),
    ("far_latin1.csv", b"text\n" + b"a\n" * 100_000 + b"\xe9\n", " is not UTF-8 text: line 100002 has the byte 0xe9"),
    ("empty.txt", b"", ": the file has no rows"),
    ("latin1.txt", b"ab\ncaf\xe9", " is not UTF-8 text: line 2 has the byte 0xe9 at its byte 4"),
    ("utf16.txt", "abc".encode("utf-16"), " is not UTF-8 text: line 1 has the byte 0xff at its byte 1"),
    ("empty.parquet", b"", ": the file has no rows"),
    ("no_rows.parquet", parquet([], pyarrow.string()), ": the file has no rows"),
    ("junk.parquet", b"hello, I am text", " cannot be read as .parquet: Parquet magic bytes not found"),
    ("torn.parquet", parquet(["abc"] * 9)[:-20], " cannot be read as .parquet: Parquet magic bytes not found"),
    ("torn_inside.parquet", torn_inside(30_000), "Corrupt snappy compressed data"),
    ("a.jsonl.gz", gzip.compress(GOOD, mtime=0), ": a data file ends with .jsonl, .json, .parquet, .csv, .txt. Unpack"),
    ("a.tsv", b"text\na\n", ": a data file ends with .jsonl, .json, .parquet, .csv, .txt. Unpack or convert it first"),
    ("a.JSONL", GOOD, ": a data file ends with .jsonl, .json, .parquet, .csv, .txt. Unpack or convert it first"),
]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_a_broken_file_is_refused_by_name_and_line(tmp_path, name, content, message, streaming):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(load_rows(str(path), streaming=streaming))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


# name, content, rows
READ = [
    ("mark.jsonl", b"\xef\xbb\xbf" + GOOD, ["abc"]),
    ("mark.json", b"\xef\xbb\xbf[" + GOOD + b"]", ["abc"]),
    ("windows.jsonl", GOOD.replace(b"\n", b"\r\n") * 2, ["abc", "abc"]),
    ("no_newline.jsonl", GOOD + GOOD[:-1], ["abc", "abc"]),
    ("separators.jsonl", '{"text": "a\u2028b\u2029c\x85d"}\n'.encode(), ["a\u2028b\u2029c\x85d"]),
    ("nul.jsonl", b'{"text": "a\\u0000b"}\n', ["a\0b"]),
    ("pair.jsonl", b'{"text": "\\ud83d\\ude42"}\n', ["🙂"]),
    ("long.jsonl", json.dumps({"text": "é" * 2_000_000}).encode(), ["é" * 2_000_000]),
    ("number.jsonl", b'{"text": "' + b"x" * 12_000_000 + b'"}\n{"text": 3}\n{"text": ["a"]}\n', [None, 3, ["a"]]),
    ("date.jsonl", GOOD + b'{"text": "2020-01-01"}\n', ["abc", "2020-01-01"]),
    ("lines.json", GOOD * 2, ["abc", "abc"]),
    ("mark.csv", b"\xef\xbb\xbftext\na\n", ["a"]),
    ("windows.csv", b'text\r\n"a\r\nb"\r\n', ["a\r\nb"]),
    ("zeros.csv", b"text\n007\n1.50\n", ["007", "1.50"]),
    ("far_zeros.csv", b"text\n" + b"a\n" * FAR + b"007\n" * FAR, [*["a"] * FAR, *["007"] * FAR]),
    ("missing_words.csv", b"text\nNA\nnull\nNone\nnan\n", ["NA", "null", "None", "nan"]),
    ("short.csv", b"text,b\na,b\nc\n", ["a", "c"]),
    ("mark.txt", b"\xef\xbb\xbfab", ["ab"]),
    ("nul.txt", b"a\0b", ["a\0b"]),
]  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize(("name", "content", "expected"), READ, ids=[name for name, *_ in READ])
def test_a_strange_file_is_read_as_it_stands(tmp_path, name, content, expected, streaming):
    """Beyond its first rows, a number became text; "007" of a CSV file became 7, "NA" was missing, a mark was text."""
    path = tmp_path / name
    path.write_bytes(content)
    found = [row["text"] for row in load_rows(str(path), streaming=streaming)]
    assert [value if at is not None else None for value, at in zip(found, expected, strict=True)] == expected


# columns of one bad row among good ones, and what its report says
ROWS = [
    ({"text": None}, "no value in 'text'"),
    ({"text": ""}, "an empty 'text'"),
    ({"text": " \n\t"}, "an empty 'text'"),
    ({"text": 3}, "something else than text in 'text'"),
    ({"text": float("nan")}, "(no value|something else than text) in 'text'"),
    ({"text": {"a": 1}}, "something else than text in 'text'"),
    ({"other": "a"}, "no value in 'text'"),
    ({"text": "a<|mdm_mask|>"}, "text in 'text' that spells the mask token"),
    ({"text": "a<|endoftext|>"}, "text in 'text' that spells a special token"),
]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize(("bad", "message"), ROWS)
def test_one_bad_row_is_named_by_file_and_number(tmp_path, bad, message, streaming):
    path = tmp_path / "f.jsonl"
    rows = [{"text": "good", "other": None}] * 1200
    rows[1100] = bad
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_rows(str(path), streaming=streaming)
    with pytest.raises(DataError, match=rf"^{path}: 1 (of 1200 )?rows? cannot be .*\n  1 row has {message}.*row 1100 "):
        list(prepare_rows(loaded, TOKENIZER, IDS, 64, source=str(path)))


def test_a_column_that_a_stream_meets_late_is_not_left_out(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(GOOD * FAR + b'{"text": "a", "tools": "[]"}\n')
    with pytest.raises(DataError, match=rf"row {FAR} .* has the column 'tools', which the first 10000 rows lack"):
        list(load_rows(str(path), streaming=True))
    assert load_rows(str(path))[FAR] == {"text": "a", "tools": "[]"}


@pytest.mark.parametrize("name", ["f.jsonl", "f.csv", "f.parquet"])
def test_a_file_that_changes_while_it_is_streamed_is_refused(tmp_path, name):
    """Rows of two versions would be trained on as one epoch."""
    path = tmp_path / name
    content = {"f.jsonl": GOOD * 9, "f.csv": b"text\nabc\nabc\n", "f.parquet": parquet(["abc"] * 9)}[name]
    path.write_bytes(content)
    rows = load_rows(str(path), streaming=True)
    stream = iter(rows)
    assert next(stream) == {"text": "abc"}
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(DataError, match=f"{name} has changed since it was opened"):
        list(stream)
    with pytest.raises(DataError, match=f"{name} has changed since it was opened"):
        next(iter(rows))
    path.unlink()
    with pytest.raises(DataError, match=f"{name} has changed since it was opened"):
        next(iter(rows))


def test_a_file_that_changes_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "f.jsonl"
    path.write_bytes(GOOD)
    from llada.data import loading

    load = loading.load_json
    monkeypatch.setattr(
        loading, "load_json", lambda *args: (load(*args), path.write_bytes(GOOD * 2), load(*args))[0]
    )  # fmt: skip
    with pytest.raises(DataError, match="has changed since it was opened"):
        load_rows(str(path))


def test_what_is_no_readable_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="folder.jsonl is a directory: give the path of one data file"):
        load_rows(str(tmp_path / "folder.jsonl"))
    with pytest.raises(FileNotFoundError, match="no such data file: .*none.csv"):
        load_rows(str(tmp_path / "none.csv"))
    path = tmp_path / "locked.jsonl"
    path.write_bytes(GOOD)

    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    # As root, no file is locked; the system's refusal is put in its place.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="locked.jsonl cannot be read: Permission denied"):
        load_rows(str(path))


def test_two_passes_over_a_stream_are_alike(tmp_path):
    """A stream is read again in every epoch, also by the workers of a data loader, through the same guard."""
    path = Path(tmp_path / "f.csv")
    path.write_bytes(b"text\n" + b"".join(b"%d\n" % row for row in range(50)))
    rows = load_rows(str(path), streaming=True)
    assert [row["text"] for row in rows] == [row["text"] for row in rows] == [str(row) for row in range(50)]
    assert rows.column_names == ["text"]
