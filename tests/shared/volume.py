"""A volume as its user sees it, at a guest and on its own."""

import contextlib

from waiting import until


class Volume:
    def __init__(self, ec2, id):
        self.ec2, self.id = ec2, id

    @property
    def path(self):
        """The disk in a guest that has it: known by its serial, the id without its dash."""
        return f"/dev/disk/by-id/virtio-{self.id.replace('-', '', 1)}"

    def described(self):
        return self.ec2.describe_volumes(VolumeIds=[self.id])["Volumes"][0]

    def is_in(self, state, patience=60.0):
        until(f"{self.id} is {state}", lambda: self.described()["State"] == state, patience=patience, every=0.05)
        return self

    def attach(self, guest, device="/dev/sdf"):
        """Until the guest has the disk."""
        self.ec2.attach_volume(VolumeId=self.id, InstanceId=guest.id, Device=device)
        until(f"{self.id} is attached", lambda: self.attachment() == "attached", every=0.05)
        until(f"{guest.id} sees {self.id}", lambda: guest.run(f"test -e {self.path} && echo yes", check=False) == "yes")
        return self

    def attachment(self):
        attachments = self.described()["Attachments"]
        return attachments[0]["State"] if attachments else None

    def detach(self, **how):
        self.ec2.detach_volume(VolumeId=self.id, **how)
        return self.is_in("available")

    def snapshot(self):
        """Its instant is fixed when this returns; where its blocks are is another matter."""
        return self.ec2.create_snapshot(VolumeId=self.id)["SnapshotId"]

    def delete(self):
        with contextlib.suppress(self.ec2.exceptions.ClientError):
            self.ec2.delete_volume(VolumeId=self.id)


class Volumes:
    """Makes volumes and snapshots, and takes away what is left of them."""

    def __init__(self, ec2, zone):
        self.ec2, self.zone = ec2, zone
        self.volumes, self.snapshots = [], []

    def __call__(self, size=1, **parameters):
        made = self.ec2.create_volume(AvailabilityZone=self.zone, Size=size, **parameters)
        volume = Volume(self.ec2, made["VolumeId"])
        self.volumes.append(volume)
        return volume.is_in("available")

    def snapshot_of(self, volume):
        self.snapshots.append(volume.snapshot())
        return self.snapshots[-1]

    def completed(self, snapshot, patience=120.0):
        def state():
            (found,) = self.ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
            assert found["State"] != "error", found
            return found["State"] == "completed"

        until(f"{snapshot} is completed", state, patience=patience)

    def end(self):
        for volume in self.volumes:
            with contextlib.suppress(self.ec2.exceptions.ClientError, AssertionError):
                if volume.described()["Attachments"]:
                    volume.detach(Force=True)
                volume.delete()
        for snapshot in self.snapshots:
            with contextlib.suppress(self.ec2.exceptions.ClientError):
                self.ec2.delete_snapshot(SnapshotId=snapshot)
