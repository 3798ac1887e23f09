"""boto3 from PyPI, by HTTP and HTTPS."""

import contextlib

import boto3
import botocore.config
import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from driver import S3, Ec2, Instance, Refused, Volume


@contextlib.contextmanager
def refusals():
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise Refused(error.response["Error"]["Code"], error.response["Error"].get("Message", "")) from error


def refused(code, call, **parameters):
    """That `call` is refused with `code`; the refusal's answer is returned."""
    try:
        call(**parameters)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return error.response
    raise AssertionError(f"not refused with {code}")


def client(cloud, service, scheme, **settings):
    user = cloud.environment()
    url = user["AWS_ENDPOINT_URL_S3" if service == "s3" else "AWS_ENDPOINT_URL"].replace("http:", f"{scheme}:")
    return boto3.client(
        service,
        endpoint_url=url,
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        region_name=user["AWS_DEFAULT_REGION"],
        verify=cloud.ca if scheme == "https" else None,
        # As it is out of the box, but for names of buckets in the path: their DNS names need a domain.
        config=botocore.config.Config(s3={"addressing_style": "path"} if service == "s3" else None, **settings),
    )


class Boto3Ec2(Ec2):
    def __init__(self, cloud, scheme):
        self.ec2 = client(cloud, "ec2", scheme)

    def call(self, operation, **parameters):
        with refusals():
            return getattr(self.ec2, operation)(**parameters)

    def create_key_pair(self, name):
        return self.call("create_key_pair", KeyName=name)["KeyMaterial"]

    def delete_key_pair(self, name):
        self.call("delete_key_pair", KeyName=name)

    def create_group(self, name, description):
        return self.call("create_security_group", GroupName=name, Description=description)["GroupId"]

    def open_port(self, group, port, cidr):
        self.call("authorize_security_group_ingress", GroupId=group, IpPermissions=[permission(port, cidr)])

    def close_port(self, group, port, cidr):
        self.call("revoke_security_group_ingress", GroupId=group, IpPermissions=[permission(port, cidr)])

    def delete_group(self, group):
        self.call("delete_security_group", GroupId=group)

    def run(self, image, type, key, group, user_data):
        answer = self.call(
            "run_instances", ImageId=image, InstanceType=type, KeyName=key, SecurityGroupIds=[group],
            UserData=user_data, MinCount=1, MaxCount=1,
        )  # fmt: skip
        (instance,) = answer["Instances"]
        assert instance["State"]["Name"] == "pending" and answer["ReservationId"].startswith("r-")
        return instance["InstanceId"]

    def instances(self, filters):
        asked = [{"Name": name, "Values": values} for name, values in filters.items()]
        found = self.call("describe_instances", Filters=asked)["Reservations"]
        return [instance(one) for reservation in found for one in reservation["Instances"]]

    def console(self, instance):
        return self.call("get_console_output", InstanceId=instance)["Output"]

    def tag(self, resource, key, value):
        self.call("create_tags", Resources=[resource], Tags=[{"Key": key, "Value": value}])

    def stop(self, instance):
        self.call("stop_instances", InstanceIds=[instance])

    def start(self, instance):
        self.call("start_instances", InstanceIds=[instance])

    def reboot(self, instance):
        self.call("reboot_instances", InstanceIds=[instance])

    def terminate(self, instance):
        self.call("terminate_instances", InstanceIds=[instance])

    def allocate_address(self):
        answer = self.call("allocate_address", Domain="vpc")
        return answer["AllocationId"], answer["PublicIp"]

    def associate_address(self, instance, allocation):
        return self.call("associate_address", InstanceId=instance, AllocationId=allocation)["AssociationId"]

    def disassociate_address(self, association):
        self.call("disassociate_address", AssociationId=association)

    def release_address(self, allocation):
        self.call("release_address", AllocationId=allocation)

    def create_volume(self, gib, zone):
        return self.call("create_volume", Size=gib, AvailabilityZone=zone)["VolumeId"]

    def volume(self, volume):
        (found,) = self.call("describe_volumes", VolumeIds=[volume])["Volumes"]
        return Volume(volume, found["State"], {a["InstanceId"]: a["State"] for a in found["Attachments"]})

    def attach_volume(self, volume, instance, device):
        self.call("attach_volume", VolumeId=volume, InstanceId=instance, Device=device)

    def detach_volume(self, volume):
        self.call("detach_volume", VolumeId=volume)

    def delete_volume(self, volume):
        self.call("delete_volume", VolumeId=volume)


def permission(port, cidr):
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": cidr}]}


def instance(found):
    """Of an instance as boto3 and the AWS CLI show it."""
    return Instance(
        id=found["InstanceId"],
        state=found["State"]["Name"],
        image=found["ImageId"],
        type=found["InstanceType"],
        key=found.get("KeyName", ""),
        private_ip=found.get("PrivateIpAddress", ""),
        public_ip=found.get("PublicIpAddress", ""),
        zone=found["Placement"]["AvailabilityZone"],
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
        groups={group["GroupId"] for group in found["SecurityGroups"]},
        volumes={disk["DeviceName"]: disk["Ebs"]["VolumeId"] for disk in found["BlockDeviceMappings"] if "Ebs" in disk},
    )


class Boto3S3(S3):
    def __init__(self, cloud, scheme):
        self.s3 = client(cloud, "s3", scheme)

    def create_bucket(self, bucket):
        with refusals():
            self.s3.create_bucket(Bucket=bucket)

    def delete_bucket(self, bucket):
        with refusals():
            self.s3.delete_bucket(Bucket=bucket)

    def buckets(self):
        return [bucket["Name"] for bucket in self.s3.list_buckets()["Buckets"]]

    def upload(self, bucket, key, path):
        self.s3.upload_file(str(path), bucket, key, Config=TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20))

    def download(self, bucket, key, path):
        self.s3.download_file(bucket, key, str(path))

    def put(self, bucket, key, data):
        with refusals():
            self.s3.put_object(Bucket=bucket, Key=key, Body=data)

    def part_of(self, bucket, key, first, last):
        with refusals():
            return self.s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read()

    def keys(self, bucket, prefix):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": 2})
        with refusals():
            return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def delete(self, bucket, key):
        self.s3.delete_object(Bucket=bucket, Key=key)

    def presigned_get(self, bucket, key):
        return self.s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=300)

    def presigned_put(self, bucket, key):
        return self.s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=300)
