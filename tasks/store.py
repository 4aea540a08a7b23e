"""The dataset folder: Parquet shards that are whole or do not exist, and the manifests that say so.

A shard is written in a scratch place, flushed, read back, renamed, and only then gets its manifest, which is
renamed into place too. A Parquet file without a valid manifest does not exist. This file knows nothing of
what is to be done (`tasks/work.py`), of attempts (`tasks/attempts.py`), or of SQL (`tasks/catalog.py`). One
run writes at a time (`tasks/lock.py`); several threads of it may write different shards.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import RecipeError, StoreError
from tasks import durable
from tasks import lock as run_lock

FORMAT = 1  # of the folder's layout; raised when an older Stillhouse could misread it
RECIPE = "recipe.json"
PROBLEMS = "problems"
SAMPLES = "samples"
VERDICTS = "verdicts"
PLANS = "plans"
EVALUATIONS = "evaluations"
AUDITS = "audits"
STUDENTS = "students"
TEACHER_ROWS = "teacher_rows"

ROW_GROUP_BYTES = 16 << 20  # of uncompressed Arrow data: an id look-up decompresses at most this much text
ROW_GROUP_ROWS = (16, 65536)
_ID_COLUMNS = ("sample_id", "problem_id")  # the first one that a schema has identifies its rows
_HASHED, TEXT_HASH = "text", "text_hash"
_TEXT_HASH_FIELD = pa.field(TEXT_HASH, pa.uint64(), nullable=False)
_LONG_COLUMNS = frozenset({"sample_id", "text", "reasoning", TEXT_HASH})  # a dictionary would not repeat


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of one complete Parquet file; stored beside it, as `.json`, after all else.

    `bytes` and `sha256` are the file's, `ids_digest` that of the sorted row ids (None where rows have none),
    `seconds` what the work took, `extra` what the caller wants to find again.
    """

    relative: str
    rows: int
    bytes: int
    sha256: str
    ids_digest: str | None
    columns: tuple[str, ...]
    fingerprint: str
    created_at: str  # ISO 8601, UTC
    seconds: float
    versions: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def shard(self) -> int:
        """The number in the file's name; ValueError for a file that is named, not numbered."""
        return int(PurePosixPath(self.relative).stem)


def shard_name(shard: int) -> str:
    """`000007.parquet`: six digits, so that names sort as numbers."""
    return f"{shard:06d}.parquet"


def sample_path(shard: int) -> str:
    """Where a shard's samples lie, relative to the dataset."""
    return f"{SAMPLES}/{shard_name(shard)}"


def verdict_path(check: str, version: str, shard: int) -> str:
    """Where one check's verdicts on one shard lie, relative to the dataset."""
    return f"{VERDICTS}/{check}/{version}/{shard_name(shard)}"


def ids_digest(ids: Sequence[str]) -> str:
    """Digest of a set of row ids, whatever their order; ValueError when one appears twice."""
    ordered = sorted(ids)
    twice = next((a for a, b in itertools.pairwise(ordered) if a == b), None)
    if twice is not None:
        raise ValueError(f"row id {twice} appears twice in one shard")
    return hashlib.blake2b("\n".join(ordered).encode(), digest_size=16).hexdigest()


