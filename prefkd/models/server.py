"""The connection to a server that has a model in memory, vLLM or SGLang.

What may pass by itself (a server that starts, restarts, is overloaded, or breaks off) is waited for; everything else is
an error at once. Keys come from the environment and are neither written nor printed.
"""

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

from prefkd.config.hints import size_problems
from prefkd.errors import PrefkdError, Problem, first_line
from prefkd.keys import address_problems, find_key

Found = TypeVar("Found")
Item = TypeVar("Item")

MOST_REQUESTS_AT_A_TIME = 1024  # each has a thread
LONGEST_WAIT = 86_400.0
# Seconds between two tries: the first wait, which doubles, and the longest.
WAITS = (0.5, 30.0)


@dataclass
class ServerConfig:
    """A server that has the model in memory, on this machine or another.

    Attributes:
        url: Its address, such as http://localhost:8000.
        model: The name that it serves the model under. An adapter has a name of its own on vLLM, and is
            `model:adapter` on SGLang.
        engine: vLLM gives log-probs of a text through /v1/completions, SGLang through /generate.
        key_env: Variable of the environment, or of a file .env in the current folder, that holds the key. null for a
            server without keys.
        concurrency: Requests in flight at the same time, on each process of the run.
        timeout: Seconds after which a request is sent again.
        patience: Seconds for which a server may be away, overloaded or out of order before the run ends.
    """

    url: str
    model: str
    engine: Literal["vllm", "sglang"] = "vllm"
    key_env: str | None = None
    concurrency: int = 16
    timeout: float = 120.0
    patience: float = 900.0

    def problems(self) -> Iterator[Problem | str]:
        if find_spec("openai") is None:
            yield "url: a server is asked through the package openai; pip install 'prefkd[server]'"
        yield from address_problems("url", self.url, "http://localhost:8000")
        if not self.model.strip():
            yield "model: is empty; give the name that the server lists under /v1/models"
        # A key that stands here by mistake is not shown.
        if self.key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_env):
            yield (
                "key_env: is not the name of a variable in capitals; put the key into the environment and give the "
                "name of its variable here"
            )
        elif self.key_env is not None and not find_key(self.key_env):
            text = f"{self.key_env} is neither in the environment nor in .env; set it, or use null"
            yield Problem("key_env", text, about="device")
        yield from size_problems(self, "concurrency", most=MOST_REQUESTS_AT_A_TIME)
        if not 0 < self.timeout <= LONGEST_WAIT:
            yield f"timeout: {self.timeout} is not a time to wait for an answer; use seconds, for example 120"
        if not 0 <= self.patience <= LONGEST_WAIT:
            yield f"patience: {self.patience} is not a time to wait for a server; use seconds, for example 900"

    @property
    def address(self) -> str:
        """`url` without the /v1 that clients of other kinds want."""
        return self.url.rstrip("/").removesuffix("/v1")


class _Later(Exception):
    """A request failed for a reason that may pass.

    Attributes:
        reason: A verb phrase about the server, to follow its name.
        seconds: When it wants to be asked again, None if it does not say.
    """

    def __init__(self, reason: str, seconds: float | None = None):
        super().__init__(reason)
        self.reason = reason
        self.seconds = seconds


class Server:
    """The connection to a server: requests in parallel, and patience.

    Args:
        config: Which one.
        on_return: Called when it answers again after it has been away, before that answer is used.
    """

    def __init__(self, config: ServerConfig, on_return: Callable[[], None] | None = None):
        from openai import OpenAI

        self.config = config
        self._on_return = on_return
        self._key = find_key(config.key_env) if config.key_env else None
        if config.key_env and not self._key:
            raise PrefkdError(f"server.key_env: {config.key_env} is neither in the environment nor in .env; set it")
        self._client = OpenAI(
            base_url=config.address, api_key=self._key or "none", timeout=config.timeout, max_retries=0
        )
        self._stopped = threading.Event()

    def map(self, work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """Do something with each item, several at a time, in order; the first failure ends all."""
        self._stopped.clear()
        pool = ThreadPoolExecutor(min(self.config.concurrency, max(len(items), 1)))
        try:
            return list(pool.map(work, items))
        except BaseException as error:
            self._stopped.set()  # those that wait for the server stop waiting
            if not isinstance(error, Exception):
                self._client.close()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server says, read from JSON. What may pass is waited for.

        Args:
            path: Such as /v1/completions.
            body: The request's body; without it the path is only read.

        Raises:
            PrefkdError: It refuses, or does not answer within `patience`.
        """
        began, wait, was_away = time.monotonic(), WAITS[0], False
        while True:
            try:
                answer = self._send(path, body)
                break
            except _Later as later:
                waited = time.monotonic() - began
                pause = min(later.seconds if later.seconds is not None else wait, WAITS[1])
                if waited + pause > self.config.patience or self._stopped.wait(pause):
                    raise self.error(
                        f"{later.reason}, for {waited:.0f} s now; start it or look into its log, and give the same "
                        "command again, which keeps what is finished (server.patience says how long to wait)"
                    ) from None
                wait, was_away = wait * 2, was_away or later.seconds is None
        if was_away and self._on_return is not None:
            self._on_return()
        return answer

    def error(self, text: str) -> PrefkdError:
        """An error of this server."""
        return PrefkdError(f"the server {self.config.address} {self._without_key(text)}")

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        import openai

        try:
            if body is None:
                answer: Any = self._client.get(path, cast_to=object)
            else:
                answer = self._client.post(path, body=body, cast_to=object)
        except openai.APITimeoutError:
            raise _Later(f"takes longer than {self.config.timeout:g} s (server.timeout)") from None
        except openai.APIConnectionError as error:
            problem = _tls_problem(error)
            if problem is not None:
                raise self.error(
                    f"cannot be trusted: {problem}; use the right https:// or http:// in server.url, or name its "
                    "certificate in SSL_CERT_FILE"
                ) from None
            raise _Later("cannot be reached") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            key = f"the key in {self.config.key_env}" if self.config.key_env else "requests without a key"
            raise self.error(f"refuses {key}; set server.key_env to a variable that holds a valid one") from None
        except openai.NotFoundError:
            raise self.error(
                f"has no model {self.config.model} or no {path}; fix server.model, server.url or server.engine "
                f"({self.config.engine})"
            ) from None
        except openai.APIStatusError as error:
            status = error.status_code
            if status in (408, 409, 425, 429) or status >= 500:
                seconds = _seconds(error.response.headers.get("retry-after")) if status in (429, 503) else None
                raise _Later(f"answers with error {status}", seconds) from None
            raise self.error(f"refuses the request with error {status}: {_message(error.body)}") from None
        except (openai.APIError, ValueError):
            raise _Later("breaks its answers off or sends no JSON") from None
        if not isinstance(answer, dict):
            raise _Later("sends no JSON")
        return answer

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def answers(config: ServerConfig) -> bool:
    """Whether a server is there now, without waiting for it."""
    try:
        Server(replace(config, patience=0.0)).ask("/v1/models")
    except PrefkdError:
        return False
    return True


def _tls_problem(error: BaseException | None) -> str | None:
    """What is wrong with the encryption, None if nothing is."""
    while error is not None:
        if isinstance(error, ssl.SSLError) or "SSL:" in str(error):
            return first_line(error)
        error = error.__cause__ or error.__context__
    return None


def _seconds(text: str | None) -> float | None:
    try:
        return max(float(text or ""), 0.0)
    except ValueError:
        return None


def _message(body: object) -> str:
    """What the body of an error says, in one line."""
    for key in ("error", "message"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    return " ".join(str(body).split())[:300] or "it does not say why"
