"""A cloud on several machines: two zones of two nodes. Each machine is a set of namespaces (network, mount, host name) with one
link to the others, and gets everything else from the product's own commands: `mallee up`, `mallee node token`, `mallee join`.
The machines have one kernel, one file system and one process table, and a state directory each."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import uuid

from guest import Guest
from mallee_cloud import Cloud, run
from waiting import until, until_empty

UNDERLAY = "10.123"


class Machine:
    """Namespaces that live as long as the process that holds them, which is found again by its record."""

    def __init__(self, many, name, at):
        self.many, self.name, self.at = many, name, at
        self.home = many.home / name
        self.address = f"{many.underlay}.{at}"
        self.tunnel = f"eth0:{many.underlay}.{100 + at}/24"
        self.link = f"{many.bridge}-{name}"

    @property
    def record(self):
        return self.many.home / f"{self.name}.json"

    def holder(self):
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
            found = json.loads(self.record.read_text())
            stat = pathlib.Path(f"/proc/{found['pid']}/stat").read_text().rsplit(")", 1)[1].split()
            if int(stat[19]) == found["started"] and stat[0] != "Z":
                return found["pid"]
        return None

    def make(self):
        if self.holder():
            return
        script = f"mkdir -p /run/netns && mount -t tmpfs none /run/netns && hostname {self.name} && echo ready && exec sleep infinity >/dev/null"
        holding = ["unshare", "--net", "--mount", "--uts", "--propagation", "private", "sh", "-c", script]
        # It outlives this process, and must keep nobody waiting for the end of what this process writes.
        process = subprocess.Popen(
            holding, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert process.stdout.readline() == "ready\n"
        started = int(pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        self.record.write_text(json.dumps({"pid": process.pid, "started": started}))
        # One of a machine that was not ended goes with its namespace, which is not at once.
        run(["ip", "link", "del", self.link], check=False)
        run(["ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid)])
        run(["ethtool", "-K", self.link, "tx", "off"])
        run(["ip", "link", "set", self.link, "master", self.many.bridge, "up"])
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            self.run("ip", *words.split())
        self.run("ethtool", "-K", "eth0", "tx", "off")

    def command(self, *words):
        return ["nsenter", f"--target={self.holder()}", "--net", "--mount", "--uts", *map(str, words)]

    def run(self, *words, **options):
        return run(self.command(*words), **options)

    def mallee(self, *words, check=True, timeout=300):
        environment = dict(os.environ, MALLEE_BIN=str(self.many.programs))
        command = [self.many.programs / "mallee", "--state", self.home, *words]
        return self.run(*command, check=check, env=environment, timeout=timeout)

    def join(self, *tokens):
        for token in tokens:
            self.mallee("join", token, "--tunnel", self.tunnel)

    # Behind its back.

    @property
    def engines(self):
        return self.home / "engines"

    def switch(self, *words):
        return self.run("ovs-vsctl", f"--db=unix:{self.engines}/ovs/db.sock", "--timeout=30", *words).stdout.strip()

    def virsh(self, *words, check=True):
        uri = f"qemu+unix:///system?socket={self.engines}/virt/run/libvirt-sock"
        return self.run("virsh", "-q", "-c", uri, *words, check=check).stdout

    def domains(self):
        return self.virsh("list", "--name").split()

    pid = Cloud.pid
    kill = Cloud.kill

    @property
    def state(self):
        return self.home

    def lose_power(self):
        """Everything that runs on it is gone at once, and what it had on disk with it."""
        name = os.readlink(f"/proc/{self.holder()}/ns/uts")
        run(["ip", "link", "del", self.link])

        def running():
            found = []
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if os.readlink(process / "ns/uts") == name:
                        found.append(int(process.name))
                        os.kill(found[-1], signal.SIGKILL)
            return found

        until_empty(f"nothing of {self.name} runs", running, every=0.05)
        self.record.unlink()
        shutil.rmtree(self.home)

    def end(self):
        if not self.holder():
            return
        if (self.home / "machine.json").exists():
            self.mallee("down", "--all", "--yes", check=False)
        run(["ip", "link", "del", self.link], check=False)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.holder(), signal.SIGKILL)
        self.record.unlink()


class Here:
    """Where the tests run: beyond the machines, on the link that joins them."""

    def command(self, *words):
        return [str(word) for word in words]


class Probe:
    """A network namespace in the place of a guest: an interface of the cloud's, bound on one machine's switch."""

    def __init__(self, many, machine, interface, gateway):
        self.many, self.machine = many, machine
        self.id, self.mac, self.address = interface["NetworkInterfaceId"], interface["MacAddress"], interface["PrivateIpAddress"]
        self.ipv6 = next((one["Ipv6Address"] for one in interface.get("Ipv6Addresses", [])), None)
        self.name = f"p{uuid.uuid4().hex[:8]}"
        self.outer = f"{self.name}o"
        self.servers = []
        inside = self.machine
        inside.run("ip", "netns", "add", self.name)
        # Made in the switch's own namespace, so that the switch finds the one end there.
        engines = many.namespace
        inside.run("ip", "-n", engines, "link", "add", self.outer, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        for where, link in ((engines, self.outer), (self.name, "eth0")):
            inside.run("ip", "netns", "exec", where, "ethtool", "-K", link, "tx", "off")
        inside.run("ip", "-n", engines, "link", "set", self.outer, "up")
        for words in ("link set lo up", f"link set eth0 address {self.mac} mtu 1442 up", f"addr add {self.address}/24 dev eth0",
                      f"route add default via {gateway}"):  # fmt: skip
            self.ip(*words.split())
        port = many.port_of(self.id)
        inside.switch("add-port", "br-int", self.outer, "--", "set", "interface", self.outer, f"external_ids:iface-id={port}")

    def bound(self):
        """Until the whole cloud knows where it is."""
        port = self.many.port_of(self.id)
        up = lambda: self.many.northbound("get", "logical_switch_port", port, "up").strip() == "true"
        until(f"{self.id} is bound on {self.machine.name}", up, every=0.05)
        return self

    def ip(self, *words, check=True):
        return self.machine.run("ip", "-n", self.name, *words, check=check).stdout

    def exec(self, *words, check=True, timeout=30):
        return self.machine.run("ip", "netns", "exec", self.name, *words, check=check, timeout=timeout)

    def pings(self, address, seconds=1, size=56):
        """Whether an echo of that many bytes comes back whole; it must not be cut on its way."""
        return self.exec("python3", "-c", ECHO, address, seconds, size, check=False).returncode == 0

    def serve(self, *ports):
        """Says on these ports who it is and whom it hears, by TCP and UDP."""
        for port in ports:
            self.servers.append(Server(self.machine, port, self.name, "ip", "netns", "exec", self.name))
        return self

    def asks(self, address, port, kind="tcp", seconds=1, source=None):
        """Who answers there, and as whom it hears this probe; empty when nobody does."""
        words = ["python3", "-c", CLIENT, address, port, kind, seconds, source or ""]
        return self.exec(*words, check=False).stdout.strip()

    def lease(self):
        """What it is told when it asks by DHCPv6 for an address; empty when nobody answers."""
        return self.exec("python3", "-c", DHCPV6, check=False).stdout.strip()

    def wear_ipv6(self):
        """The address it is given and the way out that its router advertises, as a guest takes them."""
        leased = until(f"{self.id} is given an IPv6 address", self.lease)
        self.ip("-6", "addr", "add", f"{leased}/128", "dev", "eth0", "nodad")
        until(f"{self.id} has heard its router", lambda: self.ways())
        return leased

    def ways(self):
        """The routers it has heard advertise themselves."""
        return re.findall(r"default (?:proto ra )?via (\S+)", self.ip("-6", "route", "show", "proto", "ra"))

    def claims(self, address, to):
        """Tells another probe, by an answer that nobody asked for, that `address` is here: by ARP, or as IPv6 does."""
        self.exec("python3", "-c", CLAIM if "." in address else CLAIM6, self.mac, address, to.mac, to.address)

    def tells(self, address, ports):
        """One datagram, from a port to a port of everybody or of somebody."""
        self.exec("python3", "-c", TELL, address, *ports)

    def advertises(self):
        """Tells everybody, as a router would, that it is the way out."""
        self.exec("python3", "-c", ADVERTISE)

    def listen_for_claims(self):
        return Ears(self)

    def end(self):
        for server in self.servers:
            server.end()
        with contextlib.suppress(AssertionError):
            self.machine.switch("--if-exists", "del-port", "br-int", self.outer)
        self.machine.run("ip", "netns", "del", self.name, check=False)


class Server:
    """A process on a machine (or in a probe there) that says by TCP and UDP who it is and whom it hears."""

    def __init__(self, machine, port, name, *inside):
        command = machine.command(*inside, "python3", "-c", SERVER, port, name)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def end(self):
        self.process.kill()
        self.process.wait()


SERVER = """
import socket, sys, threading
port, name = int(sys.argv[1]), sys.argv[2].encode()
tcp, udp = socket.socket(socket.AF_INET6), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
for one in (tcp, udp):
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind(("::", port))
tcp.listen(64)
def datagrams():
    while True:
        _, sender = udp.recvfrom(2048)
        udp.sendto(greeting(sender), sender)
