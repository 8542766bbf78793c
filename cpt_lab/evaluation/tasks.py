"""Tasks of the harness and their requests: loaded once, prompts and all, to be scored many times."""

from __future__ import annotations

import difflib
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import read_documents
from cpt_lab.evaluation.code import runs_code
from cpt_lab.evaluation.encoding import encode_all
from cpt_lab.evaluation.items import drawn
from cpt_lab.evaluation.task_files import read_task_file
from cpt_lab.specs import ChatTask, HarnessTask, Protocol, Task

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task as LoadedByHarness

PREFIX = "cpt_"  # before the names of our tasks in the harness, which has thousands of its own
WHOLE = "items"  # in the metadata of a task file: how many items there are without a limit
DIGEST_DIGITS = 16
RUN_BY_THE_HARNESS = ("humaneval", "mbpp")  # it fetches a program for that from the hub as soon as it reads their files
DEFAULT_ANSWER_TOKENS = 256  # what the harness lets a model write where a task does not say


@dataclass(frozen=True)
class LoadedTask:
    """A task of the harness with its requests, which are never written to: every scoring takes copies."""

    name: str
    task: LoadedByHarness
    requests: tuple[Instance, ...]
    prompt_tokens: tuple[int, ...]  # of every request, without the answer
    scored_tokens: tuple[int, ...]  # of the text that is scored; 0 where the model writes
    chat: bool = False  # several answers to a prompt are scored one by one, and their lengths with them
    runs_code: bool = False
    part: str = ""  # `first 50 of 1,319` where not all items are scored

    @property
    def generates(self) -> bool:
        return bool(self.requests[0].request_type == "generate_until")

    def copies(self) -> list[Instance]:
        """The requests with no answers in them: the harness piles new answers onto old ones and then reads the first."""
        return [replace(request, resps=[], filtered_resps={}) for request in self.requests]

    def check_fits(self, context: int) -> None:
        """ValueError if prompts do not fit a context of so many tokens: the harness would cut off their beginnings."""
        if self.requests[0].request_type == "loglikelihood_rolling":  # read in windows of the context
            return
        if self.generates:
            answers: tuple[int, ...] = (_answer_tokens(self.requests[0]),) * len(self.requests)
        else:
            answers = tuple(tokens - 1 for tokens in self.scored_tokens)  # the last token is scored but never read
        lengths = [prompt + answer for prompt, answer in zip(self.prompt_tokens, answers, strict=True)]
        too_long = sum(length > context for length in lengths)
        if too_long:
            raise ValueError(
                f"task {self.name}: {too_long} of {len(lengths)} prompts with their answers are longer than the model's context "
                f"of {context} tokens (the longest has {max(lengths)}): lower its shots or max_new_tokens"
            )


def check_harness(spec: Protocol) -> None:
    """ValueError if the installed harness is not the one the protocol names: its prompts and metrics may differ."""
    installed = version("lm_eval")
    if spec.harness != installed:
        raise ValueError(
            f"protocol {spec.name} was made for lm-eval {spec.harness} and {installed} is installed: install lm-eval=={spec.harness}, "
            "or compose the study anew for the installed one"
        )


def local_name(task: Task) -> str:
    """What one of our own tasks is called in the harness."""
    return f"{PREFIX}{task.name}"


def load_tasks(product: Path, spec: Protocol, tokenizer: Any) -> list[LoadedTask]:
    """The tasks of a protocol, in its order, their requests built and their tokens counted."""
    theirs = load_harness_tasks(spec)
    with compiled_templates():
        return [_with_requests(spec, wanted, theirs.get(wanted.name) or _load_local(wanted, product), tokenizer) for wanted in spec.tasks]


def load_harness_tasks(spec: Protocol) -> dict[str, LoadedByHarness]:
    """The harness's own tasks of a protocol, with their data; takes seconds, as the harness reads all its thousands of files.

    KeyError with the nearest names for an unknown one; ValueError for a task that runs what the model writes, and where the data can be
    had neither from the hub nor from its cache.
    """
    wanted = [task for task in spec.tasks if isinstance(task, HarnessTask)]
    if not wanted:
        return {}
    for task in wanted:
        if task.name.startswith(RUN_BY_THE_HARNESS):
            raise ValueError(_no_sandbox(task.name))
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    return {task.name: _load_harness_task(task, manager) for task in wanted}


def _load_harness_task(wanted: HarnessTask, manager: Any) -> LoadedByHarness:
    if wanted.name not in manager.all_subtasks:
        raise KeyError(_unknown(wanted.name, manager))
    try:
        (task,) = manager.load([wanted.name])["tasks"].values()
    except OSError as error:  # the harness, datasets and the hub client each have their own, all below OSError
        raise ValueError(
            f"the data of task {wanted.name} cannot be loaded ({str(error).splitlines()[0][:200]}): run it once on a machine with "
            "a network and share its Hugging Face cache (HF_HOME), or choose a protocol of built-in tasks, like protocol=tiny"
        ) from None
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(_no_sandbox(wanted.name))
    if wanted.shots is not None:
        task.set_config(key="num_fewshot", value=wanted.shots)
    return task


def _no_sandbox(name: str) -> str:
    return (
        f"task {name} of the harness runs programs that the model writes, and without a sandbox: use {{kind: olmes, name: humaneval}}, "
        "or choose another task"
    )


