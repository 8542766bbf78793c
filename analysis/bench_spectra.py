"""The spectral pass over a language model against a plain loop that does what the package diffract does, in turn, in one run.

The loop's linear algebra has two threads, as anybody's has, or one, which is faster where there is other work on the machine. Ratios travel
between machines, seconds do not.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from analysis import plain_spectra
from cpt_lab import rates
from cpt_lab.architecture import matrix
from cpt_lab.execution import Execution
from cpt_lab.specs import FolderCheckpoint, ModelShape, SpectralPart
from cpt_lab.spectra import MEASURES, PAIR_FAMILIES, PRESETS, decompose
from cpt_lab.spectra.blocks import heads_in, roles_in, size_in
from cpt_lab.spectra.columns import Part, spectrum
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.parts import Opened, decomposed
from cpt_lab.store import Workspace

THREADS = 2
ROUNDS = 3
CHANGE = 0.034  # size of the delta against the weights, as a CPT run leaves it
SCOPES: tuple[Any, ...] = ("heads", "mlp")
FAMILIES_OF_PAPER = ("norms", "power_law", "marchenko_pastur")
SEED = 0
SMALLEST = 1e-5  # singular values below this share of the largest have no relative accuracy to speak of
SIZES = {"7B": (32, 4096, 32, 32, 11008), "32B": (64, 5120, 40, 8, 27648)}  # layers, hidden, heads, kv heads, MLP

Weights = dict[str, Tensor]


def main() -> None:
    """Print ratios, growth, the largest error and peak memory."""
    shape = model(layers=2, hidden=1024)
    base = random_weights(shape, seed=0)
    tuned = changed(base)
    delta = {name: tensor - base[name] for name, tensor in tuned.items()}
    print(f"{shape.num_layers} layers, hidden {shape.hidden_size}, {shape.num_heads} heads, MLP {shape.mlp_size}, {THREADS} threads")
    one, two, analytic, permuted = taken(
        lambda: plain_spectra.measured(arrays(shape, delta), threads=1),
        lambda: plain_spectra.measured(arrays(shape, delta), threads=THREADS),
        lambda: paper(shape, delta),
        lambda: paper(shape, delta, null="permute"),
    )
    _print(
        "norms, ranks, power law and bulk of heads and MLP", {"on 1 thread": one, "on 2": two}, {"analytic": analytic, "permuted": permuted}
    )
    ours, theirs = heads_of(shape, base), heads_of(shape, tuned)
    one, two, fast = taken(
        lambda: plain_spectra.agreements(ours.float().numpy(), theirs.float().numpy(), threads=1),
        lambda: plain_spectra.agreements(ours.float().numpy(), theirs.float().numpy(), threads=THREADS),
        lambda: agree(ours, theirs),
    )
    _print(f"agreement of {len(ours)} heads", {"on 1 thread": one, "on 2": two}, {"ours": fast})
    print(f"largest relative error of a singular value: {largest_error(shape, delta):.1e}")
    growth()
    memory()


# ---------------------------------------------------------------------------------------------------------------- ours


def paper(shape: ModelShape, weights: Weights, null: str = "analytic") -> dict[str, dict[str, Tensor]]:
    """The columns of the preset `paper` but those of pairs, by layer, scope and role."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for layer in range(shape.num_layers):
            for scope in SCOPES:
                parts = [part(shape, weights, Path(folder), layer=layer, scope=scope, of="values")]
                parts += [part(shape, weights, Path(folder), layer=layer, scope=scope, of="null")] if null == "permute" else []
                for role in roles_in(scope, shape):
                    found[f"{layer}.{role}"] = _columns(spectrum(parts[0], role, *parts[1:]), null)
    return found


def part(shape: ModelShape, weights: Weights, folder: Path, *, layer: int, scope: Any, of: Any) -> Part:
    """One layer's decompositions."""
    spec = SpectralPart(checkpoint=checkpoint(shape), layer=layer, scope=scope, of=of, seed=SEED if of == "null" else None)
    how = Execution(threads=THREADS, device="cpu")
    tensors = decomposed(spec, [Opened("bench", weights)], work=Workspace(folder, folder), how=how)
    return Part(spec, folder, tensors)


