"""What programs on boto 2.49 did with S3, signed by version 2 as it signs by itself, and by version 4."""

import io
import secrets
import urllib.error

import boto
import boto.exception
import boto.s3.connection
import pytest
from boto.s3.cors import CORSConfiguration
from boto.s3.lifecycle import Expiration, Lifecycle, Rule
from boto.s3.tagging import Tags, TagSet

from link import fetch
from with_boto2 import Boto2S3, connection


class SignsWithVersion4(boto.s3.connection.S3Connection):
    """What its `s3.use-sigv4` chooses."""

    def _required_auth_capability(self):
        return ["hmac-v4-s3"]


def by_version_4(cloud, scheme):
    settings, host = connection(cloud, scheme, "AWS_ENDPOINT_URL_S3")
    signing = SignsWithVersion4(host=host, calling_format=boto.s3.connection.OrdinaryCallingFormat(), **settings)
    # It would look for the region in the host's name.
    signing.auth_region_name = cloud.name
    return signing


@pytest.fixture(params=["v2-http", "v2-https", "v4-http"])
def s3(request, cloud):
    version, scheme = request.param.split("-")
    return Boto2S3(cloud, scheme).s3 if version == "v2" else by_version_4(cloud, scheme)


@pytest.fixture
def there(s3):
    made = s3.create_bucket(f"boto2-{secrets.token_hex(6)}")
    yield made
    for version in made.list_versions():
        made.delete_key(version.name, version_id=version.version_id)
    s3.delete_bucket(made.name)


def test_keys_have_metadata_copies_and_ranges(there):
    key = there.new_key("folder/ü a+b")
    key.set_metadata("of", "note")
    key.set_contents_from_file(io.BytesIO(b"hello world"), headers={"Content-Type": "text/x-note"}, policy="public-read")
    found = there.get_key("folder/ü a+b")
    assert (found.size, found.content_type, found.get_metadata("of")) == (11, "text/x-note", "note")
    assert found.get_contents_as_string(headers={"Range": "bytes=6-"}) == b"world"
    assert there.get_key("none") is None
    copied = there.copy_key("copy", there.name, key.name, metadata={"of": "copy"})
    assert copied.etag == found.etag and there.get_key("copy").get_metadata("of") == "copy"
    assert [grant.uri for grant in found.get_acl().acl.grants if grant.uri] == ["http://acs.amazonaws.com/groups/global/AllUsers"]
    found.set_canned_acl("private")
    assert all(grant.uri is None for grant in found.get_acl().acl.grants)
    assert [one.name for one in there.list(delimiter="/")] == ["copy", "folder/"]
    gone = there.delete_keys([f"none{number}" for number in range(40)] + ["copy"])
    assert len(gone.deleted) == 41 and not gone.errors


def test_uploads_are_put_together_from_parts_and_copies(there):
    there.new_key("source").set_contents_from_string("s" * (5 << 20))
    upload = there.initiate_multipart_upload("large")
    upload.copy_part_from_key(there.name, "source", 1)
    upload.upload_part_from_file(io.BytesIO(b"the end"), 2)
    assert [part.size for part in upload] == [5 << 20, 7]
    assert [one.id for one in there.get_all_multipart_uploads()] == [upload.id]
    upload.complete_upload()
    assert there.get_key("large").size == (5 << 20) + 7
    given_up = there.initiate_multipart_upload("given up")
    given_up.cancel_upload()
    assert there.get_all_multipart_uploads() == []


def test_buckets_have_settings(there):
    there.configure_versioning(True)
    assert there.get_versioning_status() == {"Versioning": "Enabled"}
    key = there.new_key("k")
    for text in ["1", "2"]:
        key.set_contents_from_string(text)
    there.delete_key("k")
    versions = list(there.list_versions())
    assert [type(one).__name__ for one in versions] == ["DeleteMarker", "Key", "Key"]
    assert there.get_key("k") is None
    assert versions[-1].get_contents_as_string() == b"1"

    tags = TagSet()
    tags.add_tag("team", "blue")
    document = Tags()
    document.add_tag_set(tags)
    there.set_tags(document)
    assert [(tag.key, tag.value) for tag in there.get_tags()[0]] == [("team", "blue")]
    cors = CORSConfiguration()
    cors.add_rule(["PUT", "GET"], "https://example.com", allowed_header="*", max_age_seconds=30)
    there.set_cors(cors)
    assert there.get_cors()[0].allowed_origin == ["https://example.com"]
    lifecycle = Lifecycle()
    lifecycle.append(Rule("old", "logs/", "Enabled", expiration=Expiration(days=3)))
    there.configure_lifecycle(lifecycle)
    assert there.get_lifecycle_config()[0].expiration.days == 3
    there.configure_website("index.html", "error.html")
    assert there.get_website_configuration()["WebsiteConfiguration"]["IndexDocument"]["Suffix"] == "index.html"
    there.delete_website_configuration()
    for read, code in [(there.get_website_configuration, "NoSuchWebsiteConfiguration"), (there.get_policy, "NoSuchBucketPolicy")]:
        with pytest.raises(boto.exception.S3ResponseError) as refused:
            read()
        assert refused.value.error_code == code and refused.value.status == 404


@pytest.mark.parametrize("s3", ["v2-http", "v2-https"], indirect=True)
def test_links_are_signed(s3, there, cloud):
    there.new_key("k").set_contents_from_string("by link")
    url = s3.generate_url(300, "GET", there.name, "k", response_headers={"response-content-type": "text/x-told"})
    assert fetch(url, cloud) == b"by link"
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(url.replace("x-told", "x-bold"), cloud)
    assert refused.value.code == 403
