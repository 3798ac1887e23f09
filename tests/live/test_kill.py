"""kill -9 of every daemon, with a guest running and a session open to it: the session lives, the guest is not restarted,
describe tells the truth, and what was asked meanwhile is done."""

import os
import signal
import time

import pytest

from guest import Session
from mallee_cloud import TIERS
from waiting import until


@pytest.fixture(scope="module")
def session(guest):
    session = Session(guest)
    yield session
    session.end()


@pytest.fixture
def untouched(cloud, guest, session):
    """Around each test: the same boot in the same process, and the session goes on."""
    before = guest.boot_id(), cloud.qemu(guest.id)
    yield
    session.goes_on()
    assert (guest.boot_id(), cloud.qemu(guest.id)) == before
    until("describe says running", lambda: guest.described()["State"]["Name"] == "running")


def describe_tells_the_truth(guest):
    """Once the front answers again, there is no moment in which it says anything but running."""

    def answered():
        try:
            state = guest.described()["State"]["Name"]
        except Exception as error:
            assert type(error).__name__ in {"EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError"}, error
            return False
        assert state == "running"
        return True

    until("the front answers", answered, every=0.05)
    for _ in range(20):
        assert answered()
        time.sleep(0.1)


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_is_killed(tier, cloud, guest, session, untouched):
    cloud.kill(tier)
    session.goes_on()
    describe_tells_the_truth(guest)


def test_all_tiers_are_killed_at_once(cloud, guest, session, untouched):
    cloud.kill(*TIERS)
    session.goes_on()
    describe_tells_the_truth(guest)


@pytest.mark.parametrize("engine", ["ovs-vswitchd", "ovsdb", "ovn-controller", "ovn-northd", "ovn-nb", "ovn-sb", "libvirtd", "virtlogd"])
def test_an_engine_is_killed(engine, cloud, guest, session, untouched):
    cloud.kill(engine)
    session.goes_on()
    # A new connection, too: addresses, ports and rules are there again.
    guest.wait()


def test_the_supervisor_is_killed_and_up_starts_the_next(cloud, guest, session, untouched):
    cloud.kill("supervisor", wait=False)
    until("it is gone", lambda: cloud.pid("supervisor") is None, every=0.05)
    cloud.up()
    assert cloud.pid("supervisor")
    cloud.kill("walrus")


def test_a_launch_made_while_the_cluster_controller_was_down_completes(cloud, launch, untouched):
    """It is stopped rather than killed, because the supervisor brings a killed one back at once; then it is killed."""
    pid = cloud.pid("cluster-controller")
    os.kill(pid, signal.SIGSTOP)
    try:
        other = launch()
        time.sleep(2)
        assert other.described()["State"]["Name"] == "pending"
    finally:
        os.kill(pid, signal.SIGKILL)
    other.is_in("running")
    other.wait()
    assert [name for name in cloud.domains() if name == other.id] == [other.id]


@pytest.mark.parametrize("tier", ["cloud-controller", "cluster-controller", "node-controller"])
def test_a_tier_is_killed_in_the_middle_of_a_launch(tier, cloud, launch, untouched):
    other = launch()
    cloud.kill(tier)
    until("the front answers", lambda: is_running(other), every=0.5)
    other.wait()


def is_running(guest):
    try:
        return guest.described()["State"]["Name"] == "running"
    except guest.ec2.exceptions.ClientError:
        raise
    except Exception:
        # The front is not back yet.
        return False


def test_the_same_client_token_makes_one_instance_even_across_a_kill(cloud, ec2, launch, untouched):
    token = f"tests-{os.urandom(8).hex()}"
    first = launch(ClientToken=token)
    parameters = dict(
        ImageId=first.described()["ImageId"], InstanceType="mini.nano", KeyName=first.described()["KeyName"],
        SecurityGroupIds=[first.group], MinCount=1, MaxCount=1, ClientToken=token,
    )  # fmt: skip
    again = ec2.run_instances(**parameters)["Instances"]
    assert [one["InstanceId"] for one in again] == [first.id]
    cloud.kill("cloud-controller")
    until("the front answers", lambda: cloud.answers())
    again = ec2.run_instances(**parameters)["Instances"]
    assert [one["InstanceId"] for one in again] == [first.id]
    with pytest.raises(ec2.exceptions.ClientError) as refused:
        ec2.run_instances(**(parameters | {"InstanceType": "t3.micro"}))
    assert refused.value.response["Error"]["Code"] == "IdempotentParameterMismatch"
