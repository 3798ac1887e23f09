"""The EBS direct APIs with boto3 and the AWS CLI, as backup programs use them: snapshots written, listed, compared and copied in
blocks, without a volume and without a guest."""

import base64
import hashlib
import json
import secrets

import pytest
from botocore.exceptions import ClientError

from with_awscli import AwsCli
from with_boto3 import client, refused

BLOCK = 512 << 10


def checksum(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def linear(blocks):
    """Of all blocks, in their order."""
    return checksum(b"".join(hashlib.sha256(blocks[number]).digest() for number in sorted(blocks)))


@pytest.fixture(scope="module", params=["http", "https"])
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def ebs(cloud, scheme):
    return client(cloud, "ebs", scheme)


@pytest.fixture
def made(ec2):
    """Ids of snapshots that go when the test is over."""
    ids = []
    yield ids
    for snapshot in ids:
        try:
            ec2.delete_snapshot(SnapshotId=snapshot)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "InvalidSnapshot.NotFound", error


def put(ebs, snapshot, number, data):
    return ebs.put_snapshot_block(
        SnapshotId=snapshot, BlockIndex=number, BlockData=data, DataLength=BLOCK, Checksum=checksum(data), ChecksumAlgorithm="SHA256", Progress=50
    )


def write(ebs, ec2, made, blocks, **parameters):
    """A complete snapshot with these blocks."""
    snapshot = ebs.start_snapshot(VolumeSize=1, **parameters)["SnapshotId"]
    made.append(snapshot)
    for number, data in blocks.items():
        assert put(ebs, snapshot, number, data)["Checksum"] == checksum(data)
    done = ebs.complete_snapshot(
        SnapshotId=snapshot, ChangedBlocksCount=len(blocks), Checksum=linear(blocks), ChecksumAlgorithm="SHA256", ChecksumAggregationMethod="LINEAR"
    )
    assert done["Status"] in ("pending", "completed")
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return snapshot


def read(ebs, snapshot):
    """Every block of a snapshot."""
    blocks = {}
    for page in pages(ebs.list_snapshot_blocks, SnapshotId=snapshot):
        assert page["BlockSize"] == BLOCK and page["VolumeSize"] == 1
        for block in page["Blocks"]:
            got = ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"])
            data = got["BlockData"].read()
            assert (got["DataLength"], got["Checksum"], got["ChecksumAlgorithm"]) == (BLOCK, checksum(data), "SHA256")
            blocks[block["BlockIndex"]] = data
    return blocks


def pages(call, **parameters):
    """Botocore has no paginators of this service."""
    while True:
        page = call(MaxResults=100, **parameters)
        yield page
        if not page.get("NextToken"):
            return
        parameters["NextToken"] = page["NextToken"]


def test_a_copy_block_by_block_is_the_same_and_what_changed_is_what_was_written(ebs, ec2, made):
    blocks = {number: secrets.token_bytes(BLOCK) for number in (0, 7, 2047)}
    tags = [{"Key": "made-by", "Value": "ebs"}]
    first = write(ebs, ec2, made, blocks, Description="written", Tags=tags)
    (told,) = ec2.describe_snapshots(SnapshotIds=[first])["Snapshots"]
    assert (told["VolumeSize"], told["Description"], told["Tags"], told["Progress"]) == (1, "written", tags, "100%")
    assert read(ebs, first) == blocks
    assert read(ebs, write(ebs, ec2, made, read(ebs, first))) == blocks

    changes = {7: secrets.token_bytes(BLOCK), 9: secrets.token_bytes(BLOCK), 0: bytes(BLOCK)}
    second = write(ebs, ec2, made, changes, ParentSnapshotId=first)
    expected = {**blocks, **changes}
    del expected[0]
    assert read(ebs, second) == expected
    found = {}
    for page in pages(ebs.list_changed_blocks, FirstSnapshotId=first, SecondSnapshotId=second):
        for block in page["ChangedBlocks"]:
            of = {"SnapshotId": second, "BlockIndex": block["BlockIndex"], "BlockToken": block["SecondBlockToken"]}
            found[block["BlockIndex"]] = ebs.get_snapshot_block(**of)["BlockData"].read()
            assert ("FirstBlockToken" in block) == (block["BlockIndex"] in blocks)
    assert found == changes
    volume = ec2.create_volume(AvailabilityZone=ec2.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"], SnapshotId=second)
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume["VolumeId"]], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    ec2.delete_volume(VolumeId=volume["VolumeId"])


def test_more_blocks_than_a_page_are_listed_once_each_and_in_order(ebs, ec2, made):
    snapshot = write(ebs, ec2, made, {number: bytes([1]) * BLOCK for number in range(0, 230, 2)})
    listed = [page["Blocks"] for page in pages(ebs.list_snapshot_blocks, SnapshotId=snapshot)]
    assert [len(page) for page in listed] == [100, 15]
    assert [block["BlockIndex"] for page in listed for block in page] == list(range(0, 230, 2))
    (late,) = list(pages(ebs.list_snapshot_blocks, SnapshotId=snapshot, StartingBlockIndex=227))
    assert [block["BlockIndex"] for block in late["Blocks"]] == [228]


def test_refusals_have_the_code_and_the_reason_that_clients_branch_on(ebs, ec2, made):
    snapshot = write(ebs, ec2, made, {3: bytes([3]) * BLOCK}, ClientToken=(token := secrets.token_hex(8)))
    assert refused("ConflictException", ebs.start_snapshot, VolumeSize=2, ClientToken=token)["ResponseMetadata"]["HTTPStatusCode"] == 409
    (block,) = ebs.list_snapshot_blocks(SnapshotId=snapshot)["Blocks"]
    of = {"SnapshotId": snapshot, "BlockToken": block["BlockToken"]}
    for code, reason, call, parameters in [
        ("ValidationException", "INVALID_BLOCK_TOKEN", ebs.get_snapshot_block, {**of, "BlockIndex": 4}),
        ("ValidationException", "INVALID_SNAPSHOT_ID", ebs.complete_snapshot, {"SnapshotId": snapshot, "ChangedBlocksCount": 9}),
        ("ResourceNotFoundException", "SNAPSHOT_NOT_FOUND", ebs.list_snapshot_blocks, {"SnapshotId": "snap-0123456789abcdef0"}),
        ("ValidationException", "INVALID_VOLUME_SIZE", ebs.start_snapshot, {"VolumeSize": 65536}),
        ("ValidationException", "INVALID_PARAMETER_VALUE", ebs.list_changed_blocks, {"SecondSnapshotId": snapshot}),
    ]:
        answer = refused(code, call, **parameters)
        assert (answer["Reason"], bool(answer["Error"]["Message"])) == (reason, True)


@pytest.mark.parametrize("version", [1, 2])
def test_the_aws_cli_writes_a_snapshot_and_reads_it(version, cloud, ec2, made, tmp_path):
    aws = AwsCli(cloud, version)
    sent, got, data = tmp_path / "sent", tmp_path / "got", secrets.token_bytes(BLOCK)
    sent.write_bytes(data)
    snapshot = json.loads(aws("ebs", "start-snapshot", "--volume-size", 1, "--timeout", 10, "--output", "json"))["SnapshotId"]
    made.append(snapshot)
    of_block = ["--snapshot-id", snapshot, "--block-index", 5]
    of_data = ["--data-length", BLOCK, "--checksum", checksum(data), "--checksum-algorithm", "SHA256"]
    aws("ebs", "put-snapshot-block", *of_block, *of_data, "--block-data", sent)
    aws("ebs", "complete-snapshot", "--snapshot-id", snapshot, "--changed-blocks-count", 1)
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    (block,) = json.loads(aws("ebs", "list-snapshot-blocks", "--snapshot-id", snapshot, "--output", "json"))["Blocks"]
    assert block["BlockIndex"] == 5
    aws("ebs", "get-snapshot-block", *of_block, "--block-token", block["BlockToken"], got)
    assert got.read_bytes() == data
