"""Features in a bucket: what is read is what was written, damage is named, and nothing else is asked of it."""

from __future__ import annotations

import logging
import multiprocessing
import sys

import numpy as np
import pytest

from llava.data.features import remote
from llava.data.features.content import ContentHashes
from llava.data.features.remote import S3Path, UnreachableStorage, is_remote, open_folder
from llava.data.features.store import TOLERANCES, DamagedFeatures, FeatureCache
from llava.errors import NotInstalled, UserError
from tests.bucket import served_bucket

CLIPS = 3


@pytest.fixture(scope="module")
def client():
    with served_bucket("features") as made:
        yield made


@pytest.fixture
def root(client, request):
    """A folder of the test's own."""
    return f"s3://features/{request.node.name.translate(str.maketrans('[] ', '---'))}/cache"


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"clip{i}.mp4" for i in range(CLIPS)]
    for path in paths:
        path.write_text(path.name)
    return [str(path) for path in paths]


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(CLIPS, 2, 9, 8)).astype(np.float16)


def fill(root, files, features, dtype="float16") -> FeatureCache:
    cache = FeatureCache(root, {"dtype": dtype}, shards=True)
    cache.write([(cache.key(path, None), path) for path in files], features)
    return cache


def edit(client, cache: FeatureCache, change) -> str:
    """Replaces the shard by what `change` makes of its bytes; its address."""
    (tar,) = cache.folder.glob("*.tar")
    data = tar.read_bytes()
    client.put_object(Bucket=tar.bucket, Key=tar.key, Body=change(data))
    return str(tar)


def test_names_of_folders(tmp_path):
    folder = open_folder("s3://bucket/a/b/")
    assert is_remote(folder) and not is_remote(tmp_path) and open_folder(str(tmp_path)) == tmp_path
    assert str(folder) == "s3://bucket/a/b" and str(folder / "c.json") == "s3://bucket/a/b/c.json"
    assert folder.parent == S3Path("bucket", "a") and folder.parent.parent == S3Path("bucket", "")
    assert (folder / "c.json").with_suffix(".tar").name == "c.tar" and (folder / "c.json").stem == "c"
    with pytest.raises(UserError, match="expected s3://BUCKET/FOLDER"):
        open_folder("s3://")


def test_without_boto3_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3.exceptions", None)
    with pytest.raises(NotInstalled, match=r'pip install -e "\.\[shards\]"'):
        FeatureCache("s3://bucket/cache", {})


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_what_is_read_is_what_was_written(root, files, features, dtype, tmp_path):
    fill(root, files, features, dtype)
    local = FeatureCache(tmp_path / "local", {"dtype": dtype})
    local.write([(local.key(path, None), path) for path in files], features)
    found = FeatureCache(root, {"dtype": dtype})
    assert len(found) == CLIPS and found.fingerprint == local.fingerprint
    for path in reversed(files):
        assert found.read(path, None).equal(local.read(path, None))


def read_in_a_worker(cache, path, pipe) -> None:
    pipe.send(cache.read(path, None).numpy())


def test_a_forked_worker_reads_what_its_parent_opened(root, files, features):
    cache = fill(root, files, features)
    cache.read(files[0], None)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=read_in_a_worker, args=(cache, files[1], theirs))
    worker.start()
    try:
        assert ours.poll(60) and np.array_equal(ours.recv(), features[1])
    finally:
        worker.kill()
        worker.join()


def test_a_row_is_one_request_for_its_bytes(root, files, features, monkeypatch):
    fill(root, files, features)
    cache = FeatureCache(root, {"dtype": "float16"})
    asked, read, ask = [], S3Path.read_range, remote._asked
    monkeypatch.setattr(S3Path, "read_range", lambda *args: asked.append(args[2]) or read(*args))
    monkeypatch.setattr(remote, "_asked", lambda path, request: asked.append(path.name) or ask(path, request))
    cache.read(files[0], None)
    assert asked[0] == features[0].nbytes and len(asked) == 2


def test_damage_is_named_with_shard_and_clip(client, root, files, features):
    cache = fill(root, files, features)

    def flip(data: bytes) -> bytes:
        place = data.index(features[1].tobytes()) + 5
        return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]

    tar = edit(client, cache, flip)
    reader = FeatureCache(root, {"dtype": "float16"})
    assert reader.read(files[0], None).numpy().tobytes() == features[0].tobytes()
    with pytest.raises(DamagedFeatures, match=rf"clip1\.mp4: its features in {tar}, row 1, .*checksum.*-shards {root}"):
        reader.read(files[1], None)
    writer = FeatureCache(root, {"dtype": "float16"}, repair=True, shards=True)
    assert writer.remove_damaged([writer.key(path, None) for path in files]) == 1
    assert not FeatureCache(root, {"dtype": "float16"}).has(files[1], None)


@pytest.mark.parametrize("where", ["in the row", "before it"])
def test_a_shard_that_is_cut_is_found_before_a_run_and_in_it(client, root, files, features, where, caplog):
    cache = fill(root, files, features)
    reader = FeatureCache(root, {"dtype": "float16"})
    row = features[2].tobytes()
    tar = edit(client, cache, lambda data: data[: data.index(row) + 9] if where == "in the row" else data[:99])
    with pytest.raises(DamagedFeatures, match=rf"clip2\.mp4: its features in {tar}, row 2, are damaged \(.*it ends"):
        reader.read(files[2], None)
    with caplog.at_level(logging.WARNING):
        assert len(FeatureCache(root, {"dtype": "float16"})) == 0
    assert "damaged, ignored" in caplog.text and tar.rpartition("/")[2] in caplog.text


def test_a_clip_that_the_shards_lack_is_named_with_the_command(root, files, features, tmp_path):
    fill(root, files, features)
    cache = FeatureCache(root, {"dtype": "float16"})
    new = tmp_path / "new.mp4"
    new.write_text("new")
    with pytest.raises(LookupError, match=rf"new\.mp4: not in .*python -m llava\.data\.extract --shards {root} "):
        cache.read(str(new), None)
    cache.check_has([])
    with pytest.raises(LookupError, match=r"lacks the features of 1 clips \(.*new\.mp4\), and a bucket is only read"):
        cache.check_has([(str(new), None, False)])
    with pytest.raises(UserError, match="is only read here"):
        FeatureCache(root, {}, repair=True)


def test_a_bucket_that_refuses_is_not_taken_for_an_empty_one(client):
    with pytest.raises(UnreachableStorage, match=r"s3://nobodys/.*NoSuchBucket.*AWS_ENDPOINT_URL"):
        FeatureCache("s3://nobodys/cache", {})


def test_contents_are_kept_beside_them(root, files):
    hashes, errors = ContentHashes(open_folder(root) / "contents").resolve(files)
    assert len(hashes) == CLIPS and not errors
    again = ContentHashes(open_folder(root) / "contents")
    assert {*again._known.values()} == {*hashes.values()}


def test_a_folder_in_a_bucket_can_be_written_before_the_work(root):
    cache = FeatureCache(root, {}, shards=True)
    cache.check_writable()
    assert not [*cache.folder.glob("*")], "what was tried is removed"
