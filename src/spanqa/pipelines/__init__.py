"""`pipeline("question-answering")`: the call forms of transformers 4.x on top of the Reader.

It accepts what transformers 4.57 accepted and returns dictionaries with `score`, `start`, `end`, `answer`, and our
`probability`. Where 4.57 was right, this module behaves the same. Where 4.57 was wrong (scores summed over windows, answers at
different positions merged by their text, `max_question_len` ignored, strides that panic), it behaves correctly.
`docs/migrating.md` lists every difference.

It does not use the stored threshold to decide whether there is an answer: `Reader.ask` does.
"""

from spanqa.pipelines.question_answering import QuestionAnsweringPipeline, pipeline
from spanqa.pipelines.revival import revive_transformers_pipeline

__all__ = ["QuestionAnsweringPipeline", "pipeline", "revive_transformers_pipeline"]
