"""What is wrong is refused with AWS's code, in AWS's shape, and leaves no trace."""

import datetime
import http.client
import json
import re
import urllib.parse
import uuid

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest

NOTHING = "00000000000000000"


class Raw:
    """Requests that no client would make, signed as one would sign them."""

    def __init__(self, cloud, service="ec2"):
        user = cloud.environment()
        self.service, self.region = service, user["AWS_DEFAULT_REGION"]
        self.keys = botocore.credentials.Credentials(user["AWS_ACCESS_KEY_ID"], user["AWS_SECRET_ACCESS_KEY"])
        self.url = user["AWS_ENDPOINT_URL_S3" if service == "s3" else "AWS_ENDPOINT_URL"]

    def signed(self, body, method="POST", path="/", headers=None):
        auth = (botocore.auth.S3SigV4Auth if self.service == "s3" else botocore.auth.SigV4Auth)(self.keys, self.service, self.region)
        kind = {} if self.service == "s3" else {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        request = botocore.awsrequest.AWSRequest(method, self.url + path, headers=kind | (headers or {}), data=body)
        auth.add_auth(request)
        return request.prepare()

    def send(self, request, body=None):
        """→ status, AWS's code. The answer is an XML error in the service's own form, or the test fails."""
        host = urllib.parse.urlsplit(request.url)
        connection = http.client.HTTPConnection(host.netloc, timeout=30)
        connection.request(request.method, request.url[len(f"http://{host.netloc}") :], request.body if body is None else body, dict(request.headers))
        answer = connection.getresponse()
        text = answer.read().decode()
        code = re.search(r"<Code>([^<]+)</Code>", text)
        assert code and "xml" in answer.headers["Content-Type"], (answer.status, text)
        if self.service == "ec2":
            assert re.match(r"(<\?xml[^>]*\?>\s*)?<Response><Errors><Error>", text), text
            assert re.search(r"<RequestI[Dd]>[0-9a-f-]{36}</RequestI[Dd]>", text), text
        return answer.status, code[1]

    def query(self, **parameters):
        return self.send(self.signed(urllib.parse.urlencode({"Version": "2016-11-15"} | parameters)))


@pytest.fixture(scope="module")
def raw(cloud):
    return Raw(cloud)


@pytest.fixture
def no_trace(ec2, s3):
    """What the account has is the same before and after."""

    def everything():
        return {
            "instances": [one["Instances"][0]["InstanceId"] for one in ec2.describe_instances()["Reservations"]],
            "groups": [one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"]],
            "volumes": [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]],
            "addresses": [one["AllocationId"] for one in ec2.describe_addresses()["Addresses"]],
            "interfaces": [one["NetworkInterfaceId"] for one in ec2.describe_network_interfaces()["NetworkInterfaces"]],
            "images": [one["ImageId"] for one in ec2.describe_images(Owners=["self"])["Images"]],
            "keys": [one["KeyName"] for one in ec2.describe_key_pairs()["KeyPairs"]],
            "tags": len(ec2.describe_tags()["Tags"]),
            "buckets": [one["Name"] for one in s3.list_buckets()["Buckets"]],
        }

    before = everything()
    yield
    assert everything() == before


def code_of(client, operation, **parameters):
    with pytest.raises(client.exceptions.ClientError) as refused:
        getattr(client, operation)(**parameters)
    return refused.value.response["Error"]["Code"]


def test_a_wrong_secret(cloud, no_trace):
    raw = Raw(cloud)
    raw.keys = botocore.credentials.Credentials(raw.keys.access_key, "wrong" + raw.keys.secret_key[5:])
    assert raw.query(Action="CreateVolume", Size="1", AvailabilityZone=cloud.zone) == (401, "AuthFailure")


def test_an_access_key_that_is_nobodys(cloud, no_trace):
    raw = Raw(cloud)
    raw.keys = botocore.credentials.Credentials("AKIA0000000000000000", "x")
    status, code = raw.query(Action="AllocateAddress", Domain="vpc")
    assert code in {"AuthFailure", "InvalidClientTokenId"} and status in {401, 403}


def test_a_body_that_was_changed_after_signing(cloud, raw, no_trace):
    body = urllib.parse.urlencode({"Action": "CreateVolume", "Version": "2016-11-15", "Size": 1, "AvailabilityZone": cloud.zone})
    request = raw.signed(body)
    assert raw.send(request, body.replace("Size=1", "Size=2")) == (401, "AuthFailure")


def test_an_old_date(cloud, raw, no_trace, monkeypatch):
    """A request that was recorded and is sent again after 16 minutes."""
    earlier = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) - datetime.timedelta(minutes=16)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: earlier)
    assert raw.query(Action="AllocateAddress", Domain="vpc") == (400, "RequestExpired")


