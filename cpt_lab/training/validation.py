"""Loss on held-out documents of every corpus while a model trains. The weights do not notice.

OLMo-core's callbacks are a base class, so this module needs it at import: import it where training starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from olmo_core.distributed.utils import get_rank, get_world_size, is_distributed
from olmo_core.train.callbacks import Callback

from cpt_lab.data.documents import read_documents
from cpt_lab.training.callbacks import VALIDATION

if TYPE_CHECKING:
    from torch import Tensor

DOCUMENTS, SEQUENCES = 2_000, 64  # of a corpus at most: its first ones; a loss of 64 sequences of 4096 tokens has an error below 1 %
IGNORED = -100


@dataclass
class Validator(Callback):
    """After chosen steps the mean loss per token, and its exponential, of every corpus's sequences."""

    domains: Mapping[str, Tensor]  # sequences x length
    steps: frozenset[int]

    def post_train_batch(self) -> None:
        if self.step in self.steps:
            for name, sequences in self.domains.items():
                loss = self._loss(sequences)
                self.trainer.record_metric(f"{VALIDATION}/{name}/loss", loss, reduce_type=None)
                self.trainer.record_metric(f"{VALIDATION}/{name}/perplexity", math.exp(min(loss, 700.0)), reduce_type=None)

    def _loss(self, sequences: Tensor) -> float:
        """Ranks take the sequences in turn; one that has none left computes its last again and does not count it."""
        module, each = self.trainer.train_module, max(1, self.trainer.train_module.rank_microbatch_size // sequences.shape[1])
        mine, total = sequences[get_rank() :: get_world_size()], torch.zeros(2, dtype=torch.float64, device=self.trainer.device)
        rounds = math.ceil(math.ceil(len(sequences) / get_world_size()) / each)
        for number in range(rounds):
            rows = mine[number * each : (number + 1) * each]
            counted = len(rows) > 0
            rows = rows if counted else sequences[:1]
            ids = rows.to(self.trainer.device)
            labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED)
            losses = module.eval_batch({"input_ids": ids}, labels=labels).ce_loss
            if counted:
                known = labels != IGNORED
                total += torch.stack([losses.double().view(labels.shape)[known].sum(), known.sum().double()])
        if is_distributed():
            dist.all_reduce(total)
        return float(total[0] / total[1])


def held_out(corpora: Mapping[str, Path], *, tokenizer: Path, length: int) -> dict[str, Tensor]:
    """Corpus name -> its validation documents as sequences of `length` tokens, documents ended by EOS; corpora without any are left out."""
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(tokenizer)
    found = {}
    for name, corpus in corpora.items():
        if not (corpus / f"{VALIDATION}.jsonl").exists():
            continue
        texts = [document["text"] for document in islice(read_documents(corpus, VALIDATION), DOCUMENTS)]
        ids = [token for one in encoder(texts, add_special_tokens=False)["input_ids"] for token in (*one, encoder.eos_token_id)]
        whole = min(len(ids) // length, SEQUENCES)
        if whole:
            found[name] = torch.tensor(ids[: whole * length]).view(whole, length)
    return found


def steps_of(validations: int, steps: int) -> frozenset[int]:
    """So many steps, evenly spread, the last one among them."""
    return frozenset(round(steps * number / validations) for number in range(1, validations + 1)) - {0}
