"""Kind of spec -> how it is built; `ensure` builds a spec and all it needs. The only composer."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab import failures, provenance, rates, specs, study, vocabularies
from cpt_lab.execution import Execution
from cpt_lab.lease import Lease, LeaseLost
from cpt_lab.specs import Spec, key, settled
from cpt_lab.store import State, Store, Workspace

if TYPE_CHECKING:
    from cpt_lab.evaluation.warm import WarmEvaluator
    from cpt_lab.training import run

POLL_SECONDS = 0.2
MOST_HALVINGS = 6  # of the batches, when memory runs out


class Stopped(BaseException):
    """A signal asked this process to hand back what it builds; `state` says what to write of it."""

    def __init__(self, state: State) -> None:
        super().__init__(state.value)
        self.state = state


class Unfit(RuntimeError):
    """This process can build nothing more, though a new one may: the GPU's context is broken."""


class NotWritable(ValueError):
    """The store takes nothing more: its disk is full, read-only or away. No step is to blame."""


@dataclass
class Workshop:
    """What one process keeps while it builds: the store, how to compute, and the model it has loaded."""

    store: Store
    how: Execution
    code: str = ""
    wanted: Sequence[Spec] = ()  # of the launch: a run keeps the weights on its way that are among these
    evaluator: WarmEvaluator | None = field(default=None, repr=False)

    def product(self, spec: Spec) -> Path:
        return self.store.product(spec)

    def products(self, finished: Sequence[Spec]) -> dict[str, Path]:
        """The products of finished specs, by key."""
        return {key(spec): self.store.product(spec) for spec in finished}

    def make_smaller(self) -> None:
        """Let go of what is loaded, and build with half the batches from now on."""
        self.evaluator = None
        self.how = self.how.smaller()
        gc.collect()
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None:
            cuda.empty_cache()


def ensure(workshop: Workshop, spec: Spec) -> Path:
    """The product of a spec: what is done is returned, the rest is built, needs first; what another process builds is waited for."""
    store = workshop.store
    while True:
        spec = settled(spec, study.orders(store, [spec]))
        if store.is_done(spec):
            return store.product(spec)
        for need in spec.needs():
            ensure(workshop, need)
        if study.rankings_pending(spec):
            continue  # its ranking is there now: settle it first
        lease = store.claim(spec)
        if lease is None:
            threading.Event().wait(POLL_SECONDS)
            continue
        build(workshop, spec, lease)


def build(workshop: Workshop, spec: Spec, lease: Lease) -> None:
    """Build one spec whose needs are done, record how it ended, release the lease; errors go on to the caller.

    Unfit and NotWritable say that this process need not try another.
    """
    store = workshop.store
    try:
        try:
            if store.is_done(spec):
                return
            with _logged(store.describe(spec) / "log.txt"):
                _build_recorded(workshop, spec, lease)
        finally:
            lease.release()
    except OSError as error:
        if failures.is_not_writable(error):
            raise NotWritable(f"{store.root} cannot be written ({error.strerror})") from error
        raise


def _build_recorded(workshop: Workshop, spec: Spec, lease: Lease) -> None:
    store, started = workshop.store, time.monotonic()
    try:
        with store.building(spec, lease) as work:
            while not _fits(workshop, spec, work):
                work.clear()
                workshop.make_smaller()
            seconds = time.monotonic() - started if work.seconds is None else work.seconds
            facts = provenance.facts(seconds, workshop.code)
            warnings = vocabularies.warnings(spec, workshop.product)
            facts |= {"work": asdict(rates.work(spec)), "execution": workshop.how.model_dump(), "warnings": warnings}
            store.write_provenance(spec, facts)
    except Stopped as stopped:
        store.mark(spec, stopped.state, "handed back by a signal")
        raise
    except KeyboardInterrupt:
        store.mark(spec, State.CANCELLED, "interrupted from the keyboard")
        raise
    except LeaseLost:
        raise  # the state is its new owner's to write
    except (Exception, SystemExit) as error:  # the worker's edge: whatever a point raises is recorded, and is that point's alone
        if not lease.held():
            raise LeaseLost(f"{key(spec)} was taken over while this worker built it, and failed here: {_reason(error)}") from error
        logging.getLogger(__name__).error("%s failed\n%s", key(spec), traceback.format_exc())
        if failures.is_not_writable(error):
            with suppress(OSError):
                store.mark(spec, State.LOST, _reason(error))
            raise
        if isinstance(error, failures.ProcessLost):
            store.mark(spec, State.LOST, _reason(error))
            raise
        if failures.is_broken_context(error):
            store.mark(spec, State.LOST, _reason(error))
            raise Unfit(_reason(error)) from error
        store.mark(spec, State.FAILED, _reason(error))
        raise


def _fits(workshop: Workshop, spec: Spec, work: Workspace) -> bool:
    """Build the product; False if memory ran out and smaller batches may help: the error, which holds what fills the memory, is let go."""
    try:
        BUILDERS[type(spec)](workshop, spec, work)
    except (RuntimeError, MemoryError) as error:
        if not failures.is_out_of_memory(error) or workshop.how.halvings >= MOST_HALVINGS:
            raise
        logging.getLogger(__name__).warning("%s: %s; once more with half the batches", key(spec), _reason(error))
        return False
    return True


