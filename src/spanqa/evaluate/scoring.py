"""One prediction against its references: exact match and F1, as the official SQuAD 2.0 script computes them.

    normalise   lower case; no ASCII punctuation; no a, an, the; single spaces
    exact       1 when prediction and a reference are then the same
    f1          of the words that prediction and reference share, counted as often as both have them
    a question  takes its best reference. References with nothing left do not count. A question without any is right when
                the prediction is empty

Source: evaluate-v2.0.py, Rajpurkar, Jia and Liang 2018 (https://arxiv.org/abs/1806.03822).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from spanqa.squad import Example

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=8192)
def answer_words(text: str) -> tuple[str, ...]:
    """Return the words of an answer that count.

    >>> answer_words("The U.S.A., in an hour!")
    ('usa', 'in', 'hour')
    """
    return tuple(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def normalize_answer(text: str) -> str:
    """Return an answer in the form that the official script compares."""
    return " ".join(answer_words(text))


def word_f1(reference: Sequence[str], prediction: Sequence[str]) -> float:
    """Return the F1 of two bags of words. If one is empty, it is 1 when both are.

    >>> word_f1(["pier", "of", "oak"], ["oak", "pier"])
    0.8
    """
    if not reference or not prediction:
        return float(len(reference) == len(prediction))
    shared = sum((Counter(reference) & Counter(prediction)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def question_scores(example: Example, prediction: str) -> tuple[float, float]:
    """Return exact and f1 of a prediction, 0 to 1, for the reference that gives the best value.

    >>> from spanqa.squad import GoldAnswer
    >>> question_scores(Example("1", "Who?", "…", (GoldAnswer("Ada Lovelace", 0), GoldAnswer("Ada", 0))), "the Ada.")
    (1.0, 1.0)
    """
    guess = answer_words(prediction)
    references = {words for answer in example.answers if (words := answer_words(answer.text))} or {()}
    if guess in references:
        return 1.0, 1.0
    return 0.0, max(word_f1(words, guess) for words in references)
