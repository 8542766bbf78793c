"""Corpora from the Hugging Face hub, streamed: a build notes what they are, and their documents are read when they are asked for."""

from __future__ import annotations

import errno
import json
import logging
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from gzip import BadGzipFile
from itertools import islice
from typing import TYPE_CHECKING, Any

from cpt_lab import failures
from cpt_lab.data.formats import Row

if TYPE_CHECKING:
    from cpt_lab.specs import HubCorpus
    from cpt_lab.store import Workspace

PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds before each further try of a row that did not come
BUSY = (408, 425, 429)  # HTTP: answers of a server that may have the file later, beside 500 and above
NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE)  # too many are open: of this process, of this machine
OUT_OF_REACH = "could not be reached on the hub: give a network, or its files as a files_corpus"


def build_corpus(spec: HubCorpus, work: Workspace) -> None:
    """Write shards.json, one shard for each file of the data set, and manifest.json with the commit that `spec.revision` means now.

    Everything is read from that commit later, whatever the revision means by then. ValueError if the data set cannot be reached, or if
    its first document has no such field.
    """
    from cpt_lab.data.shards import Shard, texts

    commit = commit_of(spec.id, spec.revision)
    settings = {"config": spec.config, "data_files": spec.data_files, "revision": commit, "split": spec.split}
    whole = Shard("hub", spec.id, field=spec.field, rules=spec.filter or (), settings=settings)
    count = files_in(open_stream(spec.id, **settings))
    next(texts(whole), None)
    shards = [
        Shard("hub", spec.id, index, index + 1, field=spec.field, rules=spec.filter or (), settings=settings) for index in range(count)
    ]
    (work.product / "shards.json").write_text(json.dumps([shard.as_json() for shard in shards], indent=1))
    facts = {"id": spec.id, "revision": commit, "asked": spec.revision, "files": count, "licence": spec.licence}
    (work.product / "manifest.json").write_text(json.dumps(facts, indent=1))


def rows(source: str, start: int, stop: int | None, settings: dict[str, Any]) -> Iterator[Row]:
    """The rows of the files `start` to `stop` of a data set, as they come over the network."""
    stream = open_stream(source, **settings)
    count = files_in(stream)
    for file in range(start, count if stop is None else stop):
        part = stream.shard(num_shards=count, index=file) if count > 1 else stream
        yield from _steadily(part, f"of file {file} of data set {source}")


def _steadily(part: Any, of: str) -> Iterator[Row]:
    """The rows of a file, which is begun again, up to the row it was at, when the network fails.

    ValueError naming the row if that helps no more, whereby a row that comes gives all pauses back.
    """
    number, pauses = 0, iter(PAUSES)
    while True:
        try:
            for values in islice(part, number, None):
                number, pauses = number + 1, iter(PAUSES)
                yield Row(f"row {number} {of}", values)
            return
        except Exception as error:  # the libraries below have no family of network errors: what is none goes on
            if not is_network_failure(error):
                raise
            pause = next(pauses, None)
            said = f"row {number + 1} {of} did not come over the network ({type(error).__name__}: {failures.first_line(error)})"
            if pause is None:
                raise ValueError(
                    f"{said}, also not in {len(PAUSES)} further tries: look at the network, then give the same command again, which "
                    "goes on with the files that are not done"
                ) from error
            logging.getLogger(__name__).warning("%s: once more in %s s", said, pause)
            time.sleep(pause)


def is_network_failure(error: BaseException) -> bool:
    """Whether the same request may succeed later: the connection broke, or the server was busy; not what is gone or not allowed."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int) and status >= 400:
        return status >= 500 or status in BUSY
    if isinstance(error, OSError):
        return not isinstance(error, _lasting()) and error.errno not in NO_FILES_LEFT and not failures.is_not_writable(error)
    # These two have errors that are no OSError. They are loaded if one of them was raised.
    families = [(sys.modules.get("httpx"), "HTTPError"), (sys.modules.get("aiohttp"), "ClientError")]
    return isinstance(error, TimeoutError) or any(module and isinstance(error, getattr(module, name)) for module, name in families)


def _lasting() -> tuple[type[OSError], ...]:
    """Errors that every further try would have: of files that are gone, not allowed or damaged, and of a network that is switched off."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return FileNotFoundError, PermissionError, IsADirectoryError, BadGzipFile, OfflineModeIsEnabled


@lru_cache(maxsize=4)
def open_stream(source: str, *, config: str | None, data_files: str | None, revision: str, split: str) -> Any:
    """The data set as an iterable of rows; ValueError if the hub or the data set cannot be reached."""
    from datasets import load_dataset
    from httpx import HTTPError

    try:
        return load_dataset(source, name=config, data_files=data_files, revision=revision, split=split, streaming=True)
    except (OSError, RuntimeError, HTTPError) as error:
        raise ValueError(f"data set {source} ({revision}) {OUT_OF_REACH}") from error


def files_in(stream: Any) -> int:
    """How many files a stream goes through: what of it can be read side by side."""
    return int(getattr(stream, "n_shards", 1))


def commit_of(source: str, revision: str) -> str:
    """The commit that a data set's revision means now; ValueError if the hub cannot be reached or has no such data set."""
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(source, revision=revision).sha)
    except HfHubHTTPError as error:
        raise ValueError(
            f"the hub has no data set {source} at {revision} that may be read from here ({str(error).splitlines()[0]}): look at "
            f"https://huggingface.co/datasets/{source}, accept its terms there if it asks for that, and log in with `hf auth login`"
        ) from None
    except (OSError, HTTPError) as error:
        raise ValueError(f"data set {source} ({revision}) {OUT_OF_REACH}") from error
