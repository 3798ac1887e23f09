"""The addresses a bucket has: in the path, under Eucalyptus' prefix, in the host's name, and as a website.

Names of hosts need a domain, which the tests do not have: clients that are told of a proxy leave the names to it, and it is
walrus. It is one of its own, which stands alone, with suffixes for such names."""

import os
import secrets
import socket
import subprocess
import urllib.error

import boto3
import pytest
from botocore.config import Config

from conftest import under_test
from link import fetch
from mallee_cloud import PLAIN_PATH, ROOT, programs, run
from trees import files, grow
from waiting import until
from with_boto2 import Boto2S3

KEY = ("AKIAALONE", "a walrus needs no cloud")


class Alone:
    """A walrus without a cloud."""

    def __init__(self, folder):
        # Beside the cloud's, where no connection of somebody else's can begin; one for each process of pytest.
        self.port = under_test().port + 50 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self.address = f"http://127.0.0.1:{self.port}"
        config = folder / "walrus.toml"
        config.write_text(
            f"name = 'walrus'\nstate = '{folder / 'state'}'\nlisten = ['127.0.0.1:{self.port}']\nregion = 'alone-1'\n"
            "host_suffixes = ['s3.test']\nwebsite_suffixes = ['web.test']\n"
            f"[[identities]]\naccess_key = '{KEY[0]}'\nsecret = '{KEY[1]}'\naccount = '000000000001'\n"
        )
        self.process = subprocess.Popen([programs() / "walrus", "--config", config], env={"RUST_LOG": "warn"})
        until("walrus listens", self.listens, every=0.05)

    def listens(self):
        assert self.process.poll() is None, "walrus ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def environment(self):
        return {"AWS_ACCESS_KEY_ID": KEY[0], "AWS_SECRET_ACCESS_KEY": KEY[1], "AWS_REGION": "alone-1", "http_proxy": self.address}

    def boto(self, **settings):
        return boto3.client(
            "s3", endpoint_url="http://s3.test", aws_access_key_id=KEY[0], aws_secret_access_key=KEY[1], region_name="alone-1",
            config=Config(s3={"addressing_style": "virtual"}, proxies={"http": self.address}, **settings),
        )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    alone = Alone(tmp_path_factory.mktemp("alone"))
    yield alone
    alone.process.kill()
    alone.process.wait()


@pytest.fixture
def named(alone):
    """A bucket, and its host."""
    name = f"named-{secrets.token_hex(6)}"
    alone.boto().create_bucket(Bucket=name)
    return name, f"{name}.s3.test"


def test_a_cloud_serves_the_names_that_its_operator_chose(cloud, bucket):
    """In `etc/walrus.own.toml`, before `mallee up`."""
    user = cloud.environment()
    s3 = boto3.client(
        "s3", endpoint_url="http://s3.test", aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"], region_name=user["AWS_REGION"],
        config=Config(s3={"addressing_style": "virtual"}, proxies={"http": user["S3_URL"]}),
    )  # fmt: skip
    s3.put_object(Bucket=bucket, Key="k", Body=b"hello")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello"
    assert bucket in [found["Name"] for found in s3.list_buckets()["Buckets"]]


@pytest.mark.parametrize("signature", ["s3v4", "s3"])
def test_boto3_finds_buckets_by_the_names_of_hosts(signature, alone, named):
    s3, (bucket, host) = alone.boto(signature_version=signature), named
    hosts = set()
    s3.meta.events.register("before-send.s3", lambda request, **_: hosts.add(request.url.split("/")[2]))
    s3.put_object(Bucket=bucket, Key="a b/ü", Body=b"hello")
    assert s3.get_object(Bucket=bucket, Key="a b/ü")["Body"].read() == b"hello"
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["a b/ü"]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a b/ü"}]})
    assert s3.list_object_versions(Bucket=bucket)["DeleteMarkers"]
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "sent"})
    assert url.startswith(f"http://{host}/sent?")
    fetch(url.replace(f"http://{host}", alone.address), None, method="PUT", data=b"by link", headers={"Host": host})
    assert s3.get_object(Bucket=bucket, Key="sent")["Body"].read() == b"by link"
    assert hosts == {host}


