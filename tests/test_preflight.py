"""What is sure to fail is refused before any work: no artefact is built and no run folder appears."""

import re
from dataclasses import replace

import polars as pl
import pytest
import torch
from small import needs_vnni

from regen.config.schema import CONF, Feature
from regen.data.prepare import load_tables
from regen.data.tables import DataError
from regen.models.language_model import skeleton
from regen.pipeline import prepared_artefact, train_and_evaluate
from regen.training.preflight import EXTRAS, check_config, check_data, least_memory

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")

RAY = "engine=ray"
ENDPOINT = "evaluation.endpoint=http://127.0.0.1:9/v1"
REFUSED = [  # overrides, and what the message says
    (["split.test=0.6", "split.validation=0.4"], "whose sum is below 1"),
    (["trainer.deterministic=perhaps"], "trainer.deterministic=perhaps has to be true, false or warn"),
    (["training.monitor=val_similarity"], "has to be one of val_loss. For others set training.narratives_at_validation"),
    (["training.monitor=val_bleu", "training.narratives_at_validation=4"], "val_bleu goes with training.mode=max, not min"),
    (["encoder=none", "encoder.name=nothing"], "encoder.name='nothing' has no parts and is none of none, random"),
    (["encoder.parts=[cf,contnt]"], "encoder.parts has contnt. A part is cf or content, or a node with"),
    (["encoder.parts=[{_target_: a.B}]"], "A part is cf or content, or a node with _target_ and name"),
    (["encoder.dim=8"], "encoder.dim belongs to encoder=none, random, noise"),
    (["encoder=text", "tuning=frozen"], "leaves nothing to train"),
    ([RAY, ENDPOINT], "and engine=ray exclude each other"),
    ([ENDPOINT, "evaluation.generation.do_sample=true"], "decodes greedily, and evaluation.generation asks for do_sample"),
    ([ENDPOINT, "evaluation.precision=int8"], "which evaluation.precision=int8 cannot change"),
    (["+evaluation.generation.max_new_token=5"], "no such option. Did you mean 'max_new_tokens'"),
    (["~evaluation.generation.max_new_tokens"], "max_new_tokens is missing"),
    (["+evaluation.generation.num_return_sequences=2"], "evaluation.generation: .*num_return_sequences"),
    (["evaluation.generation.max_new_tokens=600"], "max_new_tokens=600 .* do not fit into the 512 positions"),
    (["feature.purchase_reason.prompt=" + "why " * 600], "feature.purchase_reason.prompt has 600 tokens"),
    (["tuning=lora", "tuning.target_modules=[qkv]"], r"tuning.target_modules=\['qkv'\]: .* linear layers \(q_proj, k_proj"),
    (["lm=hf", "lm.pretrained=./nowhere"], "lm.pretrained=./nowhere: nothing to load there"),
    (["tuning=qlora", "trainer=fsdp"], "tuning=qlora and trainer=fsdp: layers in 4 bits cannot be split"),
    (["trainer.accelerator=gpu"], "this machine has 0 CUDA devices. .* Use fewer, or trainer=cpu"),
    (["cf=sasrec", "cf.model.python=nowhere"], "cf=sasrec: nowhere is no Python with RecTools"),
    (["cf=sasrec", "cf.model.factors=5"], "cf.model.factors=5: SASRec has 2 attention heads"),
    (["logger=wandb"], "not logged in to Weights & Biases. Run `wandb login`"),
]  # fmt: skip


