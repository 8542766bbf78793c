"""Checkpoints that are found or written rather than trained: from the hub, from a folder, with a patch applied."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.specs import FolderCheckpoint, HubCheckpoint, HubTokenizer, Patched
from cpt_lab.store import Workspace

if TYPE_CHECKING:
    from cpt_lab.patch import Patch

CONFIG = "config.json"
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", CONFIG, "generation_config.json"]
TOKENIZER_FILES = ["tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*"]


def in_folder(folder: Path) -> FolderCheckpoint:
    """The spec of the checkpoint in a folder: its shape by config.json, its digest by its weights; ValueError if it has neither."""
    from cpt_lab.architecture import shape_from_config
    from cpt_lab.weights import weights_digest

    place = folder.expanduser().absolute()
    digest = weights_digest(place)
    shape = shape_from_config(_read_config(place)).but(name=place.name)
    return FolderCheckpoint(path=str(place), weights_digest=digest, shape=shape)


def olmo_core_folder(folder: Path) -> tuple[Path, str]:
    """The whole path of a checkpoint in OLMo-core's format and the digest of its contents; ValueError if it is none."""
    from cpt_lab.weights import files_digest

    place = folder.expanduser().absolute()
    tensors = place / "model_and_optim" if (place / "model_and_optim").is_dir() else place
    if not (tensors / ".metadata").is_file():
        steps = sorted(path.name for path in place.glob("step*") if path.is_dir())
        advice = f"give one of its checkpoints, like {place / steps[-1]}" if steps else "give the folder of a step that its trainer saved"
        raise ValueError(f"{place} is no checkpoint of OLMo-core (there is no .metadata): {advice}")
    return place, files_digest(sorted(path for path in tensors.iterdir() if path.is_file()))


def on_hub(name: str, revision: str) -> HubCheckpoint:
    """The spec of a model of the hub, whose config.json is downloaded; ValueError if there is none or it cannot be reached."""
    from cpt_lab.architecture import shape_from_config

    config = _from_hub(name, revision, [CONFIG]) / CONFIG
    if not config.exists():
        raise ValueError(f"{name} ({revision}) has no config.json on the hub: give a model in Hugging Face format")
    return HubCheckpoint(id=name, revision=revision, shape=shape_from_config(json.loads(config.read_text())).but(name=name.split("/")[-1]))


def fetch_checkpoint(spec: HubCheckpoint, work: Workspace) -> None:
    """The hub's files as links into its local cache, with the commit that the revision meant."""
    _fetch(spec.id, spec.revision, [*MODEL_FILES, *TOKENIZER_FILES], work)
    if not list(work.product.glob("*.safetensors")):
        raise ValueError(
            f"{spec.id} ({spec.revision}) has no safetensors: choose a revision that has, or convert it and use base.from=folder"
        )

    from cpt_lab.architecture import shape_from_config
    from cpt_lab.specs import identity

    found = shape_from_config(json.loads((work.product / CONFIG).read_text()))
    for name, value in identity(spec.shape).items():
        if identity(found)[name] != value:
            raise ValueError(
                f"{spec.id} has {name} {identity(found)[name]} and the configuration says {value}: correct model.shape.{name}, "
                f"or tuned.model.shape.{name} if that is where its id stands"
            )


def fetch_tokenizer(spec: HubTokenizer, work: Workspace) -> None:
    _fetch(spec.id, spec.revision, [*TOKENIZER_FILES, CONFIG], work)


def adopt_folder(spec: FolderCheckpoint, work: Workspace) -> None:
    """Links to the folder's files, if they still are what the study was planned with."""
    from cpt_lab.weights import check_finite, open_weights, weights_digest

    found = weights_digest(Path(spec.path))
    if found != spec.weights_digest:
        raise ValueError(f"the weights in {spec.path} changed since the study was planned: run the command again to plan with the new ones")
    check_finite(open_weights(Path(spec.path)), spec.path)
    _link(Path(spec.path), work.product)


def materialize(spec: Patched, work: Workspace, *, tuned: Path, sources: Mapping[str, Path]) -> None:
    """The patched weights as a checkpoint folder like the tuned one, with the patch beside them."""
    from cpt_lab import patch, weights

    change = patch_of(spec)
    patched = patch.apply(change, weights.open_weights(tuned), {name: weights.open_weights(path) for name, path in sources.items()})
    weights.save_checkpoint(patched, tuned, work.product, config=_fewer_layers(change, tuned))
    (work.product / "patch.json").write_text(change.model_dump_json())


def _fewer_layers(change: Patch, tuned: Path) -> dict[str, Any] | None:
    """What a drop of layers changes in config.json, None if no layer goes."""
    if change.drop is None:
        return None
    from transformers import AutoConfig

    from cpt_lab.layers import config_changes

    return config_changes(change.drop, AutoConfig.from_pretrained(tuned))


def patch_of(spec: Patched) -> Patch:
    """The edits of all interventions in order; their rankings must be settled."""
    from cpt_lab.patch import Patch

    whole = Patch()
    for change in spec.interventions:
        whole = whole.then(change.patch(spec.shape))
    return whole


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no config.json that can be read ({error}): give the folder of a model in Hugging Face format"
        ) from None
    if not isinstance(data, dict):
        raise ValueError(f"{folder}/config.json is no JSON object: give the folder of a model in Hugging Face format")
    return data


def _fetch(name: str, revision: str, patterns: list[str], work: Workspace) -> None:
    folder = _from_hub(name, revision, patterns)
    _link(folder, work.product)
    (work.product / "commit.json").write_text(json.dumps({"id": name, "revision": revision, "commit": folder.name}))


def _from_hub(name: str, revision: str, patterns: list[str]) -> Path:
    """The folder in the hub's local cache that holds these files of a model; ValueError if it is neither there nor to be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise ValueError(
            f"{name} has no revision {revision!r}: list them with "
            f"`python -c \"import huggingface_hub as h; print(h.list_repo_refs('{name}'))\"` and set model.hub.revision"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(f"the hub has no model {name!r}, or it is private and you are not logged in (`hf auth login`)") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{name} ({revision}) could not be downloaded ({first}): use base.from=folder base.path=FOLDER") from None


def _link(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file():
            os.symlink(path.resolve(), target / path.name)
