"""Every architecture for which transformers has a question-answering head, as a tiny random model on the torch backend."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanqa.batches import Batch, Capture
from spanqa.checkpoint import Checkpoint
from spanqa.errors import BackendError, InputError, UnsupportedModelError
from spanqa.explain.attention import attentions
from spanqa.reader import Reader
from spanqa.tokens import Tokenizer
from tiny import word_piece

POSITIONS = 64
"""The positions that each model has, if it has a limit."""
NEED_MORE_THAN_TEXT = {"layoutlmv2": "pictures, and the package detectron2", "lxmert": "the features of a picture"}
HIDE_ATTENTION = {
    "bart", "big_bird", "bigbird_pegasus", "canine", "falcon", "fnet", "funnel", "led", "longformer", "mbart", "minimax", "mra",
    "mt5", "mvp", "qwen3_next", "squeezebert", "t5", "umt5", "yoso",
}  # fmt: skip
"""An encoder and a decoder, more or fewer attentions than layers, blocks of tokens, no softmax, or other logits."""
EAGER = {
    "bloom", "convbert", "deberta", "deberta-v2", "diffllama", "flaubert", "gpt_neo", "ibert", "lilt", "luke", "markuplm",
    "megatron-bert", "mpnet", "mpt", "nystromformer", "reformer", "rembert", "roformer", "splinter", "xlm", "xlnet",
}  # fmt: skip
"""They do not compute attention once a layer by a function that can be replaced, and give it all."""
RANDOM = {"reformer": "its hash functions are drawn anew for each call"}

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_inner"), 64),
    **dict.fromkeys(("vocab_size", "n_words", "pronunciation_vocab_size", "shape_vocab_size"), 400),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), POSITIONS),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), POSITIONS),
    **dict.fromkeys(("d_kv", "head_dim", "d_head", "rotary_dim", "attention_head_size", "num_hash"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "feed_forward_size"), 32),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "entity_emb_size", "xpath_unit_hidden_size"), 16),
    "num_experts_per_tok": 2, "entity_vocab_size": 10, "max_depth": 8, "num_decoder_layers": 2,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 8, "num_random_blocks": 1, "max_position_embeddings": 2 * POSITIONS},
    "bigbird_pegasus": {"block_size": 8, "num_random_blocks": 1, "max_position_embeddings": 2 * POSITIONS},
    "canine": {"num_hash_functions": 2},
    "convbert": {"conv_kernel_size": 3, "head_ratio": 2},
    "falcon": {"num_kv_heads": 4, "head_dim": None},
    "funnel": {"block_sizes": [1, 1], "num_hidden_layers": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 6, "shape_size": 4},
    "led": {"attention_window": [16, 16]},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "longformer": {"attention_window": [16, 16], "sep_token_id": 2},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "modernbert": {"pad_token_id": 0},
    "nystromformer": {"num_landmarks": POSITIONS, "segment_means_seq_len": POSITIONS},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "num_buckets": 4},
    "smollm3": {"pad_token_id": 0},
    "squeezebert": dict.fromkeys(
        ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"), 2
    ),
    "t5": {"decoder_start_token_id": 0},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip


def make_network(transformers: Any, name: str, **changes: Any) -> Any:
    """Return a model with weights large enough that each token changes every logit."""
    import torch

    kind = transformers.CONFIG_MAPPING[name]
    known = {field for field in _SMALL if hasattr(kind(), field) or field in kind.attribute_map}
    settings = {**{field: _SMALL[field] for field in known}, **_OWN.get(name, {}), **changes}
    config = kind(**{field: value for field, value in settings.items() if value is not None})
    torch.manual_seed(0)
    network = transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(
                    0, 0.1 if name == "mobilebert" else 0.3
                )  # it does not normalize, and its numbers grow
    return network


@pytest.fixture(autouse=True, scope="module")
def forgotten(transformers: Any, one_thread: None) -> Iterator[None]:
    yield
    torch_backend.cache_clear()


def architectures(transformers: Any) -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES

    return sorted(set(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES) - set(NEED_MORE_THAN_TEXT))


def of_windows(lengths: Sequence[int]) -> Batch:
    """A padded batch of random windows of a question of two tokens, in the template of RoBERTa (Longformer counts its marks)."""
    generator = np.random.default_rng(0)
    shape = (len(lengths), max(lengths))
    there = np.arange(shape[1]) < np.array(lengths)[:, None]
    ids = generator.integers(5, 390, shape)
    ids[:, 0], ids[:, [3, 4]], ids[range(shape[0]), np.array(lengths) - 1] = 0, 2, 2
    arrays = (np.where(there, ids, 0), np.zeros(shape), np.where(there, np.arange(shape[1]), 0), np.where(there, 0, -1))
    return Batch(*(array.astype(np.int32) for array in arrays))


@cache
def torch_backend(architecture: str, **changes: Any) -> tuple[Any, Checkpoint]:
    import transformers

    from spanqa.backends import torch as spanqa_torch

    network = make_network(transformers, architecture, **changes)
    config = json.loads(network.config.to_json_string())
    checkpoint = Checkpoint(Path(f"a-{architecture}"), config, {}, Tokenizer(word_piece()))
    return spanqa_torch.wrap(network, checkpoint, device="cpu", dtype="fp32"), checkpoint


def test_every_architecture_of_transformers_reads_its_longest_window(transformers: Any) -> None:
    for architecture in architectures(transformers):
        backend, checkpoint = torch_backend(architecture)
        longest = checkpoint.max_seq_length
        assert longest >= POSITIONS - 2, architecture
        if longest <= 2 * POSITIONS:
            assert np.isfinite(backend.forward(of_windows([longest])).start).all(), architecture


def test_no_architecture_of_transformers_depends_on_the_windows_beside_it(transformers: Any) -> None:
    moved = {}
    for architecture in set(architectures(transformers)) - set(RANDOM):
        backend, checkpoint = torch_backend(architecture)
        for lengths in ((20, 40, 20), (70, 100)):  # BigBird reads up to 56 of these tokens as others do, then in blocks
            if max(lengths) <= checkpoint.max_seq_length:
                batch = of_windows(lengths)
                alone = Batch(*(getattr(batch, name)[:1, : lengths[0]] for name in Batch.__slots__))
                expected = backend.forward(alone)
                found = backend.forward(batch)
                scale = max(1.0, float(np.abs(expected.start).max()))
                moved[architecture, lengths] = (
                    float(np.abs(found.start[0, : lengths[0]] - expected.start[0]).max()) / scale
                )
    # measured: at most 1e-5; where the padding is read, from 0.04 on
    assert {key: value for key, value in moved.items() if value > 1e-4} == {}


def test_an_architecture_that_needs_more_than_text_is_an_error_that_names_the_model(transformers: Any) -> None:
    backend, _ = torch_backend("lxmert")
    with pytest.raises(
        BackendError,
        match=r"'a-lxmert' \('lxmert'\) failed on 1 x 20 tokens in transformers \S+: ValueError: `visual_feats` cannot be `None`. "
        "Try shorter windows .* this model cannot answer questions from a text alone: choose another one",
    ):
        backend.forward(of_windows([20]))


def test_the_attention_of_windows_that_cannot_be_padded_is_in_the_order_of_the_batch() -> None:
    backend, _ = torch_backend("convbert")
    batch = of_windows([20, 40, 20, 30])
    found = backend.forward(batch, capture=Capture((1,), ((0,), (1, 2), (3,), (4,)))).attention[1]
    for row, (length, query) in enumerate([(20, 0), (40, 1), (20, 3), (30, 4)]):
        alone = Batch(*(getattr(batch, name)[row : row + 1, :length] for name in Batch.__slots__))
        (expected,) = backend.forward(alone, capture=Capture((1,), ((query,),))).attention[1]
        np.testing.assert_allclose(found[row][:, :1], expected, rtol=0, atol=1e-5)  # measured: 1e-7


def of_row(batch: Batch, row: int, length: int) -> Batch:
    return Batch(*(getattr(batch, name)[row : row + 1, :length] for name in Batch.__slots__))


def distance_from_eager(backend: Any, lengths: Sequence[int]) -> float:
    """How far captured rows are from transformers' eager attention of each window alone; logits must not move by a bit."""
    import torch

    batch, rows = of_windows(lengths), ((0, 5, 19), (7,))[: len(lengths)]
    found, without = backend.forward(batch, capture=Capture((0, 1), rows)), backend.forward(batch)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(found.start[row, :length], without.start[row, :length])
        np.testing.assert_array_equal(found.end[row, :length], without.end[row, :length])
    network, farthest = backend.network, 0.0
    network.set_attn_implementation("eager")
    for row, length in enumerate(lengths):
        with torch.inference_mode():
            attention = network(**backend.inputs(of_row(batch, row, length)), output_attentions=True).attentions
        for layer in (0, 1):
            expected = attention[layer][0][:, list(rows[row])].numpy()
            farthest = max(farthest, float(np.abs(found.attention[layer][row] - expected).max()))
    return farthest