class Dataset:
    """One dataset folder. Constructing it touches nothing: see `create` and `open`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()

    @classmethod
    def create(cls, path: str | Path) -> Dataset:
        """The dataset at `path`, made where it is missing; StoreError where that cannot be."""
        dataset = cls(path)
        with durable.store_errors(dataset.path):
            (dataset.path / durable.SCRATCH).mkdir(parents=True, exist_ok=True)
        return dataset

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """The dataset at `path`; StoreError where there is none."""
        dataset = cls(path)
        if not any((dataset.path / name).exists() for name in (RECIPE, durable.SCRATCH, SAMPLES, PROBLEMS)):
            raise durable.refused(f"{dataset.path} holds no dataset; make one with `stillhouse run RECIPE`")
        return dataset

    def file(self, relative: str) -> Path:
        """Absolute path of a file of the dataset; ValueError for one outside it."""
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"{relative} is not a path inside the dataset")
        return self.path / parts

    @contextmanager
    def lock(self, run_id: str, wait_seconds: float = run_lock.WAIT_SECONDS) -> Iterator[run_lock.Holder]:
        """Holds the dataset for one run and sweeps away what killed runs left half-written."""
        with run_lock.hold(self.path, run_id, wait_seconds) as me:
            self.clean_scratch()
            yield me

    def holder(self) -> run_lock.Holder | None:
        """The run that is writing now, or None."""
        return run_lock.holder(self.path)

    def clean_scratch(self) -> int:
        """Removes every scratch file and says how many. Only the lock's holder may call it."""
        leftovers = list((self.path / durable.SCRATCH).glob(".tmp-*"))
        for path in leftovers:
            durable.remove(path)
        return len(leftovers)

    def scratch(self, suffix: str) -> AbstractContextManager[Path]:
        """A scratch path on the dataset's own file system, removed when the block ends."""
        return durable.scratch_file(self.path, suffix)

    def free_bytes(self) -> int:
        """Bytes that this user may still write here."""
        return shutil.disk_usage(self.path).free

    def write_text(self, relative: str, text: str) -> None:
        """Writes a small UTF-8 file (rejects, settings) atomically, without a manifest."""
        durable.write_bytes(self.path, self.file(relative), text.encode("utf-8", errors="replace"))

    def read_json(self, relative: str) -> Any | None:
        """A JSON file's content, or None where it is missing or not JSON."""
        try:
            return json.loads(self.file(relative).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        except OSError as error:
            raise durable.refused(f"cannot read {self.file(relative)}: {error.strerror}") from error

    def write_shard(
        self,
        relative: str,
        table: pa.Table | Iterable[pa.Table],
        *,
        schema: pa.Schema,
        fingerprint: str,
        extra: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> Manifest:
        """Writes one shard and then its manifest; a shard already there is replaced, never mixed.

        What is too large for memory comes in pieces, of which one is held at a time; each begins a row group.
        Rows get a column `text_hash` (64 bits of BLAKE2b) where the schema has `text`, so that equal texts
        are told without reading them. ValueError for a table that does not fit `schema` or repeats an id;
        StoreError for what the disk refuses: then the shard does not exist, and nothing half-written is seen.
        """
        target = self.file(relative)
        pieces = [table] if isinstance(table, pa.Table) else table
        with self.scratch(".parquet") as scratch:
            with durable.store_errors(target):
                written = _write_parquet(
                    (_with_text_hash(_checked(piece, schema)) for piece in pieces), schema, scratch
                )
                _read_back(scratch, written)
                manifest = _manifest(relative, scratch, written, fingerprint, extra, seconds)
            # The old manifest must not vouch for the new file, not even between two renames.
            durable.remove(_manifest_path(target))
            durable.publish(scratch, target)
        payload = {"format": FORMAT, **asdict(manifest)}
        durable.write_bytes(self.path, _manifest_path(target), json.dumps(payload, indent=1).encode())
        return manifest

    def remove_shard(self, relative: str) -> None:
        """Deletes a shard, its manifest first. For plans that nobody began: samples are never deleted."""
        target = self.file(relative)
        durable.remove(_manifest_path(target))
        durable.remove(target)

    def read_manifest(self, relative: str) -> Manifest | None:
        """A file's manifest if it is valid (JSON of this format, file there, size equal), else None."""
        target = self.file(relative)
        manifest = _parse_manifest(self.read_json(str(PurePosixPath(relative).with_suffix(".json"))), relative)
        try:
            return manifest if manifest and target.stat().st_size == manifest.bytes else None
        except FileNotFoundError:
            return None

    def verify_checksum(self, relative: str) -> bool:
        """Whether the file's bytes are still those that were written (reads all of it)."""
        manifest = self.read_manifest(relative)
        return manifest is not None and _sha256(self.file(relative)) == manifest.sha256

    def manifests(self, folder: str) -> list[Manifest]:
        """Valid manifests of the Parquet files directly in `folder`, by name."""
        names = sorted(path.name for path in self.file(folder).glob("*.parquet"))
        found = (self.read_manifest(f"{folder}/{name}") for name in names)
        return [manifest for manifest in found if manifest is not None]

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """A shard's rows; StoreError where it does not exist or no longer reads."""
        if self.read_manifest(relative) is None:
            raise StoreError(f"{self.file(relative)} is missing or incomplete; run the recipe again to make it")
        try:
            return pq.ParquetFile(self.file(relative)).read(columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.file(relative)} is damaged: {_first_line(error)}") from error

    def read_batches(self, relative: str, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        """A shard's rows, at most `rows` at a time, so that memory holds one row group and not the shard.

        Raises as `read_table` does.
        """
        if self.read_manifest(relative) is None:
            raise StoreError(f"{self.file(relative)} is missing or incomplete; run the recipe again to make it")
        try:
            with pq.ParquetFile(self.file(relative)) as file:
                # Threads of Arrow's own would only contend with the processes that wait for these rows.
                yield from file.iter_batches(rows, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.file(relative)} is damaged: {_first_line(error)}") from error

    def recipe(self) -> dict[str, Any] | None:
        """The resolved recipe that last ran here (as given to `bind`), or None."""
        record = self.read_json(RECIPE)
        return record.get("recipe") if isinstance(record, dict) else None

    def bind(self, identity: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
        """Ties the dataset to what must not change, and notes the whole resolved recipe.

        `identity` holds what shapes every sample (teacher, template, temperature, …); a dataset made with
        another one is refused with a RecipeError that says, field by field, what differs. The rest of the
        recipe (replicas, max_tokens, more problems, accept, training) may change from run to run.
        """
        wanted = json.loads(json.dumps(identity))
        stored = self.read_json(RECIPE) or {"format": FORMAT, "identity": wanted}
        if stored["format"] != FORMAT:
            raise durable.refused(f"{self.path} has layout {stored['format']}, this Stillhouse reads {FORMAT}")
        differences = _differences(stored["identity"], wanted)
        if differences:
            raise RecipeError(_drift(self.path, differences))
        record = {"format": FORMAT, "identity": wanted, "recipe": json.loads(json.dumps(recipe))}
        if record != stored:
            self.write_text(RECIPE, json.dumps(record, indent=1))


def _manifest_path(target: Path) -> Path:
    return target.with_suffix(".json")


def _parse_manifest(record: Any, relative: str) -> Manifest | None:
    names = {f.name for f in fields(Manifest)}
    if not isinstance(record, dict) or record.get("format") != FORMAT or not names <= record.keys():
        return None
    values = {name: record[name] for name in names} | {
        "relative": relative,
        "columns": tuple(record["columns"]),
    }
    return Manifest(**values)


def _manifest(
    relative: str,
    scratch: Path,
    written: _Written,
    fingerprint: str,
    extra: Mapping[str, Any] | None,
    seconds: float,
) -> Manifest:
    return Manifest(
        relative=relative,
        rows=written.rows,
        bytes=scratch.stat().st_size,
        sha256=_sha256(scratch),
        ids_digest=written.ids_digest,
        columns=tuple(written.schema.names),
        fingerprint=fingerprint,
        created_at=datetime.now(UTC).isoformat(),
        seconds=seconds,
        versions=_versions(),
        extra=dict(extra or {}),
    )


def _checked(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table, if its columns are the schema's and no required one holds a null."""
    if not table.schema.equals(schema):
        raise ValueError(f"table does not fit its schema: {table.schema} is not {schema}")
    for column in schema:
        if not column.nullable and table.column(column.name).null_count:
            raise ValueError(f"column {column.name} must not hold nulls")
    return table


def _with_text_hash(table: pa.Table) -> pa.Table:
    if _HASHED not in table.column_names:
        return table
    hashes = [_hash64(text) for text in table.column(_HASHED).to_pylist()]
    return table.append_column(_TEXT_HASH_FIELD, pa.array(hashes, pa.uint64()))


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _id_column(schema: pa.Schema) -> str | None:
    if "case" in schema.names:  # an audit tries several cases on one problem
        return None
    return next((name for name in _ID_COLUMNS if name in schema.names), None)


@dataclass(frozen=True, slots=True)
class _Written:
    """What a file holds."""

    schema: pa.Schema
    rows: int
    ids_digest: str | None

    @classmethod
    def of(cls, schema: pa.Schema, tables: Iterable[pa.Table]) -> _Written:
        column, rows, ids = _id_column(schema), 0, list[str]()
        for table in tables:
            rows += table.num_rows
            ids += table.column(column).to_pylist() if column else []
        return cls(schema, rows, ids_digest(ids) if column else None)


def _write_parquet(pieces: Iterable[pa.Table], given: pa.Schema, path: Path) -> _Written:
    schema = given.append(_TEXT_HASH_FIELD) if _HASHED in given.names else given
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=[name for name in schema.names if name not in _LONG_COLUMNS],
        write_page_checksum=True,
    ) as writer:

        def each() -> Iterator[pa.Table]:
            for piece in pieces:
                writer.write_table(piece, row_group_size=_row_group_rows(piece))
                yield piece

        return _Written.of(schema, each())


def _row_group_rows(table: pa.Table) -> int:
    low, high = ROW_GROUP_ROWS
    per_row = table.nbytes / max(table.num_rows, 1)
    return min(max(int(ROW_GROUP_BYTES / max(per_row, 1.0)), low), high)


def _read_back(path: Path, written: _Written) -> None:
    """Decodes the whole file, page checksums included, and compares rows, columns and ids."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = (file.read_row_group(group) for group in range(file.num_row_groups))
        if _Written.of(file.schema_arrow, groups) != written:
            raise StoreError(f"{path} does not read back as it was written; check the disk")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("stillhouse")
    except metadata.PackageNotFoundError:
        own = "source"
    return {"stillhouse": own, "python": platform.python_version(), "pyarrow": pa.__version__}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}".strip(".")).items()}


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    before, now = _flat(dict(stored)), _flat(dict(wanted))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [f"{name} is {before.get(name)!r} there and {now.get(name)!r} in the recipe" for name in names]


def _drift(path: Path, differences: list[str]) -> str:
    listed = "; ".join(differences)
    return f"{path} was made by a different recipe: {listed}. Name another dataset folder, or undo the change"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
