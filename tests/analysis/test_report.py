"""The page of a grid: whatever users wrote stays text, nothing is fetched, and what is missing is said."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
import yaml
from hostile import LONG, MARKUP, train_hostile
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import regen.analysis
from regen.analysis import report_figures
from regen.analysis.report import _visible, write_report
from regen.analysis.report_commands import run_commands
from regen.analysis.report_plots import ticks
from regen.analysis.report_runs import common_settings, differing_settings, open_runs
from regen.commands.report import run
from regen.config.registration import register
from regen.config.schema import CONF
from regen.evaluation.comparison import compare
from regen.evaluation.reading import reading

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Elements, and the text that a reader can unfold."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.raw, self.elements, self.inside, self.text = text, [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())

    def of(self, tag, **attributes):
        return [a for name, a in self.elements if name == tag and attributes.items() <= a.items()]

    def says(self, text):
        return " ".join(_visible(text).split()) in self.words


def page_of(folder, **options):
    return Page(write_report(folder, **{"figures": False, **options}).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of three finished runs on hostile data, and one that has just started."""
    root = tmp_path_factory.mktemp("report")
    folders = train_hostile(root, "cf", "content", "both")
    started = root / "runs" / "purchase_reason-none-started"
    started.mkdir()
    config = OmegaConf.load(folders["cf"] / "config.yaml")
    config.encoder = {"name": "none", "parts": [], "dim": 512, "max_tokens": None}
    OmegaConf.save(config, started / "config.yaml")
    return root