def test_no_signature_at_all(raw, no_trace):
    request = raw.signed(urllib.parse.urlencode({"Action": "AllocateAddress", "Version": "2016-11-15"}))
    del request.headers["Authorization"]
    status, code = raw.send(request)
    assert status in {400, 401, 403} and code in {"MissingAuthenticationToken", "AuthFailure"}


@pytest.mark.parametrize(
    "parameters, code",
    [
        ({"Action": "MakeCoffee"}, "InvalidAction"),
        ({"Action": "CreateFleet"}, {"Unsupported", "UnsupportedOperation", "InvalidAction"}),
        ({"Action": "AllocateAddress", "Colour": "blue"}, "UnknownParameter"),
        ({"Action": "CreateVolume", "AvailabilityZone": "ZONE", "Size": "many"}, {"InvalidParameterValue", "MalformedQueryString"}),
        ({"Action": "CreateVolume", "AvailabilityZone": "nowhere-1a", "Size": "1"}, {"InvalidParameterValue", "InvalidZone.NotFound"}),
        ({"Action": "CreateVolume", "Size": "1"}, "MissingParameter"),
        ({"Action": "CreateSecurityGroup", "GroupName": "x" * 300, "GroupDescription": "x"}, "InvalidParameterValue"),
        ({"Action": "TerminateInstances", "InstanceId.1": "what"}, "InvalidInstanceID.Malformed"),
        ({"Action": "TerminateInstances", "InstanceId.1": f"i-{NOTHING}"}, "InvalidInstanceID.NotFound"),
        ({}, {"MissingAction", "MissingParameter", "InvalidAction"}),
    ],
    ids=lambda value: value.get("Action", "none") if isinstance(value, dict) else "",
)
def test_a_request_that_makes_no_sense(parameters, code, cloud, raw, no_trace):
    parameters = {name: value.replace("ZONE", cloud.zone) for name, value in parameters.items()}
    status, answered = raw.query(**parameters)
    assert 400 <= status < 500
    assert answered in ({code} if isinstance(code, str) else code)


@pytest.mark.parametrize("body", [b"%zz=%", b"\xff\xfe\x00", b"Action=" + b"A" * 100_000, b"&&&===&", b"Action=RunInstances&Action=StopInstances&Version=2016-11-15"])
def test_bytes_that_are_no_form(body, raw, no_trace):
    status, _ = raw.send(raw.signed(body))
    assert 400 <= status < 500


@pytest.mark.parametrize(
    "body",
    [
        b"<Delete><Object><Key>a</Key></Object>",
        b'<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>',
        b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&x;</Key></Object></Delete>',
        b"<Delete>" + b"<a>" * 5_000 + b"</Delete>",
        b"nothing of the kind",
    ],
    ids=["cut off", "entities", "external entity", "deep", "no XML"],
)
def test_xml_that_is_malformed(body, cloud, bucket, s3):
    import base64
    import hashlib

    s3.put_object(Bucket=bucket, Key="a", Body=b"x")
    raw = Raw(cloud, "s3")
    headers = {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}
    assert raw.send(raw.signed(body, path=f"/{bucket}?delete=", headers=headers)) == (400, "MalformedXML")
    assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"x"


def test_an_object_whose_body_was_changed_is_not_stored(cloud, bucket, s3):
    raw = Raw(cloud, "s3")
    request = raw.signed(b"what was signed", method="PUT", path=f"/{bucket}/key")
    status, code = raw.send(request, b"what was sent!!")
    assert (status, code) in {(400, "XAmzContentSHA256Mismatch"), (403, "SignatureDoesNotMatch")}
    assert code_of(s3, "get_object", Bucket=bucket, Key="key") == "NoSuchKey"


