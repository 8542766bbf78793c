"""How long a launch takes before anything runs: 1,000 points composed and planned, as a user types it and the way stock Hydra would.

`python -m analysis.bench_launch`; no SLURM, no GPU, no network. Points of `rewind_1b` differ in criterion, direction and fraction.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POINTS = 1000
CURVES = 17  # of rewind_1b: seven criteria both ways, random three times
STOCK_POINTS = 5
RUNS = 3
ENTRY = """
import sys, time
from pathlib import Path
from hydra import compose, initialize_config_dir
conf, overrides = sys.argv[1], sys.argv[2:]
with initialize_config_dir(version_base="1.3", config_dir=conf):
    compose("config", overrides=["+experiment=rewind_1b", "intervention.fraction=0.5"])
    began = time.process_time()
    for override in overrides:
        compose("config", overrides=["+experiment=rewind_1b", "criterion=random", override])
    print((time.process_time() - began) / len(overrides))
"""


def main() -> None:
    """Print seconds of `plan` for 1,000 points, per point, against a composition of Hydra's own."""
    count = -(-POINTS // CURVES)
    fractions = [f"{(index + 1) / count:.4f}" for index in range(count)]
    ours = [_plan(fractions) for _ in range(RUNS)]
    start = [_plan(fractions[:1]) for _ in range(RUNS)]
    stock = _stock([f"intervention.fraction={fraction}" for fraction in fractions[:STOCK_POINTS]])
    whole, first = statistics.median(ours), statistics.median(start)
    points = count * CURVES
    print(f"plan of {points} points: {whole:.1f} processor seconds, median of {RUNS}; of {CURVES}: {first:.1f}")
    per_point = (whole - first) / (points - CURVES)
    print(f"one point more: {1000 * per_point:.2f} ms; Hydra alone composes one in {1000 * stock:.0f} ms: {stock / per_point:.0f} times")


def _plan(fractions: list[str]) -> float:
    """Processor seconds of `python -m cpt_lab plan`, start and printing included."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "cpt_lab", "plan", "+experiment=rewind_1b", f"intervention.fraction={','.join(fractions)}"]
        began = os.times()
        subprocess.run([*command, f"results={results}"], check=True, stdout=subprocess.DEVNULL, env=_environment())
        ended = os.times()
    return ended.children_user + ended.children_system - began.children_user - began.children_system


def _stock(overrides: list[str]) -> float:
    """Processor seconds of one composition by Hydra's own function."""
    conf = Path(__file__).parents[1] / "conf"
    answer = subprocess.run(
        [sys.executable, "-c", ENTRY, str(conf), *overrides], check=True, capture_output=True, text=True, env=_environment()
    )
    return float(answer.stdout.split()[-1])


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    print(f"in {time.perf_counter() - began:.0f} s")
