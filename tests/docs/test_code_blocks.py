"""Every fenced block of README and docs: Python runs, commands compose; what is neither is marked as text or YAML."""

import json
import re
import shlex
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import pytest
from docs.pages import FENCE, PAGES, REPOSITORY, blocks
from hydra.core.override_parser.overrides_parser import OverridesParser
from small import SMALL, quick_embeddings

from regen.commands import COMMANDS
from regen.config.objects import compose
from regen.config.schema import CONF

SCRIPTS = {"train.py": "train", "evaluate.py": "evaluate"}
ROOTS = {"plan": "train"}  # a command whose config has another name
OF_FILES = "--8<--"  # a block that the site fills with a file; tests/test_extension.py uses these files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page):
    assert {found["language"] for found in FENCE.finditer(page.read_text())} <= {"bash", "python", "text", "yaml"}


@pytest.mark.slow  # a hundred configs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page):
    for code in blocks(page, "bash"):
        for words in commands(code):
            check(words)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("python train.py adapter.rnak=8", "rnak"),
        ("python train.py -m encoder=cf,contents", "contents"),
        ("regen serve checkpoint=a ports=1", "ports"),
        ("regen trian encoder=cf", "trian"),
        ("make grids", "grids"),
        ("curl http://127.0.0.1:8080/v1/narrative", "/v1/narrative"),
    ],
)
def test_a_wrong_command_would_be_found(command, named):
    with pytest.raises(Exception, match=named):
        check(shlex.split(command))


def commands(code):
    """The words of each command, without environment variables before it."""
    pending = ""
    for line in code.replace("\\\n", " ").splitlines():
        pending += f"{line}\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words
    assert not pending, f"a quotation has no end: {pending}"


def check(words):
    """Raises if a command cannot be given as it stands."""
    program, *arguments = words
    program = Path(program).name
    if program == "python" and arguments[0] in SCRIPTS:
        composes(SCRIPTS[arguments[0]], arguments[1:])
    elif program == "python" and arguments[0] != "-m":
        assert (REPOSITORY / arguments[0]).is_file(), f"no file {arguments[0]}"
    elif program == "python":
        assert arguments[1] == "pytest"
        assert all((REPOSITORY / path).is_file() for path in arguments if path.startswith("tests/"))
    elif program == "regen":
        assert arguments[0] in COMMANDS, f"no command {arguments[0]}"
        composes(arguments[0], arguments[1:])
    elif program == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        for target in arguments:
            assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"
    elif program == "curl":
        asks(arguments)
    else:
        assert program in ("pip", "export"), f"unknown program {program}"


def composes(command, arguments):
    """Composes what a command line asks for, of a sweep as many jobs as show every value once."""
    config_dir = None
    if "--config-dir" in arguments:
        at = arguments.index("--config-dir")
        config_dir = REPOSITORY / arguments[at + 1]
        arguments = arguments[:at] + arguments[at + 2 :]
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line]
        for one in parsed
    ]
    jobs = max(map(len, values), default=1)
    assert jobs == 1 or "-m" in arguments, "several values take -m"
    for job in range(jobs):
        composed(command, tuple(of[job % len(of)] for of in values), config_dir)


@cache
def composed(command, overrides, config_dir):
    root = ROOTS.get(command, command)
    if (CONF / f"{root}.yaml").is_file():  # regen llm_server has no config of Hydra
        compose(overrides, root=root, config_dir=config_dir)


def asks(arguments):
    """Checks the address and the body of a request to the service."""
    from regen.serving.requests import RecommendationsRequest, request_model

    (path,) = (found[1] for one in arguments if (found := re.match(r"http://127.0.0.1:8080(/[^?]*)", one)))
    assert path in ("/v1/narratives", "/v1/recommendations", "/v1/items", "/health", "/metrics"), f"no route {path}"
    if "-d" in arguments:
        body = json.loads(arguments[arguments.index("-d") + 1])
        narratives = request_model(("purchase_reason",), places=160)
        (RecommendationsRequest if path == "/v1/recommendations" else narratives).model_validate(body)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what Python blocks read: two tiny runs, three exported models, a data set."""
    from regen.data.prepare import load_tables
    from regen.narratives.release import release
    from regen.pipeline import data_artefact, train_and_evaluate
    from regen.serving import NarrativeModel
    from regen.serving.recommender import Recommender

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patched, quick_embeddings():
        patched.chdir(folder)
        narrate = compose([*SMALL, "trainer.max_steps=2"])
        NarrativeModel.from_run(train_and_evaluate(narrate)[0]).save_pretrained("office")
        recommend = ["task=recommend", "task.train_users=20", "task.ridge=0.1", "data.critiques=true"]
        converse = ["task=converse", "task.ridge=0.1"]
        for exported, task in {"recommender": recommend, "talker": converse}.items():
            folder_of_run, _ = train_and_evaluate(compose([*SMALL, *task, "trainer.max_steps=2"]))
            Recommender.from_run(folder_of_run).save_pretrained(exported)
        data = data_artefact(narrate)
        users = load_tables(data.path).interactions["user_id"].unique()
        split_of = dict.fromkeys(users, "train")
        names = {"source": "synthetic", "vertical": "office", "licence": "other"}
        release(data, **names, split_of=split_of, folder=Path("outputs/releases/gift_cards-template"))
    return folder


PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python") if OF_FILES not in code]


@pytest.mark.slow  # trains three tiny models
@pytest.mark.filterwarnings("ignore")  # Lightning's advice about loaders and loggers
@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[page.name for page, _ in PYTHON])
def test_python_runs(page, code, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("regen.config.objects.compose", lambda overrides: compose([*SMALL, *overrides]))
    full = partial(re.sub, r"[\w/+-]+-…", lambda begun: next(Path().glob(f"{begun[0][:-1]}*")).as_posix())
    with quick_embeddings():
        exec(compile(full(code), page.name, "exec"), {})  # "outputs/runs/next_item-both-…" is the run that begins so


def test_the_wheel_that_the_docs_install_has_this_version():
    assert f"dist/regen-{version('regen')}-py3-none-any.whl" in (REPOSITORY / "docs/index.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_included_files_are_there(page):
    for code in [*blocks(page, "python"), *blocks(page, "yaml")]:
        if OF_FILES in code:
            assert (REPOSITORY / code.split('"')[1]).is_file()
