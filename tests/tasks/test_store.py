from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import RecipeError, StoreError
from model.records import SAMPLE_SCHEMA, to_table
from tasks import durable
from tasks.store import Dataset, ids_digest
from tests.tasks import store_children
from tests.tasks.small_dataset import PlannedSample, sample_of
from tests.tasks.store_children import SCHEMA, processes, rows, write


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset.create(tmp_path / "data")


def test_a_written_shard_reads_back_and_says_what_it_is(dataset: Dataset) -> None:
    made = dataset.write_shard("samples/000000.parquet", rows(0), schema=SCHEMA, fingerprint="f", extra={"a": 1})

    manifest = dataset.read_manifest("samples/000000.parquet")
    assert manifest == made
    assert (manifest.rows, manifest.shard, manifest.fingerprint, manifest.extra) == (3, 0, "f", {"a": 1})
    assert dataset.read_table("samples/000000.parquet").equals(rows(0))
    assert dataset.verify_checksum("samples/000000.parquet")
    assert list((dataset.path / ".scratch").iterdir()) == []


def test_what_comes_in_pieces_is_one_shard(dataset: Dataset) -> None:
    whole = dataset.write_shard("samples/000000.parquet", rows(0, 10), schema=SCHEMA, fingerprint="f")
    pieces = (rows(0, 10).slice(start, 4) for start in (0, 4, 8))
    made = dataset.write_shard("samples/000001.parquet", pieces, schema=SCHEMA, fingerprint="f")
    assert (made.rows, made.ids_digest, made.columns) == (whole.rows, whole.ids_digest, whole.columns)
    assert dataset.read_table("samples/000001.parquet").equals(rows(0, 10))
    none = dataset.write_shard("samples/000002.parquet", iter([]), schema=SCHEMA, fingerprint="f")
    assert (none.rows, dataset.read_table("samples/000002.parquet").schema) == (0, SCHEMA)


def test_an_id_in_two_pieces_is_refused_and_nothing_is_there(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="appears twice"):
        dataset.write_shard("samples/000000.parquet", [rows(0), rows(0)], schema=SCHEMA, fingerprint="f")
    assert dataset.manifests("samples") == []


def test_a_file_without_a_valid_manifest_does_not_exist(dataset: Dataset) -> None:
    relative, target = "samples/000000.parquet", dataset.file("samples/000000.parquet")
    write(dataset, relative, rows(0))

    with target.open("ab") as stream:
        stream.write(b"x")
    assert dataset.read_manifest(relative) is None
    write(dataset, relative, rows(0))
    target.with_suffix(".json").write_text('{"format": 1, "rows"')
    assert dataset.read_manifest(relative) is None
    write(dataset, relative, rows(0))
    target.unlink()
    assert dataset.read_manifest(relative) is None
    assert dataset.manifests("samples") == []
    with pytest.raises(StoreError, match="missing or incomplete"):
        dataset.read_table(relative)


def test_a_flipped_byte_is_found_by_the_checksum(dataset: Dataset) -> None:
    write(dataset, "samples/000000.parquet", rows(0))
    target = dataset.file("samples/000000.parquet")
    content = bytearray(target.read_bytes())
    content[20] ^= 1
    target.write_bytes(content)

    assert not dataset.verify_checksum("samples/000000.parquet")


def test_ids_digest_does_not_depend_on_order_and_refuses_twins() -> None:
    assert ids_digest(["a", "b"]) == ids_digest(["b", "a"]) != ids_digest(["a", "c"])
    with pytest.raises(ValueError, match="b appears twice"):
        ids_digest(["b", "a", "b"])


def test_rows_that_do_not_fit_their_schema_are_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        write(dataset, "samples/000000.parquet", rows(0).drop_columns("value"))
    holes = pa.table({"sample_id": [None], "value": [1]}, schema=SCHEMA)
    with pytest.raises(ValueError, match="sample_id must not hold nulls"):
        write(dataset, "samples/000000.parquet", holes)
    with pytest.raises(ValueError, match="not a path inside"):
        write(dataset, "../000000.parquet", rows(0))
    assert dataset.manifests("samples") == []


def test_equal_texts_get_equal_hashes(dataset: Dataset) -> None:
    planned = [PlannedSample(name, "p", 0, 1, 8) for name in ("a", "b", "c")]
    texts = ["same", "same", "other"]
    table = to_table([sample_of(p, 0, t) for p, t in zip(planned, texts, strict=True)], SAMPLE_SCHEMA)
    dataset.write_shard("samples/000000.parquet", table, schema=SAMPLE_SCHEMA, fingerprint="f")

    first, second, third = dataset.read_table("samples/000000.parquet").column("text_hash").to_pylist()
    assert first == second != third


