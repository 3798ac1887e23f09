"""rclone of Debian, signing with version 4, or with version 2 (`v2_auth`)."""

from mallee_cloud import PLAIN_PATH, run


class Rclone:
    signs = ""

    def __init__(self, cloud, folder):
        user = cloud.environment()
        self.config = folder / "rclone.conf"
        self.config.write_text(
            f"[m]\ntype = s3\nprovider = Other\naccess_key_id = {user['AWS_ACCESS_KEY_ID']}\n"
            f"secret_access_key = {user['AWS_SECRET_ACCESS_KEY']}\nendpoint = {user['AWS_ENDPOINT_URL_S3']}\n"
            f"region = {user['AWS_DEFAULT_REGION']}\nforce_path_style = true\nupload_cutoff = 8M\nchunk_size = 8M\n{self.signs}"
        )

    def __call__(self, *words, check=True):
        command = ["rclone", "--config", self.config, "--retries", "1", "--low-level-retries", "1", *words]
        return run(command, check=check, env={"PATH": PLAIN_PATH, "LC_ALL": "C.UTF-8", "HOME": str(self.config.parent)})

    def up(self, tree, bucket):
        return self("sync", "-v", tree, f"m:{bucket}/t").stderr

    def down(self, bucket, tree):
        return self("sync", "-v", f"m:{bucket}/t", tree).stderr


class RcloneV2(Rclone):
    signs = "v2_auth = true\n"
