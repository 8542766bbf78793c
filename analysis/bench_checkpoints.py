"""Writing a patched checkpoint against the plainest streaming copy of its bytes, on random OLMo 2s made on the spot.

`python -m analysis.bench_checkpoints 1b` takes the shape of OLMo 2 1B and 9 GB of disk, without an argument a smaller one is taken. Both
sides take turns, each in a process of its own, on one thread. The sources are in the page cache. A soup stands beside reading both and
writing one.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cpt_lab.interventions.rewind import Rewind
from cpt_lab.patch import Patch, apply
from cpt_lab.specs import FolderCheckpoint, Heads, ModelShape
from cpt_lab.tensor_edits import EVERYTHING, Combine
from cpt_lab.weights import INDEX, open_weights, save_checkpoint

SMALL = ModelShape(
    name="small",
    family="olmo2",
    hidden_size=1024,
    num_layers=8,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    mlp_size=4096,
    vocab_size=16384,
    context=4096,
)
SHAPES = {"small": SMALL, "1b": SMALL.but(hidden_size=2048, num_layers=16, head_dim=128, mlp_size=8192, vocab_size=100352)}
ROUNDS = 5
THREADS = 1
SHARDS = 4
CHANGE = 0.034  # size of the delta against the weights, as a CPT run leaves it
MB = 1 << 20
SOUP = "a soup of two"


class Cost(NamedTuple):
    """What one way of writing took: seconds, of which the processor worked some, and the most memory the process had."""

    seconds: float
    processor: float
    peak: int  # bytes


def main(name: str = "small") -> None:
    """Print each way's cost and its ratio to the plain copy that ran beside it."""
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as root:
        tuned, base = Path(root) / "tuned", Path(root) / "base"
        make_pair(shape, tuned, base)
        largest = max(tensor.nbytes for tensor in open_weights(tuned).values())
        print(f"writing {shape.parameters / 1e9:.2f} billion weights in bf16; allowed memory {(6 * largest) // MB + 300:,} MB", flush=True)
        for way in WAYS:
            plain = "plain, of two" if way == SOUP else "plain"
            pairs = [(cost(way, shape, tuned, base), cost(plain, shape, tuned, base)) for _ in range(ROUNDS)]
            _print(way, pairs)


def _print(way: str, pairs: list[tuple[Cost, Cost]]) -> None:
    seconds, processor = (statistics.median(one[index] / plain[index] for one, plain in pairs) for index in (0, 1))
    taken = statistics.median(one.seconds for one, _ in pairs)
    peaks = " and ".join(f"{max(costs[side].peak for costs in pairs) // MB:,}" for side in (0, 1))
    print(
        f"{way}: {seconds:.2f}x the seconds of a plain copy, {processor:.2f}x its processor time ({taken:.2f} s), peaks {peaks} MB",
        flush=True,
    )


def cost(way: str, shape: ModelShape, tuned: Path, base: Path) -> Cost:
    """The cost of one way of writing, in a process of its own, from disks with nothing left to write."""
    os.sync()
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, way, shape, tuned, base).result()


def measure(way: str, shape: ModelShape, tuned: Path, base: Path) -> Cost:
    """Write, and say what it took."""
    torch.set_num_threads(THREADS)
    out = tuned.with_name("out")
    started, worked = time.perf_counter(), time.process_time()
    if way in PLAIN:
        PLAIN[way](tuned, base, out)
    else:
        _patched(WAYS[way](shape), tuned, base, out)
    taken = Cost(time.perf_counter() - started, time.process_time() - worked, _peak())
    shutil.rmtree(out)
    return taken


def _peak() -> int:
    """The most memory that this process had; ru_maxrss would be that of the process it was forked from, if that had more."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def plain_copy_of_two(tuned: Path, base: Path, out: Path) -> None:
    """What a soup cannot do without: the bytes of both read, those of one written."""
    room = memoryview(bytearray(MB))
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb", buffering=0) as source:
            while source.readinto(room):
                pass
    plain_copy(tuned, base, out)


def plain_copy(tuned: Path, base: Path, out: Path) -> None:  # noqa: ARG001 (as the other ways)
    """Every file tensor by tensor: read, written."""
    from safetensors import safe_open

    out.mkdir()
    for path in sorted(tuned.glob("*.safetensors")):
        with path.open("rb") as source, safe_open(path, framework="pt") as tensors, (out / path.name).open("xb") as target:
            length = int.from_bytes(source.read(8), "little")
            header = source.read(length)
            target.write(length.to_bytes(8, "little") + header)
            for name in tensors.offset_keys():
                target.write(tensors.get_tensor(name).view(torch.uint8).numpy().data)


def _patched(patch: Patch, tuned: Path, base: Path, out: Path) -> None:
    save_checkpoint(apply(patch, open_weights(tuned), {"base": open_weights(base)}), tuned, out)


def _rewound(shape: ModelShape) -> Patch:
    heads = tuple((layer, head) for layer in range(shape.num_layers) for head in range(0, shape.num_heads, 2))
    return Rewind(base=_base(shape), select=Heads(heads=heads)).patch(shape)


def _souped(shape: ModelShape) -> Patch:  # noqa: ARG001 (as the other ways)
    return Patch(edits=(Combine(target=EVERYTHING, terms=(("self", 0.7), ("base", 0.3))),))


def _base(shape: ModelShape) -> FolderCheckpoint:
    return FolderCheckpoint(path="base", weights_digest="base", shape=shape)


PLAIN: Mapping[str, Callable[[Path, Path, Path], None]] = {"plain": plain_copy, "plain, of two": plain_copy_of_two}
WAYS: Mapping[str, Callable[[ModelShape], Patch]] = {
    "nothing changed": lambda _: Patch(),
    "half of the heads rewound": _rewound,
    SOUP: _souped,
}


def make_pair(shape: ModelShape, tuned: Path, base: Path) -> None:
    """Two random checkpoints in bfloat16 that differ by a few per cent, in several files each; one tensor is in memory at a time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        shape.family,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.mlp_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.context,
        dtype="bfloat16",
        **{"pad_token_id": 0, "eos_token_id": 1},
    )
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in AutoModelForCausalLM.from_config(config).named_parameters()}
    for folder, seed in ((tuned, 0), (base, 1)):
        config.save_pretrained(folder)
        _write_random(shapes, folder, seed)


def _write_random(shapes: Mapping[str, tuple[int, ...]], folder: Path, seed: int) -> None:
    from safetensors.torch import save_file

    generator, noise = (torch.Generator().manual_seed(number) for number in (0, seed))
    files: dict[str, str] = {}
    for number, names in enumerate(_files(shapes)):
        file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({name: _random(shapes[name], generator, noise) for name in names}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def _files(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """The names in their order, in files of about one size."""
    names, total = list(shapes), sum(torch.Size(shape).numel() for shape in shapes.values())
    before = 0
    groups: list[list[str]] = [[] for _ in range(SHARDS)]
    for name in names:
        groups[before * SHARDS // total].append(name)
        before += torch.Size(shapes[name]).numel()
    return iter(groups)


def _random(shape: tuple[int, ...], generator: torch.Generator, noise: torch.Generator) -> Tensor:
    own = torch.randn(shape, generator=generator).mul_(0.02)
    return own.add_(torch.randn(shape, generator=noise), alpha=0.02 * CHANGE).bfloat16()


if __name__ == "__main__":
    main(*sys.argv[1:])
