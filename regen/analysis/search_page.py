"""The page at the end of a search: progress of the best value, importance of settings, all trials, the best command."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regen.analysis.report_figures import Picture, image
from regen.storage.artefacts import write_atomically

FEWEST = 5  # with fewer finished trials, importances are not shown


def write_search_page(storage: str, study_name: str, folder: Path) -> Path | None:
    """Writes `search.html` into a folder and returns its path; None if no trial has a value yet.

    Args:
        storage: Storage of the study, as in Optuna.
        study_name: Name of the study.
        folder: Folder for the page.
    """
    import optuna

    study = optuna.load_study(study_name=study_name, storage=storage)
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if not done:
        return None
    names = sorted({name for trial in study.trials for name in trial.params})
    rows = [
        (trial.number, _shown(trial.value), [_shown(trial.params.get(name)) for name in names], _state(trial))
        for trial in study.trials
    ]
    pictures = [_picture("The best value so far", "best_value", partial(_history, done, study.direction.name))]
    if len(done) >= FEWEST:
        pictures.append(_picture("Which setting mattered", "importances", partial(_bars, importances(done, names))))
    best = " ".join(f"{name}={value}" for name, value in study.best_params.items())
    template = Environment(loader=PackageLoader("regen.analysis", "."), autoescape=True).get_template("search.html.j2")
    text = template.render(
        study=study, finished=len(done), rows=rows, names=names, pictures=pictures, command=f"python train.py {best}"
    )
    page = folder / "search.html"
    write_atomically(page, partial(Path.write_text, data=text, encoding="utf-8"))
    return page


def importances(trials: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
    """Feature importance of each setting in a random forest that predicts the values, largest first.

    The importance evaluators of this Optuna version do not run with NumPy 2.
    """
    from sklearn.ensemble import RandomForestRegressor  # type: ignore[import-untyped]

    settings = np.array([[_number(trial.params[name], trials, name) for name in names] for trial in trials])
    forest = RandomForestRegressor(n_estimators=200, random_state=0)
    shares = forest.fit(settings, [trial.value for trial in trials]).feature_importances_
    return dict(sorted(zip(names, map(float, shares), strict=True), key=lambda item: -item[1]))


def _number(value: Any, trials: Sequence[Any], name: str) -> float:
    """A setting as a number; a text becomes its index among the texts that were tried."""
    if isinstance(value, int | float):
        return float(value)
    return float(sorted({str(trial.params[name]) for trial in trials}).index(str(value)))


def _state(trial: Any) -> str:
    step = trial.user_attrs.get("ended_early")
    return trial.state.name.lower() if step is None else f"ended early, step {step}"


def _shown(value: Any) -> str:
    return "—" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _picture(title: str, file: str, draw: Callable[[Axes], None]) -> Picture:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    draw(figure.subplots())
    return Picture(title, f"{title}; the numbers are in the table below", image(figure, vector=False), file)


def _history(trials: Sequence[Any], direction: str, axis: Axes) -> None:
    numbers, values = [trial.number for trial in trials], [trial.value for trial in trials]
    pick = min if direction == "MINIMIZE" else max
    axis.plot(numbers, values, "o", label="trial")
    axis.step(numbers, [pick(values[: at + 1]) for at in range(len(values))], where="post", label="best so far")
    axis.set(xlabel="trial (number)", ylabel="monitored value", xlim=(-0.5, max(numbers) + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()


def _bars(shares: Mapping[str, float], axis: Axes) -> None:
    names = list(shares)[::-1]
    axis.barh(names, [shares[name] for name in names])
    axis.set(xlabel="share of what a random forest explains of the value")
