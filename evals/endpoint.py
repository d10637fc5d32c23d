"""Client of an OpenAI-compatible server (completions and chat), local or hosted: many requests at once, none lost.

Notable choices: the `openai` package does the retries (exponential back-off, `Retry-After` up to two minutes); what
fails for good becomes a reply with its reason, and every reply is handed over as soon as it is there; answers are read
as plain JSON, since servers that call themselves compatible leave out what they like. The API key comes from the
environment variable OPENAI_API_KEY alone and is kept out of every message.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import openai

from longloom.storage.json_text import well_formed

APIS = ("chat", "completions")

#: What servers without keys are sent: the package insists on one.
_NO_KEY = "none"

#: OpenAI's own servers take no more stop strings.
_MOST_STOPS = 4

#: Characters of a reason.
_QUOTED = 200

#: The longest that connecting may take: a server that is there accepts at once.
_CONNECT_SECONDS = 10.0

Message = Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """One request: greedy, one answer.

    Attributes:
        prompt: a text (for "chat": one user message), or the messages of a chat, `role` and `content` each.
        max_tokens: the most tokens of the answer.
        stop: strings that end it. The server is told four; whoever asks cuts at the others.
    """

    prompt: str | Sequence[Message]
    max_tokens: int
    stop: Sequence[str] = ()


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: the answer; empty if there is none.
        prompt_tokens, new_tokens: as the server counts them; None: it does not tell.
        seconds: from sending the request that was answered to its answer; waits and failed tries do not count.
        error: why there is no answer, in one line; None: there is one.
    """

    text: str
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    seconds: float = 0.0
    error: str | None = None


class RateLimit:
    """A token bucket that holds one token: at most `per_minute` requests a minute, evenly spaced, from all threads.

    Args:
        per_minute: the limit.
        clock: seconds that only grow.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        per_minute: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval = 60 / per_minute
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def wait(self) -> None:
        """Returns when the next request may be sent."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._free_at)
            self._free_at = turn + self._interval
        if turn > now:
            self._sleep(turn - now)


