"""Bundles that other tools made: accepted when they are right, and told what is wrong when not."""

import os
import secrets

import pytest

from bundle import Bundle, signature
from waiting import until

#: Random, so that it does not shrink, and more than one part of euca2ools' 10 MiB.
IMAGE = os.urandom(12 << 20)


@pytest.fixture
def make(cloud, ec2, s3, bucket):
    """Makes a bundle as the account `admin`, and one that registers what has become of it."""
    made = []
    account = cloud.client("sts").get_caller_identity()["Account"]
    files = cloud.state / "accounts/admin"

    class Made(Bundle):
        def register(self):
            location = self.upload(s3, bucket)
            self.id = ec2.register_image(ImageLocation=location, Name=self.name)["ImageId"]
            made.append(self.id)
            return self

        def settled(self):
            def state():
                (found,) = ec2.describe_images(ImageIds=[self.id])["Images"]
                return found if found["State"] in ("available", "failed") else None

            return until(f"{self.id} is verified", state)

    def make(image=IMAGE, signed=True, **changes):
        name = f"bundle-{secrets.token_hex(4)}"
        parameters = dict(cloud_certificate=files / "cloud-cert.pem", certificate=None, key=None)
        if signed:
            parameters |= dict(certificate=files / "cert.pem", key=files / "pk.pem")
        return Made(image, name, account, **(parameters | changes))

    yield make
    for image in made:
        ec2.deregister_image(ImageId=image)


def refused(found, *words):
    assert found["State"] == "failed"
    why = found["StateReason"]["Message"]
    assert any(word in why.lower() for word in words), why


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "UNSIGNED"])
def test_a_bundle_of_another_tool_becomes_available(make, signed):
    assert make(signed=signed).register().settled()["State"] == "available"


def test_a_bundle_in_small_parts_becomes_available(make):
    assert make(part=1 << 20).register().settled()["State"] == "available"


def test_one_flipped_byte_in_a_part_is_never_available_and_says_why(make):
    bundle = make()
    name = sorted(bundle.parts)[1]
    piece = bytearray(bundle.parts[name])
    piece[len(piece) // 2] ^= 1
    bundle.parts[name] = bytes(piece)
    refused(bundle.register().settled(), name, "digest", "part")


def test_a_part_that_is_missing_is_named(make):
    bundle = make()
    name = sorted(bundle.parts)[1]
    del bundle.parts[name]
    refused(bundle.register().settled(), name, "part")


def test_a_manifest_changed_after_it_was_signed_is_refused(make):
    bundle = make()
    bundle.manifest = bundle.manifest.replace("<architecture>x86_64", "<architecture>i386  ")
    refused(bundle.register().settled(), "signature", "architecture")


def test_a_signature_of_an_unregistered_certificate_is_refused(make, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    stranger = tmp_path / "pk.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    stranger.write_bytes(rsa.generate_private_key(65537, 2048).private_bytes(*form))
    refused(make(key=stranger).register().settled(), "signature", "certificate")


def test_a_bundle_for_another_cloud_says_so(make, cloud):
    """Its key is encrypted for somebody else's certificate."""
    bundle = make(cloud_certificate=cloud.state / "accounts/admin/cert.pem")
    refused(bundle.register().settled(), "key", "decrypt", "certificate")


def test_a_wrong_image_inside_right_parts_is_refused(make):
    """Parts and signature are right, and the digest of what comes out is not: whoever signed lied."""
    bundle = make()
    start, end = bundle.manifest.index("<machine_configuration>"), bundle.manifest.index("<signature>")
    signed = bundle.manifest[start:end]
    digest = signed.split('<digest algorithm="SHA1">')[1].split("<")[0]
    changed = signed.replace(digest, "0" * 40, 1)
    again = f"<signature>{signature(changed, bundle.key)}</signature></manifest>"
    bundle.manifest = bundle.manifest[:start] + changed + again
    refused(bundle.register().settled(), "digest")


def test_a_manifest_that_is_not_there_is_refused(ec2, bucket, s3):
    """At once or in the image's state: never an image that can be launched."""
    try:
        image = ec2.register_image(ImageLocation=f"{bucket}/nothing.manifest.xml", Name=f"none-{secrets.token_hex(4)}")["ImageId"]
    except ec2.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == "InvalidManifest"
        return
    until("it has failed", lambda: ec2.describe_images(ImageIds=[image])["Images"][0]["State"] == "failed")
    with pytest.raises(ec2.exceptions.ClientError) as error:
        ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="mini.nano")
    assert error.value.response["Error"]["Code"] in {"InvalidAMIID.Unavailable", "InvalidAMIID.NotFound"}
    ec2.deregister_image(ImageId=image)