def greeting(sender):
    return name + b" hears " + sender[0].removeprefix("::ffff:").encode() + b"\\n"
def session(connection, sender):
    # And then everything back that it is told.
    connection.sendall(greeting(sender))
    while (said := connection.recv(2048)):
        connection.sendall(said)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    threading.Thread(target=session, args=tcp.accept(), daemon=True).start()
"""

CLIENT = """
import socket, sys
address, port, kind, seconds, source = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), sys.argv[5]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
peer = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
peer.settimeout(seconds)
if source:
    peer.bind((source, 0))
peer.connect((address, port))
if kind == "udp":
    peer.send(b"who")
print(peer.recv(2048).decode().strip())
"""

class Ears:
    """What a probe hears of who has which address, and of datagrams: from which port to which, and whose, and of routers."""

    def __init__(self, probe):
        command = probe.machine.command("ip", "netns", "exec", probe.name, "python3", "-c", EARS)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"
        os.set_blocking(self.process.stdout.fileno(), False)
        self.heard = ""

    def lines(self):
        self.heard += (self.process.stdout.read() or b"").decode()
        return self.heard.splitlines()

    def end(self):
        self.process.kill()
        self.process.wait()


EARS = """
import socket
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
link.bind(("eth0", 0))
print("ready", flush=True)
while True:
    frame = link.recv(2048)
    kind, source, packet = frame[12:14], frame[6:12].hex(":"), frame[14:]
    if kind == b"\\x08\\x06":
        print(socket.inet_ntoa(packet[14:18]), "is at", packet[8:14].hex(":"), flush=True)
    elif kind == b"\\x08\\x00" and packet[9] == 17:
        print(int.from_bytes(packet[20:22], "big"), "to", int.from_bytes(packet[22:24], "big"), "of", source, flush=True)
    elif kind == b"\\x86\\xdd" and packet[6] == 17:
        print(int.from_bytes(packet[40:42], "big"), "to", int.from_bytes(packet[42:44], "big"), "of", source, flush=True)
    elif kind == b"\\x86\\xdd" and packet[6] == 58 and packet[40] == 134:
        print("way by", source, flush=True)
    elif kind == b"\\x86\\xdd" and packet[6] == 58 and packet[40] == 136:
        print(socket.inet_ntop(socket.AF_INET6, packet[48:64]), "is at", packet[66:72].hex(":"), flush=True)