@pytest.fixture(scope="module")
def page(trained):
    return page_of(trained / "runs", users=5, seed=3)


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the runs that a test may damage; their data stay where they are."""
    shutil.copytree(trained / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns(".locks", "*.html"))
    return tmp_path / "runs"


def test_what_users_and_models_wrote_stays_text(page):
    allowed = {"html", "head", "meta", "title", "link", "style", "body", "script", "header", "main", "footer", "nav"}
    allowed |= {"section", "article", "div", "span", "p", "h1", "h2", "h3", "h4", "h5", "ul", "ol", "li", "dl", "dt"}
    allowed |= {"dd", "a", "b", "em", "strong", "code", "pre", "details", "summary", "table", "thead", "tbody", "tr"}
    allowed |= {"th", "td", "figure", "figcaption", "img", "svg", "line", "circle", "text", "label", "input", "button"}
    allowed |= {"output"}
    assert {tag for tag, _ in page.elements} <= allowed
    assert not page.inside
    assert len(page.of("script")) == len(page.of("style")) == 1
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc")], tag
        assert all("evil" not in (value or "") and "hacked" not in (value or "") for value in attributes.values()), tag
    assert "1337" not in page.words
    assert not re.search("[\x00-\x08\x0b-\x1f\u2028\u202a-\u202e\u2066-\u2069]", page.raw)


def test_nothing_is_fetched_and_the_policy_forbids_it(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", page.raw, re.DOTALL)[1] for tag in ("style", "script"))
    assert not re.search(r"url\(|@import|expression\(", style)
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval", script)
    (policy,) = page.of("meta", **{"http-equiv": "Content-Security-Policy"})
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    assert policy["content"] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_every_shown_users_texts_are_there(page, trained):
    shown = page.of("article", **{"class": "person"})
    assert len(shown) == 5
    names = re.findall(r'<h4>User <span class="t">(.*?)</span>', page.raw)
    predictions = {run.encoder: run.predictions for run in open_runs(trained / "runs") if run.predictions is not None}
    assert set(predictions) == {"cf", "content", "both"}
    for escaped in names:
        name = escaped.replace("&lt;", "<").replace("&gt;", ">")
        user = int(name[1:-3])
        for step in range(1, 8):
            assert page.says(f"Review {user}.{step}")
            assert page.says(LONG if step % 3 == 0 else MARKUP[(user + step) % len(MARKUP)])
            assert page.says(f"Thing {(user + step) % 12} {MARKUP[(user + step) % 12 % len(MARKUP)]}")
        assert page.says(f"Because of {user}. {MARKUP[user % len(MARKUP)]}")
        for written in predictions.values():
            (text,) = written.filter(user_id=name)["prediction"]
            assert page.says(text)
    assert page.words.count("shuffled: both for another user") == 5
    assert page.words.count("no rating") == 5


def test_the_shuffled_column_is_another_users_text_of_both(page):
    own = re.findall(r"<b>both</b><span[^>]*>(both wrote \d+)", page.raw)
    other = re.findall(r"<b>shuffled: both for another user</b><span[^>]*>(both wrote \d+)", page.raw)
    assert len(own) == len(other) == 5
    assert all(one != two for one, two in zip(own, other, strict=True))


@pytest.mark.slow
def test_more_users_are_the_same_ones_and_others(trained, page, tmp_path):
    def drawn(**options):
        text = write_report(trained / "runs", tmp_path / "page.html", figures=False, **options).read_text()
        return re.findall(r'<h4>User <span class="t">(.*?)</span>', text)

    five = re.findall(r'<h4>User <span class="t">(.*?)</span>', page.raw)
    assert drawn(users=8, seed=3)[:5] == five
    assert drawn(users=5, seed=4) != five


def test_the_table_stands_with_intervals_caption_floors_and_plots(page):
    for text in ("both vs cf", "both vs content", "shuffled", "constant", "ROUGE-Lsum", "Similarity"):
        assert page.says(text)
    assert page.says("With one seed an interval covers users only, not training; a claim needs three seeds.")
    assert page.says("95 % bootstrap intervals over users (100 resamples)")
    assert page.says("No claim yet: that takes 3 seeds, and here an encoder has 1.")
    plots = page.of("svg", role="img")
    named = [plot["aria-label"].split(" with ")[0] for plot in plots]  # the rows that the table leads with
    assert named == ["Identification@10", "Similarity", "BLEU"]
    assert all(re.search(r"with 95 % intervals: cf .*\[.*\]", plot["aria-label"]) for plot in plots)
    assert page.says("both vs the better one")
    assert page.says("1 seed: over users, no stars")


def test_the_page_says_what_the_grid_says(page, trained):
    comparison = compare([run.cell for run in open_runs(trained / "runs")], resamples=100)
    sentences = [sentence for block in comparison.blocks for sentence in reading(block)]
    assert len(sentences) == 3
    assert all(page.says(sentence) for sentence in sentences)


def test_settings_versions_fingerprints_and_commands_are_there(page, trained):
    record = json.loads(next((trained / "runs").glob("*-both-*/run.json")).read_text())
    for fingerprint in record["inputs"].values():
        assert page.says(fingerprint)
    assert page.says(f"torch {record['versions']['torch']}")
    assert page.says("Why this customer made the last purchase:")
    assert page.says("max_new_tokens: 4")
    assert page.says("python train.py -m encoder=cf,content,both,none source=jsonl")
    assert page.says(f"regen report runs={trained / 'runs'} users=5 seed=3 figures=false")


def test_missing_parts_are_named(page, runs):
    assert page.says("Analysis figures were not asked for (figures=false).")
    assert page.says("No finished run with encoder=none: what a model without any signal earns is not shown")
    assert page.says("encoder=none, seed=0: missing: no examples.parquet")
    shutil.rmtree(next(runs.glob("*-both-*")))
    (next(runs.glob("*-content-*")) / "examples.parquet").write_text("cut off")
    without = page_of(runs, users=30)
    assert without.says("No finished run with encoder=both: whether both beat either alone is not answered.")
    assert without.says("examples.parquet cannot be read")
    assert re.search(r"30 users were asked for; there are \d+ with predictions\.", without.words)
    assert without.says("shuffled: cf for another user")
    assert without.says("Paired with other users, the texts of cf reach")


def test_without_any_finished_run_the_page_says_so(runs):
    for folder in runs.glob("*"):
        if not folder.name.endswith("started"):
            shutil.rmtree(folder)
    page = page_of(runs)
    assert page.says("No run here has written anything yet: there are no scores and no narratives to show.")
    assert page.says("No run here has written narratives yet.")
    assert page.says("Nothing yet: no run of this block has scores.")
    assert page.says("No run of this block has scores, so there is nothing to plot.")
    assert page.says("Nothing: there is one run.")


def test_seeds_and_withheld_reviews_are_named(runs):
    cf = next(runs.glob("*-cf-*"))
    shutil.copytree(cf, runs / "another-seed")
    for path in runs.glob("*/config.yaml"):
        config = OmegaConf.load(path)
        config.feature.purchase_reason.withhold_final_review = True
        config.seed = 1 if path.parent.name == "another-seed" else 0
        OmegaConf.save(config, path)
    page = page_of(runs, users=2)
    assert page.words.count("cf, seed 0") == page.words.count("both, seed 0") == 2
    assert page.words.count("(its review was kept from the model)") == 2
    assert page.says("purchase_reason, the review of the item is withheld")


def test_data_that_are_gone_are_missed_and_not_built_again(runs):
    for path in runs.glob("*/config.yaml"):
        config = OmegaConf.load(path)
        config.paths.data_dir = str(runs.parent / "no_data")
        OmegaConf.save(config, path)
    page = page_of(runs, users=2, figures=True)
    assert page.says("Histories are not shown: its data are not in")
    assert page.says("Not drawn: its data are not in")
    assert page.says("No purchase of this user can be shown.")
    assert page.words.count("both wrote") == 4  # two users, each with one of their own and one shuffled
    assert not (runs.parent / "no_data").exists()


def test_a_grids_failed_cell_and_its_command_are_shown(trained, tmp_path):
    configs = {path.parent: OmegaConf.to_container(OmegaConf.load(path)) for path in trained.glob("runs/*/config.yaml")}
    finished = [folder for folder in configs if (folder / "scores.json").is_file()]
    notes = [{"run": str(folder), "config": configs[folder], "error": None} for folder in sorted(finished)]
    failed = {**configs[finished[0]], "seed": 7}
    notes.append({"run": None, "config": failed, "error": f"ValueError: no such thing {MARKUP[0]}"})
    for number, note in enumerate(notes):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cell.json").write_text(json.dumps(note))
    task = ["encoder=cf,content,both", "feature=[purchase_reason]", "seed=0,7"]
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": {"task": task}}}))
    page = page_of(tmp_path, users=2)
    assert page.says(f"failed: ValueError: no such thing {MARKUP[0]}")
    assert page.says("python train.py -m encoder=cf,content,both 'feature=[purchase_reason]' seed=0,7")
    assert page.says("4 runs, of which 3 finished")
    assert page.says("cell 3, failed")
    assert page.says("max_new_tokens: 4")  # what all four share, the failed one too
    assert len(page.of("script")) == 1


def test_a_folder_without_runs_and_bad_options_are_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither the folder of a grid nor one that holds runs"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="users=0: give how many test users to show"):
        write_report(trained / "runs", users=0)
    with pytest.raises(ValueError, match="is a folder; give the file to write"):
        write_report(trained / "runs", tmp_path)


def test_the_command_writes_the_page_and_refuses_a_bad_folder_in_a_line(trained, tmp_path, monkeypatch, capsys):
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", f"runs={trained / 'runs'}", "out=p.html", "figures=false", *quiet])
    run()
    assert capsys.readouterr().out == "p.html\n"
    assert Page(Path("p.html").read_text()).says("20 users were asked for")
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=nowhere", *quiet])
    with pytest.raises(SystemExit) as stop:
        run()
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert "runs=nowhere: neither the folder of a grid nor one that holds runs" in message
    assert "Traceback" not in message


@pytest.fixture
def few_points(monkeypatch):
    """t-SNE of so few points takes no time."""
    monkeypatch.setattr(report_figures, "POINTS", 25)


ADAPTER_PICTURES = ["cf_share", "cf_share_by_popularity", "pca", "tsne"]


@pytest.mark.slow  # draws every figure
def test_figures_of_every_adapter_and_of_the_data_stand_in_the_page_and_as_files(trained_runs, tmp_path, few_points):
    page = page_of(trained_runs["mlp"].parent, out=tmp_path / "page.html", users=2, figures=True)
    images = page.of("img")
    assert len(images) == 16
    assert all(len(image["alt"]) > 40 for image in images)
    for text in ("CF's share of each", "by the item's popularity", "Singular values", "t-SNE", "PCA", "users per item"):
        assert page.says(text)
    for adapter, folder in trained_runs.items():
        assert page.says(f"CF and content in the adapter of {folder.name}")
        blocks = ["part_cosines", "singular_values"] if adapter == "linear" else []
        files = {path.stem for path in (tmp_path / "figures").glob(f"{adapter}-*")}
        assert files == {f"{adapter}-{picture}" for picture in ADAPTER_PICTURES + blocks}
    assert not page.says("Not drawn")
    shown = {image["src"].partition(",")[2] for image in images}
    assert shown == {base64.b64encode(path.read_bytes()).decode() for path in (tmp_path / "figures").iterdir()}
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png"}


def test_an_image_is_the_same_every_time():
    from regen.analysis import figures

    lengths = pl.DataFrame({"feature": ["a"] * 5, "words": [1, 2, 3, 4, 5]})
    one, two = (report_figures.image(figures.narrative_lengths(lengths)) for _ in range(2))
    assert one == two
    svg = one.decode()
    assert svg.lstrip().startswith("<?xml")
    assert "<script" not in svg


def test_an_adapter_that_is_not_linear_has_no_singular_values(trained_runs, few_points):
    runs = [run for run in open_runs(trained_runs["mlp"].parent) if run.folder == trained_runs["mlp"]]
    (chapter,) = report_figures.adapter_chapters(runs * 2, seed=0)
    assert chapter.problems == ["Singular values are not drawn: adapter=mlp has no CF and content blocks; linear has."]
    assert len(chapter.pictures) == 4
    assert "the newest of 2 finished runs with encoder=both and adapter=mlp" in chapter.title


def test_a_figure_that_cannot_be_drawn_is_named_and_the_others_stay(trained_runs, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no plane today")

    monkeypatch.setattr("regen.analysis.projections.embed_in_plane", broken)
    runs = [run for run in open_runs(trained_runs["mlp"].parent) if run.folder == trained_runs["mlp"]]
    (chapter,) = report_figures.adapter_chapters(runs, seed=0)
    assert chapter.problems == ["Not drawn: RuntimeError: no plane today"]
    assert [picture.file for picture in chapter.pictures] == ["mlp-cf_share", "mlp-cf_share_by_popularity"]


@pytest.mark.slow
def test_commands_compose_exactly_the_runs(trained, trained_runs):
    register()
    runs = [run for run in open_runs(trained / "runs") if run.predictions is not None]
    (command,) = run_commands(runs)
    assert " -m encoder=cf,content,both " in command
    for one in [*runs, *open_runs(trained_runs["mlp"].parent)]:
        (command,) = run_commands([one])
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", shlex.split(command)[2:])
        made = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        for name in ("source", "encoder", "cf", "adapter", "lm", "tuning", "feature", "training", "split", "seed"):
            assert made[name] == one.config[name], name
        assert made["trainer"]["max_steps"] == one.config["trainer"]["max_steps"]


def test_a_run_that_no_options_make_is_trained_from_its_own_config(runs):
    path = next(runs.glob("*-cf-*/config.yaml"))
    config = OmegaConf.load(path)
    config.feature.purchase_reason.prompt = "Two\nlines:\n"
    OmegaConf.save(config, path)
    (run,) = open_runs(path.parent)
    assert run_commands([run]) == [f"python train.py --config-dir {path.parent} --config-name config"]


def test_settings_are_shared_or_differ_and_credentials_are_left_out(trained, runs):
    for number, path in enumerate(sorted(runs.glob("*/config.yaml"))):
        config = OmegaConf.load(path)
        config.trainer.max_epochs = number + 1
        config.source.folder = "https://me:secret@host.example/data"
        OmegaConf.save(config, path)
    opened = open_runs(runs)
    keys, rows = differing_settings(opened)
    assert keys == ["encoder.name", "trainer.max_epochs"]
    assert sorted(row[1] for row in rows) == ["1", "2", "3", "4"]
    common = common_settings(opened)
    assert common["source"]["folder"] == "https://…@host.example/data"
    assert "max_epochs" not in common["trainer"]
    assert "name" not in common["encoder"]


@pytest.mark.parametrize(
    ("low", "high", "step", "values"),
    [(0.0, 1.0, 0.2, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (12.3, 47.9, 10, [20, 30, 40]), (-0.1, 0.1, 0.05, [-0.1, -0.05, 0.0, 0.05, 0.1])],
)  # fmt: skip
def test_ticks_are_round_numbers(low, high, step, values):
    assert ticks(low, high) == (pytest.approx(step), pytest.approx(values))


@pytest.mark.slow
def test_plotting_libraries_are_imported_for_figures_alone(trained, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "regen.analysis.figures", raising=False)
    monkeypatch.delattr(regen.analysis, "figures", raising=False)
    monkeypatch.setitem(sys.modules, "seaborn", None)  # as if it were not installed
    without = page_of(trained / "runs", out=tmp_path / "without.html", users=1)
    assert not without.says("Not drawn")
    page = page_of(trained / "runs", out=tmp_path / "page.html", users=1, figures=True)
    assert page.says("Run: pip install 'regen[analysis]'")
    assert not page.of("img")


def test_columns_in_which_these_runs_do_not_differ_are_the_default_ones(runs, tmp_path):
    for path in runs.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(config | {"compare": {"columns": "adapter.lr", "reference": "0.1"}}))
    assert page_of(runs).says("both vs cf")
