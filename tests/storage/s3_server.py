"""An S3 server for tests: moto's, in this process, behind a gate that can hold, fail and change what it answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

_CODES = {403: "AccessDenied", 500: "InternalError", 503: "ServiceUnavailable"}


class S3Server:
    """Buckets on the loopback interface.

    Attributes:
        url: the endpoint.
        requests: `METHOD /path` of each request.
        before: called with method and path before a request is worked on; may give a status to fail with instead.
        fault: called with method, path and body of the answer: None to give that, bytes to give them in its place under
            the same headers, or a status to fail with, though the request was worked on.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.heal()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def heal(self) -> None:
        """Answers rightly again, and forgets the requests."""
        self.requests: list[str] = []
        self.before: Callable[[str, str], int | None] = lambda method, path: None
        self.fault: Callable[[str, str, bytes], bytes | int | None] = lambda method, path, body: None

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(f"{method} {path}")
        told: bytes | int | None = self.before(method, path)
        if told is None:
            answer = Response.from_app(self._moto, environ)
            told = self.fault(method, path, answer.get_data())
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if isinstance(told, int):
            error = f"<Error><Code>{_CODES[told]}</Code><Message>as told</Message></Error>"
            return Response(error, told, content_type="application/xml")(environ, start)
        if told is not None:
            start(answer.status, answer.get_wsgi_headers(environ).to_wsgi_list())
            return [told]
        return answer(environ, start)
