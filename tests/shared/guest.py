"""A guest as its user sees it: an address and a private key."""

import os
import pathlib
import shlex
import socket
import subprocess

from mallee_cloud import run
from waiting import until


class Guest:
    def __init__(self, address, key):
        """`key` is the file of the private key."""
        self.address = address
        self.key = key

    def command(self, *words):
        """A host key is as new as its guest, so none is remembered."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes",
                   "ConnectTimeout=5", "IdentitiesOnly=yes", "ServerAliveInterval=60"]  # fmt: skip
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", *flags, "-i", str(self.key), f"root@{self.address}", *words]

    def run(self, script, check=True, timeout=60):
        """What `script` writes, run by the guest's shell."""
        done = run(self.command(script), check=check, timeout=timeout)
        return done.stdout.strip()

    def boot_id(self):
        return self.run("cat /proc/sys/kernel/random/boot_id")

    def wait(self, other_than=None, patience=120):
        """Until it lets its user in; with `other_than`, in another boot than that one. Returns the boot's id."""

        def reached():
            try:
                done = run(self.command("cat /proc/sys/kernel/random/boot_id"), check=False, timeout=20)
            except subprocess.TimeoutExpired:
                return None
            boot = done.stdout.strip()
            return boot if done.returncode == 0 and boot != other_than else None

        return until(f"SSH at {self.address}", reached, patience=patience, every=0.3)

    def start(self, script):
        """A process of its own in the guest, which goes on when the session has ended."""
        self.run(f"setsid sh -c {shlex.quote(script)} </dev/null >/dev/null 2>&1 &")


def answers(address, port, patience=1.0):
    """Whether TCP connects within `patience`; a port that is dropped is silent, so this is what "does not answer" is."""
    with socket.socket() as probe:
        probe.settimeout(patience)
        return probe.connect_ex((address, port)) == 0


def write_key(path, pem):
    path = pathlib.Path(path)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(pem if pem.endswith("\n") else pem + "\n")
    return path


class Session:
    """An open SSH session in which the guest counts; a line that was written while the network stalled comes later."""

    def __init__(self, guest):
        count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
        self.process = subprocess.Popen(guest.command(count), stdout=subprocess.PIPE)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.last, self.rest = 0, b""
        self.goes_on()

    def read(self):
        read = self.process.stdout.read()
        assert self.process.poll() is None, f"the session ended with {self.process.returncode}"
        *lines, self.rest = (self.rest + (read or b"")).split(b"\n")
        for line in lines:
            assert int(line) == self.last + 1, f"after {self.last} came {line}"
            self.last = int(line)
        return self.last

    def goes_on(self):
        """The guest counts further, and nothing it counted was lost."""
        seen = self.last
        until("the open session goes on", lambda: self.read() > seen, every=0.05)

    def end(self):
        self.process.kill()
        self.process.wait()
