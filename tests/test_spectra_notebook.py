"""Tables for notebooks: from folders, kept in a store, with answers in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import cpt_lab.spectra
from cpt_lab.checkpoints import in_folder
from cpt_lab.spectra import MEASURES
from factory import tiny_checkpoint
from spectral_tables import built, product, table_spec

CPU: dict[str, Any] = {"device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Tuned, base, and a store."""
    folder = tmp_path_factory.mktemp("notebook")
    tuned, base = (tiny_checkpoint(folder / name, seed=seed) for seed, name in enumerate(["tuned", "base"]))
    return tuned, base, folder / "results"


def test_a_table_is_that_of_the_study_and_is_made_once(folders: tuple[Path, Path, Path]) -> None:
    tuned, base, results = folders
    asked = {"measures": ["norms", "agreement"], "roles": ["q", "up"], "results": results, **CPU}
    table = cpt_lab.spectra.table(tuned, str(base), **asked)
    assert list(table.columns[5:]) == [*MEASURES["norms"], *MEASURES["agreement"]]
    spec = table_spec(in_folder(tuned), in_folder(base), measures=tuple(table.columns[5:]), roles=("q", "up"))
    pd.testing.assert_frame_equal(table, built(spec, results))
    before = {path: path.stat().st_mtime_ns for path in results.glob("*/*/DONE")}
    pd.testing.assert_frame_equal(cpt_lab.spectra.table(tuned, base, **asked), table)
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/*/DONE")} == before


def test_the_long_form_comes_beside_the_table(folders: tuple[Path, Path, Path]) -> None:
    tuned, base, results = folders
    rows = cpt_lab.spectra.indices(tuned, base, measures="agreement", blocks="heads", results=results, **CPU)
    spec = table_spec(in_folder(tuned), in_folder(base), measures=MEASURES["agreement"], blocks="heads", indices=True)
    pd.testing.assert_frame_equal(rows, pd.read_parquet(product(spec, results) / "indices.parquet"))
    assert len(rows) == 2 * 4 * 4 * 8


def test_without_a_store_the_one_of_the_environment_is_meant(
    folders: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPT_LAB_RESULTS", str(tmp_path / "mine"))
    cpt_lab.spectra.table(folders[0], measures="stable_rank", blocks="heads", roles=["q"], **CPU)
    assert list((tmp_path / "mine" / "spectra").glob("*/product/table.parquet"))


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("nowhere", {}, "there is no folder nowhere: give one in Hugging Face format, or a model of the hub as owner/name@revision"),
        (Path("owner/name"), {}, "there is no folder owner/name"),
        (None, {"measures": "papr"}, r"unknown spectral measure or preset 'papr' \(did you mean paper"),
        (None, {"measures": "post_training"}, "compare two checkpoints and there is one"),
        (None, {"roles": ["gat"]}, r"^roles: unknown role 'gat' \(did you mean gate"),
        (None, {"roles": ["up"], "blocks": "heads"}, "^a spectra table of blocks=heads of the roles up has no rows"),
        (None, {"min_tail": 2}, r"^min_tail: Input should be greater than or equal to 5 \(got 2\)"),
        (None, {"blocs": "heads"}, r"unknown option 'blocs' \(did you mean blocks"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    folders: tuple[Path, Path, Path], tmp_path: Path, checkpoint: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cpt_lab.spectra.table(checkpoint or folders[0], results=tmp_path, **options, **CPU)


def test_a_model_of_the_hub_that_cannot_be_had_is_named_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match=r"owner/name \(v2\) could not be downloaded"):
        cpt_lab.spectra.table("owner/name@v2", results=tmp_path, **CPU)