class Endpoint:
    """An OpenAI-compatible server.

    Args:
        base_url: up to and with the version, such as http://127.0.0.1:8000/v1.
        model: the model's name there.
        api: one of APIS.
        timeout: seconds that a try may wait for the server.
        retries: further tries after a time-out, a lost connection, 408, 409, 429 or 5xx.
        at_once: requests in flight at a time.
        per_minute: the most tries a minute, retries included; None or 0: no limit.

    Raises:
        ValueError: a setting out of range, a URL that is none or that holds credentials, an unusable API key.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api: str,
        timeout: float,
        retries: int,
        at_once: int,
        per_minute: float | None,
    ) -> None:
        if api not in APIS:
            raise ValueError(f"unknown endpoint api {api!r}; known: {', '.join(APIS)}")
        for name, value, least in (
            ("retries", retries, 0),
            ("at_once", at_once, 1),
            ("per_minute", per_minute or 0, 0),
        ):
            if value < least:
                raise ValueError(f"endpoint: {name} is {value}, expected at least {least}")
        if timeout <= 0:
            raise ValueError(f"endpoint: timeout is {timeout}, expected more than 0 seconds")
        _check_url(base_url)
        self.base_url = base_url
        self.model = model
        self.api = api
        self._timeout = timeout
        self._at_once = at_once
        self._key = _key()
        hooks = {}
        if per_minute:
            limit = RateLimit(per_minute)
            hooks["request"] = [lambda request: limit.wait()]
        self._client = openai.OpenAI(
            api_key=self._key or _NO_KEY,
            base_url=base_url,
            timeout=openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            max_retries=retries,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
        )
        self._reached = False

    def ask(
        self, questions: Sequence[Question], *, on_reply: Callable[[int, Reply], None] = lambda index, reply: None
    ) -> list[Reply]:
        """Asks all questions.

        Args:
            questions: the requests.
            on_reply: called in this thread with (index of the question, reply), as soon as each is there.

        Returns:
            The replies, in the order of the questions.

        Raises:
            ValueError: before anything was answered: nothing listens at the URL.
        """
        if not questions:
            return []
        if not self._reached:
            self._check_connection()
            self._reached = True
        waiting: SimpleQueue[int] = SimpleQueue()
        for index in range(len(questions)):
            waiting.put(index)
        arrived: SimpleQueue[tuple[int, Reply]] = SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = waiting.get_nowait()
                except Empty:
                    return
                arrived.put((index, self._ask(questions[index])))

        # Daemons, for an interrupted run must not wait for the requests that are still in flight.
        for _ in range(min(self._at_once, len(questions))):
            threading.Thread(target=work, daemon=True).start()
        replies: dict[int, Reply] = {}
        try:
            while len(replies) < len(questions):
                index, reply = arrived.get()
                replies[index] = reply
                on_reply(index, reply)
        finally:
            stopped.set()
        return [replies[index] for index in range(len(questions))]

    def _ask(self, question: Question) -> Reply:
        body: dict[str, Any] = {"max_tokens": question.max_tokens, "temperature": 0}
        if stops := [stop for stop in question.stop if stop]:
            body["stop"] = stops[:_MOST_STOPS]
        try:
            raw: Any  # the package's types name its own servers' models and messages
            if self.api == "chat":
                chat: Any = self._client.chat.completions.with_raw_response
                raw = chat.create(model=self.model, messages=_messages(question), **body)
            else:
                assert isinstance(question.prompt, str), "messages are for the chat api"
                raw = self._client.completions.with_raw_response.create(
                    model=self.model, prompt=question.prompt, **body
                )
            return _read(raw.text, raw.elapsed.total_seconds(), self.api)
        except Exception as error:  # whatever it is, the other requests go on
            return Reply("", error=self._reason(error))

    def _check_connection(self) -> None:
        """One request that any server answers somehow, be it with an error."""
        probe = self._client.with_options(max_retries=0, timeout=min(self._timeout, _CONNECT_SECONDS))
        try:
            probe.models.with_raw_response.list()
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ReadTimeout":  # httpx's or httpx2's: there is a server, a slow one
                return
            raise ValueError(
                f"cannot reach the endpoint {self.base_url} ({self._reason(error)}); expected a running server"
            ) from None
        except openai.APIStatusError:
            return

    def _reason(self, error: Exception) -> str:
        """What went wrong, in one line without the key."""
        if isinstance(error, openai.APITimeoutError):
            reason = f"no answer within {self._timeout:g} s"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"no connection: {error.__cause__ or error}"
        elif isinstance(error, openai.APIStatusError):
            reason = f"HTTP {error.status_code}: {_message(error)}"
        elif isinstance(error, _Garbage):
            reason = str(error)
        else:
            reason = f"{type(error).__name__}: {error}"
        return _shorten(reason.replace(self._key, "***") if self._key else reason)


class _Garbage(ValueError):
    """An answer that is none, in the words of a reason."""


def _read(text: str, seconds: float, api: str) -> Reply:
    """The reply in a server's JSON.

    Raises:
        _Garbage: it is not there.
    """
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        raise _Garbage(f"the server's answer is not JSON: {text[:60]!r}") from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _Garbage(f"the server's answer has no choices: {text[:60]!r}")
    (choice, *_) = choices
    message = choice.get("message") if api == "chat" else choice
    answer = message.get("content" if api == "chat" else "text") if isinstance(message, dict) else None
    if not isinstance(answer, str):
        raise _Garbage(f"the server's answer has no text (finish_reason {choice.get('finish_reason')!r})")
    usage = body.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt_tokens, new_tokens = (count if isinstance(count, int) else None for count in counts)
    # A server may cut an answer between the two halves of a character, and no table could hold one half.
    return Reply(well_formed(answer), prompt_tokens, new_tokens, seconds)


def _message(error: openai.APIStatusError) -> str:
    """What the server says about an error: servers put it in different places."""
    body = error.body  # what stands under "error", if anything does
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return str(body or error.response.reason_phrase)


def _messages(question: Question) -> Any:
    if isinstance(question.prompt, str):
        return [{"role": "user", "content": question.prompt}]
    return [dict(message) for message in question.prompt]


def _shorten(text: str) -> str:
    line = " ".join(well_formed(text).split())
    return line if len(line) <= _QUOTED else f"{line[: _QUOTED - 3]}..."


def _key() -> str:
    """The key of the environment; empty: there is none.

    Raises:
        ValueError: it cannot be sent. (The HTTP library's own error would show it.)
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("OPENAI_API_KEY holds characters that an HTTP header cannot, expected printable ASCII")
    return key


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:  # not quoted, for this may be a secret
        raise ValueError("endpoint: the base URL holds a user, password or query, expected a key in OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint: the base URL is {url!r}, expected one like http://127.0.0.1:8000/v1")
