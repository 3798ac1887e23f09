"""A bucket's life with every client, and trees kept in step by s3cmd and rclone."""

import hashlib
import os
import secrets
import urllib.error
import urllib.request

import pytest

from driver import Refused
from mallee_cloud import PLAIN_PATH, run
from with_awscli import AwsS3
from with_boto2 import Boto2S3
from with_boto3 import Boto3S3

DRIVERS = {
    "awscli1": lambda cloud: AwsS3(cloud, 1),
    "awscli2": lambda cloud: AwsS3(cloud, 2),
    "boto3-http": lambda cloud: Boto3S3(cloud, "http"),
    "boto3-https": lambda cloud: Boto3S3(cloud, "https"),
    "boto2-http": lambda cloud: Boto2S3(cloud, "http"),
    "boto2-https": lambda cloud: Boto2S3(cloud, "https"),
}
LARGE = 20 << 20


@pytest.fixture(params=DRIVERS)
def driver(request, cloud):
    return DRIVERS[request.param](cloud)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(url, cloud, method="GET", data=None):
    """Without any client of S3, as whoever was sent a link."""
    import ssl

    request = urllib.request.Request(url, data=data, method=method)
    # A client that signs a PUT's link leaves the type to whoever uses it.
    request.add_unredirected_header("Content-Type", "")
    trust = ssl.create_default_context(cafile=cloud.ca) if url.startswith("https") else None
    with urllib.request.urlopen(request, context=trust, timeout=60) as answer:
        return answer.read()


def test_a_bucket_lives_its_life(driver, cloud, tmp_path):
    bucket = f"clients-{secrets.token_hex(6)}"
    driver.create_bucket(bucket)
    assert bucket in driver.buckets()

    large = tmp_path / "large"
    large.write_bytes(os.urandom(LARGE))
    driver.upload(bucket, "deep/large é+&.bin", large)
    back = tmp_path / "back"
    driver.download(bucket, "deep/large é+&.bin", back)
    assert digest(back) == digest(large)
    head = cloud.client("s3").head_object(Bucket=bucket, Key="deep/large é+&.bin")
    assert head["ETag"].endswith('-3"'), "it went up in parts of 8 MiB"
    first, last = (8 << 20) - 5, (8 << 20) + 4
    assert driver.part_of(bucket, "deep/large é+&.bin", first, last) == large.read_bytes()[first : last + 1]

    for number in range(5):
        driver.put(bucket, f"small/{number}", f"object {number}".encode())
    driver.put(bucket, "empty", b"")
    assert driver.keys(bucket, "small/") == [f"small/{number}" for number in range(5)]
    assert driver.keys(bucket, "nothing/") == []

    assert fetch(driver.presigned_get(bucket, "small/3"), cloud) == b"object 3"
    url = driver.presigned_put(bucket, "sent")
    if url is not None:
        fetch(url, cloud, method="PUT", data=b"by link")
        assert driver.part_of(bucket, "sent", 0, 100) == b"by link"
        driver.delete(bucket, "sent")
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(driver.presigned_get(bucket, "small/3").replace("small/3", "small/4"), cloud)
    assert refused.value.code == 403

    with pytest.raises(Refused) as refused:
        driver.delete_bucket(bucket)
    assert refused.value.code == "BucketNotEmpty"
    for key in driver.keys(bucket, ""):
        driver.delete(bucket, key)
    assert driver.keys(bucket, "") == []
    driver.delete_bucket(bucket)
    assert bucket not in driver.buckets()


def test_what_is_not_there_is_refused_by_its_code(driver, bucket):
    with pytest.raises(Refused) as refused:
        driver.part_of(bucket, "nothing", 0, 1)
    assert refused.value.code == "NoSuchKey"
    with pytest.raises(Refused) as refused:
        driver.keys(f"{bucket}-not", "")
    assert refused.value.code == "NoSuchBucket"
    with pytest.raises(Refused) as refused:
        driver.create_bucket("under_score")
    assert refused.value.code == "InvalidBucketName"


@pytest.fixture
def tree(tmp_path):
    """Files in folders, with names that have to be escaped, an empty one and one that is uploaded in parts."""
    tree = tmp_path / "tree"
    for name, size in {"a": 10, "b/c d.txt": 5_000, "b/ü&+%.txt": 0, "b/e/deep": 70_000, "large": 17 << 20}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(os.urandom(size))
    return tree


def files(tree):
    return {str(path.relative_to(tree)): digest(path) for path in tree.rglob("*") if path.is_file()}


class S3cmd:
    def __init__(self, cloud, folder):
        user = cloud.environment()
        host = user["AWS_ENDPOINT_URL_S3"].removeprefix("http://")
        self.config = folder / "s3cfg"
        self.config.write_text(
            f"[default]\naccess_key = {user['AWS_ACCESS_KEY_ID']}\nsecret_key = {user['AWS_SECRET_ACCESS_KEY']}\n"
            f"host_base = {host}\nhost_bucket = {host}\nuse_https = False\nbucket_location = {user['AWS_DEFAULT_REGION']}\n"
        )

    def __call__(self, *words):
        return run(["s3cmd", "-c", self.config, "--no-progress", *words], env={"PATH": PLAIN_PATH, "LC_ALL": "C.UTF-8"})

    def up(self, tree, bucket):
        self("sync", "--multipart-chunk-size-mb=8", "--delete-removed", f"{tree}/", f"s3://{bucket}/t/")

    def down(self, bucket, tree):
        tree.mkdir(exist_ok=True)
        self("sync", "--delete-removed", f"s3://{bucket}/t/", f"{tree}/")


class S3cmdV2(S3cmd):
    def __call__(self, *words):
        return super().__call__("--signature-v2", *words)


class Rclone:
    def __init__(self, cloud, folder):
        user = cloud.environment()
        self.config = folder / "rclone.conf"
        self.config.write_text(
            f"[m]\ntype = s3\nprovider = Other\naccess_key_id = {user['AWS_ACCESS_KEY_ID']}\n"
            f"secret_access_key = {user['AWS_SECRET_ACCESS_KEY']}\nendpoint = {user['AWS_ENDPOINT_URL_S3']}\n"
            f"region = {user['AWS_DEFAULT_REGION']}\nforce_path_style = true\nupload_cutoff = 8M\nchunk_size = 8M\n"
        )

    def __call__(self, *words):
        command = ["rclone", "--config", self.config, "--retries", "1", "--low-level-retries", "1", *words]
        return run(command, env={"PATH": PLAIN_PATH, "LC_ALL": "C.UTF-8", "HOME": str(self.config.parent)})

    def up(self, tree, bucket):
        self("sync", tree, f"m:{bucket}/t")

    def down(self, bucket, tree):
        self("sync", f"m:{bucket}/t", tree)


@pytest.mark.parametrize("tool", [S3cmd, S3cmdV2, Rclone])
def test_a_tree_is_kept_in_step_both_ways(tool, cloud, bucket, tree, tmp_path):
    tool = tool(cloud, tmp_path)
    tool.up(tree, bucket)
    copy = tmp_path / "copy"
    tool.down(bucket, copy)
    assert files(copy) == files(tree)

    (tree / "a").write_bytes(b"changed, and longer than it was before")
    (tree / "b/c d.txt").unlink()
    (tree / "new").write_bytes(b"new")
    tool.up(tree, bucket)
    tool.down(bucket, copy)
    assert files(copy) == files(tree)
