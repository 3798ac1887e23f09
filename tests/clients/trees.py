"""Trees of files to be kept in step with a bucket, and whether two of them are the same."""

import hashlib
import os
import time


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(tree):
    return {str(path.relative_to(tree)): digest(path) for path in tree.rglob("*") if path.is_file()}


def grow(tree):
    """Files in folders, with names that have to be escaped, an empty one and one that is uploaded in parts."""
    for name, size in {"a": 10, "b/c d.txt": 5_000, "b/ü&+%.txt": 0, "b/e/deep": 70_000, "large": 17 << 20}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(os.urandom(size))
    return tree


def grow_many(tree, count, folders=100):
    """Small files, no two alike.

    They are an hour old: S3 tells when an object came in whole seconds, so a file that is written in the second of its upload
    looks newer than its object, and is sent again.
    """
    long_ago = time.time() - 3600
    for number in range(count):
        path = tree / f"{number % folders:03}" / f"file-{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file number {number}\n" * (number % 7))
        os.utime(path, (long_ago, long_ago))
    return tree
