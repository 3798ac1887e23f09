"""Backups with restic: what it kept can be read back to the last byte, and what it forgot is gone."""

import os
import shutil

import pytest

from trees import files, grow, grow_many
from with_restic import Restic


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_backups_are_kept_checked_restored_and_forgotten(scheme, cloud, bucket, tmp_path):
    tree = grow(grow_many(tmp_path / "tree", 200, folders=7))
    restic = Restic(cloud, scheme, bucket, tmp_path)
    restic("init")
    refused = restic("init", check=False)
    assert refused.returncode != 0 and "already" in refused.stderr

    first = restic.backup(tree)
    before = files(tree)
    assert (first["files_new"], first["files_unmodified"]) == (205, 0)
    (tree / "a").write_bytes(b"changed")
    (tree / "b/c d.txt").unlink()
    (tree / "new").write_bytes(os.urandom(100_000))
    second = restic.backup(tree)
    assert (second["files_new"], second["files_changed"], second["files_unmodified"]) == (1, 1, 203)
    assert second["data_added"] < first["data_added"] / 10
    assert "no errors were found" in restic("check", "--read-data").stdout

    old, new = restic.snapshots()
    for snapshot, wanted in [(old, before), (new, files(tree))]:
        back = tmp_path / snapshot
        restic("restore", snapshot, "--target", back)
        assert files(back) == wanted
        shutil.rmtree(back)

    shutil.rmtree(tmp_path / "cache")
    restic("forget", "--keep-last", "1", "--prune")
    assert restic.snapshots() == [new]
    assert "no errors were found" in restic("check", "--read-data").stdout
    restic("restore", "latest", "--target", tmp_path / "back")
    assert files(tmp_path / "back") == files(tree)
