"""Attention through the reader: what is captured, kept, stored and rolled out, on every backend."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from conftest import need_backend
from spanqa.backends.base import Backend
from spanqa.backends.registry import BACKENDS
from spanqa.batches import Capture, pack
from spanqa.checkpoint import find, open_checkpoint
from spanqa.errors import DatasetError, InputError
from spanqa.explain import attention as attention_module
from spanqa.explain import rollout, storage
from spanqa.explain.attention import (
    Attention,
    attention_bytes,
    attention_of,
    attention_shape,
    attentions,
    layers_at_once,
    stream_layers,
)
from spanqa.explain.decision import decide
from spanqa.reader import Reader
from spanqa.windows import cut
from tiny import SENTENCES

QUESTION = "Who built the lighthouse?"
PASSAGE = "The old lighthouse at Penmar was built by Anna Kestrel in 1891."
LONG = SENTENCES[:600]
every_backend = pytest.mark.parametrize("name", BACKENDS)


@pytest.fixture(scope="module")
def reader_on(tiny: Callable[..., Path], backend_of: Callable[..., Backend]) -> Iterator[Callable[..., Reader]]:
    """`reader_on("numpy")` is a reader of the tiny BERT on that backend."""
    made: dict[str, Reader] = {}

    def reader(name: str, layout: Any = None) -> Reader:
        key = f"{name} {layout}"
        if key not in made:
            made[key] = Reader(open_checkpoint(tiny("bert")), backend_of(name), layout=layout)
        return made[key]

    yield reader
    for each in made.values():
        each.close()


@pytest.fixture(scope="module")
def reader(reader_on: Callable[..., Reader]) -> Reader:
    return reader_on("numpy")


def eager(transformers: Any, folder: Path, found: Attention) -> Any:
    """What transformers' eager attention gives for the tokens of the window: `[layer, head, query, key]`."""
    import torch

    network = transformers.AutoModelForQuestionAnswering.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.from_numpy(found.input_ids)[None].long()
    second = torch.from_numpy((np.cumsum(found.sequence_ids == 1) > 0).astype(np.int64))[None]
    with torch.inference_mode():
        output = network.float()(input_ids=ids, token_type_ids=second, output_attentions=True)
    return np.concatenate([each.numpy() for each in output.attentions])


