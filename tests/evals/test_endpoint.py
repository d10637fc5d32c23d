"""The client of an OpenAI-compatible server, against one in a thread: answers, failures, retries, order, limits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import longloom.evals.endpoint as endpoint_module
from longloom.evals.endpoint import Endpoint, Question, RateLimit, Reply

#: Status, headers, body.
Answer = tuple[int, dict[str, str], bytes]
#: From the number of tries so far and the request's body; None: it waits until the test is over.
Script = Callable[[int, dict[str, Any]], Answer | None]


def chat(text: Any, **change: Any) -> Answer:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}, **change}
    return 200, {}, json.dumps(body).encode()


def echo(number: int, body: dict[str, Any]) -> Answer:
    return chat(body["messages"][-1]["content"] + "!")


class Server(ThreadingHTTPServer):
    """Follows a script, and notes what it got; knows no models, as many servers do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: Script = echo
        self.got: list[tuple[str, dict[str, Any], str | None]] = []
        self.over = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up here, which is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(404, {}, b'{"detail": "Not Found"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.got.append((self.path, body, self.headers["Authorization"]))
            number = len(self.server.got)
        answer = self.server.script(number, body)
        if answer is None:
            self.server.over.wait()
        else:
            self._send(*answer)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not on the test's output."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the openai package waits between tries, without waiting."""
    noted: list[float] = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


def connect(server: Server, **change: Any) -> Endpoint:
    settings: dict[str, Any] = {
        "base_url": server.url,
        "model": "m",
        "api": "chat",
        "timeout": 30.0,
        "retries": 2,
        "at_once": 4,
        "per_minute": None,
    }
    return Endpoint(**{**settings, **change})


def questions(*texts: str) -> list[Question]:
    return [Question(text, max_tokens=5) for text in texts]


def test_a_chat(server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    asked = [Question("Who?", max_tokens=7, stop=["", "a", "b", "c", "d", "e"]), Question(messages, max_tokens=8)]
    first, second = connect(server, at_once=1).ask(asked)
    assert (first.text, first.prompt_tokens, first.new_tokens, first.error) == ("Who?!", 11, 3, None)
    assert (second.text, second.error) == ("Why?!", None)
    assert first.seconds > 0
    (path, body, key), (_, other, _) = server.got
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Who?"}],
        "max_tokens": 7,
        "temperature": 0,
        "stop": ["a", "b", "c", "d"],
    }
    assert other["messages"] == messages
    assert "stop" not in other
    assert key == "Bearer sk-secret"


def test_completions_of_a_server_without_key_and_usage(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.script = lambda number, body: (200, {}, json.dumps({"choices": [{"text": ""}]}).encode())
    (reply,) = connect(server, api="completions").ask(questions("Once"))
    assert (reply.text, reply.prompt_tokens, reply.new_tokens, reply.error) == ("", None, None, None)
    ((path, body, key),) = server.got
    assert (path, body["prompt"]) == ("/v1/completions", "Once")
    assert key == "Bearer none"


def test_replies_keep_their_order_and_are_told_as_they_come(server: Server) -> None:
    others = threading.Semaphore(0)

    def script(number: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][0]["content"]
        if text == "0":  # the first question is answered last
            for _ in range(4):
                others.acquire()
        return chat(text)

    def note(index: int, reply: Reply) -> None:
        told.append((index, reply.text))
        others.release()

    server.script = script
    told: list[tuple[int, str]] = []
    replies = connect(server, at_once=2).ask(questions("0", "1", "2", "3", "4"), on_reply=note)
    assert [reply.text for reply in replies] == ["0", "1", "2", "3", "4"]
    assert told == [(1, "1"), (2, "2"), (3, "3"), (4, "4"), (0, "0")]


def test_an_interrupted_run_waits_for_nothing(server: Server) -> None:
    server.script = lambda number, body: chat("yes") if number == 1 else None
    told = []

    def note(index: int, reply: Reply) -> None:
        told.append(index)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(server, at_once=1).ask(questions("a", "b", "c", "d"), on_reply=note)
    assert told == [0]
    assert len(server.got) <= 2


def test_no_questions_need_no_server(server: Server) -> None:
    server.shutdown()
    server.server_close()
    assert connect(server).ask([]) == []


def test_a_time_out_fails_alone(server: Server, sleeps: list[float]) -> None:
    server.script = lambda number, body: None if body["messages"][0]["content"] == "slow" else echo(number, body)
    slow, quick = connect(server, timeout=0.3, retries=1, at_once=2).ask(questions("slow", "quick"))
    assert (slow.text, slow.error) == ("", "no answer within 0.3 s")
    assert (quick.text, quick.error) == ("quick!", None)
    assert [body["messages"][0]["content"] for _, body, _ in server.got].count("slow") == 2


def test_retry_after_is_honoured(server: Server, sleeps: list[float]) -> None:
    busy = (429, {"Retry-After": "7"}, b"{}")
    server.script = lambda number, body: busy if number <= 2 else echo(number, body)
    (reply,) = connect(server).ask(questions("a"))
    assert (reply.text, reply.error) == ("a!", None)
    assert sleeps == [7.0, 7.0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stays_busy_is_a_failure(server: Server, sleeps: list[float], status: int) -> None:
    server.script = lambda number, body: (status, {}, b'{"error": {"message": "slow\\n down"}}')
    (reply,) = connect(server, retries=3).ask(questions("a"))
    assert (reply.text, reply.error) == ("", f"HTTP {status}: slow down")
    assert len(server.got) == 4
    for wait, most in zip(sleeps, (0.5, 1, 2), strict=True):  # doubles each time, up to a quarter less
        assert 0.75 * most <= wait <= most


def test_a_server_error_is_tried_again(server: Server, sleeps: list[float]) -> None:
    server.script = lambda number, body: (500, {}, b"oops") if number == 1 else echo(number, body)
    (reply,) = connect(server).ask(questions("a"))
    assert (reply.text, reply.error, len(server.got)) == ("a!", None, 2)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>\nhello", "the server's answer is not JSON: '<html>\\nhello'"),
        (b"", "the server's answer is not JSON: ''"),
        (b"[]", "the server's answer has no choices: '[]'"),
        (b'{"choices": []}', "the server's answer has no choices: '{\"choices\": []}'"),
        (b'{"choices": null}', "the server's answer has no choices: '{\"choices\": null}'"),
        (b'{"choices": [1]}', "the server's answer has no choices: '{\"choices\": [1]}'"),
        (chat(None)[2], "the server's answer has no text (finish_reason 'stop')"),
        (chat(["part"])[2], "the server's answer has no text (finish_reason 'stop')"),
        (b'{"choices": [{"text": "of the other api"}]}', "the server's answer has no text (finish_reason None)"),
    ],
)
def test_garbage_is_a_failure(server: Server, body: bytes, reason: str) -> None:
    server.script = lambda number, asked: (200, {}, body) if number == 1 else echo(number, asked)
    garbage, good = connect(server, at_once=1).ask(questions("a", "b"))
    assert (garbage.text, garbage.error) == ("", reason)
    assert (good.text, good.error) == ("b!", None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"error": {"message": "at most 4096\\ntokens", "code": 400}}', "HTTP 400: at most 4096 tokens"),
        (b'{"object": "error", "message": "at most 4096 tokens"}', "HTTP 400: at most 4096 tokens"),
        (b'{"error": "no such model"}', "HTTP 400: no such model"),
        (b'{"detail": "Not Found"}', "HTTP 400: {'detail': 'Not Found'}"),
        (b"nonsense", "HTTP 400: nonsense"),
        (b"", "HTTP 400: Bad Request"),
        (b'{"error": {"message": "wrong key sk-secret"}}', "HTTP 400: wrong key ***"),
        (b"x" * 300, f"HTTP 400: {'x' * 187}..."),
    ],
)
def test_a_refusal_is_told_in_the_server_s_words(server: Server, body: bytes, reason: str) -> None:
    server.script = lambda number, asked: (400, {}, body)
    (reply,) = connect(server).ask(questions("a"))
    assert (reply.text, reply.error) == ("", reason)
    assert len(server.got) == 1


