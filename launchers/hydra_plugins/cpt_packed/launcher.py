"""The launchers `local` and `slurm`: a study is planned as a whole and packed into workers; other apps run their jobs in processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

STUDY_APP = "cpt_lab.app"


@dataclass
class LocalConf:
    """n_jobs: processes for a Hydra app that is not a study; a study's own setting is `workers`."""

    _target_: str = "hydra_plugins.cpt_packed.launcher.PackedLauncher"
    where: str = "local"
    n_jobs: int = 2


@dataclass
class SlurmConf:
    """Submits the packs of a study as job arrays; what the cluster needs stands in conf/site."""

    _target_: str = "hydra_plugins.cpt_packed.launcher.PackedLauncher"
    where: str = "slurm"
    n_jobs: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalConf, provider="cpt_packed")
ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmConf, provider="cpt_packed")


class PackedLauncher(Launcher):
    """Packs the points of a multirun into few processes."""

    def __init__(self, where: str, n_jobs: int) -> None:
        self.where = where
        self.n_jobs = n_jobs
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.task_function is not None
        if self.task_function.__module__ == STUDY_APP:
            return self._launch_study(job_overrides)
        if self.where != "local":
            raise ValueError(f"hydra/launcher={self.where} runs studies of cpt_lab only; use hydra/launcher=local for other apps")
        return self._launch_jobs(job_overrides, initial_job_idx)

    def _launch_study(self, job_overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        from cpt_lab import app
        from hydra_plugins.cpt_packed._compose import compose

        assert self.hydra_context is not None
        assert self.config is not None
        composed = compose(self.hydra_context.config_loader, self.config, job_overrides)
        app.act(composed, job_overrides, where=self.where)
        return []

    def _launch_jobs(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose and run each job, as every Hydra launcher does."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.singleton import Singleton
        from joblib import Parallel, delayed

        assert self.hydra_context is not None
        assert self.config is not None
        assert self.task_function is not None
        setup_globals()
        sweep = self.config.hydra.sweep
        Path(str(sweep.dir)).mkdir(parents=True, exist_ok=True)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        HydraConfig.instance().set_config(self.config)
        state = Singleton.get_state()
        jobs = [
            delayed(_run)(self.hydra_context, self.config, self.task_function, list(overrides), initial_job_idx + index, state)
            for index, overrides in enumerate(job_overrides)
        ]
        results: list[JobReturn] = Parallel(n_jobs=min(self.n_jobs, max(1, len(jobs))))(jobs)
        return results


def _run(
    context: HydraContext, config: DictConfig, task: TaskFunction, overrides: list[str], index: int, state: dict[Any, Any]
) -> JobReturn:
    """One job of a sweep in a process of its own."""
    from hydra.core.singleton import Singleton

    setup_globals()
    Singleton.set_state(state)
    sweep_config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(sweep_config):
        sweep_config.hydra.job.id = f"{sweep_config.hydra.job.name}_{index}"
        sweep_config.hydra.job.num = index
    return run_job(
        task_function=task, config=sweep_config, hydra_context=context, job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir"
    )