def test_the_aws_cli_finds_buckets_by_the_names_of_hosts(alone, named, tmp_path):
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    environment = {"PATH": PLAIN_PATH, "HOME": str(tmp_path), "AWS_ENDPOINT_URL_S3": "http://s3.test", **alone.environment()}
    tree = grow(tmp_path / "tree")
    run([ROOT / "target/venv-awscli1/bin/aws", "s3", "sync", tree, f"s3://{named[0]}/t"], env=environment)
    run([ROOT / "target/venv-awscli1/bin/aws", "s3", "sync", f"s3://{named[0]}/t", tmp_path / "back"], env=environment)
    assert files(tmp_path / "back") == files(tree)


def test_rclone_finds_buckets_by_the_names_of_hosts(alone, named, tmp_path):
    (tmp_path / "rclone.conf").write_text(
        f"[m]\ntype = s3\nprovider = Other\naccess_key_id = {KEY[0]}\nsecret_access_key = {KEY[1]}\n"
        "endpoint = http://s3.test\nregion = alone-1\nforce_path_style = false\n"
    )
    environment = {"PATH": PLAIN_PATH, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "http_proxy": alone.address}
    tree = grow(tmp_path / "tree")
    for command in [["sync", tree, f"m:{named[0]}/t"], ["check", "--download", tree, f"m:{named[0]}/t"]]:
        run(["rclone", "--config", tmp_path / "rclone.conf", *command], env=environment)


def test_a_website_is_read_without_signatures(alone, named):
    s3, (bucket, _) = alone.boto(), named
    site = {"Host": f"{bucket}.web.test"}
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    pages = {"index.html": b"home", "docs/index.html": b"docs", "error.html": b"not here", "hidden.html": b"hidden"}
    for key, text in pages.items():
        access = "private" if key == "hidden.html" else "public-read"
        s3.put_object(Bucket=bucket, Key=key, Body=text, ContentType="text/html", ACL=access)
    with pytest.raises(urllib.error.HTTPError) as none:
        fetch(f"{alone.address}/", None, headers=site)
    assert none.value.code == 404 and b"NoSuchWebsiteConfiguration" in none.value.read()
    website = {
        "IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"},
        "RoutingRules": [{"Condition": {"KeyPrefixEquals": "old/"}, "Redirect": {"ReplaceKeyPrefixWith": "docs/"}}],
    }  # fmt: skip
    s3.put_bucket_website(Bucket=bucket, WebsiteConfiguration=website)
    assert fetch(f"{alone.address}/", None, headers=site) == b"home"
    assert fetch(f"{alone.address}/docs/", None, headers=site) == b"docs"
    for path, code in {"/none": 404, "/hidden.html": 403}.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetch(f"{alone.address}{path}", None, headers=site)
        assert refused.value.code == code and refused.value.read() == b"not here"


def test_eucalyptus_prefix_is_another_way_to_the_same_buckets(cloud, bucket, s3):
    user = cloud.environment()
    prefixed = boto3.client(
        "s3", endpoint_url=f"{user['S3_URL']}/services/objectstorage", aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"], region_name=user["AWS_REGION"],
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip
    prefixed.put_object(Bucket=bucket, Key="by boto 3", Body=b"hello")
    assert s3.get_object(Bucket=bucket, Key="by boto 3")["Body"].read() == b"hello"
    assert bucket in [found["Name"] for found in prefixed.list_buckets()["Buckets"]]
    assert fetch(prefixed.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "by boto 3"}), cloud) == b"hello"

    # As programs on boto 2 were told of a Eucalyptus.
    boto2 = Boto2S3(cloud, "http", path="/services/Walrus")
    boto2.put(bucket, "by boto 2", b"hello")
    assert boto2.keys(bucket, "by") == ["by boto 2", "by boto 3"]
    assert fetch(boto2.presigned_get(bucket, "by boto 2"), cloud) == b"hello"