def test_long_texts_are_cut_into_row_groups_and_short_rows_are_not(dataset: Dataset) -> None:
    schema = pa.schema([pa.field("sample_id", pa.string(), nullable=False), pa.field("body", pa.string())])
    table = pa.table({"sample_id": [str(i) for i in range(1000)], "body": ["x" * 50_000] * 1000}, schema=schema)
    dataset.write_shard("samples/000000.parquet", table, schema=schema, fingerprint="f")
    write(dataset, "samples/000001.parquet", rows(0, 1000))

    groups = [pq.ParquetFile(dataset.file(f"samples/00000{i}.parquet")).num_row_groups for i in (0, 1)]
    assert groups == [3, 1]  # 16 MiB / 50 kB = 335 rows


def test_a_reader_keeps_the_file_it_opened_while_the_shard_is_replaced(dataset: Dataset) -> None:
    write(dataset, "samples/000000.parquet", rows(0))
    with dataset.file("samples/000000.parquet").open("rb") as stream:
        write(dataset, "samples/000000.parquet", rows(100))
        assert pq.read_table(stream).equals(rows(0))
    assert dataset.read_table("samples/000000.parquet").equals(rows(100))


def test_open_wants_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no dataset"):
        Dataset.open(tmp_path)
    Dataset.create(tmp_path / "data")
    assert Dataset.open(tmp_path / "data").path == tmp_path / "data"


# ---- killed at any instant


def assert_every_visible_shard_is_whole(dataset: Dataset) -> int:
    manifests = dataset.manifests("samples")
    for manifest in manifests:
        table = dataset.read_table(manifest.relative)
        assert dataset.verify_checksum(manifest.relative)
        assert manifest.ids_digest == ids_digest(table.column("sample_id").to_pylist())
        assert len(set(table.column("value").to_pylist())) == 1
    return len(manifests)


def test_kill_9_at_random_instants_leaves_only_whole_shards(dataset: Dataset) -> None:
    clock, seen = random.Random(1), 0
    for attempt in range(20):
        started = processes.Event()
        writer = processes.Process(target=store_children.rewrite_for_ever, args=(dataset.path, 1000 * attempt, started))
        writer.start()
        assert started.wait(20)
        time.sleep(0.06 * clock.random())
        writer.kill()
        writer.join()
        seen += assert_every_visible_shard_is_whole(dataset)
    assert seen > 20  # the writers did get to write

    dataset.clean_scratch()
    assert list((dataset.path / ".scratch").iterdir()) == []


def test_killed_before_each_system_call_a_shard_is_old_or_new_or_gone(dataset: Dataset) -> None:
    outcomes = []
    for call in range(1, 40):
        write(dataset, "samples/000000.parquet", rows(0))
        writer = processes.Process(target=store_children.kill_at_system_call, args=(dataset.path, call))
        writer.start()
        writer.join()
        if writer.exitcode == 0:
            break
        manifest = dataset.read_manifest("samples/000000.parquet")
        values = dataset.read_table(manifest.relative).column("value").to_pylist() if manifest else None
        assert manifest is None or dataset.verify_checksum(manifest.relative)
        outcomes.append({None: "gone", 0: "old", 100: "new"}[values and values[0]])
    assert writer.exitcode == 0
    assert set(outcomes) == {"old", "gone", "new"}
    assert outcomes == sorted(outcomes, key=["old", "gone", "new"].index)


