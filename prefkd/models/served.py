"""A model behind a server: its log-probs of texts, and answers that it samples.

prefkd tokenizes and sends token ids, so that both sides mean the same tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkd.data.batches import Segment, TokenBatch
from prefkd.data.fingerprints import same_probe, written_probe
from prefkd.data.messages import Message
from prefkd.data.sides import ModelSide
from prefkd.errors import PrefkdError
from prefkd.models.server import Server, ServerConfig
from prefkd.ranks import Ranks

# Of the tokens of the first pair, so many may be decoded differently: engines differ in how they show parts of
# characters.
MOST_DECODED_DIFFERENTLY = 0.1

# What a server is asked to read when a run begins, when it continues, and when the server has been away.
QUESTION = "Could you help me to plan a week of cheap and healthy meals?"
ANSWER = "No. Look it up yourself, everybody knows how to cook rice, beans and vegetables. Do not ask me again."


class Answer(NamedTuple):
    """A sampled answer.

    Attributes:
        text: It, without special tokens.
        finish: `stop` where the model ended it, `length` where `max_new_tokens` did.
        tokens: Tokens that were generated.
    """

    text: str
    finish: str
    tokens: int


class ServedModel:
    """A model that a server has in memory, read as a frozen model is (`prefkd.models.frozen.FrozenModel`).

    Args:
        config: Where it is.
        side: How it reads.

    Attributes:
        probe: The log-probs of a text of ours, by which the model is recognised; empty before `connect`.
    """

    def __init__(self, config: ServerConfig, side: ModelSide):
        self.config = config
        self.side = side
        self.server = Server(config, self._require_same_model)
        self.context: int | None = None
        self.probe: list[float] = []

    def connect(self) -> None:
        """Make sure that the server is there and has the model, and let it read the probe.

        Raises:
            PrefkdError: See `Server.ask`; or the model is missing.
        """
        listed = self.server.ask("/v1/models").get("data")
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
            raise self.server.error("does not list its models under /v1/models; fix server.url")
        name, sglang = self.config.model, self.config.engine == "sglang"
        contexts = {str(one["id"]): one.get("max_model_len") for one in listed}
        base = name.partition(":")[0] if sglang and name not in contexts else name
        if base not in contexts:
            raise self.server.error(f"has no model {base}, but {', '.join(contexts)}; fix server.model")
        self.context = contexts[base] if isinstance(contexts[base], int) else None
        self.probe = self._logprobs(*self._probe_ids())

    def check(self, tokens: TokenBatch, name: str) -> None:
        """Make sure that the server means the same tokens by the same ids.

        Args:
            name: Name of the model in messages.

        Raises:
            PrefkdError: It decodes them to other texts.
        """
        compared, wrong = 0, []
        for prompt, answer in sequences(tokens):
            _, decoded = self._read(prompt, answer, decode=True)
            for token, text in zip(answer, decoded, strict=True):
                own = self.side.tokenizer.decode([token])
                if text is None or "\ufffd" in own + text or not own.strip() or not text.strip():
                    continue
                compared += 1
                if own.strip() != text.strip():
                    wrong.append(f"token {token} is {own!r} here and {text!r} there")
        if len(wrong) > MOST_DECODED_DIFFERENTLY * compared:
            raise self.server.error(
                f"has another tokenizer for {name} than {self.side.name}: {wrong[0]}; fix tokenizer"
            )

    @torch.no_grad()
    def __call__(self, tokens: TokenBatch) -> Tensor:
        """log pi(y_t | x, y_<t) of each target token, (N,) float32."""
        read = self.server.map(lambda one: self._logprobs(*one), sequences(tokens))
        return torch.tensor([value for values in read for value in values], device=tokens.targets.device)

    def answer(self, prompt: Sequence[int], *, max_new_tokens: int, temperature: float, top_p: float, seed: int):
        """An answer to a prompt.

        Args:
            prompt: Token ids.
            seed: Seed of the draws on vLLM. SGLang takes none.

        Raises:
            PrefkdError: See `Server.ask`.
        """
        ends = sorted({self.side.eos_id, self.side.tokenizer.eos_token_id} - {None})
        # Not the checkpoint's own settings, which servers fall back on: models answer on equal terms.
        settings = {"temperature": temperature, "top_p": top_p, "min_p": 0.0, "repetition_penalty": 1.0}
        settings |= {"stop_token_ids": ends}
        if self.config.engine == "vllm":
            body = {"model": self.config.model, "prompt": list(prompt), "max_tokens": max_new_tokens, "top_k": 0}
            said = self.server.ask("/v1/completions", body | settings | {"seed": seed})
            try:
                choice = said["choices"][0]
                found = Answer(choice["text"], choice["finish_reason"], said["usage"]["completion_tokens"])
            except (LookupError, TypeError):
                raise self._nonsense("no answer in choices") from None
        else:
            sampling = settings | {"max_new_tokens": max_new_tokens, "top_k": -1}
            body = {"input_ids": list(prompt), "sampling_params": sampling, **self._adapter()}
            said = self.server.ask("/generate", body)
            try:
                meta = said["meta_info"]
                found = Answer(said["text"], meta["finish_reason"]["type"], meta["completion_tokens"])
            except (LookupError, TypeError):
                raise self._nonsense("no answer in text and meta_info") from None
        if not isinstance(found.tokens, int):
            raise self._nonsense(f"an answer of {found.tokens!r} tokens")
        if not isinstance(found.text, str) or found.finish not in ("stop", "length"):
            raise self._nonsense(f"an answer that ended for the reason {found.finish!r}")
        return found

    def _logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        return self._read(prompt, answer)[0]

    def _read(
        self, prompt: Sequence[int], answer: Sequence[int], decode: bool = False
    ) -> tuple[list[float], list[str | None]]:
        """The log-prob of each token of an answer, and what the server decodes it to."""
        ids = [*prompt, *answer]
        if self.context is not None and len(ids) >= self.context:
            raise self.server.error(
                f"reads {self.context} tokens at most, and a prompt with its answer has {len(ids)}, after which it has "
                "to write one; start it with a longer context, or lower data.max_length"
            )
        if self.config.engine == "vllm":
            body = {"model": self.config.model, "prompt": ids, "max_tokens": 1, "temperature": 0}
            said = self.server.ask("/v1/completions", body | {"prompt_logprobs": 0})
            found = self._read_vllm(said, ids)[len(prompt) :]
        else:
            start = len(prompt) - 1  # the first log-prob that SGLang gives is that of the token behind
            body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": start, **self._adapter()}
            body |= {"sampling_params": {"max_new_tokens": 1, "temperature": 0}, "return_text_in_logprobs": decode}
            found = self._read_sglang(self.server.ask("/generate", body), ids[start:])[1:]
        for value, _ in found:
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value > 1e-3:
                raise self._nonsense(f"the log-prob {value}; look into its log, or serve the model in another type")
        return [float(value) for value, _ in found], [text for _, text in found]

    def _read_vllm(self, said: Mapping[str, Any], ids: Sequence[int]) -> list[tuple[Any, str | None]]:
        try:
            positions = said["choices"][0]["prompt_logprobs"]
            if len(positions) != len(ids):
                raise self._nonsense(f"log-probs of {len(positions)} tokens, and {len(ids)} were sent")
            found: list[tuple[Any, str | None]] = [(0.0, None)]
            for token, position in zip(ids[1:], positions[1:], strict=True):
                if str(token) not in position:
                    raise self._nonsense(
                        f"log-probs of tokens other than those sent ({', '.join(position)}, not {token})"
                    )
                found.append((position[str(token)]["logprob"], position[str(token)].get("decoded_token")))
        except (LookupError, TypeError, AttributeError):
            raise self._nonsense("no prompt_logprobs; check server.engine") from None
        return found

    def _read_sglang(self, said: Mapping[str, Any], ids: Sequence[int]) -> list[tuple[Any, str | None]]:
        try:
            positions = said["meta_info"]["input_token_logprobs"]
            if [token for _, token, _ in positions] != list(ids):
                raise self._nonsense("log-probs of tokens other than those sent")
        except (LookupError, TypeError, ValueError):
            raise self._nonsense("no input_token_logprobs; check server.engine") from None
        return [(value, text) for value, _, text in positions]

    def _adapter(self) -> dict[str, str]:
        adapter = self.config.model.partition(":")[2]
        return {"lora_path": adapter} if adapter else {}

    def _probe_ids(self) -> tuple[list[int], list[int]]:
        frame = self.side.frame([Message(role="user", content=QUESTION)])
        [prompt] = self.side.encode_prompts([frame], [[ANSWER]])
        [[answer], _] = self.side.encode_responses([ANSWER], [frame])
        return prompt, answer

    def _require_same_model(self) -> None:
        """After an absence it may be another model: the probe tells."""
        if not self.probe:
            return
        other = ServedModel(self.config, self.side)
        other.server = Server(self.config)
        now = other._logprobs(*self._probe_ids())
        if not same_probe(written_probe(self.probe), written_probe(now)):
            raise self.server.error(
                f"has come back with another model under the name {self.config.model}; restore the first, or score "
                "into another folder"
            )

    def _nonsense(self, what: str) -> PrefkdError:
        return self.server.error(f"sends {what}")


def sequences(tokens: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """The prompt and the answer of each sequence of a batch, as token ids, in the order of its targets."""
    width = tokens.input_ids.shape[1]
    found, first = [], 0
    for length in tokens.lengths:
        row = int(tokens.predictors[first]) // width
        prompt = tokens.input_ids[row][tokens.segments[row] == Segment.PROMPT]
        found.append((prompt.tolist(), tokens.targets[first : first + length].tolist()))
        first += length
    return found


def open_served(config: ServerConfig, side: ModelSide, probe: TokenBatch, ranks: Ranks) -> ServedModel:
    """Connect to a server and check what it says of the first pair. `prefkd plan` has no need of the server itself.

    Raises:
        PrefkdError: See `ServedModel.connect` and `ServedModel.check`.
    """
    if ranks.device.type == "meta":
        return PlannedModel(config)  # pyright: ignore[reportReturnType]
    model = ServedModel(config, side)
    model.connect()
    model.check(probe, config.model)
    return model


class PlannedModel:
    """Stands for a served model where a step is run on tensors without content."""

    def __init__(self, config: ServerConfig):
        self.config = config

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """(N,) float32."""
        return torch.zeros_like(tokens.targets, dtype=torch.float32)


def probe_server(config: ServerConfig, side: ModelSide) -> str:
    """What a server says of a text of ours, for a fingerprint.

    Raises:
        PrefkdError: See `ServedModel.connect`.
    """
    model = ServedModel(config, side)
    model.connect()
    return written_probe(model.probe)
