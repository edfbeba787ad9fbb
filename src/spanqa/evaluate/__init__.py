"""Official metrics: how good a reader is, in numbers that can be compared with published ones.

metrics.py    predictions -> official SQuAD metrics
official.py   logits -> predictions, by the rule of transformers' run_qa
run.py        reader and examples -> both, and run_qa's files
record.py     what was run
"""

from spanqa.evaluate.metrics import (
    QuestionScore,
    averages,
    best_threshold,
    normalize_answer,
    question_scores,
    score_question,
    score_squad,
    summarize,
)
from spanqa.evaluate.official import Candidate, Decision, OfficialSettings, official_answer
from spanqa.evaluate.run import evaluate, score, score_file

__all__ = [
    "Candidate",
    "Decision",
    "OfficialSettings",
    "QuestionScore",
    "averages",
    "best_threshold",
    "evaluate",
    "normalize_answer",
    "official_answer",
    "question_scores",
    "score",
    "score_file",
    "score_question",
    "score_squad",
    "summarize",
]
