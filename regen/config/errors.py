"""Checks of composed configs, and messages for config errors that suggest the nearest right key, group or value."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from regen.config.ranges import wrong_numbers
from regen.config.schema import DECIDED

CUTOFF = 0.6  # similarity from which a name is suggested
NUMBER_FOR_GROUP = "Config group override must be a string"  # Hydra's message; it does not name the group
NO_BEST_TRIAL = "Record does not exist."  # Optuna's message after a search whose trials all failed
EXPECTED = {"Integer": "an integer", "Float": "a number", "bool": "true or false"}


class UnknownKeyError(ConfigCompositionException):
    """A `+key=value` added a key that the schema does not have."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class OutOfRangeError(ConfigCompositionException):
    """A number is out of its range."""


@dataclass(frozen=True)
class ConfigSpace:
    """The groups with their options, and the dotted keys, that a command accepts."""

    config_dir: Path
    config_name: str
    arguments: Sequence[str] = ()
    groups: dict[str, list[str]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    def names(self, like: str) -> list[str]:
        """Groups and keys to suggest for a word: Hydra's own if it starts with `hydr`, else all others."""
        names = dict.fromkeys([*self.groups, *self.keys])
        return [name for name in names if name.startswith("hydra") == like.startswith("hydr")]


def check(node: DictConfig | ListConfig) -> None:
    """Checks keys, numbers and interpolations of a composed config.

    Raises:
        UnknownKeyError: If a node has a key that its schema does not have.
        OutOfRangeError: If a number is out of its range.
        InterpolationResolutionError: If a value refers to something that does not exist.
    """
    schema = OmegaConf.get_type(node)
    fields = {item.name for item in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else None
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else node
    values: dict[str, Any] = {}
    for key in keys:
        if fields is not None and key not in fields and not str(key).startswith("_"):
            raise UnknownKeyError(node._get_full_key(key))
        if OmegaConf.is_missing(node, key):
            continue
        referring, values[key] = OmegaConf.is_interpolation(node, key), node[key]
        if isinstance(values[key], DictConfig | ListConfig) and not referring:
            check(values[key])
    if fields is not None:
        for key, value, allowed in wrong_numbers(cast("type", schema), values):
            raise OutOfRangeError(f"{node._get_full_key(key)}={value} has to be {allowed} ({allowed.unit}).")


def explain(error: Exception, *, config_name: str, config_dir: Path, arguments: Sequence[str]) -> str:
    """Returns a short message for an error that Hydra or OmegaConf raised about a config."""
    if isinstance(error, OutOfRangeError):
        return str(error)
    space = config_space(config_name, config_dir, arguments)
    if isinstance(error, OverrideParseException):
        detail = str(error).splitlines()[0]
        return f"cannot read the override {error.override!r}: {detail}. Quote special characters: 'key=\"a, b\"'"
    if isinstance(error, MissingConfigException):
        return _no_such_option(error, space)
    if isinstance(error, YAMLError):
        return "not valid YAML: " + " ".join(str(error).split())
    if isinstance(error, UnknownKeyError):
        return _no_such_key(error.key, f"+{error.key}: ", space, None)
    if isinstance(error, HydraException):
        return _composition(error, space)
    if isinstance(error, OmegaConfBaseException):
        return _node(error, "", space)
    text = str(error)
    if text == NO_BEST_TRIAL:
        return "every trial of the search failed; the lines above say why. The same command tries again."
    return (_not_a_choice(space) if text.startswith(NUMBER_FOR_GROUP) else None) or text


def config_space(config_name: str, config_dir: Path, arguments: Sequence[str]) -> ConfigSpace:
    """Lists groups and keys of a command, after composing its default config with the arguments' valid choices."""
    space = ConfigSpace(config_dir, config_name, arguments)
    for file in sorted(config_dir.glob("*/**/*.yaml")):
        space.groups.setdefault(file.parent.relative_to(config_dir).as_posix(), []).append(file.stem)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
            if any(argument.startswith("hydr") for argument in arguments):
                space.groups.update(_hydra_groups())
            for overrides in (_right_choices(arguments, space), []):
                try:
                    config = compose(config_name, overrides, return_hydra_config=True)
                except Exception:  # if the default itself is broken, there are fewer suggestions
                    continue
                space.keys.extend(_flat_keys(OmegaConf.to_container(config)))
                break
    except HydraException:  # no such folder, which the error to explain says
        pass
    return space


def _hydra_groups() -> dict[str, list[str]]:
    """Hydra's own groups with their options, which are slow to list."""
    loader = GlobalHydra.instance().config_loader()
    return {f"hydra/{group}": loader.get_group_options(f"hydra/{group}") for group in loader.list_groups("hydra")}


def nearest(word: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """Returns the names most similar to a word, best first; the last part of a dotted name counts as well."""
    scores = {name: _likeness(word.lower(), name.lower()) for name in names}
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return [name for name in ranked[:limit] if scores[name] >= max(CUTOFF, scores[ranked[0]] - 0.08)]


def _likeness(word: str, name: str) -> float:
    whole = SequenceMatcher(None, word, name).ratio()
    last, leaf = word.rpartition(".")[2], name.rpartition(".")[2]
    part = 0.9 * max(SequenceMatcher(None, last, of).ratio() for of in (leaf, name))
    shared = 0.8 if set(last.split("_")) <= set(re.split(r"[._]", name)) else 0.0  # lr for adapter_lr
    return max(whole, part if part > 0.7 else 0.0, shared)


def _right_choices(arguments: Sequence[str], space: ConfigSpace) -> list[str]:
    choices = (argument.partition("=") for argument in arguments if not argument.startswith("-"))
    return [f"{group}={option}" for group, _, option in choices if option in space.groups.get(group, ())]


def _flat_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    return [found for key, below in node.items() for found in (f"{prefix}{key}", *_flat_keys(below, f"{prefix}{key}."))]


def _composition(error: HydraException, space: ConfigSpace) -> str:
    """Message for an error of Hydra about a key or value, on the command line or in a YAML file."""
    text = str(error)
    cause = error.__cause__ or error.__context__
    where = ""
    if found := re.match(r"In '([^']+)': ", text):
        where = _file(found[1], space)
    elif found := re.match(r"Error merging override (.*)", text):
        where = f"{found[1]}: "
    if found := re.match(r"Ambiguous value for argument '(.*?)'", text):
        key, _, values = found[1].partition("=")
        return f"{found[1]}: to run once per value add -m (--multirun); for one list write {key}=[{values}]."
    if found := re.search(r"Could not (?:override|delete|delete from config\.) '([^']+)'", text):
        written = re.search(r"append to your (?:config|default list) use \+(.*)", text)
        return _no_such_key(found[1], where or (f"{written[1]}: " if written else ""), space, cause)
    if isinstance(cause, OmegaConfBaseException):
        return _node(cause, where, space)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n  ".join(lines) or f"the config cannot be composed ({error!r})"


def _node(error: OmegaConfBaseException, where: str, space: ConfigSpace) -> str:
    """Message for an error of OmegaConf about a node."""
    key = error.full_key or str(error.key)
    first = str(error).splitlines()[0]
    if isinstance(error, MissingMandatoryValue):
        return f"{where}'{key}' has no value and no default. Set it: {key}=…"
    if isinstance(error, InterpolationResolutionError):
        found = re.match(r"Interpolation key '([^']+)' not found", first)
        first = re.sub(r"^\w+ raised while resolving interpolation: ", "", first).removesuffix(".")
        return f"{where}'{key}': {first}." + (_did_you_mean(found[1], space.names(found[1])) if found else "")
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _no_such_key(key, where, space, error)
    if isinstance(error, ValidationError):
        return f"{where}{_wrong_value(key, error, first)}"
    return f"{where}'{key}': {first}"


def _wrong_value(key: str, error: ValidationError, first: str) -> str:
    if found := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", first):
        options = found[2].split(", ")
        return (
            f"'{found[1]}' is not a value of '{key}'.{_did_you_mean(found[1], options)} Values: {', '.join(options)}."
        )
    if "not Optional" in first:
        return f"'{key}' cannot be null."
    if found := re.match(r"Value '(.*?)'.* (?:could not be converted to|is not a valid) (\w+)", first):
        return f"'{key}' must be {EXPECTED.get(found[2], found[2])}, not '{found[1]}'."
    return f"'{key}': {first}."


def _no_such_key(key: str, where: str, space: ConfigSpace, cause: BaseException | None) -> str:
    key = key.partition("@")[0]
    if key.startswith("trainer.") and (reason := DECIDED.get(key.removeprefix("trainer."))):
        return f"{where}'{key}' cannot be set: {reason}."
    if key in space.groups:
        return f"{where}'{key}' has no effect here: {space.config_name}.yaml has no such choice. Leave it out."
    names = space.names(key) or _siblings(cause)
    message = f"{where}there is no config key or group '{key}'.{_did_you_mean(key, names)}"
    best = nearest(key, names, limit=1)
    if not best:
        return f"{message} `--cfg job` shows all keys."
    options = space.groups.get(best[0])
    return f"{message} Options of '{best[0]}': {', '.join(options)}." if options else message


def _siblings(error: BaseException | None) -> list[str]:
    """The keys beside a key that was not found. They are known even if the default config does not compose."""
    parent: Any = getattr(error, "parent_node", None)
    if not isinstance(parent, DictConfig):
        return []
    prefix = parent._get_full_key(None)
    return _flat_keys(OmegaConf.to_container(parent), f"{prefix}." if prefix else "")


def _no_such_option(error: MissingConfigException, space: ConfigSpace) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not option:
        return str(error).splitlines()[0]
    where = _written_in(option, space)
    if options := error.options or space.groups.get(group):
        return f"{where}{_wrong_option(group, option, options)}"
    known = [*space.groups, *(path.stem for path in space.config_dir.glob("*.yaml"))]
    wrong = group or option
    return f"{where}there is no config '{wrong}' in {space.config_dir}.{_did_you_mean(wrong, known)}"


def _wrong_option(group: str, option: str, options: Sequence[str]) -> str:
    return f"'{option}' is not an option of '{group}'.{_did_you_mean(option, options)} Options: {', '.join(options)}."


def _not_a_choice(space: ConfigSpace) -> str | None:
    """Message for a number given to a group, whose name Hydra's error lacks."""
    for argument in space.arguments:
        group, _, option = argument.partition("=")
        options = space.groups.get(group)
        if options and option not in options and not re.search(r"[,\[]", option):
            return _wrong_option(group, option, options)
    return None


def _written_in(option: str, space: ConfigSpace) -> str:
    """The YAML files that contain a wrong option, unless it is on the command line."""
    word = re.compile(rf"(?<![\w-]){re.escape(option)}(?![\w-])")
    if any(word.search(argument) for argument in space.arguments):
        return ""
    files = [str(path) for path in sorted(space.config_dir.rglob("*.yaml")) if word.search(path.read_text("utf-8"))]
    return f"{', '.join(files)}: " if files else ""


def _file(config: str, space: ConfigSpace) -> str:
    path = space.config_dir / f"{config}.yaml"
    return f"{path if path.is_file() else config}: "


def _did_you_mean(word: str, names: Iterable[str]) -> str:
    found = nearest(word, names)
    return f" Did you mean {' or '.join(repr(name) for name in found)}?" if found else ""
