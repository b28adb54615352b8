"""What the command refuses before it listens, and that it listens; services on two versions of the data."""

import asyncio
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving.finished_runs import FinishedRun, trained
from serving.services import service
from small import needs_vnni

from regen import pipeline
from regen.config.objects import compose
from regen.serving import NarrativeModel, connection, server
from regen.serving.users import Users


def config(*overrides):
    return compose(["checkpoint=none", *overrides], root="serve")


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
    other = pipeline.build_inputs(session_config("encoder=cf", "source.seed=1")).prepared
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


@pytest.mark.parametrize("precision", ["null", pytest.param("int8", marks=needs_vnni)])
def test_the_weights_are_laid_out_for_this_machine(exported, precision):
    model = server.load_model(str(exported))
    server.build_backend(config(f"precision={precision}"), model)
    forwards = [type(vars(layer).get("forward")).__name__ for layer in model.soft_token_lm.lm.modules()]
    assert forwards.count("NarrowLinear" if precision == "int8" else "PackedLinear") > 10
    if precision == "int8":
        with pytest.raises(ValueError, match=r"backend=vllm .* precision=int8 cannot change\. Leave one"):
            server.build_backend(config("backend=vllm", "precision=int8"), model)


def test_a_service_that_cannot_listen_leaves_the_callers_signals(exported):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(ValueError, match="Take another port"):
                server.serve(config(f"checkpoint={exported}", f"port={taken.getsockname()[1]}"))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_is_served_like_its_export(finished):
    assert server.load_model(str(finished.folder)).spec.run == finished.folder.name


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported model"):
        server.serve(config(f"checkpoint={tmp_path}"))


def test_a_connection_whose_client_does_not_read_is_cut(monkeypatch):
    monkeypatch.setattr(connection, "UNREAD", 0.1)
    ended = asyncio.Event()

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        waiting = asyncio.ensure_future(wait_until_left(receive))
        while not waiting.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    async def wait_until_left(receive):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as unread:
            running = server.Server(endless)
            serving = asyncio.ensure_future(running.serve(sockets=[listening]))
            unread.setblocking(False)
            await asyncio.get_running_loop().sock_connect(unread, listening.getsockname())
            await asyncio.get_running_loop().sock_sendall(unread, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 20)
            running.should_exit = True
            await serving

    asyncio.run(main())


@pytest.mark.slow
def test_the_command_listens_and_ends_when_told(exported, tmp_path):
    with service(tmp_path, exported) as served:
        assert httpx.get(f"{served.url}/health", timeout=60).json() == {"status": "ok"}
        page = httpx.get(f"{served.url}/docs").text
        files = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(files) >= 3
        for file in files:  # from this service, so that the page opens without a network
            assert file.startswith("/")
            assert httpx.get(f"{served.url}{file}").status_code == 200
    assert "Traceback" not in "".join(served.said)


@pytest.mark.slow
def test_services_on_two_versions_of_the_data_never_mix_them_up(finished, exported, session_config, tmp_path):
    later = FinishedRun(trained(session_config, "encoder=both", "tuning=lora", "adapter=mlp", "source.seed=1"))
    versions = []
    for run, folder in ((finished, exported), (later, None)):
        model = NarrativeModel.from_pretrained(
            folder or NarrativeModel.from_run(later.folder).save_pretrained(tmp_path / "m")
        )
        prepared = pipeline.read_run(run.folder).inputs.prepared
        users = Users(run.tables, latest=50)
        versions.append((run.folder if folder is None else folder, model, prepared, users))
    assert versions[0][2].fingerprint != versions[1][2].fingerprint
    ids = sorted(set(finished.tables.interactions["user_id"]) & set(later.tables.interactions["user_id"]))[:24]
    assert len(ids) == 24
    histories = [[users.history(one) for one in ids] for *_, users in versions]
    assert histories[0] != histories[1]

    def ask(at):
        which, user = divmod(at, len(ids))
        body = {"narratives": [{"user_id": ids[user], "feature": "purchase_reason"}]}
        reply = httpx.post(f"{served[which].url}/v1/narratives", json=body, timeout=60).json()
        return reply["data"], reply["narratives"][0]["text"]

    data = [f"data={prepared.path.resolve()}" for _, _, prepared, _ in versions]
    with (
        service(tmp_path, versions[0][0], data[0]) as first,
        service(tmp_path, versions[1][0], data[1]) as second,
        ThreadPoolExecutor(8) as clients,
    ):
        served = [first, second]
        answers = list(clients.map(ask, range(2 * len(ids))))
    for which, (_, model, prepared, _) in enumerate(versions):
        expected = [model.narrate(history, "purchase_reason").text for history in histories[which]]
        assert answers[which * len(ids) :][: len(ids)] == [(prepared.fingerprint, text) for text in expected]