def test_every_architecture_of_transformers_shows_its_eager_attention_or_says_that_it_does_not(
    transformers: Any,
) -> None:
    """Where torch's own attention runs, it runs on; only rows are computed beside it."""
    for architecture in architectures(transformers):
        backend, _ = torch_backend(architecture)
        if architecture in HIDE_ATTENTION:
            with pytest.raises(
                UnsupportedModelError,
                match=rf"'a-{architecture}' .* does not show its attention: transformers \S+ returns no weight for every query "
                r"and key of each of its 2 layers\. Explain its answers by occlusion or gradients, or use another model",
            ):
                backend.forward(of_windows([40, 20]), capture=Capture((0,)))
            continue
        # measured: at most 1.4e-6
        assert distance_from_eager(backend, (40, 20)) < 1e-5, architecture
        assert backend._records == (architecture not in EAGER), architecture


def test_heads_that_share_their_keys_and_windows_of_attention_are_captured_too(transformers: Any) -> None:
    for architecture, changes in (
        ("llama", {"num_key_value_heads": 2}),
        ("mistral", {"num_key_value_heads": 1, "sliding_window": 8}),
        ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    ):
        backend, _ = torch_backend(architecture, **changes)
        for lengths in ((40, 20), (40,)):  # without padding there is no mask, even for a model that looks back alone
            assert distance_from_eager(backend, lengths) < 1e-5, (architecture, lengths)
        assert backend._records, architecture


def test_a_head_that_only_the_config_has_is_refused(transformers: Any) -> None:
    backend, checkpoint = torch_backend("convbert")
    with Reader(checkpoint, backend) as reader:
        found = attentions(reader, "Who built it?", "Anna Kestrel built the lighthouse.", heads=[1])
        assert (found.heads, found.layer(0).shape[0], found.made_with["model"]["sha256"]) == ((1,), 1, None)
        assert attentions(reader, "Who built it?", "Anna Kestrel built it.").heads == (0, 1)
        with pytest.raises(InputError, match=r"The model has no head 3\. Expected a number from 0 to 1"):
            attentions(reader, "Who built it?", "Anna Kestrel built the lighthouse.", heads=[3])
