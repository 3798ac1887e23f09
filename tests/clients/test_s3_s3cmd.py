"""s3cmd's commands, with either version of signatures: the tool of scripts that are older than the AWS CLI."""

import os

import pytest

from link import fetch
from trees import digest
from with_s3cmd import S3cmd, S3cmdV2


@pytest.mark.parametrize("tool", [S3cmd, S3cmdV2])
def test_its_commands_do_what_they_say(tool, cloud, bucket, tmp_path):
    s3cmd = tool(cloud, tmp_path)
    there, public = f"s3://{bucket}", f"{cloud.environment()['S3_URL']}/{bucket}"
    note, large, back = tmp_path / "a note.txt", tmp_path / "large", tmp_path / "back"
    note.write_text("as it is told")
    large.write_bytes(os.urandom((11 << 20) + 3))

    s3cmd("put", "--mime-type=text/x-note", "--add-header=x-amz-meta-of: note", note, f"{there}/notes/ü+1.txt")
    info = s3cmd("info", f"{there}/notes/ü+1.txt").stdout
    assert "MIME type: text/x-note" in info and "x-amz-meta-of: note" in info
    s3cmd("put", "--multipart-chunk-size-mb=5", large, f"{there}/large")
    s3cmd("get", f"{there}/large", back)
    assert digest(back) == digest(large)
    assert s3cmd("du", there).stdout.split()[0] == str((11 << 20) + 3 + len("as it is told"))
    listed = s3cmd("ls", f"{there}/").stdout.split()
    assert "DIR" in listed and f"{there}/notes/" in listed and f"{there}/large" in listed
    assert there in s3cmd("ls").stdout

    refused = s3cmd("get", f"{there}/nothing", tmp_path / "nothing", check=False)
    assert refused.returncode != 0 and "does not exist" in refused.stderr

    assert fetch(s3cmd("signurl", f"{there}/notes/ü+1.txt", "+300").stdout.strip(), cloud) == b"as it is told"
    with pytest.raises(OSError):
        fetch(f"{public}/large", cloud)
    s3cmd("setacl", "--acl-public", f"{there}/large")
    assert len(fetch(f"{public}/large", cloud)) == (11 << 20) + 3
    s3cmd("setacl", "--acl-private", f"{there}/large")
    with pytest.raises(OSError):
        fetch(f"{public}/large", cloud)

    s3cmd("cp", f"{there}/notes/ü+1.txt", f"{there}/copy")
    s3cmd("modify", "--mime-type=text/x-changed", f"{there}/copy")
    assert "MIME type: text/x-changed" in s3cmd("info", f"{there}/copy").stdout
    s3cmd("mv", f"{there}/copy", f"{there}/moved")
    assert s3cmd("get", f"{there}/moved", "-").stdout == "as it is told"

    policy = tmp_path / "policy"
    policy.write_text(
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", '
        f'"Resource": "arn:aws:s3:::{bucket}/moved"}}]}}'
    )
    s3cmd("setpolicy", policy, there)
    assert fetch(f"{public}/moved", cloud) == b"as it is told"
    s3cmd("delpolicy", there)
    s3cmd("expire", "--expiry-days=30", "--expiry-prefix=tmp/", there)
    assert "Expiration Rule: objects with key prefix 'tmp/' will expire in '30' day(s)" in s3cmd("info", there).stdout
    s3cmd("del", "--recursive", "--force", there)
    assert s3cmd("ls", there).stdout == ""
