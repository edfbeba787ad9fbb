"""How good a reader is, in numbers that can be compared with published ones.

scoring.py    a prediction and its references -> exact match and F1
outcomes.py   reader and examples -> the outcome of each question, in one pass of the model
metrics.py    outcomes -> the official SQuAD metrics
official.py   logits -> predictions, by the rule of transformers' run_qa
run.py        reader and examples -> metrics by both rules, and run_qa's files
record.py     what was run
curves.py     outcomes -> calibration error, risk and coverage, precision and recall
groups.py     outcomes -> averages by kind of question
compare.py    outcomes of two runs -> their difference
diagnosis.py  outcomes -> the cause of each mistake
report.py     all of that on one page
tune.py       outcomes -> threshold and calibration
stored.py     threshold and calibration into a model folder
parity.py     every backend against the reference
"""

from spanqa.evaluate.metrics import averages, best_threshold, score_squad, summarize
from spanqa.evaluate.official import Candidate, Decision, OfficialSettings, official_answer
from spanqa.evaluate.outcomes import GoldSpan, Outcome, collect, score_question
from spanqa.evaluate.run import evaluate, score, score_file
from spanqa.evaluate.scoring import normalize_answer, question_scores

__all__ = [
    "Candidate",
    "Decision",
    "GoldSpan",
    "OfficialSettings",
    "Outcome",
    "averages",
    "best_threshold",
    "collect",
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
