"""transformers' own `pipeline("question-answering")`, made to work again on transformers 5 with this pipeline."""

import sys
import types
from typing import Any

from spanqa.errors import InputError
from spanqa.extras import require
from spanqa.pipelines.question_answering import TASK, QuestionAnsweringPipeline

_MODULE = "transformers.pipelines.question_answering"


def revive_transformers_pipeline() -> None:
    """Make `transformers.pipeline("question-answering", ...)` work again on transformers 5, with this pipeline.

    This registers the pipeline with transformers' own registry, removes the task from its table of removed tasks, and puts the class
    back where old code imports it: `transformers`, `transformers.pipelines` and `transformers.pipelines.question_answering`. To
    `isinstance` it is a `transformers.Pipeline`. Nothing else in transformers changes. Call it once, before the old code runs. The
    default model is the old default of transformers.

    Raises:
        NotInstalledError: transformers is not installed.
        InputError: this version of transformers still has the task.
    """
    require("transformers")
    import transformers
    from transformers import pipelines

    registry = pipelines.PIPELINE_REGISTRY
    known = registry.supported_tasks.get(TASK)
    if known is not None and known["impl"] is not QuestionAnsweringPipeline:
        raise InputError(
            f"transformers {transformers.__version__} still has its own {TASK!r} pipeline. There is nothing to revive."
        )
    getattr(pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    if known is None:
        registry.register_pipeline(
            TASK,
            pipeline_class=QuestionAnsweringPipeline,
            pt_model=transformers.AutoModelForQuestionAnswering,
            default={"model": ("distilbert/distilbert-base-cased-distilled-squad", "564e9b5")},
            type="text",
        )
    module = types.ModuleType(_MODULE, "The module that old code imports the pipeline from.")
    sys.modules[_MODULE] = pipelines.question_answering = module
    places: tuple[Any, ...] = (transformers, pipelines, module)
    for place in places:
        place.QuestionAnsweringPipeline = QuestionAnsweringPipeline
    pipelines.Pipeline.register(QuestionAnsweringPipeline)
