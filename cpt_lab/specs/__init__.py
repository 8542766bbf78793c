"""The nouns of a study: frozen, validated values that say what is wanted, never how.

A spec contains the specs it needs, so the dependency graph of a study is the value itself. Its key is a readable label plus a hash of
its canonical JSON; fields that only say where something is found or how it is called are left out of the hash. Importing this package
needs neither torch nor a network.
"""

from __future__ import annotations

from cpt_lab.specs.base import SCHEMA, Spec, canonical_json, digest, identity, key
from cpt_lab.specs.checkpoints import (
    Checkpoint,
    FolderCheckpoint,
    HubCheckpoint,
    Intermediate,
    ModelShape,
    OlmoCoreCheckpoint,
    Recipe,
    SpectralWarmup,
    TrainedCheckpoint,
)
from cpt_lab.specs.corpora import (
    BpeTokenizer,
    BuiltinCorpus,
    Corpus,
    FilesCorpus,
    HubCorpus,
    HubTokenizer,
    Rule,
    TokenFilesCorpus,
    Tokenizer,
)
from cpt_lab.specs.evaluations import Evaluation
from cpt_lab.specs.fingerprints import Fingerprint
from cpt_lab.specs.graph import STORED, AnySpec, closure, parse, rankings_of, settled
from cpt_lab.specs.internals import AttentionEntropy, AttentionMaps, LayerSimilarity, Prompts
from cpt_lab.specs.mixtures import Contamination, Mixture, Part, Tokens
from cpt_lab.specs.parts import Parts, from_parts, read_parts
from cpt_lab.specs.patched import Choices, Intervention, Patched
from cpt_lab.specs.protocols import ChatTask, GenerateTask, HarnessTask, Mean, OlmesTask, PerplexityTask, Protocol, Task
from cpt_lab.specs.rankings import (
    WHOLE_LAYER,
    Correlation,
    Head,
    Heads,
    Matrices,
    Matrix,
    Probe,
    Ranking,
    ScoresFile,
    Selection,
    TopOf,
    Unit,
    UnitKind,
)
from cpt_lab.specs.rotations import Rotations
from cpt_lab.specs.spectra import Scope, Spectra, SpectralColumns, SpectralPart
from cpt_lab.specs.watch import Watch

__all__ = [
    "SCHEMA",
    "STORED",
    "WHOLE_LAYER",
    "AnySpec",
    "AttentionEntropy",
    "AttentionMaps",
    "BpeTokenizer",
    "BuiltinCorpus",
    "ChatTask",
    "Checkpoint",
    "Choices",
    "Contamination",
    "Corpus",
    "Correlation",
    "Evaluation",
    "FilesCorpus",
    "Fingerprint",
    "FolderCheckpoint",
    "GenerateTask",
    "HarnessTask",
    "Head",
    "Heads",
    "HubCheckpoint",
    "HubCorpus",
    "HubTokenizer",
    "Intermediate",
    "Intervention",
    "LayerSimilarity",
    "Matrices",
    "Matrix",
    "Mean",
    "Mixture",
    "ModelShape",
    "OlmesTask",
    "OlmoCoreCheckpoint",
    "Part",
    "Parts",
    "Patched",
    "PerplexityTask",
    "Probe",
    "Prompts",
    "Protocol",
    "Ranking",
    "Recipe",
    "Rotations",
    "Rule",
    "Scope",
    "ScoresFile",
    "Selection",
    "Spec",
    "Spectra",
    "SpectralColumns",
    "SpectralPart",
    "SpectralWarmup",
    "Task",
    "TokenFilesCorpus",
    "Tokenizer",
    "Tokens",
    "TopOf",
    "TrainedCheckpoint",
    "Unit",
    "UnitKind",
    "Watch",
    "canonical_json",
    "closure",
    "digest",
    "from_parts",
    "identity",
    "key",
    "parse",
    "rankings_of",
    "read_parts",
    "settled",
]