def _reason(error: BaseException) -> str:
    """What a status says of an error: a ValueError speaks for itself, of others the kind is said too."""
    said, kind = failures.first_line(error), type(error).__name__
    return said if isinstance(error, ValueError) or said == kind else f"{kind}: {said}"


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send the root logger's records to the spec's own log as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


# ------------------------------------------------------------------------------------------------------------ builders


def _builtin_corpus(_: Workshop, spec: specs.BuiltinCorpus, work: Workspace) -> None:
    from cpt_lab.data import builtin

    builtin.build_corpus(spec, work)


def _files_corpus(workshop: Workshop, spec: specs.FilesCorpus, work: Workspace) -> None:
    from cpt_lab.data import files

    files.build_corpus(spec, work, processes=workshop.how.threads)


def _token_files_corpus(_: Workshop, spec: specs.TokenFilesCorpus, work: Workspace) -> None:
    from cpt_lab.data import token_files

    token_files.build_corpus(spec, work)


def _hub_corpus(_: Workshop, spec: specs.HubCorpus, work: Workspace) -> None:
    from cpt_lab.data import hub

    hub.build_corpus(spec, work)


def _bpe_tokenizer(workshop: Workshop, spec: specs.BpeTokenizer, work: Workspace) -> None:
    from cpt_lab.data import tokenizer

    tokenizer.build_tokenizer(spec, [workshop.product(corpus) for corpus in spec.corpora], work)


def _hub_tokenizer(_: Workshop, spec: specs.HubTokenizer, work: Workspace) -> None:
    from cpt_lab import checkpoints

    checkpoints.fetch_tokenizer(spec, work)


def _tokens(workshop: Workshop, spec: specs.Tokens, work: Workspace) -> None:
    from cpt_lab.data import token_files, tokens

    corpus, tokenizer = workshop.product(spec.corpus), workshop.product(spec.tokenizer)
    if isinstance(spec.corpus, specs.TokenFilesCorpus):
        token_files.adopt(spec, corpus, tokenizer, work)
        return
    report = None if spec.contamination is None else workshop.product(spec.contamination)
    tokens.build_tokens(spec, corpus, tokenizer, work, contamination=report, processes=workshop.how.threads)


def _contamination(workshop: Workshop, spec: specs.Contamination, work: Workspace) -> None:
    from cpt_lab.data import contamination
    from cpt_lab.evaluation.item_texts import item_texts

    items = item_texts(spec.protocol, workshop.product(spec.protocol))
    contamination.build_report(spec, workshop.product(spec.corpus), items, work, processes=workshop.how.threads)


def _hub_checkpoint(_: Workshop, spec: specs.HubCheckpoint, work: Workspace) -> None:
    from cpt_lab import checkpoints

    checkpoints.fetch_checkpoint(spec, work)


def _folder_checkpoint(_: Workshop, spec: specs.FolderCheckpoint, work: Workspace) -> None:
    from cpt_lab import checkpoints

    checkpoints.adopt_folder(spec, work)


def _olmo_core_checkpoint(workshop: Workshop, spec: specs.OlmoCoreCheckpoint, work: Workspace) -> None:
    from cpt_lab.training import saving

    saving.adopt_olmo_core(spec, work, tokenizer=workshop.product(spec.tokenizer))


def _trained_checkpoint(workshop: Workshop, spec: specs.TrainedCheckpoint, work: Workspace) -> None:
    from cpt_lab.training import run

    keep = tuple(sorted(other.tokens for other in workshop.wanted if isinstance(other, specs.Intermediate) and key(other.of) == key(spec)))
    run.train(spec, work, inputs=_training_inputs(workshop, spec, keep=keep), how=workshop.how)


def _intermediate(workshop: Workshop, spec: specs.Intermediate, work: Workspace) -> None:
    from cpt_lab.training import run, saving

    if saving.adopt_intermediate(spec, work, workshop.product(spec.of)):
        return
    logging.getLogger(__name__).warning("%s did not keep its weights after %s tokens: trained again up to there", key(spec.of), spec.tokens)
    inputs = _training_inputs(workshop, spec.of, keep=(spec.tokens,), until=spec.tokens)
    run.train(spec.of, work, inputs=inputs, how=workshop.how)
    saving.take_intermediate(spec, work)


def _training_inputs(workshop: Workshop, spec: specs.TrainedCheckpoint, *, keep: tuple[int, ...], until: int | None = None) -> run.Inputs:
    from cpt_lab.training import run

    corpora = {part.corpus.name: part.corpus for part in spec.mixture.parts}
    return run.Inputs(
        tokens=tuple(workshop.product(tokens) for tokens in spec.mixture.token_files(spec.tokenizer)),
        tokenizer=workshop.product(spec.tokenizer),
        start=workshop.product(spec.start) if spec.start is not None else None,
        held_out={name: workshop.product(corpus) for name, corpus in corpora.items() if workshop.store.is_done(corpus)},
        keep=keep,
        until=until,
    )


