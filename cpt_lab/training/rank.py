"""One process of a training run: `torchrun -m cpt_lab.training.rank JOB`; nobody types this, `ranks.run` does."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from cpt_lab.execution import Execution
from cpt_lab.specs import TrainedCheckpoint, parse
from cpt_lab.store import Workspace
from cpt_lab.training import ranks
from cpt_lab.training.run import Inputs, train_here


def main(job: Path) -> int:
    """Train as one rank of the job; the exit code, after an error was left for who started it."""
    ranks.end_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    rank = int(os.environ["RANK"])
    try:
        told = json.loads(job.read_text())
        spec, how = parse(told["spec"]), Execution(**told["how"])
        assert isinstance(spec, TrainedCheckpoint)
        _meet(how)
        train_here(spec, Workspace(Path(told["folder"]), Path(told["product"])), inputs=Inputs.loaded(told["inputs"]), how=how)
        _part()
    except BaseException as error:  # the edge of this process: who started it raises the error again
        logging.getLogger(__name__).exception("rank %s failed", rank)
        ranks.report(job.parent, rank, error)
        return 1
    return 0


def _meet(how: Execution) -> None:
    from olmo_core.distributed.utils import init_distributed

    init_distributed(backend="cpu:gloo,cuda:nccl" if how.on_device() == "cuda" else "gloo")


def _part() -> None:
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    if code:
        os._exit(code)  # no clean-up that waits for the others: torchrun ends them
