"""Objects with boto3 as it comes: its default checksums, its transfers in parts, its paginators, waiters and links."""

import base64
import hashlib
import io
import os
import secrets
import urllib.error

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, WaiterError

from link import fetch, submit
from with_boto3 import client, refused

MIB = 1 << 20
IN_PARTS = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)


@pytest.fixture(scope="module", params=["http", "https"])
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def boto(cloud, scheme):
    return client(cloud, "s3", scheme)


def body(answer):
    return answer["Body"].read()


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_every_checksum_is_kept_and_told(algorithm, boto, bucket):
    member = f"Checksum{algorithm}"
    put = boto.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(b"hello"), ChecksumAlgorithm=algorithm)
    head = boto.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert put[member] == head[member] and "ContentEncoding" not in head
    # botocore computes it from what it reads, and raises where it differs.
    assert body(boto.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")) == b"hello"
    attributes = boto.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize", "ETag"])
    assert attributes["Checksum"][member] == put[member]
    assert (attributes["ObjectSize"], attributes["ETag"]) == (5, hashlib.md5(b"hello").hexdigest())

    refused("BadDigest", boto.put_object, Bucket=bucket, Key="k", Body=b"other bytes", **{member: put[member]})
    assert body(boto.get_object(Bucket=bucket, Key="k")) == b"hello"


def test_what_nobody_asked_for_has_a_checksum_too(boto, bucket):
    sent = boto.put_object(Bucket=bucket, Key="k", Body=b"hello")
    told = {name for name in boto.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED") if name.startswith("Checksum")}
    assert told == {name for name in sent if name.startswith("Checksum")} != set()


def test_a_connection_serves_on_after_an_empty_file(cloud, scheme, bucket):
    """botocore waits to be told to send even no bytes at all, and would not understand what came next."""
    one = client(cloud, "s3", scheme, max_pool_connections=1, read_timeout=10, retries={"total_max_attempts": 1})
    for size in [0, 5, 0, 7]:
        one.put_object(Bucket=bucket, Key=f"{size}", Body=io.BytesIO(b"x" * size))
    assert [found["Size"] for found in one.list_objects_v2(Bucket=bucket)["Contents"]] == [0, 5, 7]


@pytest.mark.parametrize("algorithm, kind", [(None, "COMPOSITE"), ("CRC64NVME", "FULL_OBJECT"), ("SHA256", "COMPOSITE")])
def test_a_file_goes_up_and_down_in_parts(algorithm, kind, boto, bucket):
    data = os.urandom(12 * MIB + 7)
    extra = {"ContentType": "video/x-none", "Metadata": {"of": "plain"}, "Tagging": "a=1&b=2"}
    if algorithm:
        extra["ChecksumAlgorithm"] = algorithm
    boto.upload_fileobj(io.BytesIO(data), bucket, "large", ExtraArgs=extra, Config=IN_PARTS)

    head = boto.head_object(Bucket=bucket, Key="large", ChecksumMode="ENABLED")
    digests = b"".join(hashlib.md5(data[at : at + 5 * MIB]).digest() for at in range(0, len(data), 5 * MIB))
    assert head["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (len(data), "video/x-none", {"of": "plain"})
    if algorithm:
        assert head["ChecksumType"] == kind and head[f"Checksum{algorithm}"].endswith("-3") == (kind == "COMPOSITE")
    assert boto.head_object(Bucket=bucket, Key="large", PartNumber=3)["ContentLength"] == 2 * MIB + 7
    assert body(boto.get_object(Bucket=bucket, Key="large", PartNumber=2)) == data[5 * MIB : 10 * MIB]

    back = io.BytesIO()
    boto.download_fileobj(bucket, "large", back, Config=IN_PARTS)
    assert back.getvalue() == data
    # Copied part by part, as a copy of more than 5 GiB has to be.
    boto.copy({"Bucket": bucket, "Key": "large"}, bucket, "copy", Config=IN_PARTS)
    assert boto.head_object(Bucket=bucket, Key="copy")["ETag"] == head["ETag"]
    assert hashlib.sha256(body(boto.get_object(Bucket=bucket, Key="copy"))).digest() == hashlib.sha256(data).digest()


def test_parts_are_listed_and_an_upload_is_completed_once(boto, bucket):
    upload = boto.create_multipart_upload(Bucket=bucket, Key="k", ContentType="text/x-told")["UploadId"]
    this = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    tags = {}
    for number in [7, 2, 4]:
        size = 5 * MIB if number != 7 else 1
        tags[number] = boto.upload_part(**this, PartNumber=number, Body=bytes([number]) * size)["ETag"]
    pages = boto.get_paginator("list_parts").paginate(**this, PaginationConfig={"PageSize": 1})
    assert [(part["PartNumber"], part["ETag"]) for page in pages for part in page["Parts"]] == sorted(tags.items())
    other = boto.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    pages = boto.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    assert {found["UploadId"] for page in pages for found in page["Uploads"]} == {upload, other}
    boto.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=other)
    refused("NoSuchUpload", boto.upload_part, Bucket=bucket, Key="k", UploadId=other, PartNumber=1, Body=b"x")

    def complete(*numbers, etag=None):
        parts = [{"PartNumber": number, "ETag": etag or tags.get(number, '"0"')} for number in numbers]
        return boto.complete_multipart_upload(**this, MultipartUpload={"Parts": parts})

    refused("InvalidPartOrder", lambda: complete(4, 2))
    refused("InvalidPart", lambda: complete(2, 3))
    refused("InvalidPart", lambda: complete(2, etag=tags[4]))
    tags[8] = boto.upload_part(**this, PartNumber=8, Body=b"after a small one")["ETag"]
    refused("EntityTooSmall", lambda: complete(2, 7, 8))
    done = complete(2, 4, 7)
    assert complete(2, 4, 7)["ETag"] == done["ETag"], "told again to a client that did not hear it"
    head = boto.head_object(Bucket=bucket, Key="k")
    assert (head["ContentLength"], head["ContentType"]) == (10 * MIB + 1, "text/x-told")


def test_ranges_are_answered_as_asked(boto, bucket):
    data = bytes(range(256))
    boto.put_object(Bucket=bucket, Key="k", Body=data)
    for asked, first, last in [("0-0", 0, 0), ("250-", 250, 255), ("-6", 250, 255), ("10-9999", 10, 255), ("-9999", 0, 255)]:
        answer = boto.get_object(Bucket=bucket, Key="k", Range=f"bytes={asked}")
        assert body(answer) == data[first : last + 1] and answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert answer["ContentRange"] == f"bytes {first}-{last}/256"
    beyond = refused("InvalidRange", boto.get_object, Bucket=bucket, Key="k", Range="bytes=256-")
    assert beyond["ResponseMetadata"]["HTTPStatusCode"] == 416


ODD_KEYS = [
    "a b", "a+b", "a%2Fb", "a&b=c;d?e#f", "a//b", "/from the root", "folder/", ".", "../..", "über/日本語 🌏", "e\u0301",
    "quo'te\"s<>&amp;", "back\\slash", "tab\tand\nline", "~tilde*(star)!", "\u2028", "k" * 1024,
]  # fmt: skip


def test_odd_keys_are_kept_as_they_are(boto, bucket):
    for number, key in enumerate(ODD_KEYS):
        boto.put_object(Bucket=bucket, Key=key, Body=str(number).encode())
    wanted = sorted(ODD_KEYS, key=str.encode)
    for lister, member in {"list_objects_v2": "Contents", "list_objects": "Contents", "list_object_versions": "Versions"}.items():
        pages = boto.get_paginator(lister).paginate(Bucket=bucket, PaginationConfig={"PageSize": 3})
        assert [found["Key"] for page in pages for found in page.get(member, [])] == wanted, lister
    for number, key in enumerate(ODD_KEYS):
        assert body(boto.get_object(Bucket=bucket, Key=key)) == str(number).encode()
        copied = boto.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
        assert copied["CopyObjectResult"]["ETag"] == boto.head_object(Bucket=bucket, Key=key)["ETag"]
        assert body(boto.get_object(Bucket=bucket, Key="copy")) == str(number).encode()
    gone = boto.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in ODD_KEYS]})
    assert {one["Key"] for one in gone["Deleted"]} == set(ODD_KEYS)
    assert [found["Key"] for found in boto.list_objects_v2(Bucket=bucket)["Contents"]] == ["copy"]


