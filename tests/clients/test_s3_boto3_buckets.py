"""What a bucket can be set to do, with boto3 as it comes: each setting as programs write, read and take it away."""

import datetime
import json
import secrets

import pytest

from conftest import cleared
from with_boto3 import client, refused

NOTHING_SET = {
    "get_bucket_policy": "NoSuchBucketPolicy",
    "get_bucket_cors": "NoSuchCORSConfiguration",
    "get_bucket_lifecycle_configuration": "NoSuchLifecycleConfiguration",
    "get_bucket_website": "NoSuchWebsiteConfiguration",
    "get_bucket_tagging": "NoSuchTagSet",
    "get_bucket_encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "get_bucket_ownership_controls": "OwnershipControlsNotFoundError",
    "get_public_access_block": "NoSuchPublicAccessBlockConfiguration",
    "get_object_lock_configuration": "ObjectLockConfigurationNotFoundError",
    "get_bucket_replication": "ReplicationConfigurationNotFoundError",
}
EMPTY = [
    "get_bucket_versioning", "get_bucket_logging", "get_bucket_notification_configuration", "get_bucket_accelerate_configuration",
    "list_bucket_inventory_configurations", "list_bucket_analytics_configurations", "list_bucket_metrics_configurations",
    "list_bucket_intelligent_tiering_configurations",
]  # fmt: skip


@pytest.fixture(scope="module")
def boto(cloud):
    return client(cloud, "s3", "https")


@pytest.fixture(scope="module")
def stranger(cloud, other):
    """Another account's S3."""
    return cloud.client("s3", account="stranger")


def told(answer):
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def test_a_new_bucket_is_read_as_terraform_and_ansible_read_it(boto, bucket):
    for operation, code in NOTHING_SET.items():
        refused(code, getattr(boto, operation), Bucket=bucket)
    for operation in EMPTY:
        assert told(getattr(boto, operation)(Bucket=bucket)) in ({}, {"IsTruncated": False}), operation
    for kind in ["inventory", "analytics", "metrics", "intelligent_tiering"]:
        refused("NoSuchConfiguration", getattr(boto, f"get_bucket_{kind}_configuration"), Bucket=bucket, Id="x")
    assert boto.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"] == {"IsPublic": False}
    assert boto.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    grants = boto.get_bucket_acl(Bucket=bucket)
    assert [(grant["Grantee"]["ID"], grant["Permission"]) for grant in grants["Grants"]] == [
        (grants["Owner"]["ID"], "FULL_CONTROL")
    ]
    assert boto.get_bucket_location(Bucket=bucket)["LocationConstraint"]


