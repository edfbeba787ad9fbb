"""`spanqa.Client` against the real server, and, for what no server here does, against answers written by hand."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from spanqa import Answer, Client, Reader, client, extras
from spanqa.answers import least_score
from spanqa.errors import DeadlineError, InputError, NotInstalledError, ServerError
from spanqa.explain import attribute
from spanqa.serve import ServeSettings, Service, make_app

pytestmark = pytest.mark.enable_socket

PASSAGE = "The first pier was built in 1871 by Anna Kestrel, a bridge engineer. It burned in 1902. 🙂! The pier was painted by Mira Lund."
OTHER = "Joao Bell painted it. The harbour of Penmar froze in 1923, and nobody came."


@contextmanager
def served(service: Service, **address: Any) -> Iterator[str]:
    """A real server of this service, and its URL; on a unix socket with `uds`."""
    where = address or {"host": "127.0.0.1", "port": 0}
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, lifespan="off", **where))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        place = server.servers[0].sockets[0].getsockname()
        yield "http://unix" if address else f"http://127.0.0.1:{place[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(mini: Reader) -> Iterator[str]:
    service = Service(ServeSettings(max_passage=2_000), explain=attribute, name="mini")
    service.start(mini)
    with served(service) as found:
        yield found


@pytest.fixture(scope="module")
def asked(url: str) -> Iterator[Client]:
    with Client(url) as found:
        yield found


QUESTIONS = {
    "an answer": "Who built the first pier?",
    "an answer behind an emoji": "Who painted the pier?",
    "no answer": "What is the capital of France?",
}


@pytest.mark.parametrize("case", QUESTIONS)
@pytest.mark.parametrize("no_answer", ["auto", "off"])
def test_ask_returns_what_the_reader_returns(case: str, no_answer: Any, asked: Client, mini: Reader) -> None:
    found = asked.ask(QUESTIONS[case], PASSAGE, no_answer=no_answer)
    expected = mini.ask(QUESTIONS[case], PASSAGE, no_answer=no_answer)
    assert found == expected
    assert found.as_json("") == expected.as_json("")
    assert (found.sentence, found.sentence_start) == (expected.sentence, expected.sentence_start)
    assert bool(found) == (case != "no answer" or no_answer == "off")


def test_options_are_those_of_the_reader(asked: Client, mini: Reader) -> None:
    question = "Who built the first pier?"
    for options in ({"threshold": 1e6}, {"min_probability": 1.0}, {"threshold": -3.0}):
        expected = mini.ask(question, PASSAGE, **options)  # type: ignore[arg-type]
        assert asked.ask(question, PASSAGE, **options) == expected
    assert expected.text == "Anna Kestrel"


def test_rank_reads_several_passages_and_hands_on_their_sources(asked: Client, mini: Reader) -> None:
    question, passages = "Who painted it?", [PASSAGE, mini.prepare(OTHER, "painters.txt"), PASSAGE]
    expected = mini.rank(question, passages, 7, no_answer="off")
    found = asked.rank(question, [PASSAGE, {"text": OTHER, "source": "painters.txt"}, PASSAGE], 7, no_answer="off")
    assert found == expected
    assert len(found) == 7
    assert {each.source for each in found} == {None, "painters.txt"}
    assert asked.rank(question, OTHER) == mini.rank(question, OTHER)
    assert asked.rank(question, [OTHER], threshold=1e6) == []


def test_ask_many_keeps_the_order_and_takes_no_more_than_it_needs(asked: Client, mini: Reader) -> None:
    pairs = [(question, passage) for passage in (PASSAGE, OTHER) for question in QUESTIONS.values()] * 6
    taken: list[tuple[str, str]] = []

    def stream() -> Iterator[tuple[str, str]]:
        for pair in pairs:
            taken.append(pair)
            yield pair

    answers = asked.ask_many(stream(), no_answer="off")
    first = next(answers)
    assert len(taken) == client.AT_ONCE < len(pairs)
    found = [first, *answers]
    for answer, (question, passage) in zip(found, pairs, strict=True):
        expected = mini.ask(question, passage, no_answer="off")
        assert (answer.text, answer.start, answer.sentence) == (expected.text, expected.start, expected.sentence)
        assert answer.probability == pytest.approx(expected.probability, abs=1e-5)  # measured: 0, the batches differ
    assert list(asked.ask_many([])) == []


def test_ask_many_says_which_pair_was_wrong_after_the_answers_before_it(asked: Client) -> None:
    pairs = [
        ("Who painted the pier?", PASSAGE),
        ("Who painted the pier?", PASSAGE),
        ("", PASSAGE),
        ("Who painted the pier?", PASSAGE),
    ]
    answers = asked.ask_many(pairs)
    assert [next(answers).text, next(answers).text] == ["Mira Lund"] * 2
    with pytest.raises(ServerError, match=r"^Pair 3: http://.*/v1/answers answered 422: question: is empty") as caught:
        next(answers)
    assert (caught.value.status, caught.value.error_type) == (422, "validation")


def test_answers_survive_json_and_back(mini: Reader) -> None:
    for question in QUESTIONS.values():
        answer = mini.ask(question, PASSAGE)
        assert Answer.from_json(answer.as_json(question), [PASSAGE]) == answer
    nothing = mini.ranking("Who?", " ").best(least_score(mini.answers))
    assert nothing.score == float("-inf")
    assert Answer.from_json(nothing.as_json("Who?"), [" "]) == nothing


def test_explain_info_and_ready(asked: Client) -> None:
    explained = asked.explain("Who built it?", "Anna built it.", method="occlusion", trust=False)
    assert explained["answer"]["text"] == "Anna"
    assert asked.info()["model"] == "mini"
    assert asked.ready()


def test_a_refusal_is_an_error_with_its_status_and_type(asked: Client) -> None:
    with pytest.raises(ServerError, match=r"answered 422: passages: has 2,001 characters; at most 2,000"):
        asked.ask("Who?", "x" * 2_001)
    with pytest.raises(ServerError, match=r"answered 422: .*topk: there is no such field") as caught:
        asked.rank("Who?", [PASSAGE], topk=3)
    assert (caught.value.status, caught.value.error_type, caught.value.retry_after) == (422, "validation", None)


def test_a_deadline_that_the_server_misses_is_an_error_of_its_own(mini: Reader) -> None:
    service = Service(ServeSettings(deadline=0.001))
    service.start(mini)
    said = "answered 504: There was no answer before"
    with served(service) as url, Client(url) as found, pytest.raises(DeadlineError, match=said):
        found.ask("Who?", PASSAGE * 100)


def test_a_server_that_is_loading_is_asked_again(mini: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        service.start(mini)

    with served(service) as url, Client(url) as found:
        assert not found.ready()
        monkeypatch.setattr(client.time, "sleep", sleep)
        assert found.ask("Who painted the pier?", PASSAGE).text == "Mira Lund"
        assert found.ready()
    assert len(waits) == 1
    assert 1 <= waits[0] <= 1.25  # Retry-After, and up to a quarter more


def test_a_server_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waits.append)
    with Client("http://127.0.0.1:9", retries=4) as found:
        assert not found.ready()
        assert waits == []
        with pytest.raises(ServerError, match=r"^http://127.0.0.1:9 cannot be reached: .*refused") as caught:
            found.info()
    assert (caught.value.status, caught.value.error_type) == (None, "")
    for wait, expected in zip(waits, (0.5, 1, 2, 4), strict=True):
        assert expected <= wait <= expected * 1.25


def test_a_client_reaches_a_unix_socket(mini: Reader, tmp_path: Path) -> None:
    service = Service(name="on a socket")
    service.start(mini)
    path = str(tmp_path / "s")
    with served(service, uds=path) as url, Client(url, transport=httpx.HTTPTransport(uds=path)) as found:
        assert found.info()["model"] == "on a socket"


# --- what no server here does


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Client, list[float], list[Any]]]:
    """A client whose requests get these responses or errors, one after the other; its waits, and the requests that it sent."""

    def make(*replies: Any, **options: Any) -> tuple[Client, list[float], list[Any]]:
        waits: list[float] = []
        requests: list[Any] = []
        monkeypatch.setattr(client.time, "sleep", waits.append)
        monkeypatch.setattr(client.random, "uniform", lambda low, high: low)

        def reply(request: Any) -> Any:
            requests.append(request)
            found = replies[min(len(requests), len(replies)) - 1]
            if isinstance(found, Exception):
                raise found
            return found

        return Client("http://far", transport=httpx.MockTransport(reply), **options), waits, requests

    return make


OK = httpx.Response(200, json={"model": "far"})
ASKED = {
    "seconds": (httpx.Response(429, text="slow down", headers={"Retry-After": "7"}), 7),
    "more than a minute": (httpx.Response(503, json={"error": "loading"}, headers={"Retry-After": "7200"}), 60),
    "a date that is past": (httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0),
    "no time": (httpx.Response(503, text="<html>no server</html>"), 0.5),
    "nonsense": (httpx.Response(429, json=["?"], headers={"Retry-After": "soon"}), 0.5),
    "a date that never comes": (httpx.Response(429, headers={"Retry-After": "Mon, 31 Dec 9999999 23:59:59 GMT"}), 0.5),
    "a status that is none": (httpx.Response(503, headers={"ms-azureml-model-error-statuscode": "?"}), 0.5),
    "a body that cannot be read": (httpx.DecodingError("incorrect header check"), 0.5),
    "a connection that broke": (httpx.RemoteProtocolError("the server hung up"), 0.5),
    "Azure's 424": (
        httpx.Response(424, headers={"ms-azureml-model-error-statuscode": "429", "Retry-After": "3"}), 3
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_it_asks_again_after_the_time_that_the_server_wants(case: str, scripted: Callable[..., Any]) -> None:
    response, wait = ASKED[case]
    found, waits, requests = scripted(response, OK)
    assert found.info() == {"model": "far"}
    assert waits == [wait]
    assert len(requests) == 2


def test_it_asks_again_after_a_date(scripted: Callable[..., Any]) -> None:
    in_an_hour = httpx.Response(503, headers={"Retry-After": formatdate(time.time() + 40, usegmt=True)})
    found, waits, _ = scripted(in_an_hour, OK)
    assert found.info() == {"model": "far"}
    assert 30 <= waits[0] <= 40


def test_it_gives_up_after_the_retries_and_waits_longer_each_time(scripted: Callable[..., Any]) -> None:
    found, waits, requests = scripted(httpx.Response(503, text="no"), retries=12)
    with pytest.raises(ServerError, match=r"^http://far/info answered 503: no$"):
        found.info()
    assert (len(requests), waits[:3], max(waits)) == (13, [0.5, 1, 2], 60)
    assert all(earlier <= later for earlier, later in pairwise(waits))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 500, 502])
def test_other_refusals_are_not_asked_again(status: int, scripted: Callable[..., Any]) -> None:
    found, _, requests = scripted(httpx.Response(status, text="no"))
    with pytest.raises(ServerError, match=f"answered {status}: no"):
        found.info()
    assert len(requests) == 1


def test_azure_refuses_with_424_and_the_real_status_in_a_header(scripted: Callable[..., Any]) -> None:
    headers = {"ms-azureml-model-error-statuscode": "422", "ms-azureml-model-error-reason": "Unprocessable Entity"}
    found, _, requests = scripted(httpx.Response(424, headers=headers))
    with pytest.raises(ServerError, match="answered 422: Unprocessable Entity") as caught:
        found.info()
    assert (caught.value.status, len(requests)) == (422, 1)


@pytest.mark.parametrize(
    "reply", [httpx.Response(504, text="late"), httpx.Response(408, text="late"), httpx.ReadTimeout("")]
)
def test_a_timeout_is_not_asked_again(reply: Any, scripted: Callable[..., Any]) -> None:
    found, _, requests = scripted(reply)
    with pytest.raises(
        DeadlineError, match=r"answered 50?[48]: late|answered 408: late|did not answer in time \(ReadTimeout\)"
    ):
        found.info()
    assert not found.ready()
    assert len(requests) == 2


def test_a_page_of_another_server_is_no_answer(scripted: Callable[..., Any]) -> None:
    found, _, _ = scripted(httpx.Response(200, text="<html>Log in</html>"))
    with pytest.raises(ServerError, match="answered 200: <html>Log in"):
        found.info()


@pytest.mark.parametrize(
    "reply", [{"foo": 1}, {"answers": None, "no_answer_probability": 0.5}, {"answers": [{}]}, "far"]
)
def test_answers_of_another_form_are_an_error_of_the_server(reply: Any, scripted: Callable[..., Any]) -> None:
    fields = {"start": 0, "end": 1, "score": 1.0, "passage_index": 9, "text": "a", "probability": 0.5}
    far = {"answers": [fields | {"no_answer_probability": 0.5}], "no_answer_probability": 0.5, "score": 1.0}
    found, _, _ = scripted(httpx.Response(200, json=far if reply == "far" else reply))
    with pytest.raises(ServerError, match="gives no answers as spanqa does"):
        found.ask("Who?", PASSAGE)
    with pytest.raises(ServerError, match="gives no answers as spanqa does"):
        found.rank("Who?", [PASSAGE])


def test_a_url_that_is_none_is_refused() -> None:
    with closing(Client("http://far:port")) as found, pytest.raises(InputError, match="Invalid port: 'port'"):
        found.ask("Who?", PASSAGE)


def test_the_key_and_the_time_to_scale_up_are_sent(scripted: Callable[..., Any]) -> None:
    found, _, requests = scripted(OK, api_key="secret", timeout=600)
    found.info()
    found, _, others = scripted(OK)
    found.info()
    assert requests[0].headers["Authorization"] == "Bearer secret"
    assert requests[0].headers["X-Scale-Up-Timeout"] == "600"
    assert (others[0].headers["X-Scale-Up-Timeout"], "Authorization" in others[0].headers) == ("60", False)


@pytest.mark.parametrize(
    ("question", "options"), [("half of a pair: \ud83d", {}), ("Who?", {"threshold": float("inf")})]
)
def test_what_json_cannot_hold_is_not_sent(
    question: str, options: dict[str, float], scripted: Callable[..., Any]
) -> None:
    found, _, requests = scripted(OK)
    with pytest.raises(InputError, match="This cannot be sent as JSON to http://far: "):
        found.ask(question, PASSAGE, **options)
    assert requests == []


def test_a_url_without_its_scheme_and_a_missing_httpx_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"url is 'localhost:8000'; expected one like http://127.0.0.1:8000"):
        Client("localhost:8000")
    with closing(Client("https://far/")) as found:
        assert found.url == "https://far"
    monkeypatch.setattr(extras, "missing", lambda name: ["httpx"])
    with pytest.raises(NotInstalledError, match=r"The client needs httpx, .*pip install 'spanqa\[client\]'"):
        Client("http://far")