@every_backend
def test_rows_and_full_tensors_are_those_of_transformers(
    name: str, reader_on: Callable[..., Reader], tiny: Callable[..., Path], transformers: Any
) -> None:
    reader = reader_on(name)
    whole = attentions(reader, QUESTION, LONG, queries="all")
    expected = eager(transformers, tiny("bert"), whole)
    assert list(whole.arrays) == [0, 1]
    for layer, array in whole.arrays.items():
        assert (array.dtype, array.shape) == (np.float32, (4, len(whole.tokens), len(whole.tokens)))
        np.testing.assert_allclose(array, expected[layer], rtol=0, atol=1e-4)  # measured: 5e-6
    rows = attentions(reader, QUESTION, LONG, layers=[1, 0], heads=[3, 0])
    assert (rows.layers, rows.heads, rows.queries) == ((1, 0), (3, 0), tuple(range(rows.span[0], rows.span[1] + 1)))
    np.testing.assert_allclose(rows.layer(1), expected[1][[3, 0]][:, list(rows.queries)], rtol=0, atol=1e-4)
    mean = attentions(reader, QUESTION, LONG, reduce="mean", queries=[5])
    np.testing.assert_allclose(mean.layer(0), expected[0][:, [5]].mean(0)[None], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_rows_of_the_bundled_model_are_those_of_transformers(name: str, mini: Reader, transformers: Any) -> None:
    need_backend(name)
    reader = mini if name == "openvino" else Reader.load(backend=name, dtype="fp32")
    found = attentions(reader, QUESTION, LONG)
    assert (len(found.layers), len(found.heads)) == attention_shape(reader) == (6, 12)
    expected = eager(transformers, find("spanqa-mini"), found)
    for layer, array in found.arrays.items():
        np.testing.assert_allclose(array, expected[layer][:, list(found.queries)], rtol=0, atol=1e-4)  # measured: 4e-6


@every_backend
def test_capturing_changes_no_logit(name: str, reader_on: Callable[..., Reader]) -> None:
    reader = reader_on(name)
    windows = cut(
        QUESTION, [reader.prepare(LONG), reader.prepare(PASSAGE)], reader.checkpoint.tokenizer, reader.windows
    )
    for window in (windows[0][0], windows[1][0]):
        [without] = reader.engine.submit([window]).result()
        [found] = reader.engine.submit([window], capture=Capture((0, 1), ((0, 5),))).result()
        tolerance = 0 if name in ("numpy", "openvino", "torch") else 2e-5  # the others compile another graph
        np.testing.assert_allclose(found.start, without.start, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.end, without.end, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", ["padded", "packed", "flat"])
def test_torch_keeps_the_bits_of_logits_and_the_rows_in_every_layout(
    layout: str, reader_on: Callable[..., Reader], reader: Reader
) -> None:
    backend = reader_on("torch").backend
    passages = [reader.prepare(text) for text in (LONG, PASSAGE, "Anna did.")]
    windows = [each[0] for each in cut(QUESTION, passages, reader.checkpoint.tokenizer, reader.windows)]
    rows = {"padded": [[each] for each in windows], "packed": [windows[:2], windows[2:]], "flat": [windows]}[layout]
    batch = pack(rows)
    capture = Capture((0, 1), ((0, 30), (4,), (1, 2, 9)))
    without, found = backend.forward(batch), backend.forward(batch, capture=capture)
    np.testing.assert_array_equal(found.start, without.start)
    np.testing.assert_array_equal(found.end, without.end)
    for number, window in enumerate(windows):
        alone = reader.backend.forward(pack([[window]]), capture=capture.of([number]))
        for layer in (0, 1):
            np.testing.assert_allclose(
                found.attention[layer][number], alone.attention[layer][0], rtol=0, atol=1e-5
            )  # measured: 2e-6


# --- what an Attention says of its tokens


def test_tokens_offsets_words_and_logits_are_those_of_the_window(reader: Reader) -> None:
    text = SENTENCES.replace("\n", " ")
    found = attentions(reader, QUESTION, text)
    assert found.windows > 5
    decision = decide(reader, QUESTION, text)
    assert (found.window, found.answered) == (decision.deciding[0], True)
    assert (found.question, found.passage) == (QUESTION, text)
    window = decision.windows[found.window]
    assert len(found.tokens) == len(window) <= 64
    assert [found.tokens[0], found.tokens[-1]] == ["[CLS]", "[SEP]"]
    for token, part, (start, end) in zip(found.tokens, found.sequence_ids, found.offsets.tolist(), strict=True):
        shown = (QUESTION, text)[part][start:end]
        if part >= 0 and shown.isascii() and token != "[UNK]":  # the tokenizer strips accents
            assert token.removeprefix("##") == shown.lower()
        assert part >= 0 or start == end == 0
    first, last = (found.offsets[found.span[0], 0], found.offsets[found.span[1], 1])
    assert text[first:last] == decision.answer.text
    np.testing.assert_array_equal(found.word_ids < 0, found.sequence_ids < 0)
    for part in (0, 1):
        numbers = found.word_ids[found.sequence_ids == part]
        assert np.unique(numbers).tolist() == list(range(numbers.max() + 1)) and (np.diff(numbers) >= 0).all()
    words = found.by_words()
    assert words.tokens[1:6] == ("Who", "built", "the", "lighthouse", "?")
    assert all(word in text for word in words.tokens[7:-1])
    assert len(words.tokens) == len({*zip(found.sequence_ids, found.word_ids, strict=True)}) + 2  # [CLS] and [SEP]
    logits = decision.logits[found.window]
    passage = found.sequence_ids == 1
    np.testing.assert_array_equal(found.start_logits[passage], logits.start)
    np.testing.assert_array_equal(found.end_logits[passage], logits.end)
    assert found.start_logits[0] == logits.null_start and np.isnan(found.end_logits[~passage][1:]).all()
    made_with = found.made_with
    assert (made_with["backend"], made_with["dtype"]) == ("numpy", "fp32")
    assert made_with["model"]["sha256"] == reader.checkpoint.weights.sha256
    assert made_with["versions"]["numpy"] == np.__version__


def test_an_abstention_shows_the_rows_of_cls_and_of_the_best_span(reader: Reader) -> None:
    found = attentions(reader, QUESTION, PASSAGE, threshold=1e9)
    assert not found.answered
    assert found.queries == (0, *range(found.span[0], found.span[1] + 1))
    whole = attentions(reader, QUESTION, PASSAGE, queries="all", layers=[1]).layer(1)
    np.testing.assert_allclose(found.layer(1), whole[:, list(found.queries)], rtol=0, atol=1e-6)


def test_another_window_can_be_looked_into(reader: Reader) -> None:
    best = attentions(reader, QUESTION, LONG).window
    other = (best + 2) % len(decide(reader, QUESTION, LONG).windows)
    found = attentions(reader, QUESTION, LONG, window=other, queries="all", layers=[0])
    assert (found.window, found.span) == (other, None)
    with pytest.raises(InputError, match=rf"Window {other} does not hold the answer, .* Window {best} does; or choose"):
        attentions(reader, QUESTION, LONG, window=other)


def by_hand() -> Attention:
    """[CLS] w ho [SEP] pen mar . [SEP], two heads, the queries w, ho and mar."""
    generator = np.random.default_rng(0)
    weights = generator.random((2, 3, 8), np.float32)
    ids = np.array([2, 10, 11, 3, 12, 13, 14, 3], np.int32)
    return Attention(
        question="Who",
        passage="Penmar.",
        window=0,
        windows=1,
        answered=True,
        span=(4, 5),
        layers=(7,),
        heads=(0, 1),
        reduce=None,
        queries=(1, 2, 5),
        arrays={7: weights / weights.sum(-1, keepdims=True)},
        input_ids=ids,
        tokens=("[CLS]", "w", "##ho", "[SEP]", "pen", "##mar", ".", "[SEP]"),
        offsets=np.array([(0, 0), (0, 1), (1, 3), (0, 0), (0, 3), (3, 6), (6, 7), (0, 0)], np.int32),
        sequence_ids=np.array([-1, 0, 0, -1, 1, 1, 1, -1], np.int8),
        word_ids=np.array([-1, 0, 0, -1, 0, 0, 1, -1], np.int32),
        start_logits=np.array([1, np.nan, np.nan, np.nan, 3, 2, 0, np.nan], np.float32),
        end_logits=np.array([1, np.nan, np.nan, np.nan, 2, 4, 0, np.nan], np.float32),
        made_with={"backend": "numpy", "dtype": "fp32"},
    )


def test_pieces_become_words_as_a_sum_of_keys_and_a_mean_of_queries() -> None:
    pieces = by_hand()
    words = pieces.by_words()
    assert words.tokens == ("[CLS]", "Who", "[SEP]", "Penmar", ".", "[SEP]")
    assert (words.queries, words.span) == ((1, 3), (3, 3))
    assert words.offsets.tolist() == [[0, 0], [0, 3], [0, 0], [0, 6], [6, 7], [0, 0]]
    assert words.word_ids.tolist() == [-1, 0, -1, 0, 1, -1]
    assert words.start_logits[3:5].tolist() == [3, 0] and words.end_logits[3] == 4 and np.isnan(words.end_logits[1])
    who, penmar = pieces.layer(7)[:, :2].mean(1), pieces.layer(7)[:, 2]
    np.testing.assert_allclose(words.layer(7)[:, 0, 1], who[:, 1:3].sum(-1), rtol=1e-6)
    np.testing.assert_allclose(words.layer(7)[:, 1, 3], penmar[:, 4] + penmar[:, 5], rtol=1e-6)
    np.testing.assert_allclose(words.layer(7).sum(-1), 1, rtol=1e-6)


# --- size


def test_layers_come_in_their_order_a_few_at_a_time(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attentions(reader, QUESTION, LONG, queries="all")
    tokens = len(whole.tokens)
    assert attention_bytes(2, 4, tokens, tokens) == sum(array.nbytes for array in whole.arrays.values())
    monkeypatch.setattr(attention_module, "BYTES_AT_ONCE", attention_bytes(1, 4, tokens, tokens))
    assert layers_at_once(reader, decide(reader, QUESTION, LONG).windows[whole.window], tokens) == 1
    steps: list[tuple[int, int, str]] = []
    found = list(
        stream_layers(reader, QUESTION, LONG, queries="all", layers=[1, 0], progress=lambda *step: steps.append(step))
    )
    assert [layer for layer, _ in found] == [1, 0]
    for layer, array in found:
        np.testing.assert_allclose(array, whole.layer(layer), rtol=0, atol=1e-6)
    assert steps == [(done, 2, "attention: 0.1 MiB") for done in (0, 1, 2)]


def test_a_decision_that_was_made_is_not_made_again(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = attentions(reader, QUESTION, LONG, queries=[0, 2])
    decision = decide(reader, QUESTION, LONG)
    read: list[int] = []
    submit = reader.engine.submit
    monkeypatch.setattr(
        reader.engine, "submit", lambda windows, **more: read.append(len(windows)) or submit(windows, **more)
    )
    found = attention_of(reader, decision, queries=np.array([0, 2]))  # type: ignore[arg-type]
    assert read == [1] and found.queries == asked.queries and found.span == asked.span
    for layer in asked.layers:
        np.testing.assert_array_equal(found.layer(layer), asked.layer(layer))


# --- what cannot be


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"layers": [0, 2]}, r"The model has no layer 2\. Expected a number from 0 to 1"),
        ({"layers": [-1]}, r"The model has no layer -1\. Expected a number from 0 to 1"),
        ({"layers": [True]}, r"The model has no layer True\. Expected a number"),
        ({"layers": []}, r"Expected a list of different numbers from 0 to 1, at least one; got \[\]"),
        ({"layers": [1, 1]}, r"Expected a list of different numbers .*; got \[1, 1\]"),
        ({"layers": 1}, r"Expected a list of numbers from 0 to 1, got 1\."),
        ({"heads": [4]}, r"The model has no head 4\. Expected a number from 0 to 3"),
        ({"heads": [-1]}, r"The model has no head -1\. Expected a number from 0 to 3"),
        ({"window": -1}, r"The passage has no window -1\. Expected a number from 0 to 0"),
        ({"heads": ["first"]}, r"Expected a list of numbers from 0 to 3, got \['first'\]"),
        ({"queries": [3, 99]}, r"Window 0 has no token 99\. Expected a number from 0 to \d+"),
        ({"queries": np.array([3, 99])}, r"Window 0 has no token .*99.*\. Expected a number"),
        ({"queries": range(10**12)}, r"Window 0 has no token \d+\. Expected a number from 0 to \d+"),
        ({"queries": "none"}, "queries is 'none'; expected 'answer', 'all', or positions of tokens in the window"),
        ({"reduce": "max"}, "reduce is 'max'; expected 'mean', the mean of the heads, or None"),
        ({"window": 7}, r"The passage has no window 7\. Expected a number from 0 to 0"),
    ],
)
def test_what_does_not_exist_is_refused(wanted: Any, message: str, reader: Reader) -> None:
    with pytest.raises(InputError, match=message):
        attentions(reader, QUESTION, PASSAGE, **wanted)
    with pytest.raises(InputError, match=message):
        next(stream_layers(reader, QUESTION, PASSAGE, **wanted))