def _columns(found: Any, null: str) -> dict[str, Tensor]:
    options = {"marchenko_pastur": {"null": null}}
    columns: dict[str, Tensor] = {}
    for family in FAMILIES_OF_PAPER:
        columns |= FAMILIES[family].columns(found, MEASURES[family], **options.get(family, {}))
    assert {*columns} == {name for name in PRESETS["paper"] if all(name not in MEASURES[family] for family in PAIR_FAMILIES)}
    return columns


def agree(base: Tensor, tuned: Tensor) -> dict[str, Tensor]:
    """The agreement columns of all heads of a pair."""
    return FAMILIES["agreement"].columns(decompose.agreements(base, tuned, threads=THREADS), MEASURES["agreement"])


# ----------------------------------------------------------------------------------------- accuracy, growth and memory


def largest_error(shape: ModelShape, weights: Weights) -> float:
    """Against LAPACK's float64 values of the first layer's blocks, of all that are above 1e-5 of the largest."""
    errors = []
    for block in blocks(shape.but(num_layers=1), weights):
        exact = np.linalg.svd(block.double().numpy(), compute_uv=False)
        found = decompose.values(block[None])[0].numpy()
        large = exact > SMALLEST * exact[0]
        errors.append(float(np.max(np.abs(found - exact)[large] / exact[large])))
    return max(errors)


def growth() -> None:
    """Print time against layers, heads and hidden size beside the FLOPs, and what the last says of larger models."""
    rate = 0.0
    for what, shape in _grown():
        (found,) = taken(partial(paper, shape, random_weights(shape, seed=0)))
        gigaflops, second = flops(shape) / 1e9, statistics.median(one.processor for one in found)
        rate = gigaflops / second
        print(f"{what}: {second:.2f} processor seconds, {gigaflops:.1f} GFLOP, {rate:.1f} GFLOP per second", flush=True)
    for name, (layers, hidden, heads, kv_heads, mlp) in SIZES.items():
        whole = flops(model(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, mlp=mlp)) / 1e9
        print(f"{name}, heads and MLP, analytic null, at this rate: {whole / rate / 60:.0f} processor minutes")
    per_head = {}
    for count in (64, 256, 1024):
        base = torch.randn(count, 256, 32, generator=torch.Generator().manual_seed(0))
        (found,) = taken(partial(agree, base, base + CHANGE))
        per_head[count] = 1e6 * statistics.median(one.processor for one in found) / count
    print(
        "agreement, processor microseconds per head of 256 x 32: " + ", ".join(f"{each:.0f} of {count}" for count, each in per_head.items())
    )


def _grown() -> Iterator[tuple[str, ModelShape]]:
    yield "1 layer, hidden 512", model(layers=1, hidden=512)
    yield "2 layers", model(layers=2, hidden=512)
    yield "4 layers", model(layers=4, hidden=512)
    yield "1 layer, hidden 512, twice the heads", model(layers=1, hidden=512, heads=16)
    yield "1 layer, hidden 1024", model(layers=1, hidden=1024)
    yield "1 layer, hidden 2048", model(layers=1, hidden=2048)


def flops(shape: ModelShape) -> float:
    """What `plan` counts for the values of all heads and MLP matrices."""
    parts = (SpectralPart(checkpoint=checkpoint(shape), layer=0, scope=scope, of="values") for scope in SCOPES)
    return shape.num_layers * sum(map(rates.spectral_flops, parts))


def memory() -> None:
    """Print the peak memory of a process of its own for each side, and for the MLP of a layer of 7B."""
    for what, side in (("ours", "paper"), ("the plain loop", "plainly"), ("ours, the MLP delta of one 7B layer", "large")):
        child = subprocess.Popen([sys.executable, "-c", f"from analysis import bench_spectra; bench_spectra.{side}_alone()"])
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"the process of {what} failed: see above")
        print(f"peak memory of {what}: {used.ru_maxrss / 2**20:.2f} GiB")


def paper_alone() -> None:
    """Our pass in a process of its own."""
    shape = model(layers=2, hidden=1024)
    paper(shape, random_weights(shape, seed=0))


def plainly_alone() -> None:
    """The loop's in one."""
    shape = model(layers=2, hidden=1024)
    plain_spectra.measured(arrays(shape, random_weights(shape, seed=0)), threads=THREADS)


