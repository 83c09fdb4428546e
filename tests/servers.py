"""A local server that does what a test tells it to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar


class ScriptedServer(ThreadingHTTPServer):
    """`script` holds what it does to the next requests; once empty, it does `always`. It counts what it gets."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0):
        super().__init__(("127.0.0.1", port), handler)
        self.script: list[str] = []
        self.always = ""
        self.keys: set[str | None] = set()
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


Kind = TypeVar("Kind", bound=ScriptedServer)


@contextmanager
def serving(server: Kind) -> Iterator[Kind]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
