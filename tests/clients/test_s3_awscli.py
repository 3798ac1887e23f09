"""The AWS CLI's own commands for trees: what people and scripts do with `aws s3` all day."""

import json
import re

import pytest

from driver import Refused
from link import fetch
from trees import files, grow, grow_many
from with_awscli import AwsCli

DONE = re.compile(r"^(upload|download|copy|move|delete): ", re.MULTILINE)


def done(text):
    """How many files a command named, by what it did with them."""
    said = DONE.findall(text)
    return {verb: said.count(verb) for verb in set(said)}


@pytest.mark.parametrize("version, count", [(1, 10_000), (2, 500)])
def test_a_large_tree_is_kept_in_step_both_ways(version, count, cloud, bucket, tmp_path):
    aws = AwsCli(cloud, version)
    tree, copy = grow_many(tmp_path / "tree", count), tmp_path / "copy"
    there = f"s3://{bucket}/tree"

    assert done(aws("s3", "sync", "--no-progress", tree, there)) == {"upload": count}
    assert aws("s3", "sync", "--no-progress", tree, there) == ""

    (tree / "000/file-00000.txt").write_text("changed, and of another length")
    (tree / "001/file-00001.txt").unlink()
    (tree / "new.txt").write_text("new")
    assert done(aws("s3", "sync", "--no-progress", "--delete", tree, there)) == {"upload": 2, "delete": 1}

    assert done(aws("s3", "sync", "--no-progress", there, copy)) == {"download": count}
    assert files(copy) == files(tree)
    (copy / "stray").write_text("not in the bucket")
    assert done(aws("s3", "sync", "--no-progress", "--delete", there, copy)) == {"delete": 1}
    assert files(copy) == files(tree)


@pytest.mark.parametrize("version", [1, 2])
def test_files_and_folders_are_copied_moved_and_removed(version, cloud, bucket, tmp_path):
    aws = AwsCli(cloud, version)
    tree, back = grow(tmp_path / "tree"), tmp_path / "back"
    there, moved = f"s3://{bucket}/tree", f"s3://{bucket}/moved"

    # Up in parts, across in copied parts, down in ranges.
    assert done(aws("s3", "cp", "--no-progress", "--recursive", tree, there)) == {"upload": 5}
    assert done(aws("s3", "cp", "--no-progress", "--recursive", there, f"s3://{bucket}/copy")) == {"copy": 5}
    assert done(aws("s3", "mv", "--no-progress", "--recursive", f"s3://{bucket}/copy", moved)) == {"move": 5}
    assert aws("s3", "ls", "--recursive", moved).count("moved/") == 5
    assert done(aws("s3", "mv", "--no-progress", "--recursive", moved, back)) == {"move": 5}
    assert files(back) == files(tree)
    assert aws("s3", "ls", f"s3://{bucket}").split() == ["PRE", "tree/"]

    chosen = aws("s3", "rm", "--recursive", "--exclude", "*", "--include", "b/*.txt", there)
    assert done(chosen) == {"delete": 2}
    summary = aws("s3", "ls", "--recursive", "--summarize", there)
    assert re.search(r"Total Objects: 3\n +Total Size: 17895802\n", summary), summary

    (tmp_path / "note").write_text("as it is told")
    aws(
        "s3", "cp", "--only-show-errors", tmp_path / "note", f"{there}/note", "--content-type", "text/x-note",
        "--cache-control", "no-cache", "--metadata", "of=a note", "--acl", "public-read", "--storage-class", "STANDARD_IA",
        "--sse", "AES256",
    )  # fmt: skip
    head = json.loads(aws("s3api", "head-object", "--bucket", bucket, "--key", "tree/note", "--output", "json"))
    wanted = {
        "ContentType": "text/x-note", "CacheControl": "no-cache", "Metadata": {"of": "a note"}, "StorageClass": "STANDARD_IA",
        "ServerSideEncryption": "AES256",
    }  # fmt: skip
    assert {name: head.get(name) for name in wanted} == wanted
    assert fetch(f"{cloud.environment()['S3_URL']}/{bucket}/tree/note", cloud) == b"as it is told"
    assert aws("s3", "cp", "--quiet", f"{there}/note", "-") == "as it is told"
    with pytest.raises(Refused) as refused:
        aws("s3api", "get-object", "--bucket", bucket, "--key", "tree/nothing", tmp_path / "nothing")
    assert refused.value.code == "NoSuchKey"

    # Takes everything along that is still in it.
    made = f"{bucket}-made"
    aws("s3", "mb", f"s3://{made}")
    aws("s3", "cp", "--only-show-errors", tmp_path / "note", f"s3://{made}/note")
    aws("s3", "rb", "--force", f"s3://{made}")
    with pytest.raises(Refused) as refused:
        aws("s3api", "head-bucket", "--bucket", made)
    assert refused.value.code == "404"