def test_listings_are_paged_and_folded(boto, bucket):
    for key in [f"{folder}/{file}" for folder in "abc" for file in range(3)] + ["top", "ü/x"]:
        boto.put_object(Bucket=bucket, Key=key, Body=b"")
    pages = list(boto.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2}))
    assert [common["Prefix"] for page in pages for common in page.get("CommonPrefixes", [])] == ["a/", "b/", "c/", "ü/"]
    assert [found["Key"] for page in pages for found in page.get("Contents", [])] == ["top"]
    assert [page["KeyCount"] for page in pages] == [2, 2, 1]
    after = boto.list_objects_v2(Bucket=bucket, StartAfter="b/1", Prefix="b/", FetchOwner=True)
    assert [found["Key"] for found in after["Contents"]] == ["b/2"] and after["Contents"][0]["Owner"]["ID"]
    assert boto.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0
    refused("InvalidArgument", boto.list_objects_v2, Bucket=bucket, ContinuationToken="of somebody else")


def test_writes_can_depend_on_what_is_there(boto, bucket):
    key = {"Bucket": bucket, "Key": "k"}
    first = boto.put_object(**key, Body=b"1", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", boto.put_object, **key, Body=b"2", IfNoneMatch="*")
    refused("PreconditionFailed", boto.put_object, **key, Body=b"2", IfMatch='"0"')
    second = boto.put_object(**key, Body=b"2", IfMatch=first)["ETag"]
    refused("NoSuchKey", boto.put_object, Bucket=bucket, Key="none", Body=b"1", IfMatch=first)

    copied = {"CopySource": {"Bucket": bucket, "Key": "k"}, "Bucket": bucket}
    refused("PreconditionFailed", boto.copy_object, **copied, Key="copy", CopySourceIfMatch=first)
    refused("PreconditionFailed", boto.copy_object, **copied, Key="k", IfNoneMatch="*", MetadataDirective="REPLACE")
    boto.copy_object(**copied, Key="copy", CopySourceIfMatch=second, IfNoneMatch="*")

    upload = boto.create_multipart_upload(**key)["UploadId"]
    part = boto.upload_part(**key, UploadId=upload, PartNumber=1, Body=b"3")["ETag"]
    parts = {"UploadId": upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part}]}}
    refused("PreconditionFailed", boto.complete_multipart_upload, **key, **parts, IfNoneMatch="*")
    third = boto.complete_multipart_upload(**key, **parts, IfMatch=second)["ETag"]

    refused("PreconditionFailed", boto.delete_object, **key, IfMatch=second)
    refused("PreconditionFailed", boto.get_object, **key, IfMatch=second)
    refused("304", boto.get_object, **key, IfNoneMatch=third)
    refused("304", boto.head_object, **key, IfModifiedSince=boto.head_object(**key)["LastModified"])
    boto.delete_object(**key, IfMatch=third)
    refused("404", boto.head_object, **key)