"""

CLAIM = """
import socket, sys
own, address, other, its = (word for word in sys.argv[1:])
mac = lambda text: bytes.fromhex(text.replace(":", ""))
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0x0806))
head = bytes.fromhex("0806 0001 0800 0604 0002")
for target in (mac(other), b"\\xff" * 6):
    link.send(target + mac(own) + head + mac(own) + socket.inet_aton(address) + mac(other) + socket.inet_aton(its))
"""

TELL = """
import socket, sys
address, source, target = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peer = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
peer.bind(("", source))
peer.sendto(b"x" * 300, (address, target))
"""

CLAIM6 = """
import socket, sys
own, address, other, _ = (word for word in sys.argv[1:])
mac = lambda text: bytes.fromhex(text.replace(":", ""))
target = socket.inet_pton(socket.AF_INET6, address)
def claim(to, destination):
    # Neighbour advertisement, unasked, to be believed instead of what was known; as the one it claims to be.
    body = bytes([136, 0, 0, 0, 0x20, 0, 0, 0]) + target + bytes([2, 1]) + mac(own)
    pseudo = target + destination + len(body).to_bytes(4, "big") + bytes([0, 0, 0, 58]) + body
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + (~total & 0xFFFF).to_bytes(2, "big") + body[4:]
    head = bytes([0x60, 0, 0, 0]) + len(body).to_bytes(2, "big") + bytes([58, 255])
    return to + mac(own) + b"\\x86\\xdd" + head + target + destination + body
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
everybody = socket.inet_pton(socket.AF_INET6, "ff02::1")
for to in (mac(other), bytes([0x33, 0x33, 0, 0, 0, 1])):
    link.send(claim(to, everybody))
