"""Scores of tokens from gradients, against Captum, against finite differences, and on every architecture of transformers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spanqa.answers import AnswerSettings
from spanqa.batches import pack
from spanqa.errors import BackendError
from spanqa.explain.attribute import attribute
from spanqa.explain.decision import Decision, Objective, decide
from spanqa.explain.words import Mask, hidden, mask_of, words_of
from spanqa.reader import Reader
from spanqa.template import Template
from spanqa.tokens import Tokens
from spanqa.windows import Window, WindowSettings
from test_architectures import torch_backend

torch = pytest.importorskip("torch")
gradients = pytest.importorskip("spanqa.explain.gradients")

QUESTION = "Who built the lighthouse?"
PASSAGE = "The old lighthouse at Penmar was built by Anna Kestrel in 1891, after two ships were lost in one winter."
ALWAYS = -1000.0  # a threshold below every score


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reader(tiny: Callable[..., Path], need: Callable[[str], None]) -> Reader:
    need("torch")
    return Reader.load(tiny("bert"), backend="torch", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def mask(reader: Reader) -> Mask:
    return mask_of(reader.checkpoint.tokenizer)


@pytest.fixture(scope="module")
def decision(reader: Reader) -> Decision:
    return decide(reader, QUESTION, PASSAGE, threshold=ALWAYS)


@pytest.fixture(scope="module")
def in_two_windows(reader: Reader) -> Decision:
    """An answer in the first window against a span in the last, which the first does not hold."""
    short = reader.with_settings(windows=WindowSettings(max_seq_length=34, overlap=4), answers=AnswerSettings(6))
    for start in range(len(PASSAGE) - 6, 0, -6):
        found = decide(short, QUESTION, PASSAGE, against=(start, start + 5), threshold=ALWAYS)
        if len(found.objective().windows) == 2:
            return found
    raise AssertionError("no span lies in another window than the answer")


def logits_of(
    reader: Reader, objective: Objective, change: Callable[[Window], Window] = lambda window: window
) -> float:
    """Return the objective by the backend's own `forward`, with changed windows."""
    value = 0.0
    for window, weights in zip(objective.windows, objective.weights, strict=True):
        found = reader.backend.forward(pack([[change(window)]]))
        value += float((np.stack([found.start[0], found.end[0]]) * weights).sum())
    return value


def all_hidden(decision: Decision, mask: Mask) -> Callable[[Window], Window]:
    words = words_of("question", decision.question, decision.question_tokens)
    words += words_of("passage", decision.passage.text, decision.passage.tokens)
    return lambda window: hidden(window, words, mask)


def of_captum(reader: Reader, decision: Decision, mask: Mask, method: str, steps: int = 0) -> list[np.ndarray]:
    """Return what Captum gives for the tokens of each window, the words of the text hidden in the baseline."""
    attribution = pytest.importorskip("captum.attr")
    network: Any = reader.backend.network
    objective = decision.objective()
    found = []
    for window, weights in zip(objective.windows, objective.weights, strict=True):
        inputs = reader.backend.inputs(pack([[window]]))
        others = {name: value for name, value in inputs.items() if name != "input_ids"}

        def g(ids: Any, others: dict[str, Any] = others, weights: Any = torch.from_numpy(weights)) -> Any:
            repeated = {name: value.expand(len(ids), *value.shape[1:]) for name, value in others.items()}
            output = network(input_ids=ids, **repeated)
            return output.start_logits @ weights[0] + output.end_logits @ weights[1]

        layer, ids = network.get_input_embeddings(), inputs["input_ids"]
        if method == "integrated_gradients":
            baseline = reader.backend.inputs(pack([[all_hidden(decision, mask)(window)]]))["input_ids"]
            oracle = attribution.LayerIntegratedGradients(g, layer)
            scores = oracle.attribute(ids, baselines=baseline, n_steps=steps, method="gausslegendre")
        else:
            scores = attribution.LayerGradientXActivation(g, layer).attribute(ids)
        found.append(scores.sum(-1)[0].detach().double().numpy())
    return found