def large_alone() -> None:
    """Values of the delta of the MLP of a layer as large as one of 7B."""
    _, hidden, heads, kv_heads, mlp = SIZES["7B"]
    shape = model(layers=1, hidden=hidden, heads=heads, kv_heads=kv_heads, mlp=mlp)
    base = random_weights(shape, seed=0, scopes=("mlp",))
    opened = [Opened("tuned", changed(base)), Opened("base", base)]
    spec = SpectralPart(checkpoint=checkpoint(shape), against=checkpoint(shape), layer=0, scope="mlp", of="values")
    with tempfile.TemporaryDirectory() as folder:
        decomposed(spec, opened, work=Workspace(Path(folder), Path(folder)), how=Execution(threads=THREADS, device="cpu"))


# ------------------------------------------------------------------------------------------------------------- weights


def model(*, layers: int, hidden: int, heads: int | None = None, kv_heads: int | None = None, mlp: int | None = None) -> ModelShape:
    """An OLMo 2 of these sizes, with heads of 64 and an MLP four times as wide where nothing else is said."""
    heads = heads or hidden // 64
    return ModelShape(
        name="bench",
        family="olmo2",
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        head_dim=hidden // heads,
        mlp_size=mlp or 4 * hidden,
        vocab_size=512,
        context=64,
    )


def checkpoint(shape: ModelShape) -> FolderCheckpoint:
    """A spec of a model that lies in memory."""
    return FolderCheckpoint(path="bench", weights_digest="bench", shape=shape)


def random_weights(shape: ModelShape, *, seed: int, scopes: tuple[Any, ...] = SCOPES) -> Weights:
    """bf16 matrices, normal entries with units of unlike sizes, so that the spectra are not those of noise alone."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for layer in range(shape.num_layers):
        for role in (role for scope in scopes for role in roles_in(scope, shape)):
            place = matrix(shape, layer, role)[0]
            residual, head = size_in("attention" if role in "qkvo" else "mlp", shape, role)
            sizes = (head, residual) if place.axis == 0 else (residual, head)
            spread = torch.randn(sizes[1], generator=generator).mul(0.5).exp()
            weights[place.parameter] = (0.02 * torch.randn(sizes, generator=generator) * spread).bfloat16()
    return weights


def changed(base: Weights) -> Weights:
    """Weights that differ from these by a few per cent everywhere."""
    generator = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    return {name: (tensor + CHANGE * tensor.float().std() * noise[name]).bfloat16() for name, tensor in base.items()}


def blocks(shape: ModelShape, weights: Weights) -> Iterator[Tensor]:
    """Every head's block and every MLP matrix, (residual, head)."""
    for layer in range(shape.num_layers):
        for scope in SCOPES:
            for role in roles_in(scope, shape):
                place = matrix(shape, layer, role)[0]
                whole = weights[place.parameter].mT if place.axis == 0 else weights[place.parameter]
                yield from whole.chunk(len(heads_in(scope, shape, role)), dim=1)


def arrays(shape: ModelShape, weights: Weights) -> Iterator[plain_spectra.Array]:
    """The same as the loop takes them."""
    return (block.float().numpy() for block in blocks(shape, weights))


def heads_of(shape: ModelShape, weights: Weights) -> Tensor:
    """All heads' blocks."""
    return torch.stack([block for block in blocks(shape, weights) if block.shape[1] == shape.head_dim])


# ---------------------------------------------------------------------------------------------------------------- time


class Time(NamedTuple):
    """Seconds on the wall, and of all processors: the latter are what they are on a machine with other work too."""

    wall: float
    processor: float


def taken(*works: Callable[[], object]) -> list[list[Time]]:
    """The times of each in every round, in turn; a first round is not counted."""
    rounds = [[_time(work) for work in works] for _ in range(ROUNDS + 1)]
    return [list(times) for times in zip(*rounds[1:], strict=True)]


def _time(work: Callable[[], object]) -> Time:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Time(time.perf_counter() - wall, time.process_time() - processor)


def _print(what: str, plain: dict[str, list[Time]], ours: dict[str, list[Time]]) -> None:
    for (way, slow), (null, fast) in itertools.product(plain.items(), ours.items()):
        pairs = list(zip(slow, fast, strict=True))
        wall = statistics.median(one.wall / other.wall for one, other in pairs)
        processor = statistics.median(one.processor / other.processor for one, other in pairs)
        seconds = [statistics.median(found.wall for found in side) for side in (slow, fast)]
        print(f"{what}, plain loop {way} against {null}: {wall:.1f}x ({seconds[0]:.3g} s, {seconds[1]:.3g} s), processors {processor:.1f}x")


if __name__ == "__main__":
    main()
