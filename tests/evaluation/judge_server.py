"""A judge behind an OpenAI-compatible endpoint that likes long answers, and that can be made to misbehave."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from tests.servers import ScriptedServer, serving


class JudgeServer(ScriptedServer):
    """Without a script it judges."""

    def __init__(self):
        super().__init__(Handler)
        self.requests: list[dict] = []

    @property
    def url(self) -> str:
        return f"{self.address}/v1"


class Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.under_way += 1
            self.is_under_way = True
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            self.server.requests.append(body)
            self.server.keys.add(self.headers.get("Authorization"))
            act = self.server.script.pop(0) if self.server.script else self.server.always
        time.sleep(0.02)
        try:
            self.act(act, body["messages"][0]["content"])
        except BrokenPipeError:
            pass  # the client has lost patience
        finally:
            self.leave()

    def leave(self) -> None:
        """Be under way no longer: before the client has the whole answer, since it may then ask again at once."""
        with self.server.lock:
            self.server.under_way -= self.is_under_way
            self.is_under_way = False

    def act(self, act: str, text: str) -> None:
        match act:
            case "slow":
                time.sleep(2.0)
                self.reply(200, completion("[[A]]"))
            case "limit":
                self.reply(429, '{"error": {"message": "slow down"}}', {"retry-after": "0.05"})
            case "broken":
                self.reply(500, "oh no")
            case "refuse":
                self.reply(401, '{"error": {"message": "Incorrect API key provided: sk-secret"}}')
            case "unknown":
                self.reply(404, '{"error": {"message": "no such model"}}')
            case "html":
                self.reply(200, "<html>It works!</html>", {"Content-Type": "text/html"})
            case "half":
                self.reply(200, '{"choices": [{"mess')
            case "empty":
                self.reply(200, '{"choices": []}')
            case "chatter":
                self.reply(200, completion("Both have their merits."))
            case _:
                first, second = (text.split(f"<answer_{x}>\n")[1].split(f"\n</answer_{x}>")[0] for x in "ab")
                better = "A" if len(first) > len(second) else "B" if len(first) < len(second) else "tie"
                self.reply(200, completion(f"The format is [[A]] or [[B]]. I say:\n[[{act or better}]]"))

    def reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        content = text.encode()
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.leave()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def completion(text: str) -> str:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice]})


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    with serving(JudgeServer()) as server:
        yield server
