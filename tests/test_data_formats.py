"""Files of documents: every kind holds the same documents, pieces lose none, and what cannot be read is named with its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cpt_lab.data import formats, rules
from cpt_lab.data.shards import grouped, shards_of_file, texts
from cpt_lab.specs import Rule

ROWS = [{"text": f"document {index}: ä\n", "meta": {"score": index / 10}, "lang": "en" if index % 2 else "de"} for index in range(40)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "json.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows[:9])) + gzip.compress(lines(rows[9:]))),
    "jsonl.zst": lambda path, rows: path.write_bytes(zstandard.compress(lines(rows))),
    "json.zst": lambda path, rows: path.write_bytes(zstandard.compress(lines(rows[:9])) + zstandard.compress(lines(rows[9:]))),
    "parquet": write_parquet,
}
PACKED = [name for name in WRITERS if name.endswith((".gz", ".zst"))]


def written(folder: Path, kind: str, rows: list[dict[str, Any]] = ROWS) -> str:
    path = folder / f"own.{kind}"
    WRITERS[kind](path, rows)
    return str(path)


def read(path: str, **settings: Any) -> list[str]:
    return [text for shard in shards_of_file(path, **settings) for text in texts(shard)]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_its_documents_in_order(kind: str, tmp_path: Path) -> None:
    assert read(written(tmp_path, kind)) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_that_fail_a_rule_and_empty_texts_are_no_documents(kind: str, tmp_path: Path) -> None:
    wanted = (Rule(field="meta.score", at_least=1, at_most=2), Rule(field="lang", one_of=("en",)), Rule(field="text", matches="1[1-7]"))
    path = written(tmp_path, kind, [*ROWS, {**ROWS[11], "text": ""}])
    assert read(path, rules=wanted) == [ROWS[index]["text"] for index in (11, 13, 15, 17)]


@given(data=st.data())
def test_pieces_of_a_file_hold_each_line_once_wherever_they_are_cut(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [{"text": text} for text in data.draw(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=12))]
    path = tmp_path_factory.mktemp("pieces") / "own.jsonl"
    path.write_bytes(lines(rows))
    size = path.stat().st_size
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, max(size - 1, 1)), max_size=6))), size]
    found = [row.values["text"] for start, stop in pairwise(cuts) for row in formats.plain_lines(str(path), start, stop, {})]
    assert found == [row["text"] for row in rows]


def test_a_large_file_is_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE", 300)
    path = written(tmp_path, "jsonl")
    assert len(shards_of_file(path)) == -(-Path(path).stat().st_size // 300)
    assert read(path) == [row["text"] for row in ROWS]


def test_groups_keep_the_order_and_hold_about_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE", 300)
    shards = []
    for index in range(6):
        (tmp_path / str(index)).mkdir()
        shards += shards_of_file(written(tmp_path / str(index), "jsonl", ROWS[:2]))
    groups = grouped(shards)
    assert [shard for group in groups for shard in group] == shards
    assert {len(group) for group in groups} == {300 // shards[0].size}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_packed_file_that_was_cut_off_is_named_with_the_byte_where_it_ends(kind: str, kept: float, tmp_path: Path) -> None:
    path = Path(written(tmp_path, kind))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    if "json." in kind and kept == 0.5:  # two streams: what is left must end inside one
        path.write_bytes(data[:-3])
    with pytest.raises(ValueError, match=rf"own.{kind} ends at byte [\d,]+ in the middle"):
        read(str(path))


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
def test_a_packed_file_that_is_damaged_is_named_with_the_byte_before(kind: str, tmp_path: Path) -> None:
    path = Path(written(tmp_path, kind))
    data = bytearray(path.read_bytes())
    data[20:60] = bytes(255 - byte for byte in data[20:60])
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"own.{kind} (cannot be unpacked after byte \d|ends at byte)"):
        read(str(path))


def test_a_file_that_only_looks_packed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl.gz"
    path.write_bytes(lines(ROWS))
    with pytest.raises(ValueError, match=r"own.jsonl.gz cannot be unpacked after byte 0 \(0 of its contents"):
        read(str(path))


def test_padding_after_a_packed_file_is_no_damage(tmp_path: Path) -> None:
    path = Path(written(tmp_path, "jsonl.gz"))
    path.write_bytes(path.read_bytes() + bytes(512))
    assert read(str(path)) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("damage", ["cut off", "no parquet"])
def test_a_parquet_file_that_cannot_be_read_is_named(damage: str, tmp_path: Path) -> None:
    path = Path(written(tmp_path, "parquet"))
    path.write_bytes(path.read_bytes()[:-9] if damage == "cut off" else b"text")
    with pytest.raises(ValueError, match=r"own.parquet cannot be read as parquet"):
        read(str(path))


def test_a_damaged_page_of_a_parquet_file_is_named_with_its_row_group(tmp_path: Path) -> None:
    path = Path(written(tmp_path, "parquet"))
    data = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(3).column(0).data_page_offset
    data[start : start + 20] = bytes(20)
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"row group 3 of .*own.parquet cannot be read"):
        read(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut o', "line 2 of .* is no JSON object"),
        (b'["text"]', "line 2 of .* is no JSON object"),
        (b'{"text": "\xff"}', "line 2 of .* is no JSON object"),
        (b'{"txt": "two"}', r"line 2 of .*: unknown field 'text' \(did you mean txt\?\); there are txt"),
        (b'{"text": 2}', "line 2 of .* has no text in field 'text' but 2"),
        (b'{"text": null}', "line 2 of .* has no text in field 'text' but None"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_without_a_text_is_named(line: bytes, message: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("own.jsonl.gz" if packed else "own.jsonl")
    data = b'{"text": "one"}\n' + line + b'\n{"text": "three"}\n'
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match=message):
        read(str(path))


def test_a_line_in_a_later_piece_is_named_by_its_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "PIECE", 20)
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"the line at byte 32 of .*own.jsonl has no text"):
        read(str(path))


def test_numbers_that_only_python_writes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "one", "score": NaN}\n')
    assert read(str(path)) == ["one"]


def test_a_file_of_another_kind_lists_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"own.csv ends like none of \.jsonl, .*\.parquet"):
        read(str(tmp_path / "own.csv"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"own.jsonl cannot be read \(No such file"):
        read(str(tmp_path / "own.jsonl"))


def test_a_rule_that_asks_a_word_for_its_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1 of .*: field 'lang' holds 'de', which at_least and at_most cannot be asked of"):
        read(written(tmp_path, "jsonl"), rules=(Rule(field="lang", at_least=1),))


def test_a_rule_tests_something_and_its_expression_can_be_read() -> None:
    with pytest.raises(ValueError, match="tests nothing: give at_least, at_most, one_of or matches"):
        Rule(field="lang")
    with pytest.raises(ValueError, match=r"matches='\(', no regular expression"):
        Rule(field="lang", matches="(")


def test_a_field_whose_own_name_has_dots_is_found_first() -> None:
    assert rules.value_of({"meta.score": 1, "meta": {"score": 2}}, "meta.score") == 1
    assert rules.value_of({"meta": {"score": 2}}, "meta.score") == 2
