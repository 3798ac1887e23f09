"""Any operation of EC2 by its name and parameters, as boto3 has them: with boto3, and with the AWS CLI, which takes the same
in JSON. Waiters too."""

import json

import with_awscli
import with_boto3


class Boto3:
    def __init__(self, cloud):
        self.ec2 = with_boto3.client(cloud, "ec2", "http")

    def __call__(self, operation, **parameters):
        with with_boto3.refusals():
            return getattr(self.ec2, operation)(**parameters)

    def wait(self, waiter, **parameters):
        self.ec2.get_waiter(waiter).wait(**parameters, WaiterConfig={"Delay": 1, "MaxAttempts": 180})


class AwsCli:
    def __init__(self, cloud):
        self.aws, self.patient, self.waited = with_awscli.AwsCli(cloud, 1), Boto3(cloud), set()

    def __call__(self, operation, **parameters):
        text = self.aws("ec2", operation.replace("_", "-"), "--output", "json", "--cli-input-json", json.dumps(parameters))
        return json.loads(text) if text.strip() else {}

    def wait(self, waiter, **parameters):
        """The CLI asks every 15 seconds, and cannot be told otherwise: it is asked when it is so, and each of its waiters once."""
        self.patient.wait(waiter, **parameters)
        if waiter not in self.waited:
            self.waited.add(waiter)
            self.aws("ec2", "wait", waiter.replace("_", "-"), "--cli-input-json", json.dumps(parameters))


CLIENTS = {"boto3": Boto3, "awscli": AwsCli}
