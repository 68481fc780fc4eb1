import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from loramem.base_model import BaseModel
from loramem.errors import JobCancelled, TrainingFailed, WriterUnavailable
from loramem.settings import Settings
from trainer_worker import __main__ as main
from trainer_worker import writer as writer_module
from trainer_worker.build import Builder
from trainer_worker.metrics import Metrics
from trainer_worker.writer import BUSY, PROMPT_REFUSED, Writer

Answer = Callable[[httpx.Request], httpx.Response]


def writer(answer: Answer, model: str = "m", api_key: str = "", pauses_s: Sequence[float] = ()) -> Writer:
    return Writer("http://writer/v1", model, api_key, pauses_s=pauses_s, transport=httpx.MockTransport(answer))


def echo(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    if "messages" in body:
        return httpx.Response(200, json={"choices": [{"message": {"content": body["messages"][-1]["content"]}}]})
    return httpx.Response(200, json={"choices": [{"text": body["prompt"].upper()}]})


def test_texts_come_back_in_the_order_of_the_prompts() -> None:
    prompts = [f"prompt {number}" for number in range(50)]
    assert writer(echo).complete(prompts, max_tokens=4) == [prompt.upper() for prompt in prompts]


def test_a_conversation_goes_to_chat_and_a_text_to_completions() -> None:
    paths: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return echo(request)

    texts = writer(answer).complete(["a", [{"role": "user", "content": "b"}]], max_tokens=4)
    assert texts == ["A", "b"]
    assert sorted(paths) == ["/v1/chat/completions", "/v1/completions"]


def test_no_prompts_ask_nothing() -> None:
    assert writer(lambda request: pytest.fail("asked")).complete([], max_tokens=4) == []


def test_options_key_and_model_reach_the_endpoint() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return echo(request)

    writer(answer, api_key="secret").complete(["a"], max_tokens=7, temperature=0.5, seed=3, stop=["\n"])
    assert json.loads(seen[0].content) == {
        "prompt": "a", "model": "m", "max_tokens": 7, "temperature": 0.5, "seed": 3, "stop": ["\n"]
    }  # fmt: skip
    assert seen[0].headers["authorization"] == "Bearer secret"


def test_greedy_requests_carry_no_seed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert "seed" not in json.loads(request.content)
        return echo(request)

    assert writer(answer).complete(["a"], max_tokens=4, seed=3) == ["A"]


def test_without_a_model_the_first_listed_is_taken() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        assert json.loads(request.content)["model"] == "first"
        return echo(request)

    assert writer(answer, model="").complete(["a"], max_tokens=4) == ["A"]


def test_an_endpoint_without_models_names_the_setting() -> None:
    with pytest.raises(TrainingFailed, match="LORAMEM_WRITER_MODEL"):
        writer(lambda request: httpx.Response(200, json={"data": []}), model="").complete(["a"], max_tokens=4)


def test_refused_connection_is_unavailable() -> None:
    with pytest.raises(WriterUnavailable, match="cannot be reached"):
        Writer("http://127.0.0.1:9", "m").complete(["a"], max_tokens=4)


def test_a_slow_endpoint_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too slow", request=request)

    with pytest.raises(WriterUnavailable, match="too slow"):
        writer(answer).complete(["a"], max_tokens=4)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failing_endpoint_is_unavailable(status: int) -> None:
    with pytest.raises(WriterUnavailable, match=str(status)):
        writer(lambda request: httpx.Response(status, text="starting")).complete(["a", "b"], max_tokens=4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "no such method"}}, "no such method"),
        ({"detail": "not here"}, "not here"),
        ({"error": "plain"}, "plain"),
        (["odd"], "odd"),
    ],
)
def test_refusal_ends_the_job_with_the_endpoints_message(body: object, message: str) -> None:
    with pytest.raises(TrainingFailed, match=message):
        writer(lambda request: httpx.Response(405, json=body)).complete(["a"], max_tokens=4)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "wrong key"), (402, "no credit is left"), (403, "not with this key")],
)
@pytest.mark.parametrize("model", ["m", ""], ids=["named", "listed"])
def test_an_endpoint_that_admits_nobody_is_unavailable(status: int, message: str, model: str) -> None:
    """As after a change of keys: no job is at fault, and each would fail."""
    by = writer(lambda request: httpx.Response(status, json={"detail": message}), model=model)
    with pytest.raises(WriterUnavailable, match=message):
        by.complete(["a", "b"], max_tokens=4)


@pytest.mark.parametrize("reply", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"choices": []})])
def test_reply_of_another_shape_ends_the_job(reply: httpx.Response) -> None:
    with pytest.raises(TrainingFailed, match="writer"):
        writer(lambda request: reply).complete(["a"], max_tokens=4)


def test_every_arrival_is_told() -> None:
    arrived: list[None] = []
    writer(echo).complete(["a", "b", "c"], max_tokens=4, on_each=lambda: arrived.append(None))
    assert len(arrived) == 3


