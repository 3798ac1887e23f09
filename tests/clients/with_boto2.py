"""boto 2.49, the last of its line: signs EC2 Query and S3 with version 2, by HTTP and HTTPS."""

import contextlib
import math
import urllib.parse

import boto
import boto.ec2.connection
import boto.ec2.regioninfo
import boto.exception
import boto.s3.connection

from driver import S3, Ec2, Instance, Refused, Volume

PART = 8 << 20


@contextlib.contextmanager
def refusals():
    try:
        yield
    except (boto.exception.EC2ResponseError, boto.exception.S3ResponseError, boto.exception.S3CreateError) as error:
        raise Refused(error.error_code, error.error_message) from error


def connection(cloud, scheme, variable):
    """Its check of a host's name knows no addresses, so HTTPS goes to the name that the certificate has, too."""
    user = cloud.environment()
    if not boto.config.has_section("Boto"):
        boto.config.add_section("Boto")
    boto.config.set("Boto", "ca_certificates_file", cloud.ca)
    boto.config.set("Boto", "num_retries", "0")
    return {
        "aws_access_key_id": user["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": user["AWS_SECRET_ACCESS_KEY"],
        "port": urllib.parse.urlsplit(user[variable]).port,
        "is_secure": scheme == "https",
        "validate_certs": True,
    }, ("localhost" if scheme == "https" else "127.0.0.1")


class SignsEc2WithVersion2(boto.ec2.connection.EC2Connection):
    """As every boto before 2.49 did, and as programs on boto still choose by this very method."""

    def _required_auth_capability(self):
        return ["ec2"]


class Boto2Ec2(Ec2):
    def __init__(self, cloud, scheme, connection_class=SignsEc2WithVersion2):
        settings, host = connection(cloud, scheme, "AWS_ENDPOINT_URL")
        region = boto.ec2.regioninfo.RegionInfo(name=cloud.name, endpoint=host)
        self.ec2 = connection_class(region=region, path="/", **settings)

    def call(self, method, *arguments, **named):
        with refusals():
            return getattr(self.ec2, method)(*arguments, **named)

    def create_key_pair(self, name):
        return self.call("create_key_pair", name).material

    def delete_key_pair(self, name):
        self.call("delete_key_pair", name)

    def create_group(self, name, description):
        return self.call("create_security_group", name, description).id

    def open_port(self, group, port, cidr):
        self.call("authorize_security_group", group_id=group, ip_protocol="tcp", from_port=port, to_port=port, cidr_ip=cidr)

    def close_port(self, group, port, cidr):
        self.call("revoke_security_group", group_id=group, ip_protocol="tcp", from_port=port, to_port=port, cidr_ip=cidr)

    def delete_group(self, group):
        self.call("delete_security_group", group_id=group)

    def run(self, image, type, key, group, user_data):
        answer = self.call(
            "run_instances", image, instance_type=type, key_name=key, security_group_ids=[group], user_data=user_data.encode()
        )
        (started,) = answer.instances
        assert started.state == "pending" and answer.id.startswith("r-")
        return started.id

    def instances(self, filters):
        found = self.call("get_only_instances", filters=filters)
        return [
            Instance(
                id=one.id,
                state=one.state,
                image=one.image_id,
                type=one.instance_type,
                key=one.key_name,
                private_ip=one.private_ip_address or "",
                public_ip=one.ip_address or "",
                zone=one.placement,
                tags=dict(one.tags),
                groups={group.id for group in one.groups},
                volumes={device: disk.volume_id for device, disk in one.block_device_mapping.items() if disk.volume_id},
            )
            for one in found
        ]

    def console(self, instance):
        return (self.call("get_console_output", instance).output or b"").decode(errors="replace")

    def tag(self, resource, key, value):
        self.call("create_tags", [resource], {key: value})

    def stop(self, instance):
        self.call("stop_instances", [instance])

    def start(self, instance):
        self.call("start_instances", [instance])

    def reboot(self, instance):
        self.call("reboot_instances", [instance])

    def terminate(self, instance):
        self.call("terminate_instances", [instance])

    def allocate_address(self):
        address = self.call("allocate_address", domain="vpc")
        return address.allocation_id, address.public_ip

    def associate_address(self, instance, allocation):
        return self.call("associate_address_object", instance_id=instance, allocation_id=allocation).association_id

    def disassociate_address(self, association):
        self.call("disassociate_address", association_id=association)

    def release_address(self, allocation):
        self.call("release_address", allocation_id=allocation)

    def create_volume(self, gib, zone):
        return self.call("create_volume", gib, zone).id

    def volume(self, volume):
        (found,) = self.call("get_all_volumes", [volume])
        attached = {found.attach_data.instance_id: found.attach_data.status} if found.attach_data.instance_id else {}
        return Volume(volume, found.status, attached)

    def attach_volume(self, volume, instance, device):
        self.call("attach_volume", volume, instance, device)

    def detach_volume(self, volume):
        self.call("detach_volume", volume)

    def delete_volume(self, volume):
        self.call("delete_volume", volume)


class Boto2S3(S3):
    def __init__(self, cloud, scheme, path="/"):
        settings, host = connection(cloud, scheme, "AWS_ENDPOINT_URL_S3")
        by_path = boto.s3.connection.OrdinaryCallingFormat()
        self.s3 = boto.s3.connection.S3Connection(host=host, path=path, calling_format=by_path, **settings)

    def create_bucket(self, bucket):
        with refusals():
            self.s3.create_bucket(bucket)

    def delete_bucket(self, bucket):
        with refusals():
            self.s3.delete_bucket(bucket)

    def buckets(self):
        return [bucket.name for bucket in self.s3.get_all_buckets()]

    def bucket(self, bucket):
        return self.s3.get_bucket(bucket, validate=False)

    def upload(self, bucket, key, path):
        parts = self.bucket(bucket).initiate_multipart_upload(key)
        with open(path, "rb") as file:
            for number in range(math.ceil(path.stat().st_size / PART)):
                parts.upload_part_from_file(file, number + 1, size=PART if number < path.stat().st_size // PART else None)
        parts.complete_upload()

    def download(self, bucket, key, path):
        self.bucket(bucket).get_key(key).get_contents_to_filename(str(path))

    def put(self, bucket, key, data):
        with refusals():
            self.bucket(bucket).new_key(key).set_contents_from_string(data)

    def part_of(self, bucket, key, first, last):
        with refusals():
            found = self.bucket(bucket).new_key(key)
            return found.get_contents_as_string(headers={"Range": f"bytes={first}-{last}"})

    def keys(self, bucket, prefix):
        with refusals():
            return [key.name for key in self.bucket(bucket).list(prefix=prefix)]

    def delete(self, bucket, key):
        self.bucket(bucket).delete_key(key)

    def presigned_get(self, bucket, key):
        return self.s3.generate_url(300, "GET", bucket, key)

    def presigned_put(self, bucket, key):
        return self.s3.generate_url(300, "PUT", bucket, key)