@contextmanager
def compiled_templates() -> Iterator[None]:
    """Within the block the harness compiles each prompt template once, where it would once for every document."""
    from lm_eval.utils import env

    env.from_string = lru_cache(maxsize=1024)(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # the attribute of the instance: the method of its class is there again


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Within the block the harness logs errors only: it warns at every model that is already in memory."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _with_requests(spec: Protocol, wanted: Task, task: LoadedByHarness, tokenizer: Any) -> LoadedTask:
    task.set_fewshot_seed(spec.seed)
    chat = isinstance(wanted, ChatTask)
    how = {"apply_chat_template": True, "chat_template": _chat_template(wanted.name, tokenizer)} if chat else {}
    with redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
        task.build_all_requests(**_which(spec, wanted, task), **how, rank=0, world_size=1)
    requests = tuple(task.instances)
    prompts, scored = zip(*(_texts(request) for request in requests), strict=True)
    _check_end(wanted.name, requests[0].request_type, tokenizer)
    lengths = count_tokens(tokenizer, prompts, special=True), count_tokens(tokenizer, scored)
    return LoadedTask(wanted.name, task, requests, *lengths, chat=chat, runs_code=runs_code(wanted), part=_part(wanted, task))


def _which(spec: Protocol, wanted: Task, task: LoadedByHarness) -> dict[str, Any]:
    """Which documents of one of the harness's own tasks are asked; our own have no others."""
    if not isinstance(wanted, HarnessTask) or wanted.limit is None or wanted.subset == "first":
        return {"limit": wanted.limit if isinstance(wanted, HarnessTask) else None}
    total = len(task.eval_docs)
    return {"samples": drawn(total, min(wanted.limit, total), spec.seed)}


def _part(wanted: Task, task: LoadedByHarness) -> str:
    """`first 50 of 1,319`, or nothing where all items are scored."""
    whole = len(task.eval_docs) if isinstance(wanted, HarnessTask) else task.config.metadata[WHOLE]
    if wanted.limit is None or wanted.limit >= whole:
        return ""
    return f"{wanted.subset} {wanted.limit:,} of {whole:,}"


def _chat_template(name: str, tokenizer: Any) -> Any:
    """The tokenizer's own way to write messages as one prompt; ValueError if it has none, or none for a system prompt."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"task {name} asks by chat prompts and the model's tokenizer has no chat template: choose a post-trained model, or a protocol "
            "without chat, like protocol=paper"
        )

    def written(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
        except TemplateError as error:  # without the system prompt it would be another protocol
            raise ValueError(
                f"task {name}: the model's chat template refuses the prompt ({error}): choose a model that takes one"
            ) from None

    return written


def _check_end(name: str, request_type: str, tokenizer: Any) -> None:
    """ValueError if the tokenizer lacks the token that ends answers and stands before what is read alone."""
    if tokenizer.eos_token_id is None and request_type != "loglikelihood":
        raise ValueError(f"task {name}: the model's tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json")


def _load_local(wanted: Task, product: Path) -> LoadedByHarness:
    """One of our own tasks from its file, with documents from beside it: no cache of data sets, no absolute paths."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    config = read_task_file(product / f"{local_name(wanted)}.yaml")
    splits = config.pop("dataset_kwargs")["data_files"]
    folder = product / local_name(wanted)

    def documents(**_: object) -> dict[str, Any]:
        return {split: Dataset.from_list(list(read_documents(folder, split))) for split in splits}

    return ConfigurableTask(config={**config, "dataset_path": None, "custom_dataset": documents})


def _texts(request: Instance) -> tuple[str, str]:
    """What the model reads first and what of its reading is scored."""
    if request.request_type == "generate_until":
        return request.args[0], ""
    if request.request_type == "loglikelihood_rolling":
        return "", request.args[0]
    return request.args[0], request.args[1]


def count_tokens(tokenizer: Any, texts: Sequence[str], *, special: bool = False) -> tuple[int, ...]:
    """How many tokens each text has, with what the tokenizer puts before a text if `special`; an empty one has none.

    Each text is read once: the choices of a question share its prompt.
    """
    different = [text for text in dict.fromkeys(texts) if text]
    ids = encode_all(tokenizer, different, add_special_tokens=special)
    lengths = {"": 0, **dict(zip(different, map(len, ids), strict=True))}
    return tuple(lengths[text] for text in texts)


def digest(text: str) -> str:
    """A short SHA-256 of a prompt, to see at a glance whether two evaluations asked the same."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def _answer_tokens(request: Instance) -> int:
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(request.args[1], DEFAULT_ANSWER_TOKENS)["max_gen_toks"])


def _unknown(name: str, manager: Any) -> str:
    if name in manager.all_tasks:
        members = [task for task in manager.all_subtasks if name in manager.task_index[task].tags or task.startswith(f"{name}_")]
        return f"{name!r} is a group of the harness's tasks: name its tasks one by one, like {', '.join(members[:5])}"
    close = difflib.get_close_matches(name, manager.all_subtasks, n=5) or ["gsm8k", "drop", "hellaswag"]
    return (
        f"the harness has no task {name!r}; near it are {', '.join(close)}; `lm_eval ls tasks` lists all {len(manager.all_subtasks)}; "
        "a name of your own needs `kind: generate` or `kind: perplexity`"
    )
