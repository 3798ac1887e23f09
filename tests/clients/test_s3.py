"""A bucket's life with every client, and trees kept in step by s3cmd and rclone."""

import os
import secrets
import urllib.error

import pytest

from driver import Refused
from link import fetch
from trees import digest, files, grow
from with_awscli import AwsS3
from with_boto2 import Boto2S3
from with_boto3 import Boto3S3
from with_rclone import Rclone, RcloneV2
from with_s3cmd import S3cmd, S3cmdV2

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
    return grow(tmp_path / "tree")


@pytest.mark.parametrize("tool", [S3cmd, S3cmdV2, Rclone, RcloneV2])
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