@pytest.mark.parametrize(
    "name, member, wanted, refusal",
    [
        ("bucket_tagging", "Tagging", {"TagSet": [{"Key": "team", "Value": "blue + green"}]}, "NoSuchTagSet"),
        (
            "bucket_cors",
            "CORSConfiguration",
            {"CORSRules": [{
                "ID": "r", "AllowedHeaders": ["*"], "AllowedMethods": ["GET", "PUT"], "AllowedOrigins": ["https://*.example.com"],
                "ExposeHeaders": ["ETag"], "MaxAgeSeconds": 60,
            }]},
            "NoSuchCORSConfiguration",
        ),
        (
            "bucket_lifecycle_configuration",
            "LifecycleConfiguration",
            {"Rules": [
                {
                    "ID": "old", "Status": "Enabled", "Expiration": {"Days": 30},
                    "Filter": {"And": {"Prefix": "logs/", "Tags": [{"Key": "k", "Value": "v"}], "ObjectSizeGreaterThan": 10}},
                },
                {
                    "ID": "versions", "Status": "Disabled", "Filter": {"Prefix": ""}, "Expiration": {"ExpiredObjectDeleteMarker": True},
                    "NoncurrentVersionExpiration": {"NoncurrentDays": 3, "NewerNoncurrentVersions": 2},
                    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
                },
            ]},
            "NoSuchLifecycleConfiguration",
        ),
        (
            "bucket_website",
            "WebsiteConfiguration",
            {
                "IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"},
                "RoutingRules": [{"Condition": {"KeyPrefixEquals": "old/"}, "Redirect": {"ReplaceKeyPrefixWith": "new/"}}],
            },
            "NoSuchWebsiteConfiguration",
        ),
        (
            "bucket_encryption",
            "ServerSideEncryptionConfiguration",
            {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}]},
            "ServerSideEncryptionConfigurationNotFoundError",
        ),
        (
            "bucket_ownership_controls",
            "OwnershipControls",
            {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
            "OwnershipControlsNotFoundError",
        ),
        (
            "public_access_block",
            "PublicAccessBlockConfiguration",
            {"BlockPublicAcls": True, "IgnorePublicAcls": False, "BlockPublicPolicy": True, "RestrictPublicBuckets": False},
            "NoSuchPublicAccessBlockConfiguration",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)  # fmt: skip
def test_a_setting_is_told_as_it_was_set_until_it_is_taken_away(name, member, wanted, refusal, boto, bucket):
    getattr(boto, f"put_{name}")(Bucket=bucket, **{member: wanted})
    answer = told(getattr(boto, f"get_{name}")(Bucket=bucket))
    answer = answer.get(member, answer)
    answer.pop("TransitionDefaultMinimumObjectSize", None)
    assert answer == wanted
    getattr(boto, f"delete_{name.removesuffix('_configuration')}")(Bucket=bucket)
    refused(refusal, getattr(boto, f"get_{name}"), Bucket=bucket)
    getattr(boto, f"delete_{name.removesuffix('_configuration')}")(Bucket=bucket)
    refused("NoSuchBucket", getattr(boto, f"put_{name}"), Bucket=f"{bucket}-not", **{member: wanted})


def test_a_policy_opens_a_bucket_to_another_account(boto, bucket, stranger, other, cloud):
    boto.put_object(Bucket=bucket, Key="open/k", Body=b"hello")
    boto.put_object(Bucket=bucket, Key="shut", Body=b"")
    for call in [stranger.get_object, stranger.head_object]:
        refused("AccessDenied" if call == stranger.get_object else "403", call, Bucket=bucket, Key="open/k")
    account = cloud.client("sts", account="stranger").get_caller_identity()["Account"]
    statement = {
        "Sid": "read", "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{account}:root"}, "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/open/*",
    }  # fmt: skip
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    boto.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    assert json.loads(boto.get_bucket_policy(Bucket=bucket)["Policy"]) == policy
    assert boto.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"] == {"IsPublic": False}
    assert stranger.get_object(Bucket=bucket, Key="open/k")["Body"].read() == b"hello"
    refused("AccessDenied", stranger.get_object, Bucket=bucket, Key="shut")
    refused("AccessDenied", stranger.put_object, Bucket=bucket, Key="open/k", Body=b"")
    refused("AccessDenied", stranger.put_bucket_policy, Bucket=bucket, Policy=json.dumps(policy))
    refused("MalformedPolicy", boto.put_bucket_policy, Bucket=bucket, Policy="{}")
    boto.delete_bucket_policy(Bucket=bucket)
    refused("AccessDenied", stranger.get_object, Bucket=bucket, Key="open/k")


def test_access_lists_open_a_bucket_to_another_account(boto, bucket, stranger):
    grantee = stranger.list_buckets()["Owner"]["ID"]
    refused("AccessDenied", stranger.list_objects_v2, Bucket=bucket)
    boto.put_bucket_acl(Bucket=bucket, GrantRead=f'id="{grantee}"', GrantWrite=f'id="{grantee}"')
    assert {grant["Permission"] for grant in boto.get_bucket_acl(Bucket=bucket)["Grants"]} == {"READ", "WRITE"}
    stranger.put_object(Bucket=bucket, Key="theirs", Body=b"theirs", ACL="bucket-owner-full-control")
    assert [found["Key"] for found in stranger.list_objects_v2(Bucket=bucket)["Contents"]] == ["theirs"]
    assert boto.get_object(Bucket=bucket, Key="theirs")["Body"].read() == b"theirs"
    boto.put_bucket_acl(Bucket=bucket, ACL="private")
    refused("AccessDenied", stranger.list_objects_v2, Bucket=bucket)


