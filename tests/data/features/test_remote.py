"""Features in a bucket: what is read is what was written, damage is named, and nothing else is asked of it."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from llava.data import handover
from llava.data.collator import DataCollatorForSupervisedDataset, fetched, vision_of
from llava.data.features import remote, store
from llava.data.features.content import ContentHashes
from llava.data.features.remote import S3Path, UnreachableStorage, is_remote, open_folder
from llava.data.features.store import TOLERANCES, DamagedFeatures, FeatureCache
from llava.data.handover import HandingOver
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


ORDER = (2, 0, 1, 2)


class Samples(Dataset):
    """A sample for each of `ORDER`, with the features of that clip."""

    def __init__(self, cache, files):
        self.cache, self.files = cache, files

    def __len__(self):
        return len(ORDER)

    def __getitem__(self, index):
        features = [self.cache.stored(self.files[ORDER[index]], None)]
        ids = torch.arange(5)
        return {"input_ids": ids, "labels": ids.clone(), "sample_id": str(index), "video_features": features}


class Requests:
    """Of rows: how many were in the air at once, each waiting until `together` were, and how many rows lay decoded."""

    def __init__(self, monkeypatch, together):
        self.now = self.most = self.rows = self.most_rows = 0
        self.lock, self.met = threading.Lock(), threading.Barrier(together, timeout=60)
        read, decode = S3Path.read_range, store.decode

        def counted(*args):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            try:
                self.met.wait()
                return read(*args)
            finally:
                with self.lock:
                    self.now -= 1

        def decoded(*args):
            found = decode(*args)
            with self.lock:
                self.rows += 1
                self.most_rows = max(self.most_rows, self.rows)
            weakref.finalize(found, self.gone)
            return found

        monkeypatch.setattr(S3Path, "read_range", counted)
        monkeypatch.setattr(store, "decode", decoded)

    def gone(self):
        with self.lock:
            self.rows -= 1


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rows_of_a_batch_are_asked_for_together(root, files, features, dtype, tmp_path, monkeypatch):
    fill(root, files, features, dtype)
    local = FeatureCache(tmp_path / "local", {"dtype": dtype})
    local.write([(local.key(path, None), path) for path in files], features)
    expected = torch.stack([local.read(files[i], None) for i in ORDER])
    cache = FeatureCache(root, {"dtype": dtype})
    monkeypatch.setattr(remote, "AT_ONCE", 2)
    requests = Requests(monkeypatch, together=2)
    samples = [*Samples(cache, files)]
    assert requests.most == 0, "a sample names its row"
    with torch.inference_mode():
        found = vision_of(samples)
    assert found["video_features"].equal(expected) and found.keys() == {"video_features"}
    assert requests.most == 2 and requests.most_rows <= 2 and requests.rows == 0
    assert not [t for t in threading.enumerate() if "PoolExecutor" in t.name], "none is left when a process is forked"
    kept = fetched(samples)
    requests.most = 0
    assert vision_of(kept)["video_features"].equal(expected) and requests.most == 0


def test_a_data_worker_hands_over_the_rows_of_a_bucket(root, files, features, monkeypatch):
    monkeypatch.setattr(handover, "BY_VALUE", 0)
    cache = fill(root, files, features)
    expected = DataCollatorForSupervisedDataset(0)([*Samples(cache, files)])
    (found,) = DataLoader(
        Samples(cache, files),
        len(ORDER),
        num_workers=1,
        collate_fn=HandingOver(DataCollatorForSupervisedDataset(0), False),
    )
    assert found["sample_ids"] == expected["sample_ids"] and found["video_features"].is_shared()
    assert found["video_features"].equal(expected["video_features"])


def test_the_threads_of_a_batch_share_one_client(client, root, files, features, monkeypatch):
    import boto3

    cache = fill(root, files, features)
    made, session = [], boto3.session.Session
    monkeypatch.setattr(boto3.session, "Session", lambda: made.append(1) or session())
    remote._client.cache_clear()
    vision_of([*Samples(cache, files)])
    assert len(made) == 1


def test_the_first_damaged_row_of_a_batch_is_named_and_no_more_are_asked_for(
    client, root, files, features, monkeypatch
):
    cache = fill(root, files, features)
    edit(client, cache, lambda data: data.replace(features[0].tobytes(), features[2].tobytes()))
    asked, read = [], S3Path.read_range
    monkeypatch.setattr(S3Path, "read_range", lambda *args: asked.append(args[1]) or read(*args))
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    with pytest.raises(DamagedFeatures, match=r"clip0\.mp4: its features in .*row 0, are damaged \(checksum"):
        vision_of([*Samples(cache, files)] * 8)
    assert len(asked) < 8 * len(ORDER), "those that wait are given up"
    with pytest.raises(ValueError, match=r"clip1\.mp4: features of \(9, 8\) beside \(2, 9, 8\)"):
        row = cache.stored(files[1], None)
        vision_of([{"video_features": [cache.stored(files[2], None), row._replace(shape=(9, 8))]}])
