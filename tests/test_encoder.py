from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import PAIRS, TOLERANCE, TransformersModel, assert_gives_the_logits_of_transformers, first_window
from spanqa.backends.base import Backend
from spanqa.backends.registry import BACKENDS
from spanqa.batches import Capture
from spanqa.encoder import ACTIVATIONS, weight_shapes
from spanqa.families import FAMILIES as RECORDS
from spanqa.families import encoder_config
from tiny import FAMILIES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_backend_gives_the_logits_of_transformers(
    family: str, backend: str, backend_of: Callable[..., Backend], tiny: Callable[..., Path], transformers: Any
) -> None:
    assert_gives_the_logits_of_transformers(backend_of(backend, family), transformers, tiny(family))


@pytest.mark.parametrize(
    ("backend", "family"),
    [(backend, family) for backend in BACKENDS for family in FAMILIES if backend == "numpy" or family == "bert"],
)  # `test_backends.py` compares the others with numpy
def test_every_backend_gives_the_attention_of_transformers(
    family: str, backend: str, backend_of: Callable[..., Backend], tiny: Callable[..., Path], transformers: Any
) -> None:
    _, expected = TransformersModel(transformers, tiny(family))(*PAIRS[0])
    found = (
        backend_of(backend, family)
        .forward(
            first_window(tiny(family), *PAIRS[0]),
            capture=Capture((0, 1)),
        )
        .attention
    )
    assert found is not None
    assert sorted(found) == [0, 1]
    for layer in (0, 1):
        # measured over all families and backends: at most 2e-6
        (window,) = found[layer]
        np.testing.assert_allclose(window, expected.attentions[layer][0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "activation"),
    [
        (backend, name)
        for backend in BACKENDS
        for name in ACTIVATIONS
        if backend == "numpy" or name in ("relu", "gelu_new")
    ],
)  # the names mean three functions, which every backend has; all other tests run the third, "gelu"
def test_every_activation_is_that_of_transformers(
    activation: str, backend: str, load: Callable[..., Backend], tiny: Callable[..., Path], transformers: Any
) -> None:
    folder = tiny("bert", hidden_act=activation)
    assert_gives_the_logits_of_transformers(load(backend, folder), transformers, folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_with_one_token_type_reads_zeros_for_all(
    backend: str, load: Callable[..., Backend], tiny: Callable[..., Path], transformers: Any
) -> None:
    import torch

    folder = tiny("bert", type_vocab_size=1)
    batch = first_window(folder, *PAIRS[0])
    np.testing.assert_array_equal(batch.token_type_ids, 0)
    with torch.no_grad():
        expected = TransformersModel(transformers, folder).model(input_ids=torch.from_numpy(batch.input_ids).long())
    found = load(backend, folder).forward(batch)
    np.testing.assert_allclose(found.start, expected.start_logits.numpy(), rtol=0, atol=TOLERANCE)


def test_positions_of_roberta_begin_behind_its_padding_index() -> None:
    numbers = {"vocab_size": 9, **FAMILIES["roberta"][1]}
    config = encoder_config({"model_type": "roberta", **numbers})
    assert (config.position_offset, config.max_seq_length) == (2, 64)
    assert weight_shapes(config)["embeddings.position"] == (66, 32)
    assert encoder_config({"model_type": "bert", "vocab_size": 9, **FAMILIES["bert"][1]}).position_offset == 0


def test_stored_names_are_those_of_each_family() -> None:
    assert RECORDS["bert"].stored_name("embeddings.word") == "bert.embeddings.word_embeddings.weight"
    assert RECORDS["roberta"].stored_name("embeddings.norm.bias") == "roberta.embeddings.LayerNorm.bias"
    assert RECORDS["electra"].stored_name("embeddings.projection.weight") == "electra.embeddings_project.weight"
    assert RECORDS["distilbert"].stored_name("layer.1.output.bias") == "distilbert.transformer.layer.1.ffn.lin2.bias"
    assert RECORDS["distilbert"].stored_name("qa.weight") == "qa_outputs.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_names_is_that_of_transformers(family: str, transformers: Any) -> None:
    numbers = {"vocab_size": 90, **FAMILIES[family][1]}
    config = transformers.AutoConfig.for_model(family, **numbers)
    state = transformers.AutoModelForQuestionAnswering.from_config(config).state_dict()
    ours = weight_shapes(encoder_config({"model_type": family, **numbers}))
    assert {RECORDS[family].stored_name(name): shape for name, shape in ours.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; expected 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True; expected False"),
        ({"add_cross_attention": True}, "add_cross_attention is True; expected False"),
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads is {'0': \[1\]}; expected {}"),
        ({"hidden_act": "swish"}, "the activation is 'swish'; expected one of gelu, gelu_fast"),
        ({"num_attention_heads": 5}, "the hidden size 32 is not a multiple of the 5 attention heads"),
        (
            {"max_position_embeddings": 2, "model_type": "roberta", "pad_token_id": 5},
            "max_position_embeddings is 2 and positions start at 6, which leaves no position for a token",
        ),
    ],
)
def test_a_setting_that_the_encoder_does_not_have_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = {"model_type": "bert", "vocab_size": 9, **FAMILIES["bert"][1]}
    encoder_config(config)
    with pytest.raises(ValueError, match=message):
        encoder_config(config | change)


def test_a_missing_number_is_named() -> None:
    config = {"model_type": "bert", **FAMILIES["bert"][1]}
    with pytest.raises(KeyError, match="vocab_size"):
        encoder_config(config)