def test_usage_that_is_none_is_not_known(server: Server) -> None:
    server.script = lambda number, body: chat("yes", usage={"prompt_tokens": "many"})
    (reply,) = connect(server).ask(questions("a"))
    assert (reply.text, reply.prompt_tokens, reply.new_tokens) == ("yes", None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cut \ud83d", "cut \ufffd"),
        ("\ude00 begins", "\ufffd begins"),
        ("\ud83dx\ude00", "\ufffdx\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),  # a pair, which JSON writes as two
        ("\ufeff\U0001f600 é", "\ufeff\U0001f600 é"),
    ],
)
def test_half_a_character_is_mended(server: Server, text: str, expected: str) -> None:
    server.script = lambda number, body: chat(text)
    (reply,) = connect(server).ask([Question("q", 8)])
    assert (reply.text, reply.error) == (expected, None)
    server.script = lambda number, body: (400, {}, json.dumps({"error": {"message": text}}).encode())
    (reply,) = connect(server).ask([Question("q", 8)])
    assert reply.error is not None
    assert reply.error.encode().decode() == f"HTTP 400: {expected}"


def test_a_refused_connection(server: Server, sleeps: list[float]) -> None:
    client = connect(server)
    assert client.ask(questions("a"))[0].error is None
    server.shutdown()
    server.server_close()
    # A client that has got through once loses the samples that fail, and not those that it has.
    for reply in client.ask(questions("b", "c")):
        assert reply.text == ""
        assert str(reply.error).startswith("no connection: ")
    with pytest.raises(ValueError, match=rf"^cannot reach the endpoint {server.url} \(no connection: .*\); expected a"):
        connect(server).ask(questions("b"))


