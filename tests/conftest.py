"""The cloud of the tests, its image, and what a test may start in it. Everything is made once and found again, so that a
second run begins at once; a test cleans up what it started."""

import contextlib
import os
import secrets
import shutil

import pytest

from guest import Guest, write_key
from many import Many
from mallee_cloud import ROOT, Cloud, programs
from waiting import until

MINI = ROOT / "target/mini"


def pytest_collection_modifyitems(items):
    """The test that takes the cloud down has the last word."""
    items.sort(key=lambda item: "test_down" in item.nodeid)


def under_test():
    """`MALLEE_TEST_NUMBER` (0 to 9) lets checkouts on one machine be tested at the same time."""
    at = int(os.environ.get("MALLEE_TEST_NUMBER", "0"))
    suffix = f"test{at or ''}"
    return Cloud(f"/var/tmp/mallee-{suffix}", name=f"{suffix}-1", subnet=f"172.29.{80 + at}", port=28773 + 100 * at, suffix=suffix)


@pytest.fixture(scope="session")
def cloud():
    cloud = under_test()
    with cloud.lock("up"):
        cloud.up()
    return cloud


def ended():
    """Ends the cloud of the tests, unless MALLEE_TEST_KEEP says otherwise."""
    cloud = under_test()
    if cloud.exists() and not os.environ.get("MALLEE_TEST_KEEP"):
        cloud.down(everything=True)


def pytest_sessionfinish(session):
    """The cloud ends with the last of the processes that used it."""
    if not hasattr(session.config, "workerinput"):
        ended()


@pytest.fixture(scope="session")
def many():
    """Two zones of two machines."""
    many = several()
    try:
        many.up()
        yield many
    finally:
        if not os.environ.get("MALLEE_TEST_KEEP"):
            many.down()


def several():
    return Many(int(os.environ.get("MALLEE_TEST_NUMBER", "0")), programs())


@pytest.fixture(scope="session")
def ec2(cloud):
    return cloud.client("ec2")


@pytest.fixture(scope="session")
def s3(cloud):
    return cloud.client("s3")


@pytest.fixture(scope="session")
def image(cloud, ec2):
    """The mini guest: built, bundled, uploaded and registered by `mallee`."""
    with cloud.lock("image"):
        return mini(cloud, ec2)


def is_current(disk):
    """Whether the mini guest was built of the recipe as it is."""
    recipe = [file for file in (ROOT / "tools/images/mini").rglob("*") if file.is_file()]
    return disk.exists() and disk.stat().st_mtime >= max(file.stat().st_mtime for file in recipe)


def mini(cloud, ec2):
    found = [one for one in ec2.describe_images(Owners=["self"])["Images"] if one["Name"] == "mini"]
    if found:
        (found,) = found
        wanted = found["ImageId"]
    else:
        if not is_current(MINI / "mini-disk.raw"):
            cloud.mallee("image", "build", "mini", "--out", MINI, timeout=900)
        bundle = cloud.state / "mini-bundle"
        cloud.mallee("image", "bundle", MINI / "mini-disk.raw", "--out", bundle)
        cloud.mallee("image", "upload", bundle / "mini-disk.raw.manifest.xml", "images")
        cloud.mallee("image", "register", "images/mini-disk.raw.manifest.xml", "--name", "mini")
        shutil.rmtree(bundle)
        (found,) = ec2.describe_images(Filters=[{"Name": "name", "Values": ["mini"]}])["Images"]
        wanted = found["ImageId"]

    def available():
        (state,) = ec2.describe_images(ImageIds=[wanted])["Images"]
        assert state["State"] != "failed", state.get("StateReason")
        return state["State"] == "available"

    until(f"{wanted} is available", available)
    return wanted


@pytest.fixture(scope="session")
def other(cloud):
    """Another account's EC2."""
    with cloud.lock("account"):
        if "stranger" not in cloud.mallee("account", "list").stdout:
            cloud.mallee("account", "create", "stranger")
    return cloud.client("ec2", account="stranger")


@pytest.fixture(scope="session")
def key(ec2, tmp_path_factory):
    """A key pair of this session: its name and the file of its private half."""
    name = f"tests-{secrets.token_hex(4)}"
    pem = ec2.create_key_pair(KeyName=name)["KeyMaterial"]
    yield name, write_key(tmp_path_factory.mktemp("key") / "id", pem)
    with contextlib.suppress(Exception):
        ec2.delete_key_pair(KeyName=name)


class Launched(Guest):
    """A guest that a test started, with what belongs to it."""

    def __init__(self, ec2, id, group, allocation, address, key):
        super().__init__(address, key)
        self.ec2, self.id, self.group, self.allocation = ec2, id, group, allocation

    def described(self):
        (reservation,) = self.ec2.describe_instances(InstanceIds=[self.id])["Reservations"]
        return reservation["Instances"][0]

    def is_in(self, state, patience=60.0):
        until(f"{self.id} is {state}", lambda: self.described()["State"]["Name"] == state, patience=patience)
        return self

    def terminate(self):
        self.ec2.terminate_instances(InstanceIds=[self.id])
        return self.is_in("terminated")


class Launcher:
    """Starts guests at an elastic IP of their own, in a group of their own that opens only port 22."""

    def __init__(self, cloud, ec2, image, key):
        self.cloud, self.ec2, self.image, self.key = cloud, ec2, image, key
        self.left = []

    def __call__(self, user_data="", image=None, kind="mini.nano", **parameters):
        name = f"tests-{secrets.token_hex(4)}"
        group = self.ec2.create_security_group(GroupName=name, Description="of a test")["GroupId"]
        self.left.append(lambda: self.ec2.delete_security_group(GroupId=group))
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh])
        if user_data:
            parameters["UserData"] = user_data
        (started,) = self.ec2.run_instances(
            ImageId=image or self.image, InstanceType=kind, KeyName=self.key[0], SecurityGroupIds=[group], MinCount=1, MaxCount=1,
            **parameters,
        )["Instances"]  # fmt: skip
        address = self.ec2.allocate_address(Domain="vpc")
        self.left.append(lambda: self.ec2.release_address(AllocationId=address["AllocationId"]))
        guest = Launched(self.ec2, started["InstanceId"], group, address["AllocationId"], address["PublicIp"], self.key[1])
        self.left.append(lambda: guest.described()["State"]["Name"] == "terminated" or guest.terminate())
        self.ec2.associate_address(InstanceId=guest.id, AllocationId=guest.allocation)
        return guest

    def end(self):
        """What a test has undone itself is gone already."""
        while self.left:
            with contextlib.suppress(self.ec2.exceptions.ClientError):
                self.left.pop()()


@pytest.fixture
def launch(cloud, ec2, image, key):
    launcher = Launcher(cloud, ec2, image, key)
    yield launcher
    launcher.end()


@pytest.fixture(scope="module")
def guest(cloud, ec2, image, key):
    """A guest for the tests of one file; none of them changes what the next one counts on."""
    launcher = Launcher(cloud, ec2, image, key)
    guest = launcher()
    guest.wait()
    yield guest
    launcher.end()


def cleared(s3, bucket):
    """Takes away a bucket and all that is in it, but what is locked in compliance."""
    for upload in s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        objects = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]
        if objects:
            gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}, BypassGovernanceRetention=True)
            assert not gone.get("Errors"), gone["Errors"][:3]
    s3.delete_bucket(Bucket=bucket)


@pytest.fixture
def bucket(s3):
    """A bucket for one test, emptied and deleted after it."""
    name = f"tests-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    yield name
    cleared(s3, name)