def test_every_version_is_kept(boto, bucket):
    key = {"Bucket": bucket, "Key": "k"}
    boto.put_object(**key, Body=b"null")
    boto.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert boto.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    first = boto.put_object(**key, Body=b"1")["VersionId"]
    second = boto.put_object(**key, Body=b"2")["VersionId"]
    marker = boto.delete_object(**key)
    assert marker["DeleteMarker"]
    hidden = refused("NoSuchKey", boto.get_object, **key)
    assert hidden["ResponseMetadata"]["HTTPHeaders"]["x-amz-delete-marker"] == "true"
    refused("MethodNotAllowed", boto.get_object, **key, VersionId=marker["VersionId"])
    refused("NoSuchVersion", boto.get_object, **key, VersionId=first[::-1])
    assert [body(boto.get_object(**key, VersionId=version)) for version in ["null", first, second]] == [b"null", b"1", b"2"]

    pages = list(boto.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1}))
    assert [found["VersionId"] for page in pages for found in page.get("Versions", [])] == [second, first, "null"]
    assert [found["IsLatest"] for page in pages for found in page.get("DeleteMarkers", [])] == [True]

    # What was deleted is back when its marker is gone, and an old version when it is copied to the front.
    boto.delete_object(**key, VersionId=marker["VersionId"])
    assert body(boto.get_object(**key)) == b"2"
    source = {"Bucket": bucket, "Key": "k", "VersionId": first}
    copied = boto.copy_object(**key, CopySource=source)
    assert copied["CopySourceVersionId"] == first and body(boto.get_object(**key)) == b"1"

    boto.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    boto.put_object(**key, Body=b"new null")
    assert body(boto.get_object(**key, VersionId="null")) == b"new null"
    assert body(boto.get_object(**key, VersionId=second)) == b"2"


