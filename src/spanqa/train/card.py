"""The model card of a fine-tuned model: what it was made from, how, and how good it is, each figure with its command."""

from typing import Any

from spanqa import __version__
from spanqa.train.finetune import Trained
from spanqa.train.settings import TrainSettings
from spanqa.windows import WindowSettings


def model_card(
    name: str, done: Trained, *, notes: dict[str, Any], settings: TrainSettings, windows: WindowSettings
) -> str:
    """Return README.md, in the form of the Hugging Face hub."""
    before = "" if done.f1_before is None else f" ({done.f1_before:.2f} before)"
    threshold = "the base's" if done.no_answer_threshold is None else f"{done.no_answer_threshold:.4g}"
    files = "\n".join(f"- {file['file']}, sha256 {file['sha256']}" for file in notes["data"])
    return f"""---
library_name: spanqa
pipeline_tag: question-answering
base_model: {notes["base"]}
---

# {name}

Extractive question answering, fine-tuned from {notes["base"]} (sha256 {notes["base_sha256"][:12]}) with spanqa {__version__}.

```python
from spanqa import Reader

reader = Reader.load("{name}")
```

| | |
|---|---|
| questions trained on | {notes["train_questions"]:,} |
| questions measured on | {notes["dev_questions"]:,} |
| F1 on these | {done.f1:.2f}{before} |
| no-answer threshold | {threshold} |
| windows | {windows.max_seq_length} tokens |
| steps | {done.steps:,}, the best of them {done.best_step:,} |
| learning rate, windows a step, dtype, seed | {settings.learning_rate:g}, {settings.batch_size * settings.accumulation}, {settings.dtype}, {settings.seed} |

F1 is that at the best threshold on the questions measured on, by which the best step was chosen too; on others expect
somewhat less.

Data:

{files or "- (a folder)"}

Made by:

    {notes["command"]}
"""
