"""The arrangement of special tokens around question and passage, as a tokenizer makes it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tokenizers
from numpy.typing import NDArray

from spanqa.errors import CheckpointError


@dataclass(frozen=True)
class Template:
    """The special tokens of a window, as (id, token type) pairs: `before` question `between` passage `after`.

    BERT:    before [CLS], between [SEP], after [SEP]
    RoBERTa: before <s>, between </s> </s>, after </s>

    The first token of `before` is the one whose logits mean "no answer".
    """

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    question_type: int
    passage_type: int

    @cached_property
    def special_tokens(self) -> int:
        """How many tokens of a window are neither question nor passage."""
        return len(self.before) + len(self.between) + len(self.after)

    @cached_property
    def special_ids(self) -> tuple[NDArray[np.int32], ...]:
        """The ids of `before`, `between` and `after`."""
        return tuple(np.array([token for token, _ in part], np.int32) for part in self._parts)

    @cached_property
    def special_types(self) -> tuple[NDArray[np.int32], ...]:
        """The token types of `before`, `between` and `after`."""
        return tuple(np.array([kind for _, kind in part], np.int32) for part in self._parts)

    @property
    def _parts(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        return self.before, self.between, self.after

    @property
    def highest_type(self) -> int:
        """The highest token type."""
        return max(self.question_type, self.passage_type, *(kind for part in self._parts for _, kind in part))


def read_template(tokenizer: tokenizers.Tokenizer) -> Template:
    """Read the template of a (question, passage) pair off an encoded pair of one-letter texts.

    Raises:
        CheckpointError: the pair has no tokens, or none before the question.
    """
    pair = tokenizer.encode("a", "b")
    sequence, pairs = pair.sequence_ids, list(zip(pair.ids, pair.type_ids, strict=True))
    if 0 not in sequence or 1 not in sequence:
        raise CheckpointError(
            "The tokenizer gives no token for the letters 'a' and 'b'. Is its vocabulary the right one?"
        )
    question, passage = sequence.index(0), sequence.index(1)
    after_question = question + sequence.count(0)
    after_passage = passage + sequence.count(1)
    if question == 0 or after_question > passage:
        raise CheckpointError(
            "The tokenizer's template puts no special token ([CLS] or <s>) before the question, so the model has no place "
            "for 'no answer'. Expected '[CLS] question [SEP] passage [SEP]'; is its post_processor missing?"
        )
    return Template(
        before=tuple(pairs[:question]),
        between=tuple(pairs[after_question:passage]),
        after=tuple(pairs[after_passage:]),
        question_type=pairs[question][1],
        passage_type=pairs[passage][1],
    )


def read_text_template(tokenizer: tokenizers.Tokenizer) -> Template:
    """Read the template of a text without a question off an encoded one-letter text: `before` passage `after`."""
    text = tokenizer.encode("a")
    pairs = list(zip(text.ids, text.type_ids, strict=True))
    first = text.sequence_ids.index(0)
    kind = pairs[first][1]
    return Template(tuple(pairs[:first]), (), tuple(pairs[first + text.sequence_ids.count(0) :]), kind, kind)