@pytest.mark.parametrize("windows", ["decision", "in_two_windows"])
@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients"])
def test_the_scores_equal_those_of_captum(
    reader: Reader,
    mask: Mask,
    windows: str,
    method: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = request.getfixturevalue(windows)
    monkeypatch.setattr(gradients, "MOST_STEPS", 32)
    found, _, _ = gradients.token_scores(reader.backend, case.objective(), mask, method)
    expected = of_captum(reader, case, mask, method, 32)
    assert len(found) == len(expected) == (2 if windows == "in_two_windows" else 1)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("windows", ["decision", "in_two_windows"])
def test_the_gap_is_measured_from_the_texts_to_the_hidden_texts(
    reader: Reader, mask: Mask, windows: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = request.getfixturevalue(windows)
    monkeypatch.setattr(gradients, "MOST_STEPS", 32)
    objective = case.objective()
    scores, convergence, passes = gradients.token_scores(reader.backend, objective, mask, "integrated_gradients")
    change = logits_of(reader, objective) - logits_of(reader, objective, all_hidden(case, mask))
    gap = abs(sum(float(of_window.sum()) for of_window in scores) - change)
    assert convergence.gap == pytest.approx(gap, abs=1e-5)
    assert convergence.relative_gap == pytest.approx(gap / max(abs(change), 0.1), abs=1e-4)
    assert convergence.converged == (convergence.relative_gap < 0.05)
    assert (convergence.steps, passes) == (32, 34 * len(objective.windows))
    for window, of_window in zip(objective.windows, scores, strict=True):
        special = [0, window.passage_start - 1, len(window) - 1]
        assert np.count_nonzero(of_window) == len(window) - 3 and not of_window[special].any()


def test_steps_are_doubled_until_the_scores_add_up(
    reader: Reader, decision: Decision, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "FIRST_STEPS", 1)
    monkeypatch.setattr(gradients, "LARGEST_GAP", 1e-3)
    notes: list[tuple[int, int, str]] = []

    def note(done: int, total: int, what: str = "") -> None:
        notes.append((done, total, what))

    _, convergence, _ = gradients.token_scores(
        reader.backend, decision.objective(), mask, "integrated_gradients", progress=note
    )
    assert convergence.converged and convergence.relative_gap < 1e-3 and convergence.steps > 1
    rounds = [(done, what) for done, total, what in notes if done == total]
    steps = [2**k for k in range(len(rounds))]
    assert rounds == [(count, f"{count} steps") for count in steps] and steps[-1] == convergence.steps


def test_steps_that_do_not_suffice_are_said_so(
    reader: Reader, decision: Decision, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "LARGEST_GAP", 0.0)
    monkeypatch.setattr(gradients, "FIRST_STEPS", 2)
    monkeypatch.setattr(gradients, "MOST_STEPS", 16)
    objective = decision.objective()
    _, convergence, passes = gradients.token_scores(reader.backend, objective, mask, "integrated_gradients")
    assert (convergence.steps, convergence.converged, passes) == (16, False, 2 + 2 + 4 + 8 + 16)
    for seconds, steps in ((-1.0, 2), (1000.0, 16)):
        _, convergence, _ = gradients.token_scores(
            reader.backend, objective, mask, "integrated_gradients", deadline=time.monotonic() + seconds
        )
        assert (convergence.steps, convergence.converged) == (steps, False)


def test_scores_do_not_depend_on_how_many_points_are_read_at_once(
    reader: Reader, decision: Decision, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "MOST_STEPS", 32)
    objective = decision.objective()
    shapes = []
    inputs = reader.backend.inputs
    monkeypatch.setattr(reader.backend, "inputs", lambda batch: shapes.append(batch.shape) or inputs(batch))
    for numbers in (2**27, 0):
        monkeypatch.setattr(gradients, "_KEPT_NUMBERS", numbers)
        scores, _, _ = gradients.token_scores(reader.backend, objective, mask, "integrated_gradients")
        if numbers:
            assert max(rows for rows, _ in shapes) == 32
            together = scores[0]
            shapes.clear()
    assert {rows for rows, _ in shapes} == {1}
    np.testing.assert_allclose(scores[0], together, rtol=0, atol=1e-5)


def test_the_gradient_is_the_length_of_that_of_the_embeddings(reader: Reader, decision: Decision, mask: Mask) -> None:
    network: Any = reader.backend.network
    objective = decision.objective()
    inputs = reader.backend.inputs(pack([[objective.windows[0]]]))
    embeddings = network.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    output = network(inputs_embeds=embeddings, **inputs)
    weights = torch.from_numpy(objective.weights[0])
    (expected,) = torch.autograd.grad(
        (torch.stack([output.start_logits[0], output.end_logits[0]]) * weights).sum(), embeddings
    )
    [found], convergence, passes = gradients.token_scores(reader.backend, objective, mask, "gradient")
    assert (convergence, passes) == (None, 1) and found.min() > 0
    np.testing.assert_allclose(found, expected[0].norm(dim=-1).numpy(), rtol=1e-5)


def relevance(backend: Any, window: Window, which: int, token: int, absolute: bool) -> np.ndarray:
    """Return a row of R - I as the paper multiplies it, whole matrices from the bottom up."""
    network = backend.network
    usual = network.config._attn_implementation
    network.set_attn_implementation("eager")
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    output = network(**backend.inputs(pack([[window]])), output_attentions=True)
    network.set_attn_implementation(usual)
    logit = (output.start_logits, output.end_logits)[which][0, token]
    slopes = torch.autograd.grad(logit, output.attentions)
    total = np.eye(len(window))
    for attention, slope in zip(output.attentions, slopes, strict=True):
        product = (attention * slope)[0].detach().double().numpy()
        total += (np.abs(product) if absolute else np.maximum(product, 0)).mean(0) @ total
    return (total - np.eye(len(window)))[token]


@pytest.mark.parametrize("method", ["gae", "gae_abs"])
def test_weighted_attention_is_that_of_the_paper_for_the_rows_of_the_answer(
    reader: Reader, decision: Decision, mask: Mask, method: str
) -> None:
    objective = decision.objective()
    (window,) = objective.windows
    first, last = decision.chosen
    at = window.passage_start - window.first
    absolute = method == "gae_abs"
    expected = relevance(reader.backend, window, 0, at + first, absolute) + relevance(
        reader.backend, window, 1, at + last, absolute
    )
    [found], convergence, passes = gradients.token_scores(reader.backend, objective, mask, method)
    assert (convergence, passes) == (None, 1) and expected.max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_weighted_attention_of_an_abstention_is_that_of_its_first_token(reader: Reader, mask: Mask) -> None:
    decision = decide(reader, QUESTION, PASSAGE, threshold=1000.0)
    assert decision.chosen is None
    objective = decision.objective()
    (window,) = objective.windows
    expected = relevance(reader.backend, window, 0, 0, False) + relevance(reader.backend, window, 1, 0, False)
    [found], _, _ = gradients.token_scores(reader.backend, objective, mask, "gae")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_weighted_attention_leaves_out_the_window_of_the_other_span(
    reader: Reader, in_two_windows: Decision, mask: Mask
) -> None:
    objective = in_two_windows.objective()
    found, _, passes = gradients.token_scores(reader.backend, objective, mask, "gae")
    assert passes == 2
    assert [scores.any() for scores in found] == [(weights[:, 1:] > 0).any() for weights in objective.weights]
    assert [len(scores) for scores in found] == [len(window) for window in objective.windows]


def test_gradients_need_no_parameter_that_can_be_trained_and_leave_none_behind(
    reader: Reader, decision: Decision, mask: Mask
) -> None:
    network: Any = reader.backend.network
    objective = decision.objective()

    def scores() -> list[np.ndarray]:
        return [
            gradients.token_scores(reader.backend, objective, mask, method)[0][0]
            for method in ("gradient", "integrated_gradients", "gae")
        ]

    found = []
    for trainable in (True, False):
        for parameter in network.parameters():
            parameter.requires_grad_(trainable)
        found.append(scores())
        assert all(
            parameter.requires_grad == trainable and parameter.grad is None for parameter in network.parameters()
        )
    with torch.inference_mode():
        found.append(scores())
    with torch.no_grad():
        found.append(scores())
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def state_of(network: Any) -> tuple[Any, ...]:
    hooks = [len(module._forward_hooks) for module in network.modules()]
    return network.config._attn_implementation, network.training, hooks


@pytest.mark.parametrize("method", ["integrated_gradients", "gae"])
def test_the_network_is_as_before_also_after_an_error(
    reader: Reader, decision: Decision, mask: Mask, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = reader.backend.network
    objective = decision.objective()
    before, logits = state_of(network), reader.backend.forward(pack([objective.windows]))
    expected = gradients.token_scores(reader.backend, objective, mask, method)[0][0]
    assert state_of(network) == before
    head = network.qa_outputs
    handle = head.register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError("no\nmore")))
    with pytest.raises(
        BackendError,
        match=r"\('bert'\) failed to compute gradients in transformers \S+: MemoryError: no. Choose method 'occlusion', which needs "
        "none, or shorter windows",
    ):
        gradients.token_scores(reader.backend, objective, mask, method)
    handle.remove()
    assert state_of(network) == before
    np.testing.assert_array_equal(reader.backend.forward(pack([objective.windows])).start, logits.start)
    np.testing.assert_array_equal(gradients.token_scores(reader.backend, objective, mask, method)[0][0], expected)


def test_gradients_that_are_no_numbers_are_an_error(reader: Reader, decision: Decision, mask: Mask) -> None:
    table = reader.backend.network.get_input_embeddings().weight
    before = table.detach().clone()
    try:
        with torch.no_grad():
            table[mask.id] = torch.inf
        with pytest.raises(
            BackendError, match=r"Gradients are NaN or infinity, computing in fp32: .* Choose dtype='fp32', or"
        ):
            gradients.token_scores(reader.backend, decision.objective(), mask, "integrated_gradients", deadline=0.0)
    finally:
        with torch.no_grad():
            table.copy_(before)


def test_a_backend_without_gradients_is_an_error_that_names_one_that_has_them(
    tiny_reader: Callable[..., Reader],
) -> None:
    with pytest.raises(
        BackendError, match=r"Backend 'openvino' computes no gradients, which 'gae' needs. Choose backend 'torch'"
    ):
        attribute(tiny_reader("bert"), QUESTION, PASSAGE, method="gae", threshold=ALWAYS)


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients", "gae_abs"])
def test_bfloat16_is_computed_in_bfloat16_and_close_to_float32(
    tiny: Callable[..., Path], decision: Decision, reader: Reader, mask: Mask, method: str
) -> None:
    half = Reader.load(tiny("bert"), backend="torch", device="cpu", dtype="bf16")
    [found], convergence, _ = gradients.token_scores(half.backend, decision.objective(), mask, method)
    [expected], exact, _ = gradients.token_scores(reader.backend, decision.objective(), mask, method)
    assert found.dtype == np.float64 and half.backend.network.dtype == torch.bfloat16
    assert np.corrcoef(found, expected)[0, 1] > 0.99  # measured: 0.999 to 0.9996
    if exact is not None:
        assert convergence.gap > 10 * exact.gap  # it is the gap of what was computed


DIFFERENTIABLE = (
    "albert", "big_bird", "convbert", "deberta-v2", "distilbert", "electra", "funnel", "gpt2", "longformer", "modernbert", "mpnet",
    "roberta", "squeezebert", "xlnet",
)  # fmt: skip
REFUSED = {
    "bart": "does not read them from its get_input_embeddings",
    "ibert": "in another form than one row of tokens",
    "yoso": "its attention only estimates them",
}
IN_FULL = ("deberta-v2", "electra", "gpt2", "modernbert", "mpnet")
HIDES_ATTENTION = {
    "funnel": "none from every token to every token",
    "longformer": "none from every token to every token",
    "xlnet": "copies, which its logits do not depend on",
}


def random_objective() -> Objective:
    """The margin of a span of a window of fifteen different tokens, in the template of RoBERTa."""
    ids = np.random.default_rng(0).permutation(np.arange(5, 390))[:15].astype(np.int32)
    offsets = np.stack([np.arange(15), np.arange(1, 16)], 1).astype(np.int32)
    template = Template(((0, 0),), ((2, 0), (2, 0)), ((2, 0),), 0, 0)
    window = Window(Tokens(ids[:3], offsets[:3]), Tokens(ids[3:], offsets[3:]), 0, 12, template)
    weights = np.zeros((2, len(window)), np.float32)
    weights[0, 8] = weights[1, 9] = 1
    weights[:, 0] -= 1
    return Objective((window,), (weights,))


@pytest.mark.parametrize("architecture", DIFFERENTIABLE)
def test_gradients_equal_finite_differences_of_the_table_of_words(architecture: str, transformers: Any) -> None:
    """The table is moved for one token, and the model read again as for any question."""
    backend, _ = torch_backend(architecture)
    objective = random_objective()
    [window], [weights] = objective.windows, objective.weights
    table = backend.network.get_input_embeddings().weight
    before = table.detach().clone()
    slopes = gradients._slopes(backend, window, weights, Mask("", 4), [1.0])

    def moved(token: int, step: Any) -> float:
        with torch.no_grad():
            table[token] = before[token] + step
        found = backend.forward(pack([[window]]))
        with torch.no_grad():
            table.copy_(before)
        return float((np.stack([found.start[0], found.end[0]]) * weights).sum(dtype=np.float64))

    for place in (1, 5, 7):
        token, at = window.passage.ids[place], window.passage_start + place
        direction = torch.nn.functional.normalize(
            torch.randn(table.shape[1], generator=torch.manual_seed(place)), dim=0
        )
        step = 1e-3 * before[token].norm() * direction
        measured = (moved(token, step) - moved(token, -step)) / (2 * float(step.norm()))
        gradient = slopes.gradients[0, at]
        assert abs(measured - float(gradient @ direction)) <= 0.01 * float(gradient.norm())  # measured: at most 0.002
    scores, _, _ = gradients.token_scores(backend, objective, Mask("", 4), "gradient")
    assert scores[0][window.passage_start + 1 :].any()


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_without_gradients_is_refused_by_name(architecture: str, transformers: Any) -> None:
    backend, _ = torch_backend(architecture)
    with pytest.raises(
        BackendError,
        match=rf"\('{architecture}'\) gives no gradients .*{REFUSED[architecture]}.* Choose method 'occlusion'",
    ):
        gradients.token_scores(backend, random_objective(), Mask("", 4), "gradient")


@pytest.mark.parametrize("architecture", IN_FULL)
def test_weighted_attention_of_other_architectures_is_that_of_the_paper(architecture: str, transformers: Any) -> None:
    backend, _ = torch_backend(architecture)
    objective = random_objective()
    (window,) = objective.windows
    expected = relevance(backend, window, 0, 8, False) + relevance(backend, window, 1, 9, False)
    [found], _, _ = gradients.token_scores(backend, objective, Mask("", 4), "gae")
    assert expected.max() > 0.001
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", HIDES_ATTENTION)
def test_an_architecture_that_hides_its_attention_is_refused_by_name(architecture: str, transformers: Any) -> None:
    backend, _ = torch_backend(architecture)
    with pytest.raises(
        BackendError,
        match=rf"\('{architecture}'\) hides its attention weights: .*{HIDES_ATTENTION[architecture]}.* Choose method",
    ):
        gradients.token_scores(backend, random_objective(), Mask("", 4), "gae")
