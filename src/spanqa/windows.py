"""Question and passages to windows that fit the model: the only place where texts are cut.

A window is `[CLS] question [SEP] slice of the passage [SEP]`. It is held as a reference to the two token arrays and the
bounds of the slice; ids are copied only when a batch is made. It knows nothing of padding or of the model's weights.

Source: google-research/bert, run_squad.py, `convert_examples_to_features`; Hugging Face tokenizers, truncation of the
second sequence with a stride.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from spanqa import bounds
from spanqa.errors import InputError, QuestionTooLongError
from spanqa.template import Template
from spanqa.tokens import Passage, Tokenizer, Tokens


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How passages are cut.

    `max_seq_length`: tokens of a window, special tokens counted. `overlap`: passage tokens that a window shares with the
    one before it; None is min(128, room // 2), room being what the question leaves. `max_question_tokens`: a longer
    question is refused; None is half of what the special tokens leave.

    Our `overlap` is `doc_stride` in transformers and `stride` in tokenizers. Google's BERT calls the *step* between
    windows `doc_stride`; that is room - overlap here.
    """

    max_seq_length: int = 384
    overlap: int | None = None
    max_question_tokens: int | None = None

    def __post_init__(self) -> None:
        bounds.check(self.__slots__, asdict(self))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """`[CLS] question [SEP] passage[first:stop] [SEP]`, as references to the token arrays.

    `first` (inclusive) and `stop` (exclusive) are token positions in the passage.
    """

    question: Tokens
    passage: Tokens
    first: int
    stop: int
    template: Template

    def __len__(self) -> int:
        return len(self.question) + self.stop - self.first + self.template.special_tokens

    @property
    def passage_start(self) -> int:
        """The position in the window of its first passage token."""
        return len(self.template.before) + len(self.question) + len(self.template.between)


def make_windows(
    question: Tokens,
    passage: Tokens,
    template: Template,
    settings: WindowSettings = WindowSettings(),
    part: tuple[int, int] | None = None,
) -> list[Window]:
    """Cut the passage, or a range of its tokens, so that each window, with the question, fits the model.

    Windows start at multiples of room - overlap; the last one ends with the passage and may be shorter. Every token is
    in at least one window. A passage without tokens has no window. `part` is that range, the last token excluded.

        question: who ?          max_seq_length = 9   ->  room for 4 passage tokens
        passage:  a b c d e f    overlap = 2          ->  [a b c d] [c d e f]

    Raises:
        QuestionTooLongError: the question has more than `max_question_tokens`, or leaves no room for the passage.
        InputError: the overlap is as long as the room, so that windows could not advance.
    """
    room, overlap = room_and_overlap(question, template, settings)
    windows: list[Window] = []
    first, end = part or (0, len(passage))
    while first < end:
        stop = min(first + room, end)
        windows.append(Window(question, passage, first, stop, template))
        if stop == end:
            break
        first += room - overlap
    return windows


def room_and_overlap(question: Tokens, template: Template, settings: WindowSettings) -> tuple[int, int]:
    """Return how many passage tokens fit into a window beside the question, and how many of them two windows share.

    Raises:
        QuestionTooLongError: as `make_windows`.
        InputError: as `make_windows`.
    """
    room = settings.max_seq_length - template.special_tokens - len(question)
    limit = settings.max_question_tokens
    if limit is None:
        limit = (settings.max_seq_length - template.special_tokens) // 2
    if len(question) > limit or room < 1:
        raise QuestionTooLongError(
            f"The question has {len(question)} tokens; at most {max(0, min(limit, len(question) + room - 1))} fit beside the passage "
            f"in windows of {settings.max_seq_length} tokens. Shorten it, or raise max_question_tokens or max_seq_length "
            "as far as the model allows."
        )
    overlap = min(128, room // 2) if settings.overlap is None else settings.overlap
    if overlap >= room:
        raise InputError(
            f"overlap is {overlap} tokens, but the question leaves room for only {room} passage tokens in a window of "
            f"{settings.max_seq_length}, so windows could not advance. Choose an overlap below {room}, or none to let "
            "spanqa choose."
        )
    return room, overlap


def cut(
    question: str | Tokens,
    passages: Sequence[Passage],
    tokenizer: Tokenizer,
    settings: WindowSettings = WindowSettings(),
) -> list[list[Window]]:
    """Return the windows of each passage with the question; a passage given twice has windows the first time only.

    No window holds tokens of two parts of a passage. A question that was encoded before, by the same tokenizer, is given as its
    tokens.

    Raises:
        QuestionTooLongError: the question has more than `max_question_tokens`, or leaves no room for the passage.
        InputError: the question is empty, or not a string; the overlap is as long as the room.
    """
    tokens = question if isinstance(question, Tokens) else tokenizer.encode(check_question(question))
    if not len(tokens):
        raise InputError("The question holds nothing that the model can read. Ask in words.")
    seen: set[str] = set()
    windows: list[list[Window]] = []
    for passage in passages:
        parts = () if passage.text in seen else passage.parts or (None,)
        cuts = (make_windows(tokens, passage.tokens, tokenizer.template, settings, part) for part in parts)
        windows.append(list(chain.from_iterable(cuts)))
        seen.add(passage.text)
    return windows


def check_question(question: str) -> str:
    """Return the question.

    Raises:
        InputError: it is not a string, or empty.
    """
    if not isinstance(question, str):
        raise InputError(f"The question should be a text (str), got {type(question).__name__}: {question!r:.60}")
    if not question.strip():
        raise InputError("The question is empty. Ask something, such as: Who signed the treaty?")
    return question
