"""Flow logs with packets: what a guest is sent and sends, and what is refused of it, is in the bucket with the right addresses,
ports and verdicts; a node-controller that is killed says what it missed, and a bucket that is gone is told."""

import contextlib
import gzip
import secrets

import pytest

from guest import answers
from waiting import until

NOWHERE = "192.0.2.9"


class Log:
    def __init__(self, cloud, ec2, s3, interface):
        self.ec2, self.s3, self.bucket = ec2, s3, f"flow-{secrets.token_hex(4)}"
        s3.create_bucket(Bucket=self.bucket)
        made = ec2.create_flow_logs(
            ResourceType="NetworkInterface", ResourceIds=[interface], TrafficType="ALL", LogDestinationType="s3",
            LogDestination=f"arn:aws:s3:::{self.bucket}/some/folder/", MaxAggregationInterval=60,
        )  # fmt: skip
        assert not made["Unsuccessful"], made
        (self.id,) = made["FlowLogIds"]
        self.interface, self.read = interface, {}

    def records(self):
        """Every line that was ever delivered, as a dictionary."""
        for one in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            if one["Key"] not in self.read:
                lines = gzip.decompress(self.s3.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read()).decode().splitlines()
                names = lines[0].split()
                self.read[one["Key"]] = [dict(zip(names, line.split(), strict=True)) for line in lines[1:]]
        return [record for lines in self.read.values() for record in lines]

    def of(self, **wanted):
        return [one for one in self.records() if all(one[name] == str(value) for name, value in wanted.items())]

    def described(self):
        return self.ec2.describe_flow_logs(FlowLogIds=[self.id])["FlowLogs"][0]

    def empty(self):
        def gone():
            for one in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", []):
                self.s3.delete_object(Bucket=self.bucket, Key=one["Key"])
            try:
                self.s3.delete_bucket(Bucket=self.bucket)
            except self.s3.exceptions.ClientError as error:
                if error.response["Error"]["Code"] != "BucketNotEmpty":
                    raise
                return False
            return True

        # The node brings more meanwhile.
        until("its bucket is gone", gone)

    def end(self):
        with contextlib.suppress(self.ec2.exceptions.ClientError):
            self.ec2.delete_flow_logs(FlowLogIds=[self.id])
        with contextlib.suppress(self.s3.exceptions.ClientError):
            self.empty()


@pytest.fixture
def denied(ec2, guest):
    """The subnet's network ACL lets nothing out to one network where nobody is."""
    subnet = guest.described()["SubnetId"]
    (acl,) = ec2.describe_network_acls(Filters=[{"Name": "association.subnet-id", "Values": [subnet]}])["NetworkAcls"]
    entry = {"NetworkAclId": acl["NetworkAclId"], "RuleNumber": 7, "Egress": True}
    ec2.create_network_acl_entry(**entry, Protocol="-1", RuleAction="deny", CidrBlock="192.0.2.0/24")
    yield
    ec2.delete_network_acl_entry(**entry)


@pytest.fixture
def log(cloud, ec2, s3, guest):
    (interface,) = guest.described()["NetworkInterfaces"]
    log = Log(cloud, ec2, s3, interface["NetworkInterfaceId"])
    yield log
    log.end()


def test_what_passes_and_what_is_refused_is_in_the_bucket_as_it_was(cloud, guest, denied, log):
    private = guest.described()["PrivateIpAddress"]
    until("its first object is there", log.records, patience=60)

    def seen():
        """Asks until everything was written down: a rule may take a moment to be everywhere."""
        assert answers(guest.address, 22)
        assert not answers(guest.address, 8099, patience=0.3)
        guest.run(f"ping -c 1 -W 1 {NOWHERE}", check=False)
        accepted = log.of(srcaddr=cloud.address, dstaddr=private, dstport=22, protocol=6, action="ACCEPT")
        answered = log.of(srcaddr=private, dstaddr=cloud.address, srcport=22, protocol=6, action="ACCEPT")
        refused = log.of(srcaddr=cloud.address, dstaddr=private, dstport=8099, protocol=6, action="REJECT")
        kept_in = log.of(srcaddr=private, dstaddr=NOWHERE, dstport=0, protocol=1, action="REJECT")
        return accepted and answered and refused and kept_in and (refused, kept_in)

    refused, kept_in = until("all four kinds of packets are written down", seen, patience=60, every=1)
    # SYNs with their options, and echoes with their headers.
    assert all(40 <= int(one["bytes"]) / int(one["packets"]) <= 80 for one in refused), refused
    assert all(int(one["bytes"]) == 84 * int(one["packets"]) for one in kept_in), kept_in
    assert not log.of(dstport=8099, action="ACCEPT") and not log.of(dstport=22, action="REJECT")
    for one in log.records():
        assert (one["version"], one["interface-id"]) == ("2", log.interface) and int(one["start"]) <= int(one["end"]), one
    account = log.records()[0]["account-id"]
    prefix = f"some/folder/AWSLogs/{account}/vpcflowlogs/{cloud.name}/"
    assert all(key.startswith(prefix) and f"_{log.id}_" in key and key.endswith(".log.gz") for key in log.read), list(log.read)
    assert log.described()["DeliverLogsStatus"] == "SUCCESS"

    before = len(log.of(**{"log-status": "SKIPDATA"}))
    cloud.kill("node-controller")
    until("what was missed is said", lambda: len(log.of(**{"log-status": "SKIPDATA"})) > before, patience=60)

    log.empty()
    until("the log says that its bucket is gone", lambda: log.described()["DeliverLogsStatus"] == "FAILED", patience=60)
    assert log.described()["DeliverLogsErrorMessage"] == "Access error"