def test_a_layer_that_was_not_captured_is_refused(reader: Reader) -> None:
    found = attentions(reader, QUESTION, PASSAGE, layers=[1])
    with pytest.raises(InputError, match=r"Layer 0 was not captured\. There are: 1\."):
        found.layer(0)


# --- files


def test_a_file_gives_back_what_was_stored(reader: Reader, tmp_path: Path) -> None:
    found = attentions(reader, QUESTION, LONG)
    for dtype, tolerance in (("float16", 3e-4), ("float32", 0)):
        storage.save(found, tmp_path / "a.safetensors", dtype=dtype)
        read = storage.load(tmp_path / "a.safetensors")
        for name in Attention.__slots__:
            if name == "arrays":
                assert list(read.arrays) == list(found.arrays)
                for layer in found.layers:
                    assert read.layer(layer).dtype == np.float32
                    np.testing.assert_allclose(read.layer(layer), found.layer(layer), rtol=0, atol=tolerance)
            elif isinstance(getattr(found, name), np.ndarray):
                assert getattr(read, name).dtype == getattr(found, name).dtype
                np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
            else:
                assert getattr(read, name) == getattr(found, name)
    with pytest.raises(InputError, match="dtype is 'int8'; expected 'float16' or 'float32'"):
        storage.save(found, tmp_path / "a.safetensors", dtype="int8")  # type: ignore[arg-type]


