"""Tables of what happens inside a model: every prompt of a task is read once by each model, edits applied in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cpt_lab.evaluation.loading import load_model
from cpt_lab.evaluation.tasks import load_tasks, quiet_harness
from cpt_lab.execution import Execution
from cpt_lab.families import family
from cpt_lab.internals.observe import attention_entropies, attention_maps, layer_means
from cpt_lab.internals.similarity import binned, bounds, gram, linear_cka
from cpt_lab.names import unknown
from cpt_lab.patch import LiveModel
from cpt_lab.specs import AttentionEntropy, AttentionMaps, Checkpoint, LayerSimilarity, Patched, Prompts, Spec
from cpt_lab.specs.patched import loaded
from cpt_lab.store import Workspace

Product = Callable[[Spec], Path]


def build_entropy(spec: AttentionEntropy, work: Workspace, *, product: Product, how: Execution) -> None:
    """Write table.parquet: layer, head, prompt, tokens, entropy (of the last position) and entropy_mean (over all positions), in nats."""
    model, layers, tokenizer = _model(spec.checkpoint, spec.prompts, product, how)
    frames = []
    for number, ids in enumerate(_each(spec.prompts, model, tokenizer, product, work.progress)):
        last, mean = attention_entropies(model, layers, ids)
        rows, heads = last.shape
        frames.append(
            pd.DataFrame(
                {
                    "layer": torch.arange(rows).repeat_interleave(heads),
                    "head": torch.arange(heads).repeat(rows),
                    "prompt": number,
                    "tokens": len(ids),
                    "entropy": last.flatten(),
                    "entropy_mean": mean.flatten(),
                }
            )
        )
    pd.concat(frames, ignore_index=True).to_parquet(work.product / "table.parquet", index=False)


def build_maps(spec: AttentionMaps, work: Workspace, *, product: Product, how: Execution) -> None:
    """Write table.parquet: layer, head (-1: the mean over all), row (what looks), column (what is looked at), weight; and prompt.json.

    What of the first `prompts.count` prompts is the last one is read. Of a prompt of more tokens than `cells` neighbours share a row and a
    column: rows are means, columns sums, so that every row still adds up to 1. prompt.json has `tokens`, the text of every token, and
    `first`, the token that each row and column begins with.
    """
    model, layers, tokenizer = _model(spec.checkpoint, spec.prompts, product, how)
    *_, ids = _each(spec.prompts, model, tokenizer, product, work.progress)
    _check_layers(spec, len(model.get_submodule(layers)))
    frames = []
    for layer, weights in attention_maps(model, layers, ids, spec.shown).items():
        frames += [_map_rows(layer, head, binned(found, spec.cells)) for head, found in ((-1, weights.mean(0)), *_single(weights, spec))]
    pd.concat(frames, ignore_index=True).to_parquet(work.product / "table.parquet", index=False)
    told = {"tokens": tokenizer.convert_ids_to_tokens(ids.tolist()), "first": bounds(len(ids), spec.cells)[:-1]}
    (work.product / "prompt.json").write_text(json.dumps(told))


def build_similarity(spec: LayerSimilarity, work: Workspace, *, product: Product, how: Execution) -> None:
    """Write table.parquet: layer, against_layer, cka. Features are what a layer gives out, mean over a prompt's tokens.

    T eq. 17 averages over the prompts and does not say what the examples of CKA are: here each prompt is one. Layers of a pruned model
    count from 0 again.
    """
    grams = []
    for checkpoint in (spec.checkpoint, spec.against):  # one after the other: two large models need not fit side by side
        model, layers, tokenizer = _model(checkpoint, spec.prompts, product, how)
        means = [layer_means(model, layers, ids) for ids in _each(spec.prompts, model, tokenizer, product, work.progress)]
        grams.append(gram(torch.stack(means, dim=1)))  # (layers, prompts, hidden) -> (layers, prompts, prompts)
        del model
    one, other = grams
    cka = linear_cka(one[:, None], other[None, :])
    rows, columns = cka.shape
    table = {
        "layer": torch.arange(rows).repeat_interleave(columns),
        "against_layer": torch.arange(columns).repeat(rows),
        "cka": cka.flatten(),
    }
    pd.DataFrame(table).to_parquet(work.product / "table.parquet", index=False)


def _check_layers(spec: AttentionMaps, there: int) -> None:
    """ValueError for a layer that was pruned away."""
    if max(spec.shown) >= there:
        raise ValueError(f"no layer {max(spec.shown)} in the edited model, which has {there}: choose others with internals.layers")


def _single(weights: Tensor, spec: AttentionMaps) -> Iterator[tuple[int, Tensor]]:
    return ((head, weights[head]) for head in spec.heads)


def _map_rows(layer: int, head: int, weights: Tensor) -> pd.DataFrame:
    size = len(weights)
    place = {"row": torch.arange(size).repeat_interleave(size), "column": torch.arange(size).repeat(size)}
    return pd.DataFrame({"layer": layer, "head": head, **place, "weight": weights.flatten()})


def _model(checkpoint: Checkpoint | Patched, prompts: Prompts, product: Product, how: Execution) -> tuple[Any, str, Any]:
    """The model with its edits, the name of its list of layers, and its tokenizer."""
    from transformers import AutoTokenizer

    from cpt_lab.checkpoints import patch_of

    folder = product(loaded(checkpoint))
    model = load_model(folder, loaded(checkpoint), prompts.protocol.dtype, how)
    if isinstance(checkpoint, Patched):
        sources = {name: product(source) for change in checkpoint.interventions for name, source in change.sources().items()}
        LiveModel(model, folder, sources).set(patch_of(checkpoint))
    row = family(checkpoint.shape.family)
    return model, (row.prefix + row.layer).split(".{layer}")[0], AutoTokenizer.from_pretrained(folder)


def _each(
    prompts: Prompts, model: Any, tokenizer: Any, product: Product, progress: Callable[[float, float, str], None]
) -> Iterator[Tensor]:
    """The token ids of each prompt; ValueError if the task has too few, or one does not fit the context."""
    context = int(model.config.max_position_embeddings)
    texts = _texts(prompts, product, tokenizer)
    encoded = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    longest = max(map(len, encoded))
    if longest > context:
        raise ValueError(f"a prompt has {longest} tokens and the model's context {context}: choose a protocol with fewer shots")
    for done, ids in enumerate(encoded, start=1):
        yield ids
        progress(done, len(encoded), "prompts")


def _texts(prompts: Prompts, product: Product, tokenizer: Any) -> list[str]:
    protocol = prompts.protocol
    names = [task.name for task in protocol.tasks]
    wanted = prompts.task or names[0]
    if wanted not in names:
        raise ValueError(unknown(f"task of protocol {protocol.name}", wanted, names))
    with quiet_harness():
        task = load_tasks(product(protocol), protocol, tokenizer)[names.index(wanted)]
    first = {request.doc_id: request.args[0] for request in reversed(task.requests)}
    texts = [text for _, text in sorted(first.items())][: prompts.count]
    if len(texts) < prompts.count:
        raise ValueError(f"{prompts.count} prompts are wanted and task {wanted} has {len(texts)}: lower internals.prompts")
    return texts