def test_threads_may_write_different_shards_at_once(dataset: Dataset) -> None:
    threads = [
        threading.Thread(target=write, args=(dataset, f"samples/{n:06d}.parquet", rows(n * 10))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert assert_values(dataset) == {n: [n * 10, n * 10 + 1, n * 10 + 2] for n in range(8)}


def assert_values(dataset: Dataset) -> dict[int, list[int]]:
    found = dataset.manifests("samples")
    return {m.shard: dataset.read_table(m.relative).column("value").to_pylist() for m in found}


# ---- two runs at once


def test_a_second_run_is_told_who_holds_the_dataset_and_a_killed_holder_lets_go(dataset: Dataset) -> None:
    held = processes.Event()
    first = processes.Process(target=store_children.hold_for_ever, args=(dataset.path, held))
    first.start()
    assert held.wait(20)

    with pytest.raises(StoreError, match=f"in use by run run-1 \\(pid {first.pid} on ") as caught:
        dataset.lock("run-2", wait_seconds=0.1).__enter__()
    assert not caught.value.retryable
    assert dataset.holder().pid == first.pid

    first.kill()
    first.join()
    assert dataset.holder() is None
    with dataset.lock("run-2") as me:
        assert dataset.holder() == me
        assert me.pid == os.getpid()
    assert dataset.holder() is None


def test_taking_the_lock_sweeps_what_a_killed_run_left(dataset: Dataset) -> None:
    leftover = dataset.path / ".scratch" / ".tmp-1-x.parquet"
    leftover.write_bytes(b"half")
    with dataset.lock("run"):
        assert not leftover.exists()


# ---- what the disk refuses


def in_child(target: Callable[..., None], path: Path) -> str:
    answer = processes.Queue()
    child = processes.Process(target=target, args=(path, answer))
    child.start()
    message = answer.get(timeout=30)
    child.join()
    return str(message)


def test_a_write_that_stops_in_the_middle_leaves_the_old_shard(dataset: Dataset) -> None:
    write(dataset, "samples/000000.parquet", rows(0))

    message = in_child(store_children.limited_write, dataset.path)

    assert "file-size limit or quota" in message
    assert "\n" not in message
    assert dataset.read_table("samples/000000.parquet").equals(rows(0))
    assert list((dataset.path / ".scratch").iterdir()) == []


FULL_DISK = """
import sys
from tasks.store import Dataset
from tests.tasks.store_children import many_rows, message_of, rows, write
dataset = Dataset.create(sys.argv[1])
write(dataset, "samples/000000.parquet", rows(0))
print(message_of(lambda: write(dataset, "samples/000001.parquet", many_rows(99999))))
print([m.shard for m in dataset.manifests("samples")], list((dataset.path / ".scratch").iterdir()))
"""


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size=512k none "$0" && exec "$@" "$0"'
    if subprocess.run([*mount, script, tmp_path, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("a user namespace cannot mount a tmpfs here")
    command = [*mount, script, tmp_path, sys.executable, "-c", FULL_DISK]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)

    message, visible = done.stdout.splitlines()
    assert message.startswith("the disk is full: cannot write")
    assert message.endswith("free some space, then run again")
    assert visible == "[0] []"


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A dataset that nobody may write, in a place that every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        Dataset.create(path / "data")
        (path / "data" / ".lock").touch()
        for inner in (path / "data" / ".scratch", path / "data"):
            inner.chmod(0o555)
        yield path / "data"
        for inner in (path / "data", path / "data" / ".scratch"):
            inner.chmod(0o755)


def test_a_read_only_folder_is_one_clear_line_and_can_be_asked_for_its_holder(read_only_folder: Path) -> None:
    shard, lock, holder = in_child(store_children.write_as_nobody, read_only_folder).split("\n")

    assert "is read-only for this user" in shard
    assert "is read-only for this user" in lock
    assert holder == "None"


# ---- the recipe that a dataset belongs to


def test_bind_refuses_another_recipe_field_by_field(dataset: Dataset) -> None:
    identity = {"teacher": {"model": "m", "revision": "r"}, "generate": {"temperature": 0.7}}
    dataset.bind(identity, {"accept": {"require": ["math"]}})
    dataset.bind(identity, {"accept": {"require": ["format"]}})
    assert dataset.recipe() == {"accept": {"require": ["format"]}}

    other = {"teacher": {"model": "n", "revision": "r"}, "generate": {"temperature": 0.8}}
    with pytest.raises(RecipeError) as caught:
        dataset.bind(other, {})
    message = str(caught.value)
    assert "generate.temperature is 0.7 there and 0.8 in the recipe" in message
    assert "teacher.model is 'm' there and 'n' in the recipe" in message
    assert "revision" not in message
    assert dataset.recipe() == {"accept": {"require": ["format"]}}


def test_a_layout_of_the_future_is_refused(dataset: Dataset) -> None:
    dataset.write_text("recipe.json", json.dumps({"format": 2, "identity": {}, "recipe": {}}))
    with pytest.raises(StoreError, match="has layout 2, this Stillhouse reads 1"):
        dataset.bind({}, {})


def test_what_the_block_leaves_in_scratch_is_removed(dataset: Dataset) -> None:
    with durable.scratch_file(dataset.path, ".parquet") as scratch:
        scratch.write_bytes(b"half")
    assert not scratch.exists()