def test_a_file_can_be_read_by_the_safetensors_library_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    storage.save(by_hand(), tmp_path / "a")
    storage.save(replace(by_hand(), made_with={"dtype": "fp32", "backend": "numpy"}), tmp_path / "b")
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    tensors = safetensors.numpy.load(data)
    assert (tensors["attn.07"].dtype, tensors["attn.07"].shape) == (np.float16, (2, 3, 8))
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["passage"]) == ("spanqa.attention/1", "Penmar.")
    assert json.loads(metadata["tokens"])[1] == "w"


def test_a_file_without_texts_holds_no_word_of_them(reader: Reader, tmp_path: Path) -> None:
    found = attentions(reader, QUESTION, PASSAGE)
    storage.save(found, tmp_path / "a", text=False)
    data = (tmp_path / "a").read_bytes()
    assert found.input_ids.tobytes() not in data
    for word in {*QUESTION.split(), *PASSAGE.split(), *found.tokens} - {"the", "at", "in"}:
        shown = word.strip("?.#").lower().encode()
        assert len(shown) < 3 or shown not in data.lower(), word
    read = storage.load(tmp_path / "a")
    assert (read.question, read.passage, set(read.tokens)) == ("", "", {""})
    assert set(read.input_ids.tolist()) == {-1}
    np.testing.assert_array_equal(read.offsets, found.offsets)
    np.testing.assert_allclose(read.layer(1), found.layer(1), rtol=0, atol=3e-4)
    storage.save(found, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    assert found.input_ids.tobytes() in data and b"kestrel" in data.lower()


def test_files_that_are_damaged_or_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    storage.save(by_hand(), path)
    whole = path.read_bytes()
    tensors = safetensors.numpy.load(whole)
    metadata = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    damaged = {
        "cut": whole[:-1],
        "empty": b"",
        "another kind": b"%PDF-1.7 " * 99,
        "other tensors": safetensors.numpy.save({"weight": np.ones(3)}),
        "a layer is missing": safetensors.numpy.save({k: v for k, v in tensors.items() if k != "attn.07"}, metadata),
        "no passage": safetensors.numpy.save(tensors, {k: v for k, v in metadata.items() if k != "passage"}),
        "another format": safetensors.numpy.save(tensors, {**metadata, "format": "spanqa.attention/2"}),
        "fewer keys": safetensors.numpy.save({**tensors, "attn.07": tensors["attn.07"][..., 1:].copy()}, metadata),
        "NaN": safetensors.numpy.save({**tensors, "attn.07": tensors["attn.07"] * np.float16(np.nan)}, metadata),
        "fewer offsets": safetensors.numpy.save({**tensors, "offsets": tensors["offsets"][1:].copy()}, metadata),
        "no such query": safetensors.numpy.save({**tensors, "queries": np.int32([1, 2, 99])}, metadata),
        "no such span": safetensors.numpy.save(tensors, {**metadata, "span": "[4,8]"}),
        "tokens that are none": safetensors.numpy.save(tensors, {**metadata, "tokens": "[1,2,3,4,5,6,7,8]"}),
        "no JSON": safetensors.numpy.save(tensors, {**metadata, "span": "(4, 5)"}),
        "half a span": safetensors.numpy.save(tensors, {**metadata, "span": "[4]"}),
        "a span of fractions": safetensors.numpy.save(tensors, {**metadata, "span": "[4.0,5.0]"}),
        "a span from its end": safetensors.numpy.save(tensors, {**metadata, "span": "[5,4]"}),
        "a window that is no number": safetensors.numpy.save(tensors, {**metadata, "window": '"1"'}),
        "an answer that is neither there nor not": safetensors.numpy.save(tensors, {**metadata, "answered": "3"}),
        "made with nothing": safetensors.numpy.save(tensors, {**metadata, "made_with": "[]"}),
        "half a character": safetensors.numpy.save(tensors, {**metadata, "tokens": json.dumps(["\ud800"] * 8)}),
        "places that are fractions": safetensors.numpy.save(
            {**tensors, "offsets": tensors["offsets"].astype(np.float32)}, metadata
        ),
        "places behind the text": safetensors.numpy.save({**tensors, "offsets": tensors["offsets"] + 999}, metadata),
        "a third text": safetensors.numpy.save(
            {**tensors, "sequence_ids": tensors["sequence_ids"] + np.int8(1)}, metadata
        ),
        "one layer twice": safetensors.numpy.save({**tensors, "layers": np.int32([3, 3])}, metadata),
        "heads below zero": safetensors.numpy.save({**tensors, "heads": -1 - tensors["heads"]}, metadata),
    }
    for what, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(
            DatasetError, match=r"a' is not a whole file of attention \(spanqa.attention/1\): .+\. Write it again"
        ):
            storage.load(path)
            pytest.fail(what)
    with pytest.raises(DatasetError, match="does not exist"):
        storage.load(tmp_path / "none")


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"cannot be written to '.*no.a': No such file or directory\. Name a file in a"
    ):
        storage.save(by_hand(), tmp_path / "no" / "a")


