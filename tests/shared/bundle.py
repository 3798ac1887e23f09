"""Image bundles in the classic format, as euca2ools 3.4 makes them, written from its description (facts/clients.md §1) and not
from the product: tar, gzip, AES-128-CBC, parts, manifest."""

import gzip
import hashlib
import io
import secrets
import tarfile
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PART = 10 << 20


class Bundle:
    """`parts` (name → bytes) and `manifest`, all of it still to be uploaded, so that a test can spoil it."""

    def __init__(self, image, name, account, cloud_certificate, certificate=None, key=None, kind="machine", part=PART):
        """PEM files; without `key` the manifest says UNSIGNED."""
        self.name, self.key = name, key
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
        digest = hashlib.sha1(tar.getvalue()).hexdigest()
        # 128 random bits each, and it is their hexadecimal text that is encrypted.
        secret, vector = secrets.token_hex(16), secrets.token_hex(16)
        packed = gzip.compress(tar.getvalue(), compresslevel=1)
        padder = padding.PKCS7(128).padder()
        encryptor = Cipher(algorithms.AES(bytes.fromhex(secret)), modes.CBC(bytes.fromhex(vector))).encryptor()
        sealed = encryptor.update(padder.update(packed) + padder.finalize()) + encryptor.finalize()
        pieces = [sealed[start : start + part] for start in range(0, len(sealed), part)]
        self.parts = {f"{name}.part.{index:02}": piece for index, piece in enumerate(pieces)}

        def sealed_for(pem_file, text):
            if pem_file is None:
                return ""
            with open(pem_file, "rb") as file:
                public = x509.load_pem_x509_certificate(file.read()).public_key()
            return public.encrypt(text.encode(), rsa_padding.PKCS1v15()).hex()

        listed = "".join(
            f'<part index="{index}"><filename>{file}</filename>'
            f'<digest algorithm="SHA1">{hashlib.sha1(piece).hexdigest()}</digest></part>'
            for index, (file, piece) in enumerate(self.parts.items())
        )
        own_kernel = f"<{kind}_id>true</{kind}_id>" if kind != "machine" else ""
        signed = (
            "<machine_configuration><architecture>x86_64</architecture>"
            f"<block_device_mapping><mapping><virtual>root</virtual><device>/dev/sda1</device></mapping></block_device_mapping>"
            f"{own_kernel}</machine_configuration>"
            f"<image><name>{escape(name)}</name><user>{account}</user><type>{kind}</type>"
            f'<digest algorithm="SHA1">{digest}</digest><size>{len(image)}</size><bundled_size>{len(sealed)}</bundled_size>'
            f'<ec2_encrypted_key algorithm="AES-128-CBC">{sealed_for(cloud_certificate, secret)}</ec2_encrypted_key>'
            f'<user_encrypted_key algorithm="AES-128-CBC">{sealed_for(certificate, secret)}</user_encrypted_key>'
            f"<ec2_encrypted_iv>{sealed_for(cloud_certificate, vector)}</ec2_encrypted_iv>"
            f"<user_encrypted_iv>{sealed_for(certificate, vector)}</user_encrypted_iv>"
            f'<parts count="{len(self.parts)}">{listed}</parts></image>'
        )
        self.manifest = (
            "<?xml version='1.0' encoding='ASCII'?>\n<manifest><version>2007-10-10</version>"
            "<bundler><name>euca2ools</name><version>3.4.1</version><release>0</release></bundler>"
            f"{signed}<signature>{signature(signed, key)}</signature></manifest>"
        )

    def upload(self, s3, bucket):
        """As `euca-upload-bundle` does; the answer is what RegisterImage wants for its ImageLocation."""
        for name, piece in self.parts.items():
            s3.put_object(Bucket=bucket, Key=name, Body=piece, ACL="aws-exec-read")
        manifest = f"{self.name}.manifest.xml"
        s3.put_object(Bucket=bucket, Key=manifest, Body=self.manifest.encode(), ACL="aws-exec-read")
        return f"{bucket}/{manifest}"


def signature(text, key):
    if key is None:
        return "UNSIGNED"
    with open(key, "rb") as file:
        private = serialization.load_pem_private_key(file.read(), None)
    return private.sign(text.encode(), rsa_padding.PKCS1v15(), hashes.SHA1()).hex()
