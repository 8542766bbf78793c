"""`ui [STUDY] [port=N]`: MLflow's own pages over the runs of the store, or where a server shows them."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import quote

from cpt_lab import roster, study
from cpt_lab.commands.words import Words
from cpt_lab.tracking_settings import Tracking

PORT = "port="
DEFAULT_PORT = 5000
CURVES = "tags.study = '{study}' and tags.kind = 'curve'"  # the search that draws a study's curves


def run(words: Words) -> int:
    """Serve the runs until Ctrl-C, after saying where; ValueError if studies are tracked in several places and none was named."""
    from cpt_lab import tracking

    names = [name for name in words.names if not name.startswith(PORT)]
    settings, port = _place(words, names), _port(words)
    if settings.kind == "off":
        raise ValueError(
            "the study was launched with tracking=off: `track sync` has nowhere to show it; give its own command again without"
        )
    experiment = tracking.initialise(settings)
    address = settings.address if settings.kind == "server" else f"http://127.0.0.1:{port}"
    for name in names or study.names(words.store):
        print(f"curves of {name}: {address}/#/experiments/{experiment}/runs?searchFilter={quote(CURVES.format(study=name))}")
    if settings.kind == "server":
        print(settings.address)
        return 0
    print(f"{address} until Ctrl-C", flush=True)
    return subprocess.run([*tracking.ui_words(settings), "--port", str(port)], check=False, stderr=sys.stderr).returncode


def _place(words: Words, names: list[str]) -> Tracking:
    """Where the named study, or every study of the store, is tracked."""
    store = words.store
    found = {name: roster.read(store, name).tracking.within(store.root) for name in names or study.names(store)}
    places = {settings.model_dump_json(): settings for settings in found.values() if names or settings.kind != "off"}
    if len(places) > 1:
        shown = ", ".join(f"{name} ({settings.uri or settings.kind})" for name, settings in found.items())
        raise ValueError(f"these studies are tracked in several places: {shown}: name one, as in `ui {next(iter(found))}`")
    return next(iter(places.values()), Tracking().within(store.root))


def _port(words: Words) -> int:
    given = [name.removeprefix(PORT) for name in words.names if name.startswith(PORT)]
    if given and not (given[-1].isdigit() and 0 < int(given[-1]) < 1 << 16):
        raise ValueError(f"{PORT}{given[-1]}: give a port between 1 and 65535, as in {PORT}{DEFAULT_PORT}")
    return int(given[-1]) if given else DEFAULT_PORT