# --- rollout


def naive(weights: list[Any]) -> Any:
    """R of all tokens, as a product of full matrices; `weights` `[head, query, key]` of each layer, lowest first."""
    product = np.eye(weights[0].shape[-1])
    for each in weights:
        product = (0.5 * each.mean(0, dtype=np.float64) + 0.5 * np.eye(len(product))) @ product
    return product


@every_backend
def test_rollout_is_the_product_of_full_matrices(name: str, reader_on: Callable[..., Reader]) -> None:
    reader = reader_on(name)
    decision = decide(reader, QUESTION, LONG)
    [scores], passes = rollout.token_scores(reader, decision)
    found = attentions(reader, QUESTION, LONG, queries="all")
    expected = naive(list(found.arrays.values()))[list(found.span)].mean(0)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert passes == 1


def test_rollout_holds_a_layer_at_a_time_and_explains_abstentions_and_runners_up(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "BYTES_AT_ONCE", 1)
    text = SENTENCES.replace("\n", " ")
    steps: list[tuple[int, int, str]] = []
    far = "unanswerable" if attentions(reader, QUESTION, text).window < 8 else "Anna Kestrel"
    against = (text.index(far), text.index(far) + len(far))
    for options in ({}, {"threshold": 1e9}, {"against": "runner-up"}, {"against": against}):
        decision = decide(reader, QUESTION, text, **options)
        assert len(decision.deciding) == 2 or options != {"against": against}
        steps.clear()
        scores, passes = rollout.token_scores(reader, decision, progress=lambda *step: steps.append(step))
        assert passes == 2 * len(decision.deciding) == steps[-1][0] == steps[-1][1]
        for window, weights, found in zip(decision.deciding, decision.objective().weights, scores, strict=True):
            whole = attentions(reader, QUESTION, text, queries="all", window=window)
            product = naive(list(whole.arrays.values()))
            starts, ends = (np.flatnonzero(each[1:]) + 1 for each in weights)
            np.testing.assert_allclose(found, product[[*starts, *ends]].mean(0), rtol=0, atol=1e-6)


def test_rollout_starts_at_both_spans_where_one_window_decides_on_both(reader: Reader) -> None:
    answer = decide(reader, QUESTION, PASSAGE).answer.text
    other = "Penmar" if "Penmar" not in answer else "1891"
    against = (PASSAGE.index(other), PASSAGE.index(other) + len(other))
    [scores], _ = rollout.token_scores(reader, decide(reader, QUESTION, PASSAGE, against=against))
    np.testing.assert_allclose(scores.sum(), 1, rtol=1e-6)
