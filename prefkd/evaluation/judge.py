"""A judge behind an OpenAI-compatible endpoint says which of two answers is better; each pair is asked in both orders.

Judges favour an answer for its place, so that a verdict counts only if it outlasts the swap, as in MT-Bench, arXiv
2306.05685.
The client of the package openai sends, times out and tries again. What was asked is kept, and never asked again.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from prefkd.config.hints import size_problems
from prefkd.data.fingerprints import Fingerprint
from prefkd.data.formats import Message
from prefkd.data.templates import plain_text
from prefkd.errors import PrefkdError
from prefkd.evaluation.records import Records
from prefkd.files import fingerprint
from prefkd.keys import address_problems, find_key

# So many requests in a row without an answer, each after all its retries: the endpoint is not coming back.
GIVE_UP = 10
MOST_REQUESTS_AT_A_TIME = 1024  # each has a thread
LONGEST_TIMEOUT = 86_400.0

INSTRUCTION = """\
Two assistants answered the same user. Decide which answer is better: more helpful, correct, honest and harmless. \
Neither the order of the answers nor their length matters in itself.

<conversation>
{prompt}
</conversation>

<answer_a>
{answer_a}
</answer_a>

<answer_b>
{answer_b}
</answer_b>

Explain in two sentences at most. Then end with a line that holds nothing but [[A]] if answer A is better, [[B]] if \
answer B is better, or [[tie]]."""

Verdict = Literal["A", "B", "tie"]


@dataclass
class JudgeConfig:
    """Which judge is asked, and how much.

    Attributes:
        base_url: Address of the endpoint, such as http://localhost:8000/v1.
        model: Name of the model there.
        api_key_variable: Variable of the environment, or of a file .env in the current folder, that holds the key. The
            key itself is neither written nor printed. null = the endpoint asks for none.
        instruction: The text that the judge reads; {prompt}, {answer_a} and {answer_b} are put in. It has to end its
            reply with [[A]], [[B]] or [[tie]].
        arguments: Further arguments of a request, as the endpoint takes them.
        parallel: Requests in flight at the same time.
        max_requests: Maximum requests of one run; the next run resumes.
        timeout: Seconds after which a request is tried again.
        retries: How often one is tried again, after waiting twice as long each time or as long as the endpoint says.
    """

    base_url: str
    model: str
    api_key_variable: str | None = "OPENAI_API_KEY"
    instruction: str = INSTRUCTION
    arguments: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 512})
    parallel: int = 4
    max_requests: int = 2000
    timeout: float = 60.0
    retries: int = 5

    def problems(self) -> Iterator[str]:
        if find_spec("openai") is None:
            yield "model: a judge needs the package openai; pip install 'prefkd[judge]'"
        yield from address_problems("base_url", self.base_url, "http://localhost:8000/v1")
        if self.api_key_variable is not None and not find_key(self.api_key_variable):
            yield (
                f"api_key_variable: {self.api_key_variable} is neither in the environment nor in .env; set it, or use "
                "null for an endpoint without keys"
            )
        for place in ("{prompt}", "{answer_a}", "{answer_b}"):
            if place not in self.instruction:
                yield f"instruction: it lacks {place}; put it where that text belongs"
        for name in ("model", "messages"):
            if name in self.arguments:
                yield f"arguments.{name}: is sent in any case; remove it"
        yield from size_problems(self, "max_requests")
        yield from size_problems(self, "parallel", most=MOST_REQUESTS_AT_A_TIME)
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            yield f"timeout: {self.timeout} is not a time to wait for an answer; use seconds, for example 60"
        yield from size_problems(self, "retries", least=0)

    def fingerprint(self) -> Fingerprint:
        """What verdicts depend on."""
        names = ("base_url", "model", "instruction")
        arguments = fingerprint("arguments", sorted(self.arguments.items()))
        return {f"judge.{name}": getattr(self, name) for name in names} | {"judge.arguments": arguments}


class Comparison(NamedTuple):
    """Two answers to a prompt.

    Attributes:
        key: Name of the prompt.
        messages: The prompt.
        own, other: The answers of the candidate and of the one that it is compared with.
    """

    key: str
    messages: list[Message]
    own: str
    other: str


@dataclass(frozen=True)
class Judgement:
    """Verdicts of a judge on many comparisons.

    Attributes:
        wins: Key -> 1 for a win of the candidate, 0 for a loss, 1/2 for neither. A comparison of which a verdict is
            missing has no entry.
        counts: How many comparisons are `same answer` (which is not asked about), `ties` in both orders, `undecided`
            (a tie in one order, or the verdict does not outlast the swap), `unreadable` (a reply without a verdict),
            `unanswered` (all tries failed) and `not asked` (because of `max_requests`).
    """

    wins: dict[str, float]
    counts: Counter[str]


class _Fatal(PrefkdError):
    """No further request can succeed."""


class _Unanswered(PrefkdError):
    """One request did not succeed."""


def parse_verdict(reply: str) -> Verdict | None:
    """The last verdict in a reply, None if there is none."""
    found = re.findall(r"\[\[\s*(a|b|tie)\s*\]\]", reply, re.IGNORECASE)
    verdicts: dict[str, Verdict] = {"a": "A", "b": "B", "tie": "tie"}
    return verdicts[found[-1].lower()] if found else None


def combine(own_first: Verdict, other_first: Verdict) -> float:
    """The candidate's win: 1 or 0 where both verdicts say so, 1/2 where one of them is a tie or they contradict.

    Args:
        own_first: The verdict where the candidate's answer was A.
        other_first: The verdict where it was B.
    """
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((own_first, other_first), 0.5)


def judge(comparisons: Sequence[Comparison], config: JudgeConfig, records: Records) -> Judgement:
    """Ask what was not asked before, and count.

    Args:
        comparisons: The answers to judge, two at a time.
        config: By whom.
        records: Replies so far; new ones are kept at once.

    Raises:
        PrefkdError: The endpoint refuses the key or the model, cannot be reached, or does not answer any more.
    """
    different = [one for one in comparisons if one.own != one.other]
    requests = {_key(one, swapped): (one, swapped) for one in different for swapped in (False, True)}
    unknown = [key for key in requests if key not in records.rows]
    asked = unknown[: config.max_requests]
    if asked:
        _ask({key: requests[key] for key in asked}, config, records)
    not_asked = set(unknown[config.max_requests :])
    wins = {one.key: 0.5 for one in comparisons if one.own == one.other}
    counts = Counter({"same answer": len(wins)} if wins else {})
    for one in different:
        keys = [_key(one, swapped) for swapped in (False, True)]
        if any(key not in records.rows for key in keys):
            counts["not asked" if not_asked.intersection(keys) else "unanswered"] += 1
            continue
        own_first, other_first = (
            parse_verdict(records.rows[keys[0]]["reply"]),
            parse_verdict(records.rows[keys[1]]["reply"]),
        )
        if own_first is None or other_first is None:
            counts["unreadable"] += 1
            continue
        wins[one.key] = combine(own_first, other_first)
        if wins[one.key] == 0.5:
            counts["ties" if own_first == other_first == "tie" else "undecided"] += 1
    return Judgement(wins, counts)


def _ask(requests: dict[str, tuple[Comparison, bool]], config: JudgeConfig, records: Records) -> None:
    from openai import OpenAI

    key = find_key(config.api_key_variable) if config.api_key_variable else "none"
    failed_in_a_row = 0
    with (
        OpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout, max_retries=config.retries) as client,
        ThreadPoolExecutor(config.parallel) as pool,
    ):
        futures: dict[Future[str], str] = {
            pool.submit(_request, client, config, *request): name for name, request in requests.items()
        }
        try:
            for future in as_completed(futures):
                name, (one, swapped) = futures[future], requests[futures[future]]
                try:
                    reply = future.result()
                except _Unanswered as error:
                    failed_in_a_row += 1
                    if failed_in_a_row == min(GIVE_UP, len(requests)):
                        raise _Fatal(f"{failed_in_a_row} requests in a row failed, the last one: {error}") from error
                    continue
                failed_in_a_row = 0
                order = "other first" if swapped else "own first"
                records.add([{"key": name, "prompt": one.key, "order": order, "reply": reply}])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _request(client: Any, config: JudgeConfig, one: Comparison, swapped: bool) -> str:
    """The judge's reply. What the endpoint says of an error is not passed on, since it may quote the key."""
    import openai

    answers = (one.other, one.own) if swapped else (one.own, one.other)
    content = _filled(config.instruction, one.messages, *answers)
    message = {"role": "user", "content": content}
    where = f"the judge at {config.base_url}"
    try:
        reply = client.chat.completions.create(model=config.model, messages=[message], extra_body=config.arguments)
        text = reply.choices[0].message.content
    except openai.APITimeoutError:
        raise _Unanswered(f"{where} takes longer than {config.timeout:g} s; raise judge.timeout") from None
    except openai.APIConnectionError:
        raise _Fatal(f"{where} cannot be reached; start it, or correct judge.base_url") from None
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise _Fatal(f"{where} refuses the key in {config.api_key_variable}; set another") from None
    except openai.NotFoundError:
        raise _Fatal(f"{where} has no model {config.model}; correct judge.model or judge.base_url") from None
    except openai.APIStatusError as error:
        raise _Unanswered(f"{where} answers with error {error.status_code}") from None
    except (openai.OpenAIError, ValueError, AttributeError, TypeError, LookupError) as error:
        return _nonsense(error)
    return text if isinstance(text, str) else ""


def _nonsense(error: Exception) -> str:
    """A reply that is not a chat completion is kept as one without a verdict: asking again would not help."""
    return f"(no chat completion: {type(error).__name__})"


def _filled(instruction: str, messages: Sequence[Message], answer_a: str, answer_b: str) -> str:
    """The instruction with its three texts; none is searched for the names of the others."""
    texts = {"{prompt}": plain_text(messages), "{answer_a}": answer_a, "{answer_b}": answer_b}
    return re.sub(r"\{prompt\}|\{answer_a\}|\{answer_b\}", lambda place: texts[place[0]], instruction)


def _key(one: Comparison, swapped: bool) -> str:
    return fingerprint("judged", one.messages, *((one.other, one.own) if swapped else (one.own, one.other)))