def test_ten_thousand_instances_are_too_many(image, ec2, no_trace):
    code = code_of(ec2, "run_instances", ImageId=image, InstanceType="mini.nano", MinCount=10_000, MaxCount=10_000)
    assert code in {"InstanceLimitExceeded", "InvalidParameterValue", "VcpuLimitExceeded"}


def test_a_launch_that_cannot_be_leaves_nothing(image, ec2, no_trace):
    wrong = [
        ({"ImageId": f"ami-{NOTHING}"}, {"InvalidAMIID.NotFound"}),
        ({"KeyName": "nobody's"}, {"InvalidKeyPair.NotFound"}),
        ({"SecurityGroupIds": [f"sg-{NOTHING}"]}, {"InvalidGroup.NotFound"}),
        ({"SubnetId": f"subnet-{NOTHING}"}, {"InvalidSubnetID.NotFound"}),
        ({"InstanceType": "q9.gigantic"}, {"InvalidParameterValue"}),
        ({"MinCount": 2, "MaxCount": 1}, {"InvalidParameterValue", "InvalidParameterCombination"}),
        ({"UserData": "x" * 16_385}, {"InvalidParameterValue", "InvalidUserData.Malformed"}),
        ({"DryRun": True}, {"DryRunOperation"}),
    ]
    for change, codes in wrong:
        parameters = {"ImageId": image, "InstanceType": "mini.nano", "MinCount": 1, "MaxCount": 1} | change
        assert code_of(ec2, "run_instances", **parameters) in codes, change


def test_what_is_another_accounts_is_not_there(cloud, ec2, other, image, no_trace):
    """By the same words as what is nobody's."""
    group = other.create_security_group(GroupName=f"theirs-{uuid.uuid4()}", Description="x")["GroupId"]
    address = other.allocate_address(Domain="vpc")["AllocationId"]
    volume = other.create_volume(Size=1, AvailabilityZone=cloud.zone)["VolumeId"]
    try:
        for operation, parameters, id, code in [
            ("delete_security_group", {"GroupId": group}, group, "InvalidGroup.NotFound"),
            ("release_address", {"AllocationId": address}, address, "InvalidAllocationID.NotFound"),
            ("delete_volume", {"VolumeId": volume}, volume, "InvalidVolume.NotFound"),
            ("describe_volumes", {"VolumeIds": [volume]}, volume, "InvalidVolume.NotFound"),
            ("create_tags", {"Resources": [volume], "Tags": [{"Key": "a", "Value": "b"}]}, volume, "InvalidVolume.NotFound"),
            ("run_instances", {"ImageId": image, "InstanceType": "mini.nano", "MinCount": 1, "MaxCount": 1, "SecurityGroupIds": [group]}, group, "InvalidGroup.NotFound"),
        ]:  # fmt: skip
            nobody = f"{id.split('-')[0]}-{NOTHING}"
            theirs, nobodys = refusal(ec2, operation, parameters), refusal(ec2, operation, json.loads(json.dumps(parameters).replace(id, nobody)))
            assert theirs["Code"] == nobodys["Code"] == code, operation
            assert theirs["Message"].replace(id, "ID") == nobodys["Message"].replace(nobody, "ID"), operation
    finally:
        other.delete_security_group(GroupId=group)
        other.release_address(AllocationId=address)
        other.delete_volume(VolumeId=volume)


def refusal(client, operation, parameters):
    with pytest.raises(client.exceptions.ClientError) as refused:
        getattr(client, operation)(**parameters)
    return refused.value.response["Error"]


def test_another_accounts_objects_are_not_mine(cloud, other, bucket, s3):
    s3.put_object(Bucket=bucket, Key="mine", Body=b"x")
    theirs = cloud.client("s3", account="stranger")
    assert code_of(theirs, "get_object", Bucket=bucket, Key="mine") == "AccessDenied"
    assert code_of(theirs, "put_object", Bucket=bucket, Key="theirs", Body=b"y") == "AccessDenied"
    assert code_of(theirs, "delete_object", Bucket=bucket, Key="mine") == "AccessDenied"
    assert code_of(theirs, "list_objects_v2", Bucket=bucket) == "AccessDenied"
    assert bucket not in [one["Name"] for one in theirs.list_buckets()["Buckets"]]
    assert s3.get_object(Bucket=bucket, Key="mine")["Body"].read() == b"x"