class TestAskingAgain:
    @pytest.fixture
    def slept(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Seconds of the pauses, which take no time."""
        pauses: list[float] = []
        real = asyncio.sleep

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            await real(0)

        monkeypatch.setattr("trainer_worker.writer.asyncio.sleep", sleep)
        return pauses

    def after(self, *replies: httpx.Response | Exception, asked: list[int] | None = None) -> Answer:
        """An endpoint that gives these before it answers."""
        left = list(replies)

        def answer(request: httpx.Request) -> httpx.Response:
            if asked is not None:
                asked.append(1)
            if not left:
                return echo(request)
            reply = left.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

        return answer

    @pytest.mark.parametrize("status", sorted(BUSY))
    def test_a_busy_endpoint_is_asked_again_after_a_pause(self, status: int, slept: list[float]) -> None:
        by = writer(self.after(httpx.Response(status)), pauses_s=(8.0, 16.0))
        assert by.complete(["a"], max_tokens=4) == ["A"]
        [pause] = slept
        assert 4 <= pause <= 8

    def test_so_is_one_that_was_too_slow(self, slept: list[float]) -> None:
        by = writer(self.after(httpx.ReadTimeout("too slow"), httpx.ConnectTimeout("too slow")), pauses_s=(8.0, 16.0))
        assert by.complete(["a"], max_tokens=4) == ["A"]
        assert len(slept) == 2
        assert slept[0] < slept[1] <= 16

    @pytest.mark.parametrize("last", [httpx.Response(503), httpx.ReadTimeout("too slow")], ids=["busy", "slow"])
    def test_after_all_pauses_it_is_unavailable(self, last: httpx.Response | Exception, slept: list[float]) -> None:
        asked: list[int] = []
        by = writer(self.after(*[last] * 9, asked=asked), pauses_s=(1.0, 2.0))
        with pytest.raises(WriterUnavailable):
            by.complete(["a"], max_tokens=4)
        assert (len(asked), len(slept)) == (3, 2)

    def test_nobody_is_asked_again_when_the_patience_is_over(self, slept: list[float]) -> None:
        by = writer(self.after(httpx.ReadTimeout("too slow")), pauses_s=(1.0,))
        by.patience_s = 0.0
        with pytest.raises(WriterUnavailable):
            by.complete(["a"], max_tokens=4)
        assert slept == []

    @pytest.mark.parametrize("hang_after_s", [600.0, 400.0, 250.0])
    def test_it_is_over_before_the_worker_seems_to_hang(
        self, hang_after_s: float, slept: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each prompt takes the longest that it may, and so does each pause."""
        now = 0.0

        def answer(request: httpx.Request) -> httpx.Response:
            nonlocal now
            now += writer_module.TIMEOUT_S
            return httpx.Response(504, headers={"Retry-After": "3600"})

        monkeypatch.setattr("time.monotonic", lambda: now + sum(slept))
        by = writer(answer, pauses_s=writer_module.PAUSES_S)
        by.patience_s = writer_module.patience_s(hang_after_s)
        with pytest.raises(WriterUnavailable):
            by.complete(["a"], max_tokens=4)
        assert now + sum(slept) <= hang_after_s

    def test_nor_when_nothing_was_answered_for_long(self, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        """The patience begins anew with each reply to any prompt."""
        now = 0.0
        tries: dict[str, int] = {}

        def answer(request: httpx.Request) -> httpx.Response:
            nonlocal now
            prompt = json.loads(request.content)["prompt"]
            now += 50.0
            tries[prompt] = tries.get(prompt, 0) + 1
            if prompt == "never" or tries[prompt] < 2:
                raise httpx.ReadTimeout("too slow")
            return echo(request)

        monkeypatch.setattr("time.monotonic", lambda: now)
        by = Writer("http://w/v1", "m", most_at_once=1, pauses_s=(1.0,) * 9, transport=httpx.MockTransport(answer))
        with pytest.raises(WriterUnavailable):
            by.complete(["never", "a"], max_tokens=4)
        assert tries == {"never": 7, "a": 2}, "the last 240 s of it without a reply"

    @pytest.mark.parametrize("trouble", [httpx.ReadTimeout("too slow"), httpx.Response(429)], ids=["slow", "limited"])
    def test_one_that_takes_few_at_a_time_gets_few(
        self, trouble: httpx.Response | Exception, slept: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running, most = 0, []

        async def answer(request: httpx.Request) -> httpx.Response:
            nonlocal running
            running += 1
            most.append(running)
            turn = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.002, turn.set_result, None)
            await turn
            many, running = running, running - 1
            if many <= 4:
                return echo(request)
            if isinstance(trouble, Exception):
                raise trouble
            return trouble

        by = Writer("http://w/v1", "m", pauses_s=(1.0,) * 6, transport=httpx.MockTransport(answer))
        prompts = [f"p{number}" for number in range(60)]
        assert by.complete(prompts, max_tokens=4) == [prompt.upper() for prompt in prompts]
        assert max(most) == 32
        most.clear()
        assert by.complete(prompts, max_tokens=4) == [prompt.upper() for prompt in prompts]
        assert max(most) < 8, "remembered, and one more tried now and then"

    def test_one_that_is_not_ready_gets_as_many_later(self, slept: list[float]) -> None:
        """As our own gateway, which answers 503 while its engine loads."""
        by = writer(self.after(*[httpx.Response(503)] * 40), pauses_s=(1.0,) * 6)
        prompts = [f"p{number}" for number in range(60)]
        assert by.complete(prompts, max_tokens=4) == [prompt.upper() for prompt in prompts]
        assert by.at_once == 32

    def test_no_more_than_the_most_are_asked_at_once(self) -> None:
        by = Writer("http://w/v1", "m", most_at_once=2, transport=httpx.MockTransport(echo))
        assert by.complete(["a", "b", "c"], max_tokens=4) == ["A", "B", "C"]
        assert by.at_once == 2

    @pytest.mark.parametrize("reply", [httpx.Response(500), httpx.ConnectError("refused")], ids=["broken", "away"])
    def test_one_that_fails_or_is_away_is_not(self, reply: httpx.Response | Exception, slept: list[float]) -> None:
        with pytest.raises(WriterUnavailable):
            writer(self.after(reply), pauses_s=(1.0,)).complete(["a"], max_tokens=4)
        assert slept == []

    @pytest.mark.parametrize(
        ("said", "least", "most"),
        [("7", 8, 9), ("3600", 61, 62), ("Wed, 21 Oct 2065 07:28:00 GMT", 1, 2), ("0", 1, 2)],
        ids=["seconds", "too long", "a date", "at once"],
    )
    def test_the_endpoint_may_say_how_long_to_wait(
        self, said: str, least: float, most: float, slept: list[float]
    ) -> None:
        busy = httpx.Response(429, headers={"Retry-After": said})
        assert writer(self.after(busy), pauses_s=(2.0,)).complete(["a"], max_tokens=4) == ["A"]
        assert least <= slept[0] <= most


class TestRefusedPrompts:
    def refuses(self, *prompts: str, status: int = 400) -> Writer:
        def answer(request: httpx.Request) -> httpx.Response:
            refused = json.loads(request.content)["prompt"] in prompts
            return httpx.Response(status, json={"detail": "too long"}) if refused else echo(request)

        return writer(answer)

    @pytest.mark.parametrize("status", sorted(PROMPT_REFUSED))
    def test_one_of_several_has_an_empty_text(self, status: int, caplog: pytest.LogCaptureFixture) -> None:
        arrived: list[None] = []
        by = self.refuses("b", status=status)
        texts = by.complete(["a", "b", "c"], max_tokens=4, on_each=lambda: arrived.append(None))
        assert texts == ["A", "", "C"]
        assert len(arrived) == 3
        assert f"1 of 3 prompts are left out: the writer refuses ({status}): too long" in caplog.text

    def test_all_of_several_end_the_job(self) -> None:
        with pytest.raises(TrainingFailed, match="too long"):
            self.refuses("a", "b").complete(["a", "b"], max_tokens=4)

    def test_a_single_one_has_an_empty_text(self) -> None:
        assert self.refuses("a").complete(["a"], max_tokens=4) == [""]


class TestProxies:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        """Of an endpoint on this machine."""

        class Endpoint(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                body = json.dumps({"choices": [{"text": "A"}]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/v1"
            server.shutdown()

    def test_of_the_environment_are_used_unless_they_are_not_wanted(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert Writer(url, "m", proxies=False).complete(["a"], max_tokens=4) == ["A"]
        with pytest.raises(WriterUnavailable):
            Writer(url, "m").complete(["a"], max_tokens=4)

    @pytest.mark.parametrize(("away", "proxies"), [("", False), ("http://writer/v1", True)])
    def test_are_not_asked_for_our_own_gateway(self, away: str, proxies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        assert made_by_worker(Settings(writer_url=away), monkeypatch).proxies is proxies


@pytest.mark.parametrize(("hang_after_s", "patience_s"), [(600.0, 240.0), (250.0, 38.0)])
def test_a_workers_patience_is_shorter_where_it_seems_to_hang_sooner(
    hang_after_s: float, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made_by_worker(Settings(hang_after_s=hang_after_s), monkeypatch).patience_s == patience_s


def made_by_worker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Writer:
    nothing: Any = None
    monkeypatch.setattr(main, "load_embedder", lambda settings: nothing)
    monkeypatch.setattr(Builder, "trainer", nothing)
    base = BaseModel(Path(), "tiny", "")
    return main.make_builder(settings, base, nothing, nothing, nothing, Metrics()).writer


def test_waiting_may_be_stopped() -> None:
    """As a job that was cancelled is, though the endpoint has not answered."""

    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return echo(request)

    def stop() -> None:
        raise JobCancelled("cancelled")

    by = Writer("http://writer/v1", "m", transport=httpx.MockTransport(answer))
    with pytest.raises(JobCancelled):
        by.complete(["a", "b"], max_tokens=4, on_wait=stop)
