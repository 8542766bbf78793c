"""The warm evaluator: a model loaded once and a protocol built once, scored at one point of a sweep after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cpt_lab.evaluation.loading import load_model
from cpt_lab.evaluation.session import EvalSession, NonFiniteScores, write_scores
from cpt_lab.execution import Execution
from cpt_lab.patch import LiveModel, Patch
from cpt_lab.specs import Evaluation, Patched, Protocol, Spec, key
from cpt_lab.store import Workspace

Product = Callable[[Spec], Path]


class WarmEvaluator:
    """Holds the last model and protocol it was asked for; the next point reuses what it shares with them."""

    def __init__(self, how: Execution) -> None:
        self._how = how
        self._loaded = ""
        self._built = ""
        self._live: LiveModel | None = None
        self._session: EvalSession | None = None

    def score(self, spec: Evaluation, work: Workspace, *, product: Product) -> None:
        """Write the point's scores, per-document outcomes and patch into the workspace; the model's weights are its own again after."""
        live = self._model(spec, product)
        session = self._protocol(spec.protocol, product(spec.loaded), product)
        patch = _patch(spec)
        live.set(patch)
        try:
            scores = session.score(live.model, progress=work.progress)
        except NonFiniteScores as error:
            raise ValueError(f"{spec.checkpoint.label()}: {error}") from None
        write_scores(scores, work.product)
        (work.product / "patch.json").write_text(patch.model_dump_json())

    def _model(self, spec: Evaluation, product: Product) -> LiveModel:
        name = f"{key(spec.loaded)} {spec.protocol.dtype}"
        if self._live is None or self._loaded != name:
            self._live = self._session = None  # free the old model before the new one is loaded
            folder = product(spec.loaded)
            self._live = LiveModel(load_model(folder, spec.loaded, spec.protocol.dtype, self._how), folder, {})
            self._loaded, self._built = name, ""
        self._live.read_from(_sources(spec, product))
        return self._live

    def _protocol(self, protocol: Protocol, folder: Path, product: Product) -> EvalSession:
        if self._session is None or self._built != key(protocol):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
            self._session = EvalSession(product(protocol), protocol, tokenizer=tokenizer, how=self._how)
            self._built = key(protocol)
        return self._session


def _patch(spec: Evaluation) -> Patch:
    from cpt_lab.checkpoints import patch_of

    return patch_of(spec.checkpoint) if isinstance(spec.checkpoint, Patched) else Patch()


def _sources(spec: Evaluation, product: Product) -> dict[str, Path]:
    if not isinstance(spec.checkpoint, Patched):
        return {}
    return {name: product(source) for change in spec.checkpoint.interventions for name, source in change.sources().items()}