def test_locked_versions_stay(boto):
    """The bucket stays too: nobody may take away what compliance keeps."""
    bucket = f"locked-{secrets.token_hex(6)}"
    boto.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    assert boto.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    boto.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})
    assert boto.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]["Rule"] == rule

    governed = {"Bucket": bucket, "Key": "g", "VersionId": boto.put_object(Bucket=bucket, Key="g", Body=b"")["VersionId"]}
    assert boto.get_object_retention(**governed)["Retention"]["Mode"] == "GOVERNANCE"
    refused("AccessDenied", boto.delete_object, **governed)
    boto.put_object_legal_hold(**governed, LegalHold={"Status": "ON"})
    refused("AccessDenied", boto.delete_object, **governed, BypassGovernanceRetention=True)
    assert boto.get_object_legal_hold(**governed)["LegalHold"] == {"Status": "ON"}
    boto.put_object_legal_hold(**governed, LegalHold={"Status": "OFF"})
    boto.delete_object(**governed, BypassGovernanceRetention=True)
    refused("NoSuchVersion", boto.get_object, **governed)

    tomorrow = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(days=1)
    lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": tomorrow, "ObjectLockLegalHoldStatus": "OFF"}
    kept = {"Bucket": bucket, "Key": "c", "VersionId": boto.put_object(Bucket=bucket, Key="c", Body=b"", **lock)["VersionId"]}
    head = boto.head_object(**kept)
    assert {name: head[name] for name in lock} == lock
    refused("AccessDenied", boto.delete_object, **kept, BypassGovernanceRetention=True)
    sooner = {"Mode": "COMPLIANCE", "RetainUntilDate": tomorrow - datetime.timedelta(hours=1)}
    refused("AccessDenied", boto.put_object_retention, **kept, Retention=sooner, BypassGovernanceRetention=True)
    boto.put_object_retention(**kept, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": tomorrow + datetime.timedelta(hours=1)})
    errors = boto.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "c", "VersionId": kept["VersionId"]}]})["Errors"]
    assert [error["Code"] for error in errors] == ["AccessDenied"]
    refused("InvalidBucketState", boto.put_bucket_versioning, Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})


def test_a_bucket_without_locks_has_none(boto, bucket):
    boto.put_object(Bucket=bucket, Key="k", Body=b"")
    refused("InvalidRequest", boto.get_object_retention, Bucket=bucket, Key="k")
    refused("InvalidRequest", boto.put_object_legal_hold, Bucket=bucket, Key="k", LegalHold={"Status": "ON"})
    made = f"{bucket}-locked"
    boto.create_bucket(Bucket=made, ObjectLockEnabledForBucket=True)
    boto.put_object(Bucket=made, Key="k", Body=b"")
    refused("NoSuchObjectLockConfiguration", boto.get_object_retention, Bucket=made, Key="k")
    refused("NoSuchObjectLockConfiguration", boto.get_object_legal_hold, Bucket=made, Key="k")
    cleared(boto, made)


def test_what_cannot_be_set_is_refused_by_name(boto, bucket):
    refused(
        "NotImplemented", boto.put_bucket_accelerate_configuration, Bucket=bucket, AccelerateConfiguration={"Status": "Enabled"}
    )
    role = {
        "Role": "arn:aws:iam::1:role/r",
        "Rules": [{"Status": "Enabled", "Destination": {"Bucket": "arn:aws:s3:::b"}, "Prefix": ""}],
    }
    refused("NotImplemented", boto.put_bucket_replication, Bucket=bucket, ReplicationConfiguration=role)
    topic = {"TopicConfigurations": [{"TopicArn": "arn:aws:sns:us-east-1:123456789012:t", "Events": ["s3:ObjectCreated:*"]}]}
    refused("NotImplemented", boto.put_bucket_notification_configuration, Bucket=bucket, NotificationConfiguration=topic)
    target = {"LoggingEnabled": {"TargetBucket": bucket, "TargetPrefix": "logs/"}}
    refused("InvalidTargetBucketForLogging", boto.put_bucket_logging, Bucket=bucket, BucketLoggingStatus=target)
    boto.put_bucket_acl(Bucket=bucket, ACL="log-delivery-write")
    boto.put_bucket_logging(Bucket=bucket, BucketLoggingStatus=target)
    assert boto.get_bucket_logging(Bucket=bucket)["LoggingEnabled"] == target["LoggingEnabled"]
    boto.put_bucket_logging(Bucket=bucket, BucketLoggingStatus={})
