"""One thread writes for many callers: what each reads is what it would read alone, whoever comes and goes."""

import asyncio
from contextlib import aclosing

import pytest

from regen.serving import NarrativeModel
from regen.serving.backend import BackendError, QueueFullError
from regen.serving.transformers_backend import TransformersBackend

FEATURE = "purchase_reason"


@pytest.fixture(scope="module")
def served(exported):
    return NarrativeModel.from_pretrained(exported)


@pytest.fixture(scope="module")
def histories(finished):
    return [history[-length:] for history in finished.histories[:6] for length in (1, 3)]


def run(served, scenario, **options):
    async def main():
        async with TransformersBackend(served, **options) as backend:
            return await asyncio.wait_for(scenario(backend), 60)

    return asyncio.run(main())


async def text_of(backend, history, **options):
    prepared = await backend.prepare(history, feature=FEATURE)
    async with aclosing(backend.stream(prepared, **options)) as pieces:
        return "".join([piece async for piece in pieces])


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_many_callers_read_what_each_would_read_alone(served, histories):
    alone = [served.narrate(history, FEATURE).text for history in histories]

    async def scenario(backend):
        return await asyncio.gather(*(text_of(backend, history) for history in histories))

    assert run(served, scenario, rows=3) == alone
    assert len(set(alone)) > 1


def test_a_caller_that_leaves_frees_its_row(served, histories):
    async def scenario(backend):
        prepared = [await backend.prepare(history, feature=FEATURE) for history in histories]
        streams = [backend.stream(one) for one in prepared[:3]]
        reading = [asyncio.ensure_future(anext(stream)) for stream in streams]  # one has the row, two wait for it
        await until(lambda: backend.thread.writing == 1 or any(one.done() for one in reading))
        for one in reading:
            one.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
        await until(lambda: backend.thread.writing == 0)
        return await text_of(backend, histories[4])

    assert run(served, scenario, rows=1) == served.narrate(histories[4], FEATURE).text


def test_places_are_bounded_and_given_back(served):
    async def scenario(backend):
        with backend.admitted(2), backend.admitted():
            with pytest.raises(QueueFullError, match="3 of 4 places are taken, and this request needs 2") as full:
                backend.admitted(2).__enter__()
            assert full.value.after >= 1
            with backend.admitted():
                assert backend.under_way == 4
        assert backend.under_way == 0

    run(served, scenario, rows=1, queue=3)


def test_a_deadline_ends_a_narrative_and_frees_its_row(served, histories):
    async def scenario(backend):
        with pytest.raises(TimeoutError):
            await text_of(backend, histories[0], deadline=asyncio.get_running_loop().time())
        return await text_of(backend, histories[1])

    assert run(served, scenario, rows=1) == served.narrate(histories[1], FEATURE).text


def test_a_step_that_fails_gives_up_its_rows_and_the_engine_goes_on(served, histories, monkeypatch, caplog):
    async def scenario(backend):
        with monkeypatch.context() as broken:
            broken.setattr("regen.generation.row_decoder.RowDecoder.add", out_of_memory)
            results = await asyncio.gather(*(text_of(backend, one) for one in histories[:3]), return_exceptions=True)
        await backend.check()
        return results, await text_of(backend, histories[1])

    def out_of_memory(*_):
        raise RuntimeError("no memory left")

    results, after = run(served, scenario, rows=2)
    assert [type(one) for one in results] == [BackendError] * 3
    assert "no memory left" in str(results[0])
    assert "decoding failed" in caplog.text
    assert after == served.narrate(histories[1], FEATURE).text


def test_stopping_ends_what_is_under_way(served, histories):
    async def main():
        async with TransformersBackend(served, rows=1) as backend:
            prepared = await backend.prepare(histories[0], feature=FEATURE)
            reading = [asyncio.ensure_future(anext(backend.thread.tokens(prepared, limit=1000))) for _ in range(3)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*reading, return_exceptions=True)
        with pytest.raises(BackendError, match="ended"):
            await backend.check()
        return results

    assert any(isinstance(result, BackendError) for result in asyncio.run(main()))


def test_a_row_has_room_for_the_longest_history(served):
    longest = max(len(served.prepare([{"title": "x"}], feature=one).prompt) for one in served.features)
    bos = served.soft_token_lm.bos_token_id is not None
    assert served.longest_row == bos + 50 + longest + served.decoding.max_new_tokens


def test_settings_that_change_greedy_text_are_refused(exported):
    model = NarrativeModel.from_pretrained(exported)
    model.generation.temperature, model.generation.do_sample = 0.7, True
    TransformersBackend(model)  # `load_model` warns that the service does not sample
    model.generation.repetition_penalty = 1.3
    with pytest.raises(ValueError, match=r"settings change repetition_penalty, .*generation_config\.json"):
        TransformersBackend(model)
