"""AWS CLI: v1 from PyPI by AWS_ENDPOINT_URL, and Debian's v2 (2.9), which is too old for that variable and is called through
the shell function that `mallee env` defines for it, as a user would."""

import json
import pathlib
import re
import shlex
import tempfile

from driver import S3, Ec2, Refused, Volume
from mallee_cloud import PLAIN_PATH, ROOT, run
from with_boto3 import instance

REFUSAL = re.compile(r"An error occurred \(([^)]+)\) when calling the \w+ operation[^:]*: (.*)")


class AwsCli:
    def __init__(self, cloud, version):
        self.version = version
        # Goes with the driver.
        self.folder = tempfile.TemporaryDirectory(prefix="mallee-aws-")
        self.home = self.folder.name
        self.environment = {"PATH": PLAIN_PATH, "HOME": self.home, "AWS_PAGER": ""}
        if version == 1:
            self.environment |= cloud.environment()
        else:
            self.environment = after(f"{cloud.shell()}\nexport -f aws", self.environment)
        # Bucket names in the path: their DNS names need a domain.
        (pathlib.Path(self.home) / ".aws").mkdir()
        (pathlib.Path(self.home) / ".aws/config").write_text("[default]\ns3 =\n  addressing_style = path\n")

    def __call__(self, *words):
        words = [str(word) for word in words]
        if self.version == 1:
            command = [ROOT / "target/venv-awscli1/bin/aws", *words]
        else:
            command = ["bash", "-c", f"aws {shlex.join(words)}"]
        # Ten thousand files take their time.
        done = run(command, check=False, env=self.environment, timeout=1500)
        if done.returncode == 0:
            return done.stdout
        refusal = REFUSAL.search(done.stderr)
        if refusal:
            raise Refused(refusal[1], refusal[2])
        raise AssertionError(f"aws {shlex.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")


def after(script, environment):
    """What the children of a shell inherit that has run this."""
    said = run(["bash", "-c", f"{script}\nenv -0"], env=environment).stdout
    return dict(pair.split("=", 1) for pair in said.split("\0") if pair)


class AwsEc2(Ec2):
    def __init__(self, cloud, version):
        self.aws = AwsCli(cloud, version)

    def call(self, *words):
        text = self.aws("ec2", *words, "--output", "json")
        return json.loads(text) if text.strip() else {}

    def create_key_pair(self, name):
        # Text, as people write it into a file.
        return self.aws("ec2", "create-key-pair", "--key-name", name, "--query", "KeyMaterial", "--output", "text")

    def delete_key_pair(self, name):
        self.call("delete-key-pair", "--key-name", name)

    def create_group(self, name, description):
        return self.call("create-security-group", "--group-name", name, "--description", description)["GroupId"]

    def open_port(self, group, port, cidr):
        self.call("authorize-security-group-ingress", "--group-id", group, "--protocol", "tcp", "--port", port, "--cidr", cidr)

    def close_port(self, group, port, cidr):
        self.call("revoke-security-group-ingress", "--group-id", group, "--protocol", "tcp", "--port", port, "--cidr", cidr)

    def delete_group(self, group):
        self.call("delete-security-group", "--group-id", group)

    def run(self, image, type, key, group, user_data):
        file = pathlib.Path(self.aws.home) / "user-data"
        file.write_text(user_data)
        answer = self.call(
            "run-instances", "--image-id", image, "--instance-type", type, "--key-name", key,
            "--security-group-ids", group, "--user-data", f"file://{file}", "--count", "1",
        )  # fmt: skip
        (started,) = answer["Instances"]
        assert started["State"]["Name"] == "pending" and answer["ReservationId"].startswith("r-")
        return started["InstanceId"]

    def instances(self, filters):
        asked = [f"Name={name},Values={','.join(values)}" for name, values in filters.items()]
        found = self.call("describe-instances", "--filters", *asked)["Reservations"]
        return [instance(one) for reservation in found for one in reservation["Instances"]]

    def console(self, instance):
        return self.aws("ec2", "get-console-output", "--instance-id", instance, "--query", "Output", "--output", "text")

    def tag(self, resource, key, value):
        self.call("create-tags", "--resources", resource, "--tags", f"Key={key},Value={value}")

    def stop(self, instance):
        self.call("stop-instances", "--instance-ids", instance)

    def start(self, instance):
        self.call("start-instances", "--instance-ids", instance)

    def reboot(self, instance):
        self.call("reboot-instances", "--instance-ids", instance)

    def terminate(self, instance):
        self.call("terminate-instances", "--instance-ids", instance)

    def allocate_address(self):
        answer = self.call("allocate-address")
        return answer["AllocationId"], answer["PublicIp"]

    def associate_address(self, instance, allocation):
        return self.call("associate-address", "--instance-id", instance, "--allocation-id", allocation)["AssociationId"]

    def disassociate_address(self, association):
        self.call("disassociate-address", "--association-id", association)

    def release_address(self, allocation):
        self.call("release-address", "--allocation-id", allocation)

    def create_volume(self, gib, zone):
        return self.call("create-volume", "--size", gib, "--availability-zone", zone)["VolumeId"]

    def volume(self, volume):
        (found,) = self.call("describe-volumes", "--volume-ids", volume)["Volumes"]
        return Volume(volume, found["State"], {a["InstanceId"]: a["State"] for a in found["Attachments"]})

    def attach_volume(self, volume, instance, device):
        self.call("attach-volume", "--volume-id", volume, "--instance-id", instance, "--device", device)

    def detach_volume(self, volume):
        self.call("detach-volume", "--volume-id", volume)

    def delete_volume(self, volume):
        self.call("delete-volume", "--volume-id", volume)


class AwsS3(S3):
    def __init__(self, cloud, version):
        self.aws = AwsCli(cloud, version)

    def create_bucket(self, bucket):
        self.aws("s3api", "create-bucket", "--bucket", bucket)

    def delete_bucket(self, bucket):
        self.aws("s3api", "delete-bucket", "--bucket", bucket)

    def buckets(self):
        return self.aws("s3api", "list-buckets", "--query", "Buckets[].Name", "--output", "text").split()

    def upload(self, bucket, key, path):
        # In parts from 8 MiB on.
        self.aws("s3", "cp", "--only-show-errors", path, f"s3://{bucket}/{key}")

    def download(self, bucket, key, path):
        self.aws("s3", "cp", "--only-show-errors", f"s3://{bucket}/{key}", path)

    def put(self, bucket, key, data):
        file = pathlib.Path(self.aws.home) / "object"
        file.write_bytes(data)
        self.aws("s3api", "put-object", "--bucket", bucket, "--key", key, "--body", file)

    def part_of(self, bucket, key, first, last):
        file = pathlib.Path(self.aws.home) / "part"
        self.aws("s3api", "get-object", "--bucket", bucket, "--key", key, "--range", f"bytes={first}-{last}", file)
        return file.read_bytes()

    def keys(self, bucket, prefix):
        text = self.aws("s3api", "list-objects-v2", "--bucket", bucket, "--prefix", prefix, "--page-size", "2", "--output", "json")
        return [found["Key"] for found in json.loads(text or "{}").get("Contents", [])]

    def delete(self, bucket, key):
        self.aws("s3api", "delete-object", "--bucket", bucket, "--key", key)

    def presigned_get(self, bucket, key):
        return self.aws("s3", "presign", f"s3://{bucket}/{key}", "--expires-in", "300").strip()

    def presigned_put(self, bucket, key):
        return None
