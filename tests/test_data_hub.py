"""Streams of the hub whose connection breaks: rows are tried again, and what did not come whole is nothing."""

from __future__ import annotations

import errno
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest
import zstandard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from cpt_lab.data import builtin, hub, tokenizer, tokens
from cpt_lab.data.documents import read_manifest
from cpt_lab.data.shards import Shard
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, HubCorpus, Tokens
from cpt_lab.store import Workspace


def workspace(folder: Path) -> Workspace:
    (folder / "product").mkdir(parents=True)
    return Workspace(folder, folder / "product")


class Unsteady:
    """A data set of one file of ten rows, whose connection breaks before chosen rows, each so many times."""

    n_shards = 1

    def __init__(self, breaks: dict[int, int], error: Exception) -> None:
        self.breaks, self.error, self.tries = breaks, error, 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        self.tries += 1
        for index in range(10):
            if self.breaks.get(index, 0) > 0:
                self.breaks[index] -= 1
                raise self.error
            yield {"text": f"document {index}"}


def unsteady(monkeypatch: pytest.MonkeyPatch, breaks: dict[int, int], error: Exception) -> Unsteady:
    stream = Unsteady(breaks, error)
    monkeypatch.setattr(hub, "PAUSES", (0.0,) * 3)
    monkeypatch.setattr(hub, "open_stream", lambda *_, **__: stream)
    return stream


def streamed() -> list[str]:
    return [row.values["text"] for row in hub.rows("some/data", 0, None, {})]


LOST = [
    ConnectionError("Server Disconnected"),
    TimeoutError(),
    httpx.RemoteProtocolError("peer closed connection"),
    aiohttp.ClientPayloadError("not enough data"),
    HfHubHTTPError("Too Many Requests", response=httpx.Response(429, request=httpx.Request("GET", "https://hub"))),
]
GONE = [
    FileNotFoundError("part 7"),
    KeyError("text"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EMFILE, "Too many open files"),
    gzip.BadGzipFile("CRC check failed"),
    zlib.error("invalid distance"),
    zstandard.ZstdError("data corruption"),
    EOFError("ended before the end-of-stream marker"),
    OfflineModeIsEnabled("HF_HUB_OFFLINE=1"),
    HfHubHTTPError("Forbidden", response=httpx.Response(403, request=httpx.Request("GET", "https://hub"))),
]


@pytest.mark.parametrize("error", LOST, ids=repr)
def test_rows_go_on_where_the_connection_broke_without_losing_or_repeating_one(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    stream = unsteady(monkeypatch, {0: 3, 4: 3, 9: 2}, error)
    assert streamed() == [f"document {index}" for index in range(10)]
    assert stream.tries == 9


@pytest.mark.parametrize("error", LOST, ids=repr)
def test_a_connection_that_stays_broken_ends_naming_the_row_and_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    unsteady(monkeypatch, {4: 4}, error)
    said = r"row 5 of file 0 of data set some/data did not come over the network \(.*\), also not in 3 further tries: .* same command again"
    with pytest.raises(ValueError, match=said):
        streamed()


@pytest.mark.parametrize("error", GONE, ids=repr)
def test_what_no_second_try_brings_back_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    stream = unsteady(monkeypatch, {4: 1}, error)
    with pytest.raises(type(error)):
        streamed()
    assert stream.tries == 1


def test_a_file_that_did_not_come_whole_is_not_taken_for_one_and_the_next_build_has_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    math = BuiltinCorpus(name="math", documents=300, held_out=20)
    bpe = BpeTokenizer(corpora=(math,), vocab_size=320)
    learnt, folder, work = (workspace(tmp_path / name) for name in ("math", "bpe", "tokens"))
    builtin.build_corpus(math, learnt)
    tokenizer.build_tokenizer(bpe, [learnt.product], folder)
    corpus = tmp_path / "hub"
    corpus.mkdir()
    (corpus / "manifest.json").write_text("{}")
    (corpus / "shards.json").write_text(json.dumps([Shard("hub", "some/data").as_json()]))
    spec = Tokens(corpus=HubCorpus(name="own", id="some/data"), tokenizer=bpe)
    unsteady(monkeypatch, {7: 4}, ConnectionError("Server Disconnected"))
    with pytest.raises(ValueError, match="row 8 of file 0 of data set some/data did not come"):
        tokens.build_tokens(spec, corpus, folder.product, work)
    assert not [path.name for path in work.scratch.glob("0.*")]
    assert not list(work.product.iterdir())
    tokens.build_tokens(spec, corpus, folder.product, work)
    assert read_manifest(work.product)["documents"] == 10