def test_a_name_that_leads_nowhere_is_told_without_retries(server: Server, sleeps: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^cannot reach the endpoint http://no-such-host.invalid/v1 "):
        connect(server, base_url="http://no-such-host.invalid/v1").ask(questions("a"))
    assert sleeps == []


def test_the_rate_limit_spaces_the_requests() -> None:
    now = [100.0]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    limit = RateLimit(30, clock=lambda: now[0], sleep=sleep)
    sent = []
    for work in (0.0, 0.5, 5.0, 0.0):  # seconds that the caller itself takes before it sends again
        now[0] += work
        limit.wait()
        sent.append(now[0])
    assert sent == [100.0, 102.0, 107.0, 109.0]
    assert waits == [1.5, 2.0]


def test_every_try_counts_for_the_rate_limit(
    server: Server, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[Any] = []

    class Counter:
        def __init__(self, per_minute: float) -> None:
            self.per_minute, self.waits = per_minute, 0
            limits.append(self)

        def wait(self) -> None:
            self.waits += 1

    monkeypatch.setattr(endpoint_module, "RateLimit", Counter)
    server.script = lambda number, body: (429, {}, b"{}") if number == 1 else echo(number, body)
    connect(server, per_minute=90, at_once=1).ask(questions("a", "b"))
    ((limit,), tries) = (limits, len(server.got))
    assert (limit.per_minute, tries) == (90, 3)
    assert limit.waits == tries + 1  # and the one that looks whether the server is there
    connect(server, per_minute=0)
    assert len(limits) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api": "responses"}, "unknown endpoint api 'responses'; known: chat, completions"),
        ({"timeout": 0}, "endpoint: timeout is 0, expected more than 0 seconds"),
        ({"retries": -1}, "endpoint: retries is -1, expected at least 0"),
        ({"at_once": 0}, "endpoint: at_once is 0, expected at least 1"),
        ({"per_minute": -5}, "endpoint: per_minute is -5, expected at least 0"),
        ({"base_url": "localhost:8000/v1"}, "endpoint: the base URL is 'localhost:8000/v1', expected one like http://"),
        ({"base_url": "ftp://h/v1"}, "endpoint: the base URL is 'ftp://h/v1', expected one like http://"),
        (
            {"base_url": "http://me:pw@h/v1"},
            "the base URL holds a user, password or query, expected a key in OPENAI_API",
        ),
    ],
)
def test_bad_settings(server: Server, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        connect(server, **change)
    assert "pw" not in str(caught.value)


def test_a_key_that_cannot_be_sent_is_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-spaced \n")
    connect(server).ask(questions("a"))
    assert server.got[0][2] == "Bearer sk-spaced"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(ValueError, match=r"^OPENAI_API_KEY holds characters that an HTTP header cannot, expected"):
        connect(server)
