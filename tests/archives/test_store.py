"""Outputs in local folders and in an object store: whole or not at all, and errors in one line."""

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ccsegformer.archives import store as archive_store
from ccsegformer.archives.store import Store, open_store, read_each
from ccsegformer.errors import OutputError

CHUNK = 5 * 2**20
"""Size from which obstore writes in parts."""


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(tmp_path / "out")
    return open_store(f"s3://{request.getfixturevalue('bucket')}/maps/world/")


def test_objects_are_written_replaced_listed_and_deleted(store):
    assert store.get("scenes/a/a.json") is None and list(store.keys()) == []
    store.put("scenes/a/a.json", b"old and long")
    store.put("scenes/a/a.json", b"new")
    store.put("failed/b.json", b"")
    assert store.get("scenes/a/a.json") == b"new" and store.get("failed/b.json") == b""
    assert sorted(store.keys()) == ["failed/b.json", "scenes/a/a.json"]
    assert list(store.keys("scenes/")) == ["scenes/a/a.json"] and list(store.keys("scene/")) == []
    for _ in range(2):
        store.delete("failed/b.json")
    assert store.get("failed/b.json") is None and store.get("scenes") is None


def test_lines_are_added(store):
    for line in (b"one\n", b"two\n"):
        store.append("scenes/a/a.log", line)
    assert store.get("scenes/a/a.log") == b"one\ntwo\n"


def test_objects_are_read_several_at_a_time_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_store, "READ_BATCH", 8)
    together, most = threading.Barrier(4, timeout=5), []

    class WaitingStore(Store):
        def get(self, key):
            together.wait()  # four at a time, or an error
            most.append(key)
            return super().get(key)

    store, keys = WaitingStore(str(tmp_path)), [f"{number}" for number in reversed(range(20))]
    for key in keys[:16]:
        store.put(key, key.encode())
    contents = read_each(store, keys)
    assert next(contents) == b"19" and len(most) <= 8, "no more than a batch is held"
    assert [b"19", *contents] == [*(key.encode() for key in keys[:16]), b"", b"", b"", b""]


@pytest.mark.parametrize("name", ["Zürich Süd", "a#b", "a?b", "a%20b", "a+b&c", "T32TMT:1"])
def test_names_of_any_characters_come_back(store, name):
    store.put(f"scenes/{name}/x.json", b"1")
    assert list(store.keys("scenes/")) == [f"scenes/{name}/x.json"]
    assert store.get(f"scenes/{name}/x.json") == b"1"


@pytest.mark.parametrize("size", [0, 100, 2 * CHUNK + 1])
def test_files_are_copied(store, tmp_path, size):
    file = tmp_path / "a.tif"
    file.write_bytes(content := os.urandom(size))
    store.put("scenes/a/a.tif", b"earlier")
    store.put_file("scenes/a/a.tif", file)
    assert store.get("scenes/a/a.tif") == content
    if path := store.local("scenes/a/a.tif"):
        store.put_file("scenes/a/a.tif", path)  # is there already
        assert path.read_bytes() == content


def test_addresses_and_pickles(store):
    copy = pickle.loads(pickle.dumps(store))
    copy.put("a/b", b"1")
    assert store.get("a/b") == b"1"
    assert store.href("a/b") == f"{store.address}/a/b"
    if store.address.startswith("s3:"):
        assert store.href("a/b") == "s3://archive/maps/world/a/b" and store.local("a/b") is None
    else:
        assert store.local("a/b") == Path(store.href("a/b"))


def test_unfinished_files_are_not_listed(tmp_path):
    store = open_store(tmp_path)
    for key in ("scenes/a/.a.tif.partial/growing.tif", "scenes/a/.a.1.partial.json", "scenes/a/a.log"):
        store.put(key, b"")
    assert list(store.keys("scenes/")) == ["scenes/a/a.log"]


def test_more_objects_than_one_answer_lists(bucket):
    import boto3

    client = boto3.client("s3")
    for number in range(3):
        client.put_object(Bucket=bucket, Key=f"out/scenes/{number}/x.json")
    client.put_object(Bucket=bucket, Key="output/scenes/other.json")
    assert len(list(open_store(f"s3://{bucket}/out").keys("scenes/"))) == 3
    assert len(list(open_store(f"s3://{bucket}").keys())) == 4


def test_a_killed_upload_leaves_what_was_there(bucket, tmp_path, monkeypatch):
    from moto.s3.models import S3Backend

    store = open_store(f"s3://{bucket}/out")
    store.put("old.tif", b"earlier")
    (tmp_path / "a.tif").write_bytes(bytes(3 * CHUNK))
    began, go_on = threading.Event(), threading.Event()
    original = S3Backend.upload_part

    def upload_part(*arguments, **named):
        part = original(*arguments, **named)
        began.set()
        go_on.wait(20)
        return part

    monkeypatch.setattr(S3Backend, "upload_part", upload_part)
    script = (
        "import sys; from pathlib import Path; from ccsegformer.archives.store import open_store\n"
        "open_store(sys.argv[1]).put_file(sys.argv[2], Path(sys.argv[3]))"
    )
    for key, before in [("old.tif", b"earlier"), ("new.tif", None)]:
        began.clear()
        go_on.clear()
        process = subprocess.Popen([sys.executable, "-c", script, store.address, key, tmp_path / "a.tif"])
        assert began.wait(20)
        process.kill()
        process.wait()
        go_on.set()
        assert store.get(key) == before
    assert list(store.keys()) == ["old.tif"]


def test_a_copy_that_fails_leaves_what_was_there(tmp_path):
    store = open_store(tmp_path / "out")
    store.put("a.tif", b"earlier")
    with pytest.raises(OutputError, match=r"a\.tif: cannot be written: No such file"):
        store.put_file("a.tif", tmp_path / "missing.tif")
    assert store.get("a.tif") == b"earlier" and list((tmp_path / "out").iterdir()) == [tmp_path / "out/a.tif"]


@pytest.mark.parametrize(
    "address",
    [
        *("s3://", "s3:///out", "s3:/bucket/out", "ftp://host/out", "https://host/out", "memory:///out"),
        "az://b",
    ],
)
def test_other_addresses_are_refused_in_one_line(address, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(OutputError, match=address) as caught:
        open_store(address)
    assert "\n" not in str(caught.value)


def test_a_store_that_refuses_is_a_one_line_error(bucket):
    store = open_store("s3://elsewhere/out")
    for attempt in (lambda: store.put("a", b""), lambda: list(store.keys())):
        with pytest.raises(OutputError, match=r"s3://elsewhere/out/\S*: cannot be .*404 Not Found") as caught:
            attempt()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_folder_that_refuses_is_a_one_line_error(tmp_path):
    store = open_store(tmp_path)
    store.put("scenes/a", b"1")
    with pytest.raises(OutputError, match="scenes: cannot be deleted: "):
        store.delete("scenes")
    with pytest.raises(OutputError, match="scenes/a/b: cannot be written: "):
        store.put("scenes/a/b", b"")
    with pytest.raises(OutputError, match="scenes/a/b: cannot be written: "):
        store.append("scenes/a/b", b"")