"""

ADVERTISE = """
import socket
peer = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
# Of ordinary preference, for half an hour.
said = bytes([134, 0, 0, 0, 64, 0, 0x07, 0x08]) + bytes(8)
peer.sendto(said, ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
"""

DHCPV6 = """
import os, socket, sys
def option(code, data):
    return code.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
def options(data):
    found = {}
    while len(data) >= 4:
        code, length = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
        found[code], data = data[4 : 4 + length], data[4 + length :]
    return found
CLIENT, SERVER, IA_NA, ADDRESS, ELAPSED = 1, 2, 3, 5, 8
SOLICIT, ADVERTISE, REQUEST, REPLY = 1, 2, 3, 7
with open("/sys/class/net/eth0/address") as file:
    mac = bytes.fromhex(file.read().strip().replace(":", ""))
peer = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
peer.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
peer.bind(("::", 546))
peer.settimeout(2)
def asked(kind, expected, more):
    number = os.urandom(3)
    said = option(CLIENT, bytes([0, 3, 0, 1]) + mac) + option(IA_NA, mac[2:] + bytes(8) + more.pop(IA_NA, b"")) + option(ELAPSED, bytes(2))
    said += b"".join(option(*one) for one in more.items())
    peer.sendto(bytes([kind]) + number + said, ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0")))
    while True:
        answer = peer.recv(2048)
        if answer[0] == expected and answer[1:4] == number:
            return options(answer[4:])
offer = asked(SOLICIT, ADVERTISE, {})
told = asked(REQUEST, REPLY, {SERVER: offer[SERVER], IA_NA: offer[IA_NA][12:]})
print(socket.inet_ntop(socket.AF_INET6, options(told[IA_NA][12:])[ADDRESS][:16]))
"""

ECHO = """
import os, socket, struct, sys, time
address, seconds, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
if ":" in address:
    # The kernel counts the sum of ICMPv6 itself.
    peer = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    data = os.urandom(size)
    peer.sendto(struct.pack("!BBHHH", 128, 0, 0, os.getpid() & 0xFFFF, 1) + data, (address, 0))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        peer.settimeout(left)
        message, sender = peer.recvfrom(65535)
        if sender[0] == address and message[0] == 129 and message[8:] == data:
            sys.exit(0)
    sys.exit(1)
peer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
peer.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
data = os.urandom(size // 2 * 2)
body = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + data
total = sum(struct.unpack(f"!{len(body) // 2}H", body))
while total >> 16:
    total = (total & 0xFFFF) + (total >> 16)
peer.sendto(body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:], (address, 0))
end = time.monotonic() + seconds
while (left := end - time.monotonic()) > 0:
    peer.settimeout(left)
    packet, sender = peer.recvfrom(65535)
    message = packet[(packet[0] & 15) * 4 :]
    if sender[0] == address and message[0] == 0 and message[8:] == data:
        sys.exit(0)
sys.exit(1)
"""

TRAFFIC = """
import socket, sys, time
address, port = sys.argv[1], int(sys.argv[2])
peer = socket.create_connection((address, port), timeout=120)
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
peer.recv(2048)
count = 0
while True:
    peer.sendall(b"%d\\n" % count)
    got = b""
    while not got.endswith(b"\\n"):
        got += peer.recv(2048)
    assert got == b"%d\\n" % count, (got, count)
    count += 1
    print(count, flush=True)
    time.sleep(0.05)
"""


class Traffic:
    """One connection over which something goes to and fro all the time; it must never break."""

    def __init__(self, probe, address, port):
        command = probe.machine.command("ip", "netns", "exec", probe.name, "python3", "-c", TRAFFIC, address, port)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.count = 0
        self.goes_on()

    def read(self):
        read = self.process.stdout.read() or b""
        assert self.process.poll() is None, f"the connection broke after {self.count} exchanges"
        self.count += read.count(b"\n")
        return self.count

    def goes_on(self):
        seen = self.read()
        until("the open connection goes on", lambda: self.read() > seen, every=0.05)

    def end(self):
        self.process.kill()
        self.process.wait()


class Many(Cloud):
    """The machines `a1` (where the cloud's own tiers are), `a2`, `b1` (with the second zone's controllers) and `b2`."""

    def __init__(self, number, programs):
        self.home = pathlib.Path(f"/var/tmp/mallee-many{number or ''}")
        self.bridge = f"many{number}"
        self.underlay = f"{UNDERLAY}.{number}"
        self.name = f"many{number}"
        self.zones = [f"{self.name}a", f"{self.name}b"]
        self.namespace = "mallee"
        self.elastic = f"172.29.{60 + number}.128/25"
        self.outside = f"172.29.{60 + number}.1"
        self.programs = programs
        self.machines = {name: Machine(self, name, at) for at, name in enumerate(("a1", "a2", "b1", "b2"), 1)}
        self.first = self.machines["a1"]
        self.here = Here()
        self.state = self.first.home

    def mallee(self, *words, check=True, timeout=300):
        return self.first.mallee(*words, check=check, timeout=timeout)

    def up(self):
        self.home.mkdir(parents=True, exist_ok=True)
        if run(["ip", "link", "show", self.bridge], check=False).returncode:
            run(["ip", "link", "add", self.bridge, "type", "bridge"])
            run(["ip", "addr", "add", f"{self.underlay}.254/24", "dev", self.bridge])
            run(["ip", "link", "set", self.bridge, "up"])
            run(["ethtool", "-K", self.bridge, "tx", "off"])
        for machine in self.machines.values():
            machine.make()
        zone_a, zone_b = self.zones
        self.mallee(
            "up", "--name", self.name, "--zone", zone_a, "--node", "a1", "--address", f"{self.outside}/24", "--elastic", self.elastic,
            "--public", self.first.address, "--tunnel", self.first.tunnel,
        )  # fmt: skip
        self.mallee("zone", "add", zone_b)
        joins = {
            "a2": [("a2", zone_a, "node-controller")],
            "b1": [(zone_b, zone_b, "cluster-controller"), (zone_b, zone_b, "storage-controller"), ("b1", zone_b, "node-controller")],
            "b2": [("b2", zone_b, "node-controller")],
        }
        for name, roles in joins.items():
            self.join(name, roles)
        self.are_up(*self.machines)

    def join(self, name, roles):
        machine = self.machines[name]
        if not (machine.home / "machine.json").exists():
            machine.join(*[self.token(*role) for role in roles])

    def token(self, name, zone, role):
        return self.mallee("node", "token", name, "--zone", zone, "--role", role).stdout.strip()

    def nodes(self):
        """Node → its state, as `mallee status` tells it."""
        return {row["node"]["node"]: row["node"]["state"] for row in self.status()["nodes"]}

    def status(self):
        done = self.mallee("status", "--json", check=False)
        return json.loads(done.stdout)["cloud"]

    def are_up(self, *names, patience=120):
        def missing():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                there = self.nodes()
                return [name for name in names if there.get(name) != "up"]
            return names

        until(f"{', '.join(names)} are up", lambda: not missing(), patience=patience, every=0.5)

    def down(self):
        for machine in reversed(self.machines.values()):
            machine.end()
        run(["ip", "link", "del", self.bridge], check=False)
        for file in self.home.glob("*.json"):
            file.unlink()
        with contextlib.suppress(OSError):
            self.home.rmdir()

    def exists(self):
        return self.home.exists()

    def northbound(self, *words):
        return self.first.run("ovn-nbctl", f"--db=unix:{self.first.engines}/ovn/nb.sock", *words).stdout

    def southbound(self, *words):
        return self.first.run("ovn-sbctl", f"--db=unix:{self.first.engines}/ovn/sb.sock", *words).stdout

    def port_of(self, interface):
        """The logical port of an interface; its name is what a switch binds it by."""

        def found():
            words = ("--bare", "--columns=name", "find", "logical_switch_port", f"external_ids:interface={interface}")
            return self.northbound(*words).strip()

        return until(f"{interface} has a port", found, every=0.05)

    def effective(self):
        """Returns when every machine's switch does what is in the northbound database now."""
        self.northbound("--wait=hv", "--timeout=60", "sync")


class FarGuest(Guest):
    """A guest whose address is reached from the first machine only."""

    def __init__(self, many, address, key):
        super().__init__(address, key)
        self.many = many

    def command(self, *words):
        return self.many.first.command(*super().command(*words))


def place(many, instance):
    """The machine that runs an instance."""
    found = [machine for machine in many.machines.values() if machine.holder() and instance in machine.domains()]
    assert len(found) <= 1, f"{instance} runs on {[machine.name for machine in found]}"
    return found[0] if found else None


def gateway(cidr):
    """The router's address in a subnet."""
    return re.sub(r"\.\d+/\d+$", ".1", cidr)
