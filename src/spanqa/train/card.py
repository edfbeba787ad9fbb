"""Model cards: what a model was made from, how, and how good it is."""

from typing import TYPE_CHECKING, Any

from spanqa import __version__
from spanqa.train.settings import TrainSettings
from spanqa.windows import WindowSettings

if TYPE_CHECKING:
    from spanqa.train.adapt import Adapted
    from spanqa.train.run import Trained


def model_card(
    name: str, done: "Trained", *, notes: dict[str, Any], settings: TrainSettings, windows: WindowSettings
) -> str:
    """Return README.md, in the form of the Hugging Face hub."""
    before = "" if done.f1_before is None else f" ({done.f1_before:.2f} before)"
    taught = ""
    if "teacher" in notes:
        share = f"temperature {settings.temperature:g}, {100 * settings.teacher_weight:g} % of the loss"
        taught = f"""| teacher | {notes["teacher"]} (sha256 {notes["teacher_sha256"][:12]}), at {share} |
| questions without labels | {notes["unlabelled_questions"]:,} |
"""
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
| training questions | {notes["train_questions"]:,} |
{taught}| dev questions | {notes["dev_questions"]:,} |
| F1 on the dev questions | {done.f1:.2f}{before} |
| window length | {windows.max_seq_length} tokens |
| steps | {done.steps:,}; the best model is from step {done.best_step:,} |
| learning rate, windows per step, dtype, seed | {settings.learning_rate:g}, {settings.batch_size * settings.accumulation}, {settings.dtype}, {settings.seed} |

F1 is measured at the threshold that is best for the dev questions. The best step was chosen on the same questions, so expect a
somewhat lower F1 on others.

Data:

{files or "- not from files"}

Command:

    {notes["command"]}
"""


def adapted_card(name: str, done: "Adapted") -> str:
    """Return README.md of an encoder that was adapted to plain text."""
    notes = done.training
    settings, texts = notes["settings"], notes["texts"]
    before = "" if done.before is None else f" ({done.before.words:.1f} % before)"
    return f"""---
library_name: spanqa
pipeline_tag: fill-mask
base_model: {notes["base"]}
---

# {name}

{notes["base"]} (sha256 {notes["base_sha256"][:12]}), adapted to plain text by masked language modelling with spanqa {__version__}. It is a
base to fine-tune:

    spanqa train questions.csv --model {name} --out my-model

| | |
|---|---|
| texts, windows, tokens | {texts["texts"]:,}, {texts["windows"]:,}, {texts["tokens"]:,} (sha256 {texts["sha256"][:12]}) |
| masking | {"whole words" if settings["masking"] == "word" else "single tokens"} |
| hidden words of held-out texts that it predicts | {done.after.words:.1f} %{before} |
| window length | {settings["max_seq_length"]} tokens |
| steps | {notes["steps"]:,} |
| learning rate, windows per step, dtype, seed | {settings["learning_rate"]:g}, {settings["batch_size"] * settings["accumulation"]}, {settings["dtype"]}, {settings["seed"]} |

Command:

    {notes["command"]}
"""
