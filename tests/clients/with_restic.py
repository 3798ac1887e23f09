"""restic of Debian: what it does all day is small objects, ranges of large ones, lists and deletes; its chunks are signed."""

import json

from mallee_cloud import PLAIN_PATH, run


class Restic:
    def __init__(self, cloud, scheme, bucket, folder):
        user = cloud.environment()
        url = user["AWS_ENDPOINT_URL_S3"].replace("http:", f"{scheme}:")
        self.options = ["--repo", f"s3:{url}/{bucket}/backups", "--cache-dir", folder / "cache"]
        if scheme == "https":
            self.options += ["--cacert", cloud.ca]
        self.environment = {
            "PATH": PLAIN_PATH,
            "HOME": str(folder),
            "RESTIC_PASSWORD": "a password",
            "AWS_ACCESS_KEY_ID": user["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": user["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": user["AWS_DEFAULT_REGION"],
        }

    def __call__(self, *words, check=True, **options):
        return run(["restic", *self.options, *words], check=check, env=self.environment, **options)

    def backup(self, folder):
        """The summary of a backup of `folder`, by relative names."""
        lines = self("backup", "--json", ".", cwd=folder).stdout.splitlines()
        return next(said for said in map(json.loads, lines) if said["message_type"] == "summary")

    def snapshots(self):
        return [snapshot["short_id"] for snapshot in json.loads(self("snapshots", "--json").stdout)]