@pytest.fixture
def refused(small_config, tmp_path, monkeypatch):
    """Runs a cell that must be refused; gives the message after looking for traces of work."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def message(overrides, error=ValueError):
        groups = tuple(override.split("=")[0] + "=" for override in overrides if "." not in override.split("=")[0])
        cfg = small_config(*overrides, without=(*groups, *(f"{group[:-1]}." for group in groups)) or "nothing")
        with pytest.raises(error) as caught:
            train_and_evaluate(cfg)
        assert not (tmp_path / "runs").exists()
        left = {path.name.split("-")[0] for path in (tmp_path / "data").glob("*-*")}
        return str(caught.value), left

    return message


@pytest.mark.parametrize(
    ("overrides", "says"), REFUSED, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_a_config_that_is_sure_to_fail_is_refused_before_any_work(refused, overrides, says):
    message, left = refused(overrides)
    assert left == set()
    assert re.search(says, message), message


SHIPPED = [
    f"{path.parent.name}={path.stem}"
    for name in ("adapter", "cf", "encoder", "tuning", "scheduler", "debug")
    for path in CONF.glob(f"{name}/*.yaml")
]


@pytest.mark.parametrize("option", SHIPPED)
@pytest.mark.slow  # checks each of some 30 files; tests/test_configs_train.py trains them
def test_what_is_shipped_is_not_refused(small_config, option, monkeypatch):
    monkeypatch.setattr("regen.training.preflight.check_environment", lambda *_, **__: None)  # RecTools is elsewhere
    group = option.split("=")[0]
    check_config(small_config(option, without=(f"{group}=", f"{group}.")))


@pytest.mark.parametrize("target", EXTRAS)
def test_a_missing_extra_is_named_with_its_command(small_config, monkeypatch, target):
    from regen.training import preflight

    package, extra = EXTRAS[target]
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    needing = {"ray": "engine=ray", "schedulefree": "optimizer=schedule_free", "bitsandbytes": "tuning=qlora"}
    options = needing.get(package, f"logger={package}")
    with pytest.raises(ValueError, match=rf"needs the package {package}. Run: pip install 'regen\[{extra}\]'"):
        check_config(small_config(options, without=options.split("=")[0]))


def test_a_class_that_cannot_be_loaded_is_named_before_any_work(small_config):
    for target in ("my_regen_of_nobody.adapter.Bottleneck", "json.NoSuchClass"):
        with pytest.raises(ValueError, match=rf"_target_={target} cannot be loaded: .* Install its package"):
            check_config(small_config(f"adapter._target_={target}"))


@needs_vnni
def test_int8_is_refused_where_the_cpu_cannot(small_config, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="evaluation.precision=int8 needs a CPU with VNNI"):
        check_config(small_config("evaluation.precision=int8"))


@pytest.fixture
def card(small_config, monkeypatch):
    """A GPU of 24 GiB with half a MiB free, without bfloat16 until told otherwise."""
    small_config().lm.build()  # kept: drawing its weights would ask for the state of the GPU's generator
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GeForce")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**19, 24 * 2**30))
    return monkeypatch


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, "is built without CUDA: install the build"),
        ("13.0", "needs a driver for CUDA 13.0: .* update its driver"),
    ],
)
def test_a_missing_device_comes_with_its_likely_reason(small_config, monkeypatch, cuda, said):
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=f"this machine has 0 CUDA devices. PyTorch .*{said}" if cuda else said):
        check_config(small_config("trainer.accelerator=gpu", without="trainer.accelerator"))


def test_a_card_without_bfloat16_is_refused(refused, card):
    card.setattr(torch.cuda, "device_count", lambda: 1)
    message, _ = refused(["trainer=gpu"])
    assert message == "trainer.precision=bf16-mixed: GeForce has no bfloat16. Use trainer.precision=32-true."


def test_an_lm_larger_than_what_is_free_on_the_card_is_refused(refused, card):
    card.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    card.setattr(torch.cuda, "device_count", lambda: 1)
    message, left = refused(["trainer=gpu", "tuning=full"])
    assert left == set()
    assert re.match(
        r"lm=tiny tuning=full needs 0\.\d GiB for weights, gradients and optimizer alone; 0.0 of 24.0 GiB", message
    )
    assert "are free on cuda:0. Use tuning=lora with trainer.precision=bf16-mixed, tuning=qlora" in message


def test_the_least_memory_follows_precision_tuning_and_parts(small_config):
    def bytes_each(*overrides):
        config = small_config(*overrides, "lm.width=128", without=("tuning", "lm.width"))
        lm, _ = skeleton(config.lm.node)
        count = sum(parameter.numel() for parameter in lm.parameters())
        return least_memory(config, config.tuning.build(lm)) / count

    assert bytes_each("tuning=full") == 16
    assert bytes_each("tuning=full", "trainer=fsdp", "trainer.devices=4") == 4
    assert bytes_each("tuning=frozen") == 4
    assert bytes_each("tuning=frozen", "trainer=gpu") == 2
    assert bytes_each("tuning=qlora", "trainer=gpu") < bytes_each("tuning=lora", "trainer=gpu") < 2.1


def test_too_few_users_are_refused_before_anything_is_encoded(refused):
    message, left = refused(["source.narrated_users=3", "split.test=0.01", "split.validation=0.01"], DataError)
    assert "split has 0 users with a purchase_reason" in message
    assert left == {"prepared"}


def test_a_feature_that_the_data_do_not_have_is_refused(small_config):
    prepared = prepared_artefact(small_config()).path
    cfg = replace(small_config(), feature={"praise": Feature("Praise:", False)})
    with pytest.raises(
        DataError, match="feature=praise: these data have no such narrative; they have brief_user_summary"
    ):
        check_data(cfg, prepared)
    pl.read_parquet(prepared / "narratives.parquet").clear().write_parquet(prepared / "narratives.parquet")
    load_tables.cache_clear()
    with pytest.raises(DataError, match="These data have no narratives, .*Choose what writes them"):
        check_data(cfg, prepared)


def test_a_feature_whose_texts_are_all_null_is_refused_with_the_reason(small_config):
    """As `narrator=template` writes for items without brand and category."""
    cfg = small_config()
    prepared = prepared_artefact(cfg).path
    rows = pl.read_parquet(prepared / "narratives.parquet")
    rows.with_columns(text=pl.lit(None, pl.String)).write_parquet(prepared / "narratives.parquet")
    load_tables.cache_clear()
    with pytest.raises(DataError, match="feature=purchase_reason: all 80 narratives are null. Choose another feature"):
        check_data(cfg, prepared)
    cfg = replace(cfg, narrator=replace(cfg.narrator, name="template"))
    with pytest.raises(DataError, match="are null. narrator=template gives a reason only if .*Give the items a brand"):
        check_data(cfg, prepared)