def test_objects_have_tags(boto, bucket):
    key = {"Bucket": bucket, "Key": "k"}
    boto.put_object(**key, Body=b"", Tagging="team=blue&of=a%20b")
    assert boto.get_object(**key)["TagCount"] == 2
    assert boto.get_object_tagging(**key)["TagSet"] == [{"Key": "of", "Value": "a b"}, {"Key": "team", "Value": "blue"}]
    source = {"Bucket": bucket, "Key": "k"}
    boto.copy_object(Bucket=bucket, Key="kept", CopySource=source)
    boto.copy_object(Bucket=bucket, Key="new", CopySource=source, TaggingDirective="REPLACE", Tagging="x=y")
    assert len(boto.get_object_tagging(Bucket=bucket, Key="kept")["TagSet"]) == 2
    assert boto.get_object_tagging(Bucket=bucket, Key="new")["TagSet"] == [{"Key": "x", "Value": "y"}]
    many = [{"Key": str(number), "Value": ""} for number in range(11)]
    refused("InvalidTag", boto.put_object_tagging, **key, Tagging={"TagSet": many})
    boto.put_object_tagging(**key, Tagging={"TagSet": many[:10]})
    boto.delete_object_tagging(**key)
    assert boto.get_object_tagging(**key)["TagSet"] == []


def test_a_customers_key_opens_what_it_closed(boto, bucket):
    key, right, wrong = {"Bucket": bucket, "Key": "k"}, secrets.token_bytes(32), secrets.token_bytes(32)

    def sse(secret, prefix=""):
        return {f"{prefix}SSECustomerAlgorithm": "AES256", f"{prefix}SSECustomerKey": secret}

    put = boto.put_object(**key, Body=b"hello", **sse(right))
    assert put["SSECustomerKeyMD5"] == base64.b64encode(hashlib.md5(right).digest()).decode()
    assert body(boto.get_object(**key, **sse(right), Range="bytes=1-3")) == b"ell"
    refused("InvalidRequest", boto.get_object, **key)
    refused("400", boto.head_object, **key)
    refused("InvalidRequest", boto.get_object, **key, **sse(wrong))
    boto.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "k"}, **sse(right, "CopySource"), **sse(wrong))
    assert body(boto.get_object(Bucket=bucket, Key="copy", **sse(wrong))) == b"hello"
    boto.upload_fileobj(io.BytesIO(b"s" * (6 * MIB)), bucket, "large", ExtraArgs=sse(right), Config=IN_PARTS)
    back = io.BytesIO()
    boto.download_fileobj(bucket, "large", back, ExtraArgs=sse(right), Config=IN_PARTS)
    assert back.getvalue() == b"s" * (6 * MIB)


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_links_do_what_they_were_made_for(version, cloud, scheme, bucket):
    boto = client(cloud, "s3", scheme, signature_version=version)
    key = {"Bucket": bucket, "Key": "a file, ü+%"}
    url = boto.generate_presigned_url("put_object", Params={**key, "ContentType": "text/x-sent"}, ExpiresIn=300)
    fetch(url, cloud, method="PUT", data=b"by link", headers={"Content-type": "text/x-sent"})
    told = {"ResponseContentType": "text/x-other", "ResponseContentDisposition": "attachment"}
    assert fetch(boto.generate_presigned_url("get_object", Params={**key, **told}, ExpiresIn=300), cloud) == b"by link"
    with pytest.raises(urllib.error.HTTPError) as other:
        fetch(url, cloud, method="GET")
    assert other.value.code == 403

    conditions = [["content-length-range", 1, 10], ["starts-with", "$x-amz-meta-note", "from "]]
    post = boto.generate_presigned_post(bucket, "forms/${filename}", Conditions=conditions, ExpiresIn=300)
    submit(post["url"], {**post["fields"], "x-amz-meta-note": "from a form"}, b"by form", cloud)
    sent = boto.get_object(Bucket=bucket, Key="forms/file.txt")
    assert body(sent) == b"by form" and sent["Metadata"] == {"note": "from a form"}
    for fields, data, code in [
        ({"x-amz-meta-note": "from n"}, b"more than ten bytes", "EntityTooLarge"),
        ({"x-amz-meta-note": "from n", "acl": "public-read"}, b"a", "AccessDenied"),
        ({}, b"a", "AccessDenied"),
    ]:
        with pytest.raises(urllib.error.HTTPError) as refusal:
            submit(post["url"], {**post["fields"], **fields}, data, cloud)
        assert f"<Code>{code}</Code>".encode() in refusal.value.read()