def _spectral_warmup(workshop: Workshop, spec: specs.SpectralWarmup, work: Workspace) -> None:
    from cpt_lab.lifecycle import spectral_warmup

    spectral_warmup.build_warmup(spec, workshop.product(spec.reference), work)


def _spectral_part(workshop: Workshop, spec: specs.SpectralPart, work: Workspace) -> None:
    from cpt_lab.spectra import parts

    against = workshop.product(spec.against) if spec.against is not None else None
    parts.build_part(spec, checkpoint=workshop.product(spec.checkpoint), against=against, work=work, how=workshop.how)


def _spectral_columns(workshop: Workshop, spec: specs.SpectralColumns, work: Workspace) -> None:
    from cpt_lab.spectra import columns

    columns.build_columns(spec, workshop.products(spec.needs()), work, workshop.how)


def _spectra(workshop: Workshop, spec: specs.Spectra, work: Workspace) -> None:
    from cpt_lab.spectra import tables

    tables.build_table(spec, workshop.products(spec.needs()), work)


def _fingerprint(workshop: Workshop, spec: specs.Fingerprint, work: Workspace) -> None:
    from cpt_lab.spectra import fingerprint

    fingerprint.build_fingerprint(spec, workshop.products(spec.needs()), work, workshop.how)


def _rotations(workshop: Workshop, spec: specs.Rotations, work: Workspace) -> None:
    from cpt_lab.spectra import rotations

    rotations.build_rotations(spec, workshop.products(spec.needs()), work, workshop.how)


def _ranking(workshop: Workshop, spec: specs.Ranking, work: Workspace) -> None:
    from cpt_lab import orderings

    orderings.build_ranking(spec, [workshop.product(need) for need in spec.needs()], work)


def _correlation(workshop: Workshop, spec: specs.Correlation, work: Workspace) -> None:
    from cpt_lab.orderings import correlation

    correlation.build_correlation(spec, workshop.product(spec.one), workshop.product(spec.other), work)


def _attention_entropy(workshop: Workshop, spec: specs.AttentionEntropy, work: Workspace) -> None:
    from cpt_lab.internals import tables

    tables.build_entropy(spec, work, product=workshop.product, how=workshop.how)


def _attention_maps(workshop: Workshop, spec: specs.AttentionMaps, work: Workspace) -> None:
    from cpt_lab.internals import tables

    tables.build_maps(spec, work, product=workshop.product, how=workshop.how)


def _layer_similarity(workshop: Workshop, spec: specs.LayerSimilarity, work: Workspace) -> None:
    from cpt_lab.internals import tables

    tables.build_similarity(spec, work, product=workshop.product, how=workshop.how)


def _patched(workshop: Workshop, spec: specs.Patched, work: Workspace) -> None:
    from cpt_lab import checkpoints

    sources = {name: workshop.product(source) for change in spec.interventions for name, source in change.sources().items()}
    checkpoints.materialize(spec, work, tuned=workshop.product(spec.tuned), sources=sources)


def _protocol(workshop: Workshop, spec: specs.Protocol, work: Workspace) -> None:
    from cpt_lab.evaluation import protocols

    protocols.build_protocol(spec, workshop.products(spec.needs()), work)


def _evaluation(workshop: Workshop, spec: specs.Evaluation, work: Workspace) -> None:
    from cpt_lab.evaluation.warm import WarmEvaluator

    if workshop.evaluator is None:
        workshop.evaluator = WarmEvaluator(workshop.how)
    workshop.evaluator.score(spec, work, product=workshop.product)


BUILDERS: dict[type[Spec], Callable[[Workshop, Any, Workspace], None]] = {
    specs.BuiltinCorpus: _builtin_corpus,
    specs.FilesCorpus: _files_corpus,
    specs.HubCorpus: _hub_corpus,
    specs.TokenFilesCorpus: _token_files_corpus,
    specs.BpeTokenizer: _bpe_tokenizer,
    specs.HubTokenizer: _hub_tokenizer,
    specs.Tokens: _tokens,
    specs.Contamination: _contamination,
    specs.HubCheckpoint: _hub_checkpoint,
    specs.FolderCheckpoint: _folder_checkpoint,
    specs.OlmoCoreCheckpoint: _olmo_core_checkpoint,
    specs.TrainedCheckpoint: _trained_checkpoint,
    specs.Intermediate: _intermediate,
    specs.SpectralWarmup: _spectral_warmup,
    specs.SpectralPart: _spectral_part,
    specs.SpectralColumns: _spectral_columns,
    specs.Spectra: _spectra,
    specs.Fingerprint: _fingerprint,
    specs.Rotations: _rotations,
    specs.Ranking: _ranking,
    specs.Correlation: _correlation,
    specs.AttentionEntropy: _attention_entropy,
    specs.AttentionMaps: _attention_maps,
    specs.LayerSimilarity: _layer_similarity,
    specs.Patched: _patched,
    specs.Protocol: _protocol,
    specs.Evaluation: _evaluation,
}
