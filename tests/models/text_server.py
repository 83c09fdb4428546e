"""A server of a tiny model that answers as vLLM and SGLang do, and that can be made to misbehave."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.servers import ScriptedServer, serving

NAME = "big"
REFUSAL = '{"error": {"message": "This key is wrong: sk-very-secret"}}'


class TextServer(ScriptedServer):
    """Its script is for requests that read a text."""

    def __init__(self, models: dict[str, Path], port: int = 0):
        super().__init__(Handler, port)
        self.models = {
            name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            for name, folder in models.items()
        }
        self.tokenizer: Any = AutoTokenizer.from_pretrained(next(iter(models.values())))
        self.context = 512
        self.bodies: list[dict] = []

    @property
    def url(self) -> str:
        return self.address

    @torch.no_grad()
    def logprobs(self, name: str, ids: list[int]) -> list[float | None]:
        with self.lock:
            logits = self.models[name](torch.tensor([ids])).logits[0].log_softmax(-1)
        return [None, *logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]

    @torch.no_grad()
    def generate(self, name: str, ids: list[int], most: int, temperature: float, ends: list[int], seed: int):
        """Text, reason of the end, and number of tokens."""
        generator, new = torch.Generator().manual_seed(seed), []
        for _ in range(most):
            with self.lock:
                logits = self.models[name](torch.tensor([ids + new])).logits[0, -1]
            if temperature:
                token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
            else:
                token = int(logits.argmax())
            new.append(token)
            if token in ends:
                return self.tokenizer.decode(new[:-1], skip_special_tokens=True), "stop", len(new)
        return self.tokenizer.decode(new, skip_special_tokens=True), "length", len(new)


class Handler(BaseHTTPRequestHandler):
    server: TextServer
    is_under_way = False

    def do_GET(self):
        self.server.keys.add(self.headers.get("Authorization"))
        listed = [{"id": name, "max_model_len": self.server.context} for name in self.server.models]
        self.reply(200, json.dumps({"object": "list", "data": listed}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            self.is_under_way = True
            server.bodies.append(body)
            server.keys.add(self.headers.get("Authorization"))
            act = server.script.pop(0) if server.script else server.always
        try:
            self.act(act, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has lost patience
        finally:
            self.leave()

    def leave(self) -> None:
        """Count the request as done: before its answer is sent, since the client may then send the next."""
        with self.server.lock:
            self.server.under_way -= self.is_under_way
            self.is_under_way = False

    def act(self, act: str, body: dict) -> None:
        match act:
            case "slow":
                time.sleep(1.0)
            case "busy":
                time.sleep(0.1)
            case "limit":
                return self.reply(429, '{"error": {"message": "slow down"}}', {"retry-after": "0.05"})
            case "503":
                return self.reply(503, "loading")
            case "500":
                return self.reply(500, "oh no")
            case "401":
                return self.reply(401, REFUSAL)
            case "400":
                return self.reply(400, REFUSAL)
            case "404":
                return self.reply(404, '{"error": {"message": "no such model"}}')
            case "html":
                return self.reply(200, "<html>It works!</html>", {"Content-Type": "text/html"})
            case "list":
                return self.reply(200, "[1, 2]")
            case "half":
                return self.reply(200, '{"choices": [{"promp')
            case "cut":
                return self.reply(200, '{"choices": [{"promp', {"Content-Length": "9999"})
            case "hang up":
                self.close_connection = True
                return None
            case "no choices":
                return self.reply(200, '{"choices": [], "meta_info": {}}')
            case "null":
                return self.reply(
                    200, '{"choices": [{"prompt_logprobs": null}], "meta_info": {"input_token_logprobs": 1}}'
                )
        said = self.sglang(body, act) if "input_ids" in body else self.vllm(body, act)
        self.reply(200, json.dumps(said))
        return None

    def vllm(self, body: dict, act: str) -> dict:
        ids = body["prompt"]
        if "prompt_logprobs" not in body:
            ends, seed = body["stop_token_ids"], body["seed"]
            text, finish, count = self.server.generate(
                body["model"], ids, body["max_tokens"], body["temperature"], ends, seed
            )
            return {"choices": [{"text": text, "finish_reason": finish}], "usage": {"completion_tokens": count}}
        found = [
            None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": text}}
            for token, value, text in self.positions(body["model"], ids, act)
        ]
        return {"choices": [{"text": "!", "finish_reason": "length", "prompt_logprobs": found}]}

    def sglang(self, body: dict, act: str) -> dict:
        ids, sampling = body["input_ids"], body["sampling_params"]
        model = body.get("lora_path", NAME)
        if not body.get("return_logprob"):
            text, finish, count = self.server.generate(
                model, ids, sampling["max_new_tokens"], sampling["temperature"], sampling["stop_token_ids"], 0
            )
            return {"text": text, "meta_info": {"finish_reason": {"type": finish}, "completion_tokens": count}}
        start = body["logprob_start_len"]
        found = [[value, token, text] for token, value, text in self.positions(model, ids, act)][start:]
        found[0][0] = None
        if not body["return_text_in_logprobs"]:
            found = [[value, token, None] for value, token, _ in found]
        return {"text": "!", "meta_info": {"input_token_logprobs": found}}

    def positions(self, model: str, ids: list[int], act: str) -> list[tuple[int, float | None, str]]:
        values = self.server.logprobs(model, ids)
        texts = [self.server.tokenizer.decode([token]) for token in ids]
        match act:
            case "nan":
                values[-1] = float("nan")
            case "positive":
                values[-1] = 3.0
            case "text":
                values[-1] = "low"  # type: ignore[call-overload]
            case "ids":
                ids = [*ids[:-1], ids[-1] + 1]
            case "fewer":
                ids, values, texts = ids[:-1], values[:-1], texts[:-1]
            case "tokenizer":
                texts = [text[::-1] + "?" for text in texts]
            case "other":
                values = [None if value is None else value - 1.0 for value in values]
        return list(zip(ids, values, texts, strict=True))

    def reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        content = text.encode()
        self.leave()
        self.send_response(status)
        own = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (own | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if headers and "Content-Length" in headers:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextmanager
def text_server(models: dict[str, Path], port: int = 0) -> Iterator[TextServer]:
    with serving(TextServer(models, port)) as server:
        yield server
