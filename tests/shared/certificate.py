"""A tier's certificate, signed anew by the cloud's CA for another time."""

import datetime
import tempfile

from mallee_cloud import run

CONFIGURATION = """
[ca]
default_ca = cloud
[cloud]
dir = {dir}
database = {dir}/index
serial = {dir}/serial
new_certs_dir = {dir}
default_md = sha256
policy = any
copy_extensions = copyall
[any]
commonName = supplied
"""


def reissue(tls, authority, seconds):
    """Writes into the folder `tls` of a tier a certificate like the one that is there, good until so many seconds from now; returns
    that moment, in seconds since the epoch."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    until = now + datetime.timedelta(seconds=seconds)
    stamp = lambda moment: moment.strftime("%Y%m%d%H%M%SZ")
    with tempfile.TemporaryDirectory(prefix="mallee-reissue-") as dir:
        with open(f"{dir}/ca.cnf", "w") as file:
            file.write(CONFIGURATION.format(dir=dir))
        open(f"{dir}/index", "w").close()
        with open(f"{dir}/serial", "w") as file:
            file.write(f"{int(now.timestamp()):010x}\n")
        run(["openssl", "x509", "-x509toreq", "-copy_extensions", "copyall", "-in", tls / "cert.pem", "-signkey", tls / "key.pem", "-out", f"{dir}/request"])
        run([
            "openssl", "ca", "-batch", "-notext", "-config", f"{dir}/ca.cnf", "-cert", authority / "ca.pem", "-keyfile", authority / "ca.key",
            "-in", f"{dir}/request", "-out", f"{dir}/cert", "-startdate", stamp(now - datetime.timedelta(hours=1)), "-enddate", stamp(until),
        ])  # fmt: skip
        chain = open(f"{dir}/cert").read() + (tls / "ca.pem").read_text()
    (tls / "cert.new").write_text(chain)
    (tls / "cert.new").rename(tls / "cert.pem")
    return int(until.timestamp())
