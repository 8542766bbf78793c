"""The form of every task as settings of the harness: prompt, stops, how answers are read. A task file holds them all.

Functions are named as task files name them, `!function module.name`: the harness imports them when it reads the file.
A change here is another form of the task: raise its version in `specs.benchmarks`, and with it every key.
"""

from __future__ import annotations

from typing import Any

from cpt_lab.specs.protocols import BenchmarkTask, ChatTask, GenerateTask, OlmesTask

Settings = dict[str, Any]

FUNCTION = "!function "
_ANSWERS = f"{FUNCTION}cpt_lab.evaluation.answers"
STOPS = ("Question:", "</s>", "<|im_end|>")

# The harness's own GSM8K: what counts as the answer, and what does not count as a difference.
STRICT = {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"}, {"function": "take_first"}]}
FLEXIBLE = {
    "name": "flexible-extract",
    "filter": [
        {"function": "regex", "group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
        {"function": "take_first"},
    ],
}
EXACT_MATCH = {
    "metric": "exact_match",
    "aggregation": "mean",
    "higher_is_better": True,
    "ignore_case": True,
    "ignore_punctuation": False,
    "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
}
PERPLEXITIES = {"bits_per_byte": "bits_per_byte", "byte_perplexity": "weighted_perplexity", "word_perplexity": "weighted_perplexity"}

DROP_TASK = (
    "The following are reading comprehension questions, where the answer to each question is either a segment of text from the "
    "corresponding passage, a number, or a date (containing any of the date, month, and/or year components). Some questions may require "
    "you to pull together information pieces from the passage and reason over them.\n\n"
)
HUMANEVAL_STOPS = ("\nclass", "\nif", "\nprint", "\n#", "\n```", "\n```\n\n", "<|eot_id|>")

# T H.1: the system prompts, and what stands around a question with options.
BOX = "Please put your final answer within \\boxed{}."
SHORT_BOX = "Please put your final answer within \\boxed{} and keep your thought process as short as possible."
OPTIONS = (
    "{{question}} You have four options, and they are: A.{{choices[0]}} B.{{choices[1]}} C.{{choices[2]}} D.{{choices[3]}} Please select "
    "the correct option and just give A, B, C or D. For example, if you think the answer is A, just give \\boxed{A} as the answer."
)


def form(task: BenchmarkTask, shots: list[str]) -> Settings:
    """The settings of a benchmark's task; `shots` are the solved examples before every question."""
    if isinstance(task, ChatTask):
        return _chat(task)
    assert isinstance(task, OlmesTask), "there are two kinds of benchmarks"
    return {**_OLMES[task.name], **_solved(task.name, shots)}


def generate(task: GenerateTask, shots: int) -> Settings:
    """The form of the harness's GSM8K with greedy answers; the same shots before every question."""
    examples = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n", "split": "train"}} if shots else {}
    return {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",  # a field, not a template: the harness would evaluate a rendered "[...]" as Python
        "target_delimiter": " ",
        "num_fewshot": shots,
        **examples,
        "generation_kwargs": _greedy(STOPS, task.max_new_tokens),
        "metric_list": [EXACT_MATCH],
        "filter_list": [STRICT, FLEXIBLE],
    }


def perplexity() -> Settings:
    """Log-likelihood of whole documents. Bits per byte come first: they stay finite where a perplexity leaves the floats."""
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "higher_is_better": False, "aggregation": rule} for name, rule in PERPLEXITIES.items()],
    }


def _greedy(stops: tuple[str, ...], tokens: int) -> Settings:
    return {"until": list(stops), "do_sample": False, "temperature": 0.0, "max_gen_toks": tokens}


def _means(*names: str) -> list[Settings]:
    """Metrics that are means over documents."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _solved(name: str, shots: list[str]) -> Settings:
    """The solved examples, each a text of its own: the harness sees an answer to an empty question, and adds nothing to it.

    A task whose contexts are the choices (WinoGrande) looks its question up among them.
    """
    question: Settings = {"doc_to_text": 0, "doc_to_choice": [""]} if name == "winogrande" else {"doc_to_text": "", "doc_to_choice": None}
    example = {"doc_to_target": "{{text}}", "target_delimiter": ""}
    return {
        "num_fewshot": len(shots),
        "fewshot_delimiter": "\n\n",
        "fewshot_config": {"sampler": "first_n", "samples": [{"text": text} for text in shots], **question, **example},
    }


_CHOICES: Settings = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": "",  # the choices begin with their blank
    "process_results": f"{_ANSWERS}.choice_accuracies",
    "metric_list": _means("acc_per_char", "acc_raw"),
}
_OLMES: dict[str, Settings] = {
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "generation_kwargs": _greedy((*STOPS, "\n\n"), 512),
        "filter_list": [
            {"name": "none", "filter": [{"function": "custom", "filter_fn": f"{_ANSWERS}.filter_last_number"}, {"function": "take_first"}]}
        ],
        "metric_list": [EXACT_MATCH],
    },
    "drop": {
        "output_type": "generate_until",
        "description": DROP_TASK,
        "doc_to_text": "Passage: {{passage}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "generation_kwargs": _greedy(("Passage:", "Question:", "\n\n"), 100),
        "process_results": f"{_ANSWERS}.drop_scores",
        "metric_list": _means("f1", "em"),
    },
    "humaneval": {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "{{test}}\ncheck({{entry_point}})",
        "generation_kwargs": _greedy(HUMANEVAL_STOPS, 512),
        "process_results": f"{FUNCTION}cpt_lab.evaluation.code.pass_at_1",
        "metric_list": _means("pass_at_1"),
        "unsafe_code": True,
    },
    "arc_easy": {**_CHOICES, "doc_to_text": "Question: {{question}}\nAnswer:"},
    "hellaswag": {**_CHOICES, "doc_to_text": "query"},
    "winogrande": {
        "output_type": "multiple_choice",
        "doc_to_text": "gold",  # a number: the harness then takes the choices for contexts, and the target for what follows each
        "doc_to_choice": "contexts",
        "doc_to_target": "continuation",
        "target_delimiter": " ",
        "process_results": f"{_ANSWERS}.context_accuracy",
        "metric_list": _means("acc_raw"),
    },
}
_CHAT: dict[str, Settings] = {
    "gsm8k": {"description": BOX, "doc_to_text": "question", "process_results": f"{_ANSWERS}.same_boxed_number"},
    "math500": {"description": SHORT_BOX, "doc_to_text": "question", "process_results": f"{_ANSWERS}.same_boxed_expression"},
    "mmlu": {"description": SHORT_BOX, "doc_to_text": OPTIONS, "process_results": f"{_ANSWERS}.same_boxed_letter"},
    "gpqa": {"description": SHORT_BOX, "doc_to_text": OPTIONS, "process_results": f"{_ANSWERS}.same_boxed_letter"},
}


def _chat(task: ChatTask) -> Settings:
    sampled = {"do_sample": task.temperature > 0, "temperature": task.temperature}
    return {
        "output_type": "generate_until",
        **_CHAT[task.name],
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "repeats": task.repeats,
        "generation_kwargs": {
            "until": [],
            **sampled,
            **({"top_p": task.top_p} if task.temperature > 0 else {}),
            "max_gen_toks": task.max_new_tokens,
        },
        "metric_list": _means("exact_match"),
    }
