"""The page at the end of a search."""

import ast
import re
import tomllib
from pathlib import Path

from regen.analysis import search_page

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {"sklearn": "scikit-learn", "optuna": "hydra-optuna-sweeper"}  # modules of another name than their package


def test_the_extra_search_brings_what_the_page_imports():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["search"]]
    installed = {re.split(r"[^\w-]", requirement)[0] for requirement in wanted}
    tree = ast.parse(Path(search_page.__file__).read_text())
    modules = {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        name.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    ours = {"regen", "collections", "functools", "pathlib", "typing"}
    assert {PACKAGES.get(module, module) for module in modules - ours} <= installed
