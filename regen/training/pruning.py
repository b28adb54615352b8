"""A trial of a search ends early where the earlier trials of its study say that it is not worth going on."""

from typing import Any

import lightning as L


class PrunedError(Exception):
    """A trial was ended early.

    Args:
        value: The last value of the monitored metric.
        step: At which step.
    """

    def __init__(self, value: float, step: int) -> None:
        super().__init__(f"pruned after step {step}: worse than the median of the earlier trials")
        self.value = value


class SearchPruning(L.Callback):
    """Tells the study of Hydra's Optuna sweeper the monitored metric after each validation, and asks whether to go on.

    Args:
        monitor: A metric that is logged at validation.
        startup_trials: So many trials are never ended early.
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
        """The trial that this job runs, told by its overrides; None outside a search."""
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
