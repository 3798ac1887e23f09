"""rclone's commands, with either version of signatures."""

import hashlib
import json
import time

import pytest

from link import fetch
from trees import files, grow
from with_rclone import Rclone, RcloneV2


@pytest.mark.parametrize("tool", [Rclone, RcloneV2])
def test_its_commands_do_what_they_say(tool, cloud, bucket, tmp_path):
    rclone = tool(cloud, tmp_path)
    tree, there = grow(tmp_path / "tree"), f"m:{bucket}/t"
    rclone("copy", tree, there)
    # By their ETags, and by every byte.
    rclone("check", tree, there)
    rclone("check", "--download", tree, there)
    assert "Copied" not in rclone("sync", "-v", tree, there).stderr
    size = json.loads(rclone("size", "--json", there).stdout)
    assert size["count"] == 5 and size["bytes"] == sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    listed = {entry["Path"]: entry for entry in json.loads(rclone("lsjson", "-R", "-M", there).stdout)}
    assert set(files(tree)) == {path for path, entry in listed.items() if not entry["IsDir"]}

    # A time that is kept is a copy onto itself, in parts for what came in parts.
    rclone("touch", "--timestamp", "2020-02-02T02:02:02", f"{there}/large")
    rclone("touch", "--timestamp", "2020-02-02T02:02:02", f"{there}/a")
    times = [entry["ModTime"] for entry in json.loads(rclone("lsjson", there).stdout) if not entry["IsDir"]]
    assert all(known.startswith("2020-02-02T02:02:02") for known in times)
    rclone("moveto", f"{there}/large", f"{there}/b/moved")
    # What went up in parts has it in its metadata, which goes with it.
    digest = hashlib.md5((tree / "large").read_bytes()).hexdigest()
    assert rclone("md5sum", f"{there}/b/moved").stdout.split()[0] == digest

    (tree / "a").write_bytes(b"changed, all of it")
    rclone("copyto", tree / "a", f"{there}/changed")
    assert rclone("cat", "--offset", "9", "--count", "3", f"{there}/changed").stdout == "all"
    different = rclone("check", tree, there, check=False)
    assert different.returncode != 0 and "a: sizes differ" in different.stderr
    if tool is Rclone:
        assert fetch(rclone("link", f"{there}/b/e/deep").stdout.strip(), cloud) == (tree / "b/e/deep").read_bytes()

    rclone("purge", there)
    assert rclone("lsf", f"m:{bucket}").stdout == ""
    missing = rclone("cat", f"m:{bucket}-not/k", check=False)
    assert missing.returncode != 0 and "directory not found" in missing.stderr + missing.stdout


def test_old_versions_are_seen_and_cleaned_up(cloud, bucket, tmp_path):
    rclone = Rclone(cloud, tmp_path)
    cloud.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    file = tmp_path / "k.txt"
    for text in ["one", "second"]:
        file.write_text(text)
        rclone("copyto", file, f"m:{bucket}/k.txt")
        # rclone knows versions by the second they came in.
        time.sleep(1.1)
    names = {entry["Size"]: entry["Path"] for entry in json.loads(rclone("lsjson", "--s3-versions", f"m:{bucket}").stdout)}
    assert names[6] == "k.txt" and names[3].startswith("k-v")
    assert rclone("cat", "--s3-versions", f"m:{bucket}/{names[3]}").stdout == "one"
    rclone("deletefile", f"m:{bucket}/k.txt")
    assert rclone("lsf", f"m:{bucket}").stdout == ""
    assert len(json.loads(rclone("lsjson", "--s3-versions", f"m:{bucket}").stdout)) == 2
