"""What a model's template writes around an answer, and the answer as it writes it.

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n   Hi there!   <|im_end|>\\n
    before                                                      answer         after

A template may refuse a conversation, trim an answer, or leave out what it does not know: tools, calls, a developer.
What it would change in silence is refused here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prefkd.data.encoder import GUARD, Cue, Encoder, any_of
from prefkd.data.messages import Answer, Message
from prefkd.data.templates import HELLO, PROBE, Template, Tools
from prefkd.errors import DataError

_TAKE_OUT = "give a template that writes them, or take them out of the data"


@dataclass(frozen=True)
class Frame:
    """What a model's template writes around an answer.

    Attributes:
        before: The prompt. Special-token text of a message is guarded.
        gap: Blanks between prompt and answer. They are in the text of neither, but in the tokens of the answer.
        after: The end of the answer and whatever follows it.
        cue: The end of the prompt, behind which the answer is tokenized.
        tools: The tools that the prompt tells of, or None.
    """

    before: str
    gap: str
    after: str
    cue: Cue
    tools: Tools | None = None


class Framing:
    """Cuts what a template writes of a conversation into the answer and what stands around it.

    Args:
        template: The model's template.
        encoder: Guards special-token text of messages.
        name: Name of the model in messages.

    Attributes:
        example: The frame of an answer to a greeting.
        end: The text that ends an answer: what the template writes behind it, up to the first special or added token.
        end_token: The token that this text ends with, or nothing if it is mere text.

    Raises:
        DataError: The template refuses even a greeting.
    """

    def __init__(self, template: Template, encoder: Encoder, name: str):
        self.template = template
        self.encoder = encoder
        self.name = name
        # An end that is one token need not be a special one. Some vocabularies hold runs of blanks as added tokens.
        added = (token.content for token in encoder.tokenizer.added_tokens_decoder.values() if token.content.strip())
        self._added_tokens = any_of({*added, *encoder.tokenizer.all_special_tokens})
        self.example = self._frame(HELLO)
        self.end, self.end_token = self._end_of(self.example.after)

    def frame(self, messages: Sequence[Message], *, thoughts: bool = False, tools: Tools | None = None) -> Frame:
        """What stands before and after an answer to these messages.

        Args:
            messages: The conversation.
            tools: The tools that can be called.
            thoughts: Whether text that the template puts before every answer, as Qwen3 an empty thought, is part of
                the answer and not of the prompt. Only so can the answer have a thought of its own there.

        Raises:
            DataError: The template refuses the conversation, leaves a part of it out, or asks for an answer in another
                way than it writes one.
        """
        messages, tools = _without_guards(list(messages)), tools and _without_guards(list(tools))
        guarded = _in_texts(messages, self.encoder.guard)
        frame = self._frame(guarded, thoughts=thoughts, tools=tools and _in_texts(tools, self.encoder.guard))
        bare = frame.before.replace(GUARD, "")
        if tools or any(turn["role"] in ("tool", "developer") or "tool_calls" in turn for turn in messages):
            self._require_all_of(messages, tools)
        if GUARD in frame.before and bare != self._frame(messages, thoughts=thoughts, tools=tools).before:
            raise DataError(
                f"the chat template of {self.name} reads special tokens in a message as its own; take them out of the "
                "message or use template: plain"
            )
        if self._end_of(frame.after)[0] != self.end:
            raise DataError(
                f"the chat template of {self.name} ends this answer with {frame.after[:30]!r}, but others with "
                f"{self.end!r}; use template: plain"
            )
        return replace(frame, tools=tools)

    def _require_all_of(self, messages: Sequence[Message], tools: Tools | None) -> None:
        """Make sure that a template writes what not all templates know: tools, calls, what tools and developers say."""

        def leaves_out(others: Sequence[Message], other_tools: Tools | None) -> bool:
            try:
                return self._frame(others, tools=other_tools).before == self._frame(messages, tools=tools).before
            except DataError:  # without it the conversation makes no sense to the template
                return False

        if tools and leaves_out(messages, None):
            raise DataError(
                f"the chat template of {self.name} takes no tools; remove field 'tools', or give a template"
            )
        if any("tool_calls" in turn for turn in messages):
            bare = [Message(role=turn["role"], content=turn["content"]) for turn in messages]
            if leaves_out(bare, tools):
                raise DataError(f"the chat template of {self.name} leaves out calls of tools; {_TAKE_OUT}")
        for i, turn in enumerate(messages):
            other = Message({**turn, "content": f"{turn['content']} {PROBE}"})
            told = turn["role"] in ("tool", "developer")
            if told and leaves_out([*messages[:i], other, *messages[i + 1 :]], tools):
                raise DataError(
                    f"the chat template of {self.name} leaves out messages of the role {turn['role']}; {_TAKE_OUT}"
                )

    def response(self, messages: Sequence[Message], answer: Answer, frame: Frame) -> str:
        """The answer as the template writes it: many trim it.

        Raises:
            DataError: The template writes it elsewhere, leaves out its calls, or changes what stands around it.
        """
        messages = _without_guards(list(messages))
        written = self.template.write(messages, answer, frame.tools)
        before = frame.before.replace(GUARD, "") + frame.gap
        if isinstance(answer, dict):
            if written == self.template.write(messages, answer["content"], frame.tools):
                raise DataError(f"the chat template of {self.name} leaves out calls of tools; {_TAKE_OUT}")
            if special := self.encoder.special.search(
                written[len(frame.before.replace(GUARD, "")) : -len(frame.after)]
            ):
                raise DataError(
                    f"the chat template of {self.name} writes calls with the special token {special[0]}, and "
                    "special-token text in an answer is text; take answers that call tools out of the data"
                )
            answer = answer["content"]
        if "<think>" in answer and self._thought_token:
            raise DataError(
                f"the chat template of {self.name} writes thoughts behind the special token {self._thought_token}, and "
                "special-token text in an answer is text; set template.thoughts to drop"
            )
        if not written.startswith(before) or not written[len(before) :].endswith(frame.after):
            raise DataError(f"the chat template of {self.name} {rewrites(answer)}")
        return written[len(before) : len(written) - len(frame.after)]

    @cached_property
    def _thought_token(self) -> str | None:
        """The special token behind which the template writes thoughts in a notation of its own, as that of gpt-oss."""
        turn: Any = {"role": "assistant", "content": "Hi", "reasoning_content": PROBE, "thinking": PROBE}
        try:
            before, found, _ = self.template.write(HELLO, turn).partition(PROBE)
        except DataError:
            return None
        *_, token = (None, *(match[0] for match in self.encoder.special.finditer(before)))
        return token if found and token != "<think>" and before.rstrip().endswith(token or "<think>") else None

    def _frame(self, messages: Sequence[Message], *, thoughts: bool = False, tools: Tools | None = None) -> Frame:
        asked, written = (self.template.write(messages, answer, tools) for answer in (None, PROBE))
        before, found, after = written.rpartition(PROBE)
        if found and asked.rstrip().endswith("<think>") and not before.startswith(asked):
            raise DataError(
                f"the chat template of {self.name} begins a thought where it asks for an answer ({asked[-20:]!r}), but "
                "writes answers without one, so no answer could be trained where it is asked for; take <think> out of "
                "the generation prompt in the chat template or use template: plain"
            )
        if not found or not before.startswith(asked):
            raise DataError(
                f"the chat template of {self.name} ends a prompt with {asked[-30:]!r}, but writes answers after "
                f"{before[-30:]!r}; use template: plain"
            )
        gap = before.removeprefix(asked)
        if gap.strip(" "):
            asked, gap = asked if thoughts else before, ""
        return Frame(asked, gap, after, self.encoder.cue(asked))

    def _end_of(self, after: str) -> tuple[str, str]:
        """The text that ends an answer, and the added token that it ends with, if there is one."""
        found = self._added_tokens.search(after)
        return (after[: found.end()], found[0]) if found else (after.rstrip(), "")


def _without_guards(value: Any) -> Any:
    return _in_texts(value, lambda text: text.replace(GUARD, "\ufffd"))


def _in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value with all its texts changed, those of keys and roles apart."""
    if isinstance(value, list):
        return [_in_texts(part, change) for part in value]
    if isinstance(value, dict):
        return {key: part if key in ("role", "type") else _in_texts(part, change) for key, part in value.items()}
    return change(value) if isinstance(value, str) else value


def rewrites(answer: str) -> str:
    """What a template that does not write an answer as it is has done to it."""
    if "think>" in answer:
        return (
            "takes the thought out of this answer or puts it elsewhere; remove <think> ... </think> from the answer, "
            "set template.thoughts to drop, or use template: plain"
        )
    return "writes something of its own for this answer"
