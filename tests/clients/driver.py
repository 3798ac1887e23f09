"""What every client can do, in the same few words, so that the story of an instance and of a bucket is told once.

A driver is one unmodified client with one account of one cloud. Its answers are these plain records, made from the client's
own; where a client leaves a member out, so does the record."""

import dataclasses


class Refused(Exception):
    """The cloud said no; `code` is AWS's."""

    def __init__(self, code, message=""):
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclasses.dataclass
class Instance:
    id: str
    state: str
    image: str
    type: str
    key: str
    private_ip: str
    public_ip: str
    zone: str
    tags: dict
    groups: set
    #: device → volume
    volumes: dict


@dataclasses.dataclass
class Volume:
    id: str
    state: str
    #: instance → state of the attachment
    attachments: dict


class Ec2:
    """One client's EC2. Every method is one call of the client; nothing here waits or tries again."""

    def create_key_pair(self, name): ...  # → PEM
    def delete_key_pair(self, name): ...
    def create_group(self, name, description): ...  # → id
    def open_port(self, group, port, cidr): ...
    def close_port(self, group, port, cidr): ...
    def delete_group(self, group): ...
    def run(self, image, type, key, group, user_data): ...  # → id
    def instances(self, filters): ...  # name → values; → [Instance]
    def console(self, instance): ...  # → text
    def tag(self, resource, key, value): ...
    def stop(self, instance): ...
    def start(self, instance): ...
    def reboot(self, instance): ...
    def terminate(self, instance): ...
    def allocate_address(self): ...  # → allocation, address
    def associate_address(self, instance, allocation): ...  # → association
    def disassociate_address(self, association): ...
    def release_address(self, allocation): ...
    def create_volume(self, gib, zone): ...  # → id
    def volume(self, volume): ...  # → Volume
    def attach_volume(self, volume, instance, device): ...
    def detach_volume(self, volume): ...
    def delete_volume(self, volume): ...


class S3:
    """One client's S3."""

    def create_bucket(self, bucket): ...
    def delete_bucket(self, bucket): ...
    def buckets(self): ...  # → names
    def upload(self, bucket, key, path): ...  # a large file, in parts
    def download(self, bucket, key, path): ...
    def put(self, bucket, key, data): ...
    def part_of(self, bucket, key, first, last): ...  # → bytes
    def keys(self, bucket, prefix): ...  # → names
    def delete(self, bucket, key): ...
    def presigned_get(self, bucket, key): ...  # → URL
    def presigned_put(self, bucket, key): ...  # → URL, or None where the client has no such command
