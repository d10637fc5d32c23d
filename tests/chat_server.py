"""An OpenAI-compatible server for tests, in a thread of theirs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A request: the model's name, and the conversation."""

    model: str
    messages: list[dict[str, str]]

    @property
    def prompt(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]


class ChatServer:
    """Answers as a test decides.

    Attributes:
        url: its base URL.
        asked: the requests so far.
        answer: from a request to the answer's text, or to the status and the message of an error.
        usage: the counts of tokens that answers carry; None: they carry none.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], str | tuple[int, str]] = lambda asked: "nothing"
        self.usage: dict[str, int] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": []})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = Asked(body["model"], body["messages"])
                outer.asked.append(asked)
                answer = outer.answer(asked)
                if isinstance(answer, tuple):
                    status, message = answer
                    self._send(status, {"error": {"message": message}})
                else:
                    usage = {} if outer.usage is None else {"usage": outer.usage}
                    self._send(200, {"choices": [{"message": {"content": answer}}], **usage})

            def _send(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
