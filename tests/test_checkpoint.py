import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from safetensors.numpy import load_file, save_file

import tiny as tiny_checkpoints
from reference import assert_gives_the_logits_of_transformers, first_window
from spanqa.backends.base import Backend
from spanqa.backends.registry import BACKENDS, load_backend
from spanqa.batches import Capture
from spanqa.checkpoint import copy_checkpoint, find, open_checkpoint
from spanqa.errors import CheckpointError, UnsupportedModelError
from spanqa.reader import Reader
from spanqa.weights import verify, weight_files
from strategies import nasty_texts

every_backend = pytest.mark.parametrize("backend", BACKENDS)
READERS = ("openvino", "torch")
"""torch hands the stored parameters to transformers; all others get them from `Checkpoint.encoder_weights`, as openvino does."""
every_reader = pytest.mark.parametrize("backend", READERS)


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the ways in which the same model is stored


@pytest.fixture(scope="session")
def variant(
    tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, transformers: Any
) -> Callable[[str], Path]:
    import shutil

    import torch

    def old_names(weights: dict[str, np.ndarray]) -> None:
        """As TensorFlow's BERT was converted: other names, other heads, a pooler, and a buffer of positions."""
        for name in list(weights):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            weights[new] = weights.pop(name)
        weights["bert.pooler.dense.weight"] = np.zeros((32, 32), np.float32)
        weights["bert.pooler.dense.bias"] = np.zeros(32, np.float32)
        weights["bert.embeddings.position_ids"] = np.arange(64)[None]
        weights["cls.predictions.bias"] = np.zeros(400, np.float32)

    def save(folder: Path, **options: Any) -> None:
        (folder / "model.safetensors").unlink()
        tiny_checkpoints.save_with_transformers(json.loads((folder / "config.json").read_text()), folder, **options)

    changes: dict[str, Callable[[Path], None]] = {
        "gamma and beta": lambda folder: change_weights(folder, old_names),
        "sharded": lambda folder: save(folder, max_shard_size="30KB"),
        "fp16": lambda folder: save(folder, dtype=torch.float16),
        "bf16": lambda folder: save(folder, dtype=torch.bfloat16),
        "fp64": lambda folder: save(folder, dtype=torch.float64),
    }
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("variant") / "model"
            shutil.copytree(tiny("bert"), made[name])
            changes[name](made[name])
        return made[name]

    return folder


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *((backend, name) for backend in BACKENDS for name in ("fp16", "bf16", "fp64")),
        *((backend, name) for backend in READERS for name in ("gamma and beta", "sharded")),
    ],
)
def test_a_model_stored_in_another_way_gives_the_logits_of_transformers(
    name: str, backend: str, variant: Callable[[str], Path], load: Callable[..., Backend], transformers: Any
) -> None:
    assert_gives_the_logits_of_transformers(load(backend, variant(name)), transformers, variant(name))


@every_reader
@pytest.mark.parametrize("name", ["gamma and beta", "sharded"])
def test_names_and_shards_do_not_change_a_bit(
    name: str, backend: str, variant: Callable[[str], Path], load: Callable[..., Backend], tiny: Callable[..., Path]
) -> None:
    batch = first_window(tiny("bert"), "Who built it?", "Anna Kestrel built it in 1891.")
    found, expected = load(backend, variant(name)).forward(batch), load(backend, tiny("bert")).forward(batch)
    np.testing.assert_array_equal(found.start, expected.start)
    np.testing.assert_array_equal(found.end, expected.end)


