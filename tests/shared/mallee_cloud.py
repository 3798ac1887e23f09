"""A cloud under test: brought up by `mallee up` in a state directory, namespace, link and address range of its own, so that
it stands beside a developer's cloud. Everything a test looks at behind the product's back is found here."""

import contextlib
import fcntl
import json
import os
import pathlib
import signal
import subprocess

import boto3
import botocore.config

from waiting import until

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIERS = ["cloud-controller", "walrus", "cluster-controller", "storage-controller", "node-controller"]
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def programs():
    """Where the product's programs are: MALLEE_BIN, or the build that is newest."""
    if "MALLEE_BIN" in os.environ:
        return pathlib.Path(os.environ["MALLEE_BIN"]).resolve()
    builds = [ROOT / "target" / profile / "mallee" for profile in ("release", "debug")]
    built = [build for build in builds if build.exists()]
    assert built, "nothing is built: cargo build --workspace"
    return max(built, key=lambda build: build.stat().st_mtime).parent


def run(command, check=True, **options):
    """Runs to the end; a failure shows what the program wrote."""
    options.setdefault("timeout", 300)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


class Cloud:
    def __init__(self, state, name, subnet, port, suffix):
        self.state = pathlib.Path(state)
        self.name = name
        self.zone = f"{name}a"
        self.namespace = f"mallee-{suffix}"
        self.link = f"mallee-{suffix}"
        self.address = f"{subnet}.1"
        self.elastic = f"{subnet}.128/25"
        self.port = port
        self.programs = programs()

    # The operator's command.

    def mallee(self, *words, check=True, timeout=300):
        environment = dict(os.environ, MALLEE_BIN=str(self.programs))
        return run([self.programs / "mallee", "--state", self.state, *words], check=check, env=environment, timeout=timeout)

    def up(self):
        """With what an operator adds: names of hosts for buckets, quick flow logs."""
        own = self.state / "etc/walrus.own.toml"
        own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        own.write_text('host_suffixes = ["s3.test"]\n')
        # Flow logs as soon as a test can see them.
        own.with_name("node-controller.own.toml").write_text("flow_log_window_s = 5\n")
        return self.mallee(
            "up", "--name", self.name, "--namespace", self.namespace, "--link", self.link,
            "--address", f"{self.address}/24", "--elastic", self.elastic, "--port-base", str(self.port), "--node", f"{self.name}-n1",
        )  # fmt: skip

    def down(self, everything=False):
        return self.mallee("down", *(["--all", "--yes"] if everything else []))

    def exists(self):
        return (self.state / "machine.json").exists()

    @contextlib.contextmanager
    def lock(self, what):
        """One of several pytest processes at a time."""
        with open(f"/run/lock/{self.namespace}-{what}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # As a user sees it.

    def shell(self, account="admin"):
        """What `mallee env` prints for a shell that has nothing but Debian's programs."""
        environment = {"PATH": PLAIN_PATH, "HOME": "/nonexistent"}
        command = [self.programs / "mallee", "--state", self.state, "env", "--account", account]
        return run(command, env=environment).stdout

    def environment(self, account="admin"):
        """The variables that `eval "$(mallee env)"` sets."""
        done = run(["bash", "-c", f"{self.shell(account)}\nenv -0"], env={"PATH": PLAIN_PATH})
        pairs = [pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair]
        return {name: value for name, value in pairs if name.startswith(("AWS_", "EC2_", "S3_"))}

    @property
    def ca(self):
        """Who vouches for the cloud's HTTPS."""
        return str(self.state / "cloud-controller/ca/ca.pem")

    def client(self, service, account="admin", attempts=1, **settings):
        """boto3, without retries: what the test sees is what the cloud answered. A test that leaves its connections alone for
        longer than the front keeps them asks for a second attempt."""
        user = self.environment(account)
        url = user["AWS_ENDPOINT_URL_S3" if service == "s3" else "AWS_ENDPOINT_URL"]
        config = botocore.config.Config(retries={"total_max_attempts": attempts}, s3={"addressing_style": "path"}, **settings)
        return boto3.client(
            service,
            endpoint_url=url,
            aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
            region_name=user["AWS_DEFAULT_REGION"],
            config=config,
        )

    # Behind its back.

    @property
    def engines(self):
        return self.state / "engines"

    def virsh(self, *words, check=True):
        uri = f"qemu+unix:///system?socket={self.engines}/virt/run/libvirt-sock"
        return run(["virsh", "-q", "-c", uri, *words], check=check).stdout

    def domains(self):
        return self.virsh("list", "--all", "--name").split()

    def northbound(self, *words):
        return run(["ovn-nbctl", f"--db=unix:{self.engines}/ovn/nb.sock", *words]).stdout

    def switch(self, *words):
        return run(["ovs-vsctl", f"--db=unix:{self.engines}/ovs/db.sock", *words]).stdout

    def qemu(self, instance):
        """The process id of a guest."""
        return int((self.engines / "virt/run/qemu" / f"{instance}.pid").read_text())

    def pid(self, daemon):
        """Of a tier or an engine that runs now; None while it does not."""
        for directory in (self.state / "run", self.engines / "run"):
            record = directory / f"{daemon}.pid"
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError, ProcessLookupError):
                found = json.loads(record.read_text())
                stat = pathlib.Path(f"/proc/{found['pid']}/stat").read_text().rsplit(")", 1)[1].split()
                # Field 22 is the start time; a zombie is no running daemon.
                if int(stat[19]) == found["started"] and stat[0] != "Z":
                    return found["pid"]
        return None

    def kill(self, *daemons, wait=True):
        """kill -9, all at once; returns when each is back under another pid."""
        before = {daemon: self.pid(daemon) for daemon in daemons}
        assert all(before.values()), before
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        if wait:
            for daemon, pid in before.items():
                until(f"{daemon} runs again", lambda d=daemon, p=pid: self.pid(d) not in (None, p), every=0.05)

    def answers(self):
        """Every tier has been heard of since it started."""
        return self.mallee("status", check=False).returncode == 0
