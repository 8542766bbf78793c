"""What is known of the benchmarks without their data: sizes, limits, metrics, and digests of their documents.

A digest is that of `evaluation.items`: over the documents that a task is scored on and over its shots, as `evaluation.forms` reads them.
`version` counts the forms of a task: its prompt, its stops, how its answers are read.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

ItemsOf = Literal["olmes", "all"]


class Benchmark(NamedTuple):
    """One benchmark in the form that one of the papers gave it."""

    items: int  # that the paper scored
    digest: str | None  # of these; None: nobody may redistribute them, so they are what their source says
    metrics: tuple[str, ...]  # the first is the paper's own
    prompt_tokens: int  # of one prompt with what is scored of it on average, by OLMo's first tokenizer
    answer_tokens: int = 0  # at most; 0 where answers are only read
    shots: int = 0
    choices: int = 1  # requests per document
    all_items: int | None = None  # of the whole split, where the paper scored a part
    all_digest: str | None = None
    version: int = 1

    def count(self, items: ItemsOf) -> int:
        return self.all_items or self.items if items == "all" else self.items

    def digest_of(self, items: ItemsOf) -> str | None:
        return self.all_digest if items == "all" and self.all_items else self.digest


# P 3.2, as OLMES asks: the number of its shots, its stops, its own draw of 1000 where a split is larger.
OLMES: dict[str, Benchmark] = {
    "gsm8k": Benchmark(1319, "5705e6bec7d26497", ("exact_match",), 673, 512, shots=8),
    "drop": Benchmark(1000, "cba415b6d5a52570", ("f1", "em"), 1729, 100, shots=5, all_items=9536),
    "humaneval": Benchmark(164, "f4a01b6815fecf52", ("pass_at_1",), 168, 512),
    "arc_easy": Benchmark(
        items=1000,
        digest="def05b0bb33b15a5",
        metrics=("acc_per_char", "acc_raw"),
        prompt_tokens=186,
        shots=5,
        choices=4,
        all_items=2376,
        all_digest="2a1731809812d599",
    ),
    "hellaswag": Benchmark(
        items=1000,
        digest="d8def168775112b9",
        metrics=("acc_per_char", "acc_raw"),
        prompt_tokens=451,
        shots=5,
        choices=4,
        all_items=10042,
        all_digest="e7b148d590f0b1c0",
    ),
    "winogrande": Benchmark(1267, "d1076f6c013a6d12", ("acc_raw",), 133, shots=5, choices=2),
}

# T C.1: chat prompts, the answer in a box.
CHAT: dict[str, Benchmark] = {
    "gsm8k": Benchmark(1319, "7add57b1d7cf7952", ("exact_match",), 120, 1024),
    "math500": Benchmark(500, "bf3259860195493a", ("exact_match",), 130, 1024),
    "mmlu": Benchmark(285, "fefc30ab6ab74a65", ("exact_match",), 180, 1024),
    "gpqa": Benchmark(448, None, ("exact_match",), 300, 1024),
}
OUTPUT_TOKENS = "output_tokens"  # the metric that every chat task has beside its own

# What the harness says of the tasks that we give it a corpus for.
GENERATE_METRICS = ("exact_match_strict", "exact_match_flexible")
PERPLEXITY_METRICS = ("bits_per_byte", "byte_perplexity", "word_perplexity")
