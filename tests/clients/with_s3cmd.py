"""s3cmd of Debian, signing with version 4 as it comes, or with version 2 as it is told to for old servers."""

from mallee_cloud import PLAIN_PATH, run


class S3cmd:
    signs = ()

    def __init__(self, cloud, folder):
        user = cloud.environment()
        host = user["AWS_ENDPOINT_URL_S3"].removeprefix("http://")
        self.config = folder / "s3cfg"
        self.config.write_text(
            f"[default]\naccess_key = {user['AWS_ACCESS_KEY_ID']}\nsecret_key = {user['AWS_SECRET_ACCESS_KEY']}\n"
            f"host_base = {host}\nhost_bucket = {host}\nuse_https = False\nbucket_location = {user['AWS_DEFAULT_REGION']}\n"
            "max_retries = 1\n"
        )

    def __call__(self, *words, check=True):
        command = ["s3cmd", "-c", self.config, "--no-progress", *self.signs, *words]
        return run(command, check=check, env={"PATH": PLAIN_PATH, "LC_ALL": "C.UTF-8"})

    def up(self, tree, bucket):
        return self("sync", "--multipart-chunk-size-mb=8", "--delete-removed", f"{tree}/", f"s3://{bucket}/t/").stdout

    def down(self, bucket, tree):
        tree.mkdir(exist_ok=True)
        return self("sync", "--delete-removed", f"s3://{bucket}/t/", f"{tree}/").stdout


class S3cmdV2(S3cmd):
    signs = ("--signature-v2",)