def test_waiters_see_what_came_and_what_went(boto):
    bucket = f"waited-{secrets.token_hex(6)}"
    soon = {"WaiterConfig": {"Delay": 1, "MaxAttempts": 1}}
    boto.get_waiter("bucket_not_exists").wait(Bucket=bucket, **soon)
    boto.create_bucket(Bucket=bucket)
    boto.get_waiter("bucket_exists").wait(Bucket=bucket, **soon)
    with pytest.raises(WaiterError):
        boto.get_waiter("object_exists").wait(Bucket=bucket, Key="k", **soon)
    boto.put_object(Bucket=bucket, Key="k", Body=b"")
    boto.get_waiter("object_exists").wait(Bucket=bucket, Key="k", **soon)
    boto.delete_object(Bucket=bucket, Key="k")
    boto.get_waiter("object_not_exists").wait(Bucket=bucket, Key="k", **soon)
    boto.delete_bucket(Bucket=bucket)


def test_a_bucket_is_emptied_by_the_thousand(cloud, scheme, bucket):
    user = cloud.environment()
    resource = boto3.resource(
        "s3",
        endpoint_url=user["S3_URL"].replace("http:", f"{scheme}:"),
        aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
        region_name=user["AWS_REGION"],
        verify=cloud.ca if scheme == "https" else None,
    )
    there = resource.Bucket(bucket)
    there.Versioning().enable()
    for number in range(30):
        there.put_object(Key=f"k{number % 10}", Body=b"")
    assert len(list(there.objects.all())) == 10
    there.objects.filter(Prefix="k1").delete()
    assert len(list(there.objects.all())) == 9 and len(list(there.object_versions.all())) == 31
    there.object_versions.all().delete()
    assert list(there.object_versions.all()) == []
    resource.meta.client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"n{n}"} for n in range(1000)], "Quiet": True})
    with pytest.raises(ClientError) as refusal:
        resource.meta.client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"n{n}"} for n in range(1001)]})
    assert refusal.value.response["Error"]["Code"] == "MalformedXML"


def test_refusals_have_the_codes_that_programs_know(boto, bucket):
    nowhere = f"{bucket}-not"
    with pytest.raises(boto.exceptions.NoSuchKey):
        boto.get_object(Bucket=bucket, Key="none")
    with pytest.raises(boto.exceptions.NoSuchBucket):
        boto.get_object(Bucket=nowhere, Key="none")
    with pytest.raises(boto.exceptions.BucketAlreadyOwnedByYou):
        boto.create_bucket(Bucket=bucket)
    with pytest.raises(boto.exceptions.NoSuchUpload):
        boto.abort_multipart_upload(Bucket=bucket, Key="k", UploadId="none")
    refused("404", boto.head_object, Bucket=bucket, Key="none")
    refused("404", boto.head_bucket, Bucket=nowhere)
    refused("NoSuchBucket", boto.delete_bucket, Bucket=nowhere)
    refused("NoSuchBucket", boto.list_objects_v2, Bucket=nowhere)
    refused("NoSuchKey", boto.copy_object, Bucket=bucket, Key="k", CopySource=f"{bucket}/none")
    refused("NoSuchKey", boto.get_object_tagging, Bucket=bucket, Key="none")
    boto.put_object(Bucket=bucket, Key="k", Body=b"")
    refused("InvalidRequest", boto.copy_object, Bucket=bucket, Key="k", CopySource=f"{bucket}/k")
    refused("InvalidStorageClass", boto.put_object, Bucket=bucket, Key="k", Body=b"", StorageClass="BASALT")
    refused("KeyTooLongError", boto.put_object, Bucket=bucket, Key="k" * 1025, Body=b"")
    refused("MetadataTooLarge", boto.put_object, Bucket=bucket, Key="k", Body=b"", Metadata={"m": "v" * 2100})
    refused("NotImplemented", boto.put_object, Bucket=bucket, Key="k", Body=b"", ServerSideEncryption="aws:kms")
