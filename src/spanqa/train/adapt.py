"""An encoder adapted to a domain's plain text by masked language modelling: texts and a base model in, a better base out.

    adapt(["manuals/"], "my-base", model="spanqa-mini")

    OUT.training/corpus        beside what every run has there: the windows of the texts
    OUT.training/found.json    what was measured on held-out texts, by step

The result has the base model's tokenizer and settings, and a head for masked language modelling. `spanqa train --model` takes it, and
where the base could answer questions, it keeps that head, too. It is the model after the last step: the learning rate falls to 0,
and a model chosen by what was measured would look better than it is.

What it needs: pip install 'spanqa[train]'.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spanqa.backends.torch_networks import build_masked_lm, question_answering_head
from spanqa.checkpoint import BUNDLED, CARD, CONFIG, Checkpoint, name_for_records, open_checkpoint, write_settings
from spanqa.errors import InputError
from spanqa.evaluate.record import describe_run
from spanqa.extras import require
from spanqa.files import read_object, write_json, write_text
from spanqa.progress import Notify, Progress, ignore, silent
from spanqa.train.card import adapted_card
from spanqa.train.corpus import Corpus, CorpusSettings, identity, text_files, write_corpus
from spanqa.train.loop import TrainingLoop
from spanqa.train.masked_lm import ChosenWindows, HeldOut, MaskedWords, Predictions, predict_only_chosen
from spanqa.train.masking import mask_tokens, wanted
from spanqa.train.settings import AdaptSettings, adapt_preset, hidden_size_of
from spanqa.train.work import (
    check_space,
    deliver,
    is_first_process,
    prepared,
    train_to_end,
    training_arguments,
    windows_per_s,
    work_folder,
    write_model,
)

File = str | os.PathLike[str]

USUAL_LENGTH = 256
"""Tokens of the longest window: a few paragraphs. Longer ones cost more for each token, and say little more about a hidden word."""

_MANY = 0.05  # so large a share of tokens that cannot be learned from is worth a line


@dataclass(frozen=True, slots=True)
class Adapted:
    """An encoder that was adapted.

    `out` is its folder. `before` is None where the head is new: it would have guessed. `training` is what its spanqa.json records.
    """

    out: Path
    before: Predictions | None
    after: Predictions
    training: Mapping[str, Any]


def adapt(
    texts: File | Iterable[File],
    out: File,
    *,
    model: File = BUNDLED[0],
    revision: str | None = None,
    text_column: str = "text",
    resume: bool = False,
    notify: Notify = ignore,
    progress: Progress = silent,
    **changes: Any,
) -> Adapted | None:
    """Adapt `model` to texts by masked language modelling, and write the result to the folder `out`.

    `texts` are files and folders: plain text, Markdown and web pages, and JSON Lines and Parquet with a column of texts, which is
    `text_column`. Some texts are held out to measure on (`Corpus.split`). The settings are those of `adapt_preset`; `changes`
    replaces fields of `AdaptSettings`. `resume` continues a run that was stopped. `notify` gets lines that the user should see,
    `progress` counts steps; its notes are the latest loss and the share of hidden words that are predicted, in percent.

    Returns the result, or None in every process of a distributed run except the first.

    Raises:
        DatasetError: a file cannot be read, or has no such column.
        InputError: `out` already exists or cannot be written, another run writes to it, there is nothing to resume, the texts are
            too few or not those of the run that is resumed, or a change is not a field of `AdaptSettings`.
        CheckpointError: the base model is not an encoder that can be trained by masking.
        TrainingError: the loss is not a number.
        InterruptedTrainingError: a signal stopped the training; a checkpoint was written.
        BackendError: the disk has too little space, or the folder cannot be written.
        NotInstalledError: the packages for training are not installed.
    """
    require("adapt")
    out, first = Path(out), is_first_process()
    names = [os.fspath(each) for each in ([texts] if isinstance(texts, (str, os.PathLike)) else texts)]
    with work_folder(out, resume, keep=("corpus",) if resume else ()) as work:
        base = open_checkpoint(model, revision)
        settings = _settings(base, changes)
        template, tokens = base.tokenizer.text_template, mask_tokens(base.tokenizer, repr(str(base.path)))
        assert settings.max_seq_length is not None
        room = settings.max_seq_length - template.special_tokens
        arguments = training_arguments(settings, work)
        corpus = _corpus(names, base, CorpusSettings(room, text_column), work, arguments)
        train, held_out = corpus.split()
        transformers.set_seed(settings.seed)  # a new head is drawn from it
        network, has_head = build_masked_lm(base, torch.float32)
        predict_only_chosen(network)
        form = prepared(network, base, settings.layout)
        if first:
            check_space(network, out.parent)
        longest_word = wanted(room) if settings.masking == "word" else None
        for line in _notes(corpus, len(held_out), base, has_head, longest_word):
            notify(line)
        objective = MaskedWords(form, template, tokens, settings.masking, settings.seed)
        measured = HeldOut(
            network, form, template, tokens.mask, [corpus[int(each)] for each in held_out], work / "found.json"
        )
        loop = TrainingLoop(
            network,
            arguments,
            ChosenWindows(corpus, train),
            objective,
            measure=measured,
            evaluations=settings.evaluations,
            measure_first=has_head,
            progress=progress if first else silent,
        )
        loop.add_callback(objective.new_masks())
        seconds = train_to_end(loop, work, resume)
        if not first:
            return None
        found, steps = measured.found, loop.state.global_step
        before, after = found.get(0), found[steps]
        training = _record(model, base, corpus, settings) | {
            "train_windows": len(train),
            "held_out_windows": len(held_out),
            "new_head": not has_head,
            "found": {str(step): asdict(each) for step, each in sorted(found.items())},
            "steps": steps,
            "seconds": seconds,
            "windows_per_s": windows_per_s(loop, settings),
        }
        folder = work / "model"
        _write(network, base, folder)
        history = [entry for entry in loop.state.log_history if "loss" in entry or "accuracy" in entry]
        done = Adapted(out, before, after, training)
        deliver(
            folder, work, out, training, history, lambda path: write_text(path / CARD, adapted_card(out.name, done))
        )
        return done


def _settings(base: Checkpoint, changes: Mapping[str, Any]) -> AdaptSettings:
    known = [each.name for each in fields(AdaptSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise InputError(f"There is no setting {unknown[0]!r} of adapting. Expected one of {', '.join(known)}.")
    settings = replace(adapt_preset(hidden_size_of(base.config)), **changes)
    most = base.max_seq_length
    if settings.max_seq_length is not None and settings.max_seq_length > most:
        raise InputError(f"max_seq_length is {settings.max_seq_length}, but this model reads at most {most} tokens.")
    return replace(settings, max_seq_length=settings.max_seq_length or min(USUAL_LENGTH, most))


def _corpus(
    names: list[str], base: Checkpoint, asked: CorpusSettings, work: Path, arguments: TrainingArguments
) -> Corpus:
    """Return the windows of the texts; the first process makes them, and the others wait. A resumed run has them already."""
    folder = work / "corpus"
    with arguments.main_process_first(local=False):
        if is_first_process():
            files = text_files(names)
            if folder.is_dir() and Corpus(folder).identity != identity(files, base.tokenizer, asked):
                if get_last_checkpoint(str(work)) is not None:
                    raise InputError(
                        f"The texts, the model or the settings are not those of the run in {str(work)!r}. Give the same ones to "
                        "resume it, or remove the folder to start again."
                    )
                shutil.rmtree(folder)
            if not folder.is_dir():
                write_corpus(files, base.tokenizer, asked, folder)
    return Corpus(folder)


def _notes(corpus: Corpus, held_out: int, base: Checkpoint, has_head: bool, longest_word: int | None) -> Iterable[str]:
    """Yield what the user should know before training starts. `longest_word` has as many tokens as can be masked, if that matters."""
    report = corpus.report
    yield f"{report}; held out to measure on: {held_out:,} windows"
    unknown, long = (count / report.tokens for count in (report.unknown_tokens, report.long_word_tokens))
    if unknown > _MANY:
        yield (
            f"{100 * unknown:.0f} % of the tokens are unknown to this model's tokenizer, and nothing is learned from their words. Is "
            "it a model of another language?"
        )
    if long > _MANY and longest_word is not None:
        yield (
            f"{100 * long:.0f} % of the tokens belong to words of more than {longest_word} tokens, which are "
            "never masked. For texts without spaces between words, use --masking token"
        )
    if not has_head:
        yield (
            "this model has no head for masked language modelling; it gets a new one that shares its token embeddings. Nothing is "
            "measured before training, as a new head guesses"
        )
    if question_answering_head(base):
        yield (
            "the head that answers questions is kept as it is, for a changed encoder. Measure it with `spanqa evaluate`, and fit "
            "threshold and calibration again with `spanqa tune`; the old calibration is dropped"
        )


def _record(model: File, base: Checkpoint, corpus: Corpus, settings: AdaptSettings) -> dict[str, Any]:
    return {
        "base": name_for_records(model),
        "base_sha256": base.weights.sha256,
        "texts": {**asdict(corpus.report), "sha256": corpus.sha256},
        "settings": asdict(settings),
        "command": describe_run()["command"],
    }


def _write(network: Any, base: Checkpoint, folder: Path) -> None:
    """Write the network beside the head that answers questions, if the base has one, and the base's settings."""
    shutil.rmtree(folder, ignore_errors=True)
    head = question_answering_head(base)
    write_model(network, base, folder, more=head)
    if head and base.config.get("architectures"):
        write_json(folder / CONFIG, {**read_object(folder / CONFIG), "architectures": base.config["architectures"]})
    settings = {name: base.settings[name] for name in ("windows", "answers") if base.settings.get(name)}
    write_settings(folder, {**settings, "calibration": None})
