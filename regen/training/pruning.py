"""Ends a trial of a hyperparameter search early if it is worse than the earlier trials."""

from typing import Any

import lightning as L


class PrunedError(Exception):
    """A trial was ended early at a step, with the last value of the monitored metric."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__(f"pruned after step {step}: worse than the median of the earlier trials")
        self.value = value


class SearchPruning(L.Callback):
    """Reports the monitored metric to Optuna after each validation, and ends the trial if Optuna's pruner says so.

    Args:
        monitor: A metric that is logged at validation.
        startup_trials: Number of first trials that are never ended early.
    """

    def __init__(self, monitor: str, startup_trials: int) -> None:
        self.monitor = monitor
        self.startup_trials = startup_trials

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        trial = self._trial()
        if trial is None or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[self.monitor])
        trial.report(value, step=trainer.global_step)
        if trial.should_prune():
            trial.set_user_attr("ended_early", trainer.global_step)
            raise PrunedError(value, trainer.global_step)

    def _trial(self) -> Any:
        """The Optuna trial of this job, found by its overrides; None outside a search."""
        import optuna
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
            return None
        sweeper, overrides = HydraConfig.get().sweeper, set(HydraConfig.get().overrides.task)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=self.startup_trials)
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage, pruner=pruner)
        running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        ours = [trial for trial in running if {f"{key}={value}" for key, value in trial.params.items()} <= overrides]
        return optuna.trial.Trial(study, ours[-1]._trial_id) if ours else None


def end_interrupted_trials(storage: str | None, study_name: str) -> None:
    """Marks the trials that an earlier, killed command left running as failed. Does nothing without such a study."""
    import optuna

    if storage is None or study_name not in {study.study_name for study in optuna.get_all_study_summaries(storage)}:
        return
    study = optuna.load_study(study_name=study_name, storage=storage)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