def test_what_is_left_out_of_a_checkpoint_is_listed(variant: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(variant("gamma and beta"))
    names, ignored = verify(checkpoint.weights, checkpoint.encoder, "it")
    assert ignored == [
        "bert.embeddings.position_ids",
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.predictions.bias",
    ]
    assert names["embeddings.norm.weight"] == "bert.embeddings.LayerNorm.gamma"
    assert len(names) == 39


def test_the_variants_are_what_they_are_called(variant: Callable[[str], Path]) -> None:
    assert len(weight_files(variant("sharded"))) > 2
    assert not (variant("sharded") / "model.safetensors").exists()
    dtypes = {"fp16": np.float16, "bf16": np.float32, "fp64": np.float64}  # NumPy has no bfloat16
    for name, dtype in dtypes.items():
        assert {array.dtype for array in open_checkpoint(variant(name)).encoder_weights().values()} == {np.dtype(dtype)}


def test_a_hash_names_the_weights(variant: Callable[[str], Path], tiny: Callable[..., Path]) -> None:
    assert (
        open_checkpoint(tiny("bert")).weights.sha256
        == hashlib.sha256((tiny("bert") / "model.safetensors").read_bytes()).hexdigest()
    )
    shards = b"".join(path.read_bytes() for path in sorted(variant("sharded").glob("*.safetensors")))
    assert open_checkpoint(variant("sharded")).weights.sha256 == hashlib.sha256(shards).hexdigest()


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
def test_checkpoints_written_without_transformers_are_those_that_it_writes(
    family: str, tiny: Callable[..., Path], tmp_path: Path, transformers: Any
) -> None:
    tiny_checkpoints.save_with_numpy(json.loads((tiny(family) / "config.json").read_text()), tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tiny(family) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


# --- vocab.txt


def vocabulary_of(folder: Path) -> list[str]:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)


@pytest.fixture(scope="session")
def vocabulary_only(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("vocabulary") / "model"
    shutil.copytree(tiny("bert"), folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary_of(folder)) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    return folder


def test_a_vocabulary_alone_gives_the_tokens_of_the_tokenizer(tiny: Callable[..., Path], vocabulary_only: Path) -> None:
    whole, bare = open_checkpoint(tiny("bert")).tokenizer, open_checkpoint(vocabulary_only).tokenizer
    assert bare.template == whole.template
    assert bare.highest_id == whole.highest_id

    @given(nasty_texts())
    def same_tokens(text: str) -> None:
        one, two = whole.encode(text), bare.encode(text)
        assert one.ids.tolist() == two.ids.tolist()
        assert one.offsets.tolist() == two.offsets.tolist()

    same_tokens()


@pytest.mark.parametrize(
    ("options", "text", "tokens"),
    [
        ({"do_lower_case": True}, "Über Anna", ["uber", "anna"]),
        ({"do_lower_case": False}, "Über Anna", ["Über", "Anna"]),
        ({"do_lower_case": True, "strip_accents": False}, "Über Anna", ["über", "anna"]),
        ({"do_lower_case": False, "strip_accents": True}, "Über Anna", ["Uber", "Anna"]),
        ({"tokenize_chinese_chars": True}, "灯台", ["灯", "台"]),
        ({"tokenize_chinese_chars": False}, "灯台", ["灯台"]),
    ],
)
def test_a_vocabulary_is_read_with_the_options_of_its_tokenizer_config(
    options: dict[str, Any] | None, text: str, tokens: list[str], vocabulary_only: Path, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(vocabulary_only, tmp_path / "model"))
    words = [
        *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"],
        *["Über", "Anna", "uber", "anna", "über", "Uber", "灯", "台", "灯台"],
    ]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    if options is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
    ids = open_checkpoint(folder).tokenizer.encode(text).ids
    assert [words[i] for i in ids] == tokens


def test_a_vocabulary_has_one_word_a_line_whatever_unicode_calls_a_line(vocabulary_only: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(vocabulary_only, tmp_path / "model"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "", "a", "b", "anna"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    assert open_checkpoint(folder).tokenizer.encode("Anna").ids.tolist() == [9]


# --- finding


def test_the_bundled_model_is_found_by_its_name() -> None:
    assert (find("spanqa-mini") / "model.safetensors").exists()


def test_a_folder_is_found_as_text_and_as_path(tiny: Callable[..., Path]) -> None:
    assert find(tiny("bert")) == find(str(tiny("bert"))) == tiny("bert")


def test_a_home_folder_is_found(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny("bert").parent))
    assert find(f"~/{tiny('bert').name}") == tiny("bert")


@pytest.mark.parametrize(
    "name", ["./missing", "../missing", "/no/such/folder", "~/missing", "a/b/c", "c:\\models\\bert"]
)
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"There is no folder '.*'. Check the name, or give the full path"):
        find(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_folder_we_stand_in(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"The model's name is empty. Expected a folder, a hub id such as"):
        find(name)


def test_a_url_keeps_its_slashes_and_is_not_taken_for_a_folder() -> None:
    with pytest.raises(
        CheckpointError, match=r"'https://huggingface.co/deepset/x' is a URL. Expected a folder, a hub id such as"
    ):
        find("https://huggingface.co/deepset/x")


def test_a_file_is_not_a_model(tiny: Callable[..., Path]) -> None:
    with pytest.raises(
        CheckpointError, match=r"model.safetensors' is a file; expected the folder that holds config.json"
    ):
        find(tiny("bert") / "model.safetensors")


def test_a_folder_has_no_revisions(tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"revision='main' was given, but '.*' is a folder; only hub models have"):
        find(tiny("bert"), "main")


def test_a_name_that_no_system_can_hold_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'x+' cannot be read: File name too long"):
        find("x" * 5000)


@pytest.mark.parametrize("name", ["who are you?", "a--b..c", "org/na me"])
def test_a_name_that_is_no_hub_id_is_refused(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"is neither a folder nor a valid hub id. Expected a folder, a hub id such"
    ):
        find(name)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub out of reach, and an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_model_that_is_not_in_the_cache_says_how_to_fetch_it(offline: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"'org/name' is no folder, is not in the hub cache, and the hub cannot be reached .* hf download org/name",
    ):
        find("org/name")


HUB_LISTINGS = {
    "a model of the hub": (
        "README.md config.json model.safetensors special_tokens_map.json tokenizer.json tokenizer_config.json vocab.txt",
        ".gitattributes flax_model.msgpack pytorch_model.bin tf_model.h5 saved_model/1/saved_model.pb onnx/model.onnx "
        "checkpoint-500/model.safetensors training_args.bin runs/events.out.tfevents.1",
    ),
    "a model in shards": (
        "README.md config.json model.safetensors.index.json model-00001-of-00002.safetensors "
        "model-00002-of-00002.safetensors tokenizer.json tokenizer_config.json special_tokens_map.json sentencepiece.bpe.model",
        ".gitattributes pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json",
    ),
    "a RoBERTa of the hub": (
        "README.md added_tokens.json config.json merges.txt model.safetensors special_tokens_map.json tokenizer_config.json vocab.json",
        ".gitattributes pytorch_model.bin rust_model.ot dict.txt",
    ),
    "a signed int8 copy of our own": (
        "README.md config.json spanqa.json model.safetensors model.sig openvino_int8.xml openvino_int8.bin tokenizer.json "
        "tokenizer_config.json special_tokens_map.json vocab.txt",
        "record.json predictions.json openvino_model.xml openvino_model.bin",
    ),
}
"""What repositories hold: what is needed to load, copy, sign or run them, and what is left where it is."""


@pytest.mark.every_version
@pytest.mark.parametrize("case", HUB_LISTINGS)
def test_all_that_a_checkpoint_needs_is_fetched_from_the_hub_and_nothing_else(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the hub's own rule for the patterns that it is given; nothing is downloaded."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    needed, others = (names.split() for names in HUB_LISTINGS[case])
    fetched: list[str] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        fetched.extend(filter_repo_objects([*needed, *others], allow_patterns=allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find("org/name") == tmp_path
    assert sorted(fetched) == sorted(needed)


@pytest.mark.parametrize("case", HUB_LISTINGS)
def test_all_that_a_checkpoint_needs_is_copied_and_nothing_else(case: str, tmp_path: Path) -> None:
    needed, others = (names.split() for names in HUB_LISTINGS[case])
    for name in [*needed, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    if "model.safetensors.index.json" in needed:
        shards = [name for name in needed if name.startswith("model-")]
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
    (out := tmp_path / "out").mkdir()
    copy_checkpoint(tmp_path, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(needed)


def in_hub_cache(cache: Path, name: str, folder: Path, revision: str = "main") -> Path:
    """Lay a folder out as the hub's cache does."""
    import shutil

    home = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / revision).write_text(commit)
    return Path(shutil.copytree(folder, home / "snapshots" / commit))


def test_a_hub_model_is_found_in_the_cache(offline: Path, tiny: Callable[..., Path]) -> None:
    snapshot = in_hub_cache(offline, "org/name", tiny("bert"), revision="v2")
    assert find("org/name", "v2") == snapshot
    with pytest.raises(CheckpointError, match="'org/name' is no folder, is not in the hub cache"):
        find("org/name")


def test_a_model_half_fetched_is_refused(offline: Path, tiny: Callable[..., Path]) -> None:
    (in_hub_cache(offline, "org/name", tiny("bert")) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model.safetensors"):
        open_checkpoint("org/name")


@pytest.mark.every_version
@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", r"There is no folder and no hub model 'org/name' \(or it is private\)"),
        ("RevisionNotFoundError", "The hub model 'org/name' has no revision 'v9'"),
        ("GatedRepoError", "The hub model 'org/name' is gated: accept its terms on its page, then run `hf auth login`"),
    ],
)
def test_what_the_hub_refuses_is_explained(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: Any, **__: Any) -> None:
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=message):
        find("org/name", "v9")


class Hub(BaseHTTPRequestHandler):
    """The parts of the hub's HTTP interface that find and fetch a model, for the files of each revision in `revisions`."""

    revisions: ClassVar[dict[str, dict[str, bytes]]] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        base = "/api/models/org/name"
        if path == f"{base}/refs":
            requests = [name for name in self.revisions if name != "main"]
            refs = [{"name": name, "ref": name, "targetCommit": commit_of(name)} for name in requests]
            return self.answer({"branches": [], "converts": [], "tags": [], "pullRequests": refs})
        if path.startswith(f"{base}/tree/"):
            files = self.of(path.removeprefix(f"{base}/tree/"))
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": commit_of(name)}
                for name, data in files.items()
            ]
            return self.answer(entries)
        if path.startswith(f"{base}/revision/") or path == base:
            name = path.removeprefix(base).removeprefix("/revision/") or "main"
            siblings = [{"rfilename": file} for file in self.of(name)]
            return self.answer({"id": "org/name", "sha": commit_of(name), "siblings": siblings, "tags": []})
        commit, _, file = path.removeprefix("/org/name/resolve/").partition("/")
        return self.send(self.of(commit)[file], {"ETag": f'"{commit_of(file)}"', "X-Repo-Commit": commit})

    def of(self, revision: str) -> dict[str, bytes]:
        return next(files for name, files in self.revisions.items() if revision in (name, commit_of(name)))

    def answer(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def commit_of(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, socket_enabled: None) -> Iterator[type[Hub]]:
    """A hub of its own on this machine, and an empty cache."""
    import huggingface_hub.constants
    import huggingface_hub.file_download
    import huggingface_hub.utils

    class Served(Hub):
        revisions: ClassVar[dict[str, dict[str, bytes]]] = {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    for module in (huggingface_hub.constants, huggingface_hub.file_download):  # older ones keep the address there too
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    forget = getattr(huggingface_hub.utils, "reset_sessions", lambda: None)  # older ones keep a session that is offline
    forget()
    yield Served
    forget()
    server.shutdown()
    server.server_close()
    thread.join()


PICKLES = {"config.json": b"{}", "pytorch_model.bin": b"x"}


@pytest.mark.every_version
@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (
            {"refs/pr/2": PICKLES, "refs/pr/9": {**PICKLES, "model.safetensors": b"x"}, "refs/pr/10": PICKLES},
            r"'org/name' holds its weights only as pytorch_model.bin in its revision 'main'.* The pull request refs/pr/9 holds them "
            r"as model.safetensors: use revision='refs/pr/9' \(--revision refs/pr/9\). Anybody can open a pull request; see first",
        ),
        (
            {"refs/pr/2": PICKLES},
            r"'org/name' holds its weights only as pytorch_model.bin in its revision 'main'.* Convert them once, where you trust the "
            r"file, .* Then give the new folder",
        ),
    ],
)
def test_where_a_hub_model_has_pickles_only_the_revision_with_safetensors_is_named(
    requests: dict[str, dict[str, bytes]], message: str, hub: type[Hub]
) -> None:
    hub.revisions.update({"main": PICKLES, **requests})
    with pytest.raises(CheckpointError, match=message):
        find("org/name")


@pytest.mark.every_version
def test_the_revision_named_is_fetched(hub: type[Hub]) -> None:
    hub.revisions.update({"main": PICKLES, "refs/pr/9": {**PICKLES, "model.safetensors": b"x", "merges.txt": b"y"}})
    names = sorted(path.name for path in find("org/name", "refs/pr/9").iterdir())
    assert names == ["config.json", "merges.txt", "model.safetensors"]


# --- folders that are not whole


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def both(*changes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [change(folder) for change in changes]


def rename(old: str, new: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / old).rename(folder / new)


def make_folder(name: str) -> Callable[[Path], Any]:
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).mkdir())


def config(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: change_json(folder / "config.json", **changes)


def index(weight_map: Any) -> Callable[[Path], Any]:
    return both(
        rename("model.safetensors", "model-00001.safetensors"),
        write("model.safetensors.index.json", json.dumps({"weight_map": weight_map})),
    )


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def rewrite(folder: Path) -> None:
        stored = json.loads((folder / "tokenizer.json").read_text())
        change(stored)
        (folder / "tokenizer.json").write_text(json.dumps(stored))

    return rewrite


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {},
}

UNREADABLE = {
    "no config": (remove("config.json"), "has no config.json. It names the architecture. Is this a model folder"),
    "config that is no JSON": (
        write("config.json", "{model_type: bert}"),
        "config.json' is not JSON: Expecting property",
    ),
    "config that is binary": (write("config.json", b"\xff\xfe\x00"), "config.json' is not JSON: 'utf-8' codec"),
    "config nested without end": (write("config.json", "[" * 100_000), "config.json' is not JSON: "),
    "config with a number without end": (write("config.json", "1" * 10_000), "config.json' is not JSON: "),
    "config that is a list": (write("config.json", "[]"), "config.json' does not contain a JSON object"),
    "config that is a folder": (make_folder("config.json"), "config.json' cannot be read: Is a directory"),
    "config without a type": (
        config(model_type=None),
        'config.json\' lacks "model_type", which names the architecture',
    ),
    "no weights": (remove("model.safetensors"), r"holds no weights: expected model.safetensors \(or model"),
    "pickled weights": (
        rename("model.safetensors", "pytorch_model.bin"),
        "holds its weights only as pytorch_model.bin. spanqa reads safetensors, because pickled weights can run code. "
        'Convert them once.*AutoModelForQuestionAnswering.from_pretrained."FOLDER"..save_pretrained."NEW_FOLDER"',
    ),
    "pickled shards": (
        rename("model.safetensors", "pytorch_model.bin.index.json"),
        "only as pytorch_model.bin.index.json",
    ),
    "weights of TensorFlow": (rename("model.safetensors", "tf_model.h5"), "holds its weights only as tf_model.h5"),
    "a missing shard": (
        index({"a": "model-00001.safetensors", "b": "model-00002.safetensors"}),
        "index.json' names shards that are not there: model-00002.safetensors",
    ),
    "an index of nothing": (index({}), "index.json' names shards that are not there: none at all"),
    "an index that is no table": (index(["a"]), 'index.json\' should hold a table "weight_map" of file names'),
    "an index of numbers": (index({"a": 1}), 'index.json\' should hold a table "weight_map" of file names'),
    "an index that leaves the folder": (
        index({"a": "../model.safetensors"}),
        'index.json\' should hold a table "weight_map" of file names',
    ),
    "no tokenizer": (
        remove("tokenizer.json"),
        "holds no tokenizer: expected tokenizer.json or, for .bert. models, vocab.txt",
    ),
    "an empty tokenizer": (write("tokenizer.json", ""), "tokenizer.json' cannot be read: EOF while parsing"),
    "half a tokenizer": (
        lambda folder: write("tokenizer.json", (folder / "tokenizer.json").read_bytes()[:1000])(folder),
        "tokenizer.json' cannot be read: ",
    ),
    "a tokenizer of another kind": (
        write("tokenizer.json", '{"version": "1.0", "model": {"type": "X"}}'),
        "cannot be read",
    ),
    "a binary tokenizer": (write("tokenizer.json", b"\xff\x00" * 50), "tokenizer.json' cannot be read: "),
    "a tokenizer that is a folder": (make_folder("tokenizer.json"), "tokenizer.json' cannot be read: Is a directory"),
    "a vocabulary without its marks": (
        both(remove("tokenizer.json"), write("vocab.txt", "[PAD]\n[CLS]\nanna\n")),
        r"vocab.txt' lacks \[UNK\], \[SEP\]: it is not a vocabulary of BERT",
    ),
    "a vocabulary that is not UTF-8": (
        both(remove("tokenizer.json"), write("vocab.txt", b"[UNK]\n\xe9\n")),
        "vocab.txt' cannot be read: 'utf-8' codec",
    ),
    "a tokenizer larger than the embeddings": (
        config(vocab_size=399),
        "has ids up to 399, but the model has embeddings for only 399 ids, counted from 0. Tokenizer and model do not belong together",
    ),
    "a tokenizer whose template names an unknown mark": (
        tokenizer(lambda stored: stored.update(post_processor=TEMPLATE)),
        "The tokenizer loads but cannot encode: no entry found for key. Is the tokenizer's file damaged",
    ),
    "a tokenizer without the token for unknown words": (
        tokenizer(lambda stored: stored["model"].update(unk_token="[X]")),
        r"The tokenizer loads but cannot encode: .*[Mm]issing \[UNK\] token",
    ),
    "settings that are no JSON": (write("spanqa.json", "{"), "spanqa.json' is not JSON"),
    "settings of another format": (
        write("spanqa.json", '{"format": "spanqa/9"}'),
        "spanqa.json' has the format 'spanqa/9'; this version reads 'spanqa/1'. Upgrade spanqa",
    ),
    "settings without a format": (write("spanqa.json", '{"windows": {}}'), "has the format None; this version reads"),
}


@pytest.mark.every_version
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_folder_that_is_not_whole_is_refused(case: str, tiny_copy: Callable[..., Path]) -> None:
    change, message = UNREADABLE[case]
    folder = tiny_copy("bert")
    open_checkpoint(folder)
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_tokenizer_whose_added_tokens_lie_beyond_the_embeddings_is_refused(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["lighthouse", "kestrel9"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"has ids up to 40[01], but the model has embeddings for only 400 ids"):
        open_checkpoint(folder)


# --- weights that do not fit


def drop(*names: str) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: [weights.pop(name) for name in names]


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda weights: weights.update({name: value})


QUERY = "bert.encoder.layer.1.attention.self.query"

UNFITTING = {
    "one missing": (drop(f"{QUERY}.bias"), rf"lacks 1 parameter: {QUERY}.bias. Weights and config.json do not fit"),
    "two missing": (drop(f"{QUERY}.bias", f"{QUERY}.weight"), rf"lacks 2 parameters: {QUERY}.weight, {QUERY}.bias"),
    "many missing": (
        lambda weights: [weights.pop(name) for name in list(weights) if "layer.1." in name],
        r"lacks 16 parameters: (\S+, ){6}and 10 more",
    ),
    "one unexpected": (put("bert.extra.weight", np.zeros(3, np.float32)), "has unexpectedly 1 parameter: bert.extra.weight"),
    "another model": (
        lambda weights: [weights.update({f"x.{name}": weights.pop(name)}) for name in list(weights) if "qa" not in name],
        r"lacks 37 parameters: .* and has unexpectedly 37 parameters: x.bert",
    ),
    "another shape": (
        put("qa_outputs.weight", np.zeros((3, 32), np.float32)),
        r"has parameters of another shape than config.json asks for: qa_outputs.weight is \[3, 32\], expected \[2, 32\]",
    ),
    "transposed": (
        lambda weights: weights.update({f"{QUERY}.weight": weights[f"{QUERY}.weight"][None]}),
        r"query.weight is \[1, 32, 32\], expected \[32, 32\]",
    ),
    "whole numbers": (
        put(f"{QUERY}.weight", np.zeros((32, 32), np.int8)),
        rf"has, not in a float format, 1 parameter: {QUERY}.weight \(I8\)",
    ),
    "no head": (
        drop("qa_outputs.weight", "qa_outputs.bias"),
        r"has no question-answering head: it lacks qa_outputs.weight \(and 1 other parameters\). Choose a checkpoint that",
    ),
    "nothing": (lambda weights: weights.clear(), "has no question-answering head: .* 38 other parameters"),
    "NaN": (
        lambda weights: weights[f"{QUERY}.weight"].__setitem__((3, 4), np.nan),
        rf"{QUERY}.weight in .* holds NaN or infinity. The training diverged or the file is damaged",
    ),
    "NaN in the first layer": (
        lambda weights: weights["bert.encoder.layer.0.attention.self.query.weight"].__setitem__((0, 0), np.nan),
        r"layer.0.attention.self.query.weight in .* holds NaN or infinity",
    ),
    "infinity": (
        lambda weights: weights["bert.embeddings.word_embeddings.weight"].__setitem__((399, 31), -np.inf),
        r"word_embeddings.weight in .* holds NaN or infinity",
    ),
}  # fmt: skip


@pytest.mark.every_version
@pytest.mark.parametrize(
    ("backend", "case"),
    [
        (backend, case)
        for backend in BACKENDS
        for case in UNFITTING
        if backend in READERS or case in ("one missing", "another shape", "NaN", "NaN in the first layer", "infinity")
    ],
)
def test_weights_that_do_not_fit_are_refused_by_every_backend(
    case: str, backend: str, tiny_copy: Callable[..., Path], load: Callable[..., Backend]
) -> None:
    change, message = UNFITTING[case]
    folder = tiny_copy("bert")
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(backend, folder)


def test_a_truncated_file_of_weights_is_refused_wherever_it_ends(tiny_copy: Callable[..., Path]) -> None:
    """When it is opened, before any backend sees it."""
    path = tiny_copy("bert") / "model.safetensors"
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    cuts = [0, 1, 7, 8, 9, 8 + header // 2, 7 + header, 8 + header, 9 + header]
    cuts += np.linspace(10 + header, len(whole) - 1, 12).astype(int).tolist()
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"is not a whole safetensors file: .* Fetch or copy it again"):
            open_checkpoint(path.parent)
    path.write_bytes(whole + b"\x00")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        open_checkpoint(path.parent)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_header_with_any_bit_flipped_is_refused_or_means_the_same(
    dtype: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every bit: 32,000 of two layers in float32; 17,000 of one in bfloat16, whose header we read ourselves as well."""
    options: dict[str, Any] = {"num_hidden_layers": 2}
    if dtype == "BF16":
        request.getfixturevalue("transformers")
        import torch

        options = {"num_hidden_layers": 1}
    folder = tiny_checkpoints.make("bert", tmp_path, **options, hidden_size=8, intermediate_size=8)
    if dtype == "BF16":
        stored = json.loads((folder / "config.json").read_text())
        tiny_checkpoints.save_with_transformers(stored, folder, dtype=torch.bfloat16)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    assert f'"{dtype}"'.encode() in whole[: 8 + header]
    checkpoint = open_checkpoint(folder)
    expected = checkpoint.encoder_weights()
    refused = 0
    with path.open("r+b", buffering=0) as file:
        for place in range(8 + header):
            for bit in range(8):
                file.seek(place)
                file.write(bytes([whole[place] ^ 1 << bit]))
                try:
                    found = checkpoint.encoder_weights()
                except CheckpointError:
                    refused += 1
                else:
                    assert found.keys() == expected.keys()
                    assert all((found[name] == expected[name]).all() for name in expected), (place, bit)
            file.seek(place)
            file.write(whole[place : place + 1])
    assert refused > 8 * header * 0.95


# --- models that are not ours to run


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForMaskedLM"])
@every_reader
def test_a_model_without_a_question_answering_head_is_refused(
    head: str, backend: str, tiny_copy: Callable[..., Path], load: Callable[..., Backend], transformers: Any
) -> None:
    folder = tiny_copy("bert")
    config = transformers.AutoConfig.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    getattr(transformers, head).from_config(config).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"has no question-answering head: it lacks qa_outputs.weight"):
        load(backend, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key_query"}, "position_embedding_type is 'relative_key_query'"),
        ({"is_decoder": True}, "is_decoder is True; expected False, which spanqa does not run"),
        ({"hidden_act": "swish"}, "the activation is 'swish'; expected one of gelu, .*, which spanqa does not run"),
        ({"num_attention_heads": 5}, "not a multiple of the 5 attention heads, which spanqa does not run"),
        ({"hidden_act": ["gelu"]}, r"the activation is \['gelu'\]; expected one of gelu, "),
        (
            {"model_type": "roberta", "pad_token_id": 64},
            "max_position_embeddings is 64 and positions start at 65, which leaves no position for a token",
        ),
    ],
)
def test_a_setting_that_the_encoder_does_not_have_is_refused(
    change: dict[str, Any], message: str, tiny_copy: Callable[..., Path]
) -> None:
    folder = tiny_copy("bert")
    change_json(folder / "config.json", **change)
    checkpoint = open_checkpoint(folder)
    for backend in BACKENDS:
        if BACKENDS[backend].installed:
            with pytest.raises(UnsupportedModelError, match=message):
                load_backend(backend, checkpoint)
    with pytest.raises(UnsupportedModelError, match=message):
        _ = checkpoint.max_seq_length


def test_a_number_that_the_config_lacks_is_named(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    settings = json.loads((folder / "config.json").read_text())
    del settings["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"config.json' lacks 'intermediate_size'"):
        load_backend("numpy", open_checkpoint(folder))


@pytest.fixture(scope="session")
def deberta(tmp_path_factory: pytest.TempPathFactory, transformers: Any) -> Path:
    """A tiny DeBERTa-v2, an architecture that only transformers knows."""
    folder = tmp_path_factory.mktemp("deberta")
    tokenizer = tiny_checkpoints.word_piece()
    config = transformers.DebertaV2Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, type_vocab_size=0, relative_attention=True,
        position_buckets=16, pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    model = transformers.DebertaV2ForQuestionAnswering(config)
    tiny_checkpoints.fill(model)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("backend", ["numpy", "openvino"])
def test_an_architecture_that_only_torch_runs_is_refused_by_name_with_the_way_out(backend: str, deberta: Path) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"is a 'deberta-v2' model; this backend runs bert, .* Use backend='torch' \(pip install 'spanqa\[torch\]'\)",
    ):
        Reader.load(deberta, backend=backend)


def test_torch_runs_an_architecture_that_the_others_do_not_have(deberta: Path, transformers: Any) -> None:
    """The best place is that of transformers' own logits."""
    import torch

    reader = Reader.load(deberta, dtype="fp32")
    assert (reader.backend.name, reader.reason) == ("torch", "only torch runs the architecture 'deberta-v2'")
    assert reader.windows.max_seq_length == 64
    question, passage = "Who built it?", "The old lighthouse was built by Anna Kestrel in 1891."
    found = reader.ask(question, passage, threshold=-1e9)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(deberta / "tokenizer.json"))
    pair = tokenizer(question, passage, return_tensors="pt", return_token_type_ids=True, return_offsets_mapping=True)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(deberta, dtype="float32").eval()
    with torch.no_grad():
        output = model(**{name: pair[name] for name in ("input_ids", "token_type_ids")})
    start, end = output.start_logits[0].numpy(), output.end_logits[0].numpy()
    inside = np.flatnonzero(np.array(pair.sequence_ids(0), float) == 1)
    score, first, last = max((start[i] + end[j], i, j) for i in inside for j in inside if i <= j < i + 30)
    offsets = pair["offset_mapping"][0].tolist()
    assert (found.start, found.end) == (offsets[first][0], offsets[last][1])
    assert found.score == pytest.approx(score - start[0] - end[0], abs=1e-4)  # measured: 1e-6


def test_torch_refuses_to_pack_windows_for_what_it_cannot_keep_apart(deberta: Path, transformers: Any) -> None:
    from spanqa.batches import pack
    from spanqa.windows import WindowSettings, make_windows

    checkpoint = open_checkpoint(deberta)
    tokenizer = checkpoint.tokenizer
    window = make_windows(tokenizer.encode("who"), tokenizer.encode("Anna"), tokenizer.template, WindowSettings(64))
    with pytest.raises(UnsupportedModelError, match="DebertaV2ForQuestionAnswering cannot read packed rows"):
        load_backend("torch", checkpoint)[0].forward(pack([window * 2]))


TORCH_ONLY_DAMAGE = {
    "a missing parameter": (drop("qa_outputs.weight"), "lacks 1 parameter.*qa_outputs.weight"),
    "another shape": (put("qa_outputs.bias", np.zeros(3, np.float32)), "another shape.*qa_outputs.bias"),
    "NaN": (lambda weights: weights["qa_outputs.bias"].__setitem__(0, np.nan), "qa_outputs.bias in .* holds NaN"),
}


@pytest.mark.parametrize("case", TORCH_ONLY_DAMAGE)
def test_a_damaged_model_that_only_torch_runs_is_refused(case: str, deberta: Path, tmp_path: Path) -> None:
    import shutil

    change, message = TORCH_ONLY_DAMAGE[case]
    folder = Path(shutil.copytree(deberta, tmp_path / "model"))
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_backend("torch", open_checkpoint(folder))


def test_a_truncated_model_that_only_torch_runs_is_refused(deberta: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(deberta, tmp_path / "model"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load_backend("torch", open_checkpoint(folder))


def test_an_architecture_that_nobody_knows_is_refused(tiny_copy: Callable[..., Path], transformers: Any) -> None:
    folder = tiny_copy("bert")
    change_json(folder / "config.json", model_type="penmar")
    with pytest.raises(
        UnsupportedModelError, match=r"transformers \S+ cannot load '.*' \('penmar'\) for question answering"
    ):
        Reader.load(folder)


def test_an_architecture_without_such_a_head_is_refused(tiny_copy: Callable[..., Path], transformers: Any) -> None:
    folder = tiny_copy("bert")
    change_json(folder / "config.json", model_type="vit")
    with pytest.raises(UnsupportedModelError, match=r"cannot load '.*' \('vit'\) for question answering"):
        Reader.load(folder)


def test_a_vocabulary_with_a_hole_is_judged_by_its_highest_id(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    stored = json.loads((folder / "tokenizer.json").read_text())
    words = stored["model"]["vocab"]
    words[max(words, key=words.__getitem__)] = 7_000  # as many words as before
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"has ids up to 7000, but the model has embeddings for only 400 ids"):
        open_checkpoint(folder)


def test_token_types_without_embeddings_are_refused(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:2 [SEP]:2", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"has token types up to 2, but the model has embeddings for only 2"):
        open_checkpoint(folder)


# --- read once


def other_weights(folder: Path) -> None:
    """Weights of the same shapes and other values, written as a careful writer does: beside the old file, then renamed."""
    weights = {name: 1.5 * array for name, array in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "new")
    (folder / "new").rename(folder / "model.safetensors")


@every_backend
def test_a_folder_replaced_after_loading_changes_neither_answers_nor_attention(
    backend: str, load: Callable[..., Backend], tiny: Callable[..., Path], tiny_copy: Callable[..., Path]
) -> None:
    folder = tiny_copy("bert")
    batch = first_window(folder, "Who built it?", "Anna Kestrel built it in 1891.")
    held = load(backend, folder)
    expected = load(backend, tiny("bert")).forward(batch, capture=Capture((0, 1)))
    other_weights(folder)
    found = held.forward(batch, capture=Capture((0, 1)))
    np.testing.assert_allclose(found.start, expected.start, rtol=0, atol=1e-5)
    assert found.attention is not None and expected.attention is not None
    for layer, (array,) in found.attention.items():
        np.testing.assert_allclose(array, expected.attention[layer][0], rtol=0, atol=1e-5)
    new = load(backend, folder).forward(batch)
    assert np.abs(new.start - expected.start).max() > 0.1


def test_a_checkpoint_that_is_open_loads_the_weights_it_was_opened_with(
    tiny: Callable[..., Path], tiny_copy: Callable[..., Path]
) -> None:
    checkpoint, expected = open_checkpoint(tiny_copy("bert")), open_checkpoint(tiny("bert"))
    other_weights(checkpoint.path)
    for name, array in checkpoint.encoder_weights().items():
        np.testing.assert_array_equal(array, expected.encoder_weights()[name])
    assert checkpoint.weights.sha256 == expected.weights.sha256


def test_weights_overwritten_in_place_are_an_error_at_the_next_read(tiny_copy: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(tiny_copy("bert"))
    content = (checkpoint.path / "model.safetensors").read_bytes()
    os.utime(checkpoint.path / "model.safetensors", ns=(1, 1))
    (checkpoint.path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"was overwritten after the model was loaded. Load it again; to replace"):
        checkpoint.encoder_weights()
    with pytest.raises(CheckpointError, match="was overwritten after the model was loaded"):
        _ = checkpoint.weights.sha256


def test_a_file_that_is_no_safetensors_file_is_refused_when_it_is_opened(tiny_copy: Callable[..., Path]) -> None:
    folder = tiny_copy("bert")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        open_checkpoint(folder)
