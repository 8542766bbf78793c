"""One spec of every kind, small and fully written out: what the tests of keys, store and plan stand on. No torch."""

from __future__ import annotations

from cpt_lab.interventions import Rewind
from cpt_lab.specs import (
    AttentionEntropy,
    AttentionMaps,
    BpeTokenizer,
    BuiltinCorpus,
    ChatTask,
    Contamination,
    Correlation,
    Evaluation,
    FilesCorpus,
    Fingerprint,
    FolderCheckpoint,
    GenerateTask,
    HarnessTask,
    Heads,
    HubCheckpoint,
    HubCorpus,
    HubTokenizer,
    Intermediate,
    LayerSimilarity,
    Mean,
    Mixture,
    ModelShape,
    OlmesTask,
    OlmoCoreCheckpoint,
    Part,
    Patched,
    PerplexityTask,
    Prompts,
    Protocol,
    Ranking,
    Recipe,
    Rotations,
    Rule,
    Spec,
    Spectra,
    SpectralColumns,
    SpectralPart,
    SpectralWarmup,
    TokenFilesCorpus,
    Tokens,
    TopOf,
    TrainedCheckpoint,
    Watch,
)

SHAPE = ModelShape(
    name="tiny",
    family="olmo2",
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    mlp_size=48,
    vocab_size=320,
    context=128,
)
MATH = BuiltinCorpus(name="math", documents=40, held_out=4)
TEXT = BuiltinCorpus(name="text", documents=30, held_out=4, python="3.11.0")
INST = BuiltinCorpus(name="inst", documents=30, held_out=4)
FILES = FilesCorpus(name="notes", files=("/data/notes.jsonl",), files_digest="ab12", held_out=4)
HUB = HubCorpus(name="dclm", id="owner/dclm", available_tokens=10_000)
READY = TokenFilesCorpus(name="ready", files=("/data/part-0.npy",), files_digest="ef56", dtype="uint32")
RULE = Rule(field="metadata.score", at_least=2.5)
BPE = BpeTokenizer(corpora=(MATH, TEXT), vocab_size=320)
HUB_TOKENIZER = HubTokenizer(id="owner/model")
TOKENS = Tokens(corpus=MATH, tokenizer=BPE)
MIXTURE = Mixture(name="mostly math", parts=(Part(corpus=MATH, tokens=800), Part(corpus=TEXT, tokens=200)))
RECIPE = Recipe(sequence_length=32, batch_sequences=8, lr=1e-3, schedule="linear", lr_final_share=0)
PRETRAINED = TrainedCheckpoint(shape=SHAPE, tokenizer=BPE, mixture=MIXTURE, recipe=RECIPE)
BASE = HubCheckpoint(id="owner/model", revision="abc", shape=SHAPE)
FOLDER = FolderCheckpoint(path="/models/tuned", weights_digest="cd34", shape=SHAPE)
TUNED = TrainedCheckpoint(shape=SHAPE, start=BASE, tokenizer=HUB_TOKENIZER, mixture=MIXTURE, recipe=RECIPE)
OLMO_CORE = OlmoCoreCheckpoint(path="/models/step10", contents_digest="ef56", shape=SHAPE, tokenizer=HUB_TOKENIZER)
WATCH = Watch(every=25, measures=("stable_rank", "pl_alpha"))
WATCHED = PRETRAINED.but(watch=WATCH)
WARMED_UP = SpectralWarmup(reference=TUNED)
INTERMEDIATE = Intermediate(of=TUNED, tokens=2 * RECIPE.batch_tokens)
SPECTRA = Spectra(checkpoint=TUNED, against=BASE, measures=("frobenius_norm",))
SPECTRAL_PART = SpectralPart(checkpoint=TUNED, against=BASE, layer=0, scope="heads", of="null", seed=0)
SPECTRAL_COLUMNS = SpectralColumns(checkpoint=TUNED, against=BASE, scope="heads", family="norms", measures=("frobenius_norm",))
FINGERPRINT = Fingerprint(checkpoint=TUNED, against=BASE)
ROTATIONS = Rotations(checkpoint=TUNED, against=BASE)
DELTA_NORM = Ranking(criterion="delta_norm", direction="ascending", shape=SHAPE, spectra=(SPECTRA,))
RANDOM = Ranking(criterion="random", direction="descending", shape=SHAPE, seed=0)
CORRELATION = Correlation(one=DELTA_NORM, other=RANDOM)
SUMS = GenerateTask(name="sums", corpus=MATH, items=4, max_new_tokens=8)
PROSE = PerplexityTask(name="prose", corpus=TEXT, items=4)
HARNESS = HarnessTask(name="gsm8k")
OLMES = OlmesTask(name="arc_easy")
CHAT = ChatTask(name="gpqa")
MEAN = Mean(name="both", of=("sums/exact_match_strict", "prose/bits_per_byte"))
PROTOCOL = Protocol(name="tiny", tasks=(SUMS, PROSE, HARNESS), harness="0.4.13")

CONTAMINATION = Contamination(corpus=MATH, protocol=PROTOCOL)


def rewound(ranking: Ranking = RANDOM, fraction: float = 0.25) -> Patched:
    """TUNED with this share of its heads, first in the ranking, taken back to BASE."""
    return Patched(tuned=TUNED, interventions=(Rewind(base=BASE, select=TopOf(ranking=ranking, fraction=fraction)),))


def rewound_heads(*heads: tuple[int, int]) -> Patched:
    return Patched(tuned=TUNED, interventions=(Rewind(base=BASE, select=Heads(heads=heads)),))


def rewind_of(spec: Spec) -> Rewind:
    """The one change of an evaluated checkpoint, a rewind."""
    assert isinstance(spec, Evaluation)
    assert isinstance(spec.checkpoint, Patched)
    (change,) = spec.checkpoint.interventions
    assert isinstance(change, Rewind)
    return change


PATCHED = rewound(DELTA_NORM)
EVALUATION = Evaluation(checkpoint=PATCHED, protocol=PROTOCOL)
PROMPTS = Prompts(protocol=PROTOCOL)
ATTENTION_ENTROPY = AttentionEntropy(checkpoint=PATCHED, prompts=PROMPTS)
ATTENTION_MAPS = AttentionMaps(checkpoint=PATCHED, prompts=PROMPTS)
LAYER_SIMILARITY = LayerSimilarity(checkpoint=PATCHED, against=TUNED, prompts=PROMPTS)

ONE_OF_EACH: tuple[Spec, ...] = (
    *(MATH, FILES, HUB, READY, BPE, HUB_TOKENIZER, TOKENS, CONTAMINATION),
    *(OLMO_CORE, INTERMEDIATE, WARMED_UP),
    *(BASE, FOLDER, TUNED, SPECTRAL_PART, SPECTRAL_COLUMNS, SPECTRA, FINGERPRINT, DELTA_NORM, PATCHED, PROTOCOL, EVALUATION),
    *(CORRELATION, ATTENTION_ENTROPY, ATTENTION_MAPS, LAYER_SIMILARITY, ROTATIONS),
)
