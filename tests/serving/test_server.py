"""What the command refuses before it listens, and that it listens."""

import pytest
from hydra import compose, initialize_config_dir

from regen.config import CONF, register
from regen.serving import server
from regen.training import run as runs


def config(*overrides):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("serve", list(overrides))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_other_machines_need_a_key(host, monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(ValueError, match=f"host={host} lets other machines ask.*A_KEY"):
        server.service_key(host, "A_KEY")
    monkeypatch.setenv("A_KEY", "")
    with pytest.raises(ValueError, match="needs a key"):
        server.service_key(host, "A_KEY")
    monkeypatch.setenv("A_KEY", "secret")
    assert server.service_key(host, "A_KEY") == "secret"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_none(host, monkeypatch):
    monkeypatch.delenv("A_KEY", raising=False)
    assert server.service_key(host, "A_KEY") is None


def test_data_of_another_version_are_refused_before_anything_listens(finished, exported, session_config):
    other = runs.build_inputs(session_config("encoder=cf", "source.seed=1")).prepared
    with pytest.raises(ValueError, match=f"is {other.fingerprint}, and the model was trained on"):
        server.serve(config(f"checkpoint={exported}", f"data={other.path}"))


def test_a_vllm_elsewhere_or_absent_is_refused(exported, monkeypatch, tmp_path):
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="this machine alone"):
        server.serve(config(f"checkpoint={exported}", "backend=vllm", "vllm=http://10.1.2.3:8000/v1"))
    with pytest.raises(ValueError, match=r"no vLLM answers at http://127.0.0.1:9/v1.*make llm-server MODEL=.*-merged-"):
        server.serve(config(f"checkpoint={exported}", "backend=vllm", "vllm=http://127.0.0.1:9/v1", "port=0"))


def test_dry_run_tells_what_to_start(exported, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("REGEN_CACHE", str(tmp_path))
    with caplog.at_level("INFO"):
        server.serve(config(f"checkpoint={exported}", "backend=vllm", "dry_run=true"))
    assert "start first: make llm-server MODEL=" in caplog.text


def test_a_run_is_served_like_its_export(finished):
    assert server.load_model(str(finished.folder)).spec.run == finished.folder.name


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported model"):
        server.serve(config(f"checkpoint={tmp_path}"))
