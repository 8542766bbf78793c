"""What happens beside the steps of a run: which callbacks it gets, and what they do with its folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpt_lab import disk
from cpt_lab.training import checks, mixing, ranks, saving

if TYPE_CHECKING:
    from olmo_core.data import NumpyDataLoaderBase
    from olmo_core.nn.transformer import Transformer
    from olmo_core.train.callbacks import Callback

    from cpt_lab.execution import Execution
    from cpt_lab.specs import TrainedCheckpoint
    from cpt_lab.store import Workspace
    from cpt_lab.training.callbacks import Recorder
    from cpt_lab.training.run import Inputs


def recorder(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution) -> Recorder:
    """What writes the metrics and counts the seconds, from now on."""
    from cpt_lab.training.callbacks import Recorder

    recipe = spec.recipe

    def blame(step: int, loader: NumpyDataLoaderBase) -> str:
        length, each = recipe.sequence_length, recipe.batch_sequences
        sequences = loader.get_global_indices()[(step - 1) * each : step * each].tolist()
        named = mixing.documents_of(spec.mixture, inputs.tokens, sequences, tokenizer=inputs.tokenizer, length=length)
        return checks.words(named, work.scratch / "diverged.json")

    metrics, peak = work.scratch / "metrics.jsonl", checks.peak_flops(recipe, device=how.on_device())
    return Recorder(path=metrics, steps=spec.steps, report=work.progress, blame=blame, peak_flops=peak)


def watchers(
    spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution, model: Transformer, recorder: Recorder
) -> dict[str, Callback]:
    """Metrics, states, weights on the way and the wish to stop; of a run that ends in a checkpoint validation and spectra too."""
    from cpt_lab.training.callbacks import IntermediateKeeper, Stopper, TimedCheckpointer

    shape, tokens = spec.shape, spec.recipe.batch_tokens

    def check(*, states: int = 0, folders: int = 0) -> None:
        recorder.check()
        ranks.on_first(lambda: checks.check_room(work.scratch, shape, states=states, folders=folders))

    def save(step: int) -> None:
        check(folders=1)
        with checks.memory_for("the weights while they are written"):
            saving.save_intermediate(model, shape, tokenizer=inputs.tokenizer, scratch=work.scratch, tokens=step * tokens)

    found: dict[str, Callback] = {
        "recorder": recorder,
        "checkpointer": TimedCheckpointer(minutes=how.checkpoint_minutes, max_checkpoints=how.keep_states, check=lambda: check(states=1)),
        "stopper": Stopper(asked=lambda: ranks.asked_to_stop(work.scratch)),
    }
    if keep := disk.kept_steps(spec, how, inputs.keep, until=inputs.until):
        found["keeper"] = IntermediateKeeper(steps=keep, save=save)
    return found if inputs.until is not None else found | measurers(spec, work, inputs=inputs, how=how, recorder=recorder)


def measurers(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution, recorder: Recorder) -> dict[str, Callback]:
    """Validation and spectra, as far as they are asked for."""
    from cpt_lab.training.spectra_callback import SpectraCallback
    from cpt_lab.training.validation import Validator, held_out, steps_of

    found: dict[str, Callback] = {}
    if how.validations and (domains := held_out(inputs.held_out, tokenizer=inputs.tokenizer, length=spec.recipe.sequence_length)):
        found["validator"] = Validator(domains=domains, steps=steps_of(how.validations, spec.steps))
    if spec.watch is not None:
        found["spectra"] = SpectraCallback(
            folder=work.scratch / "spectra",
            shape=spec.shape,
            watch=spec.watch,
            steps=spec.steps,
            share=how.spectra_share,
            threads=how.threads,
            check=recorder.check,
        )
    return found
