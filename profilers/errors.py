"""What can go wrong with a device; the commands answer each with one line and exit code 3.

ProfilerError
├── UnknownDevice      no such device, or a setting that none has (exit 2: the request is wrong)
├── DeviceUnavailable  the device or its runtime cannot be reached from here
└── ModelRejected      the device's runtime refused a model, or ran it elsewhere than asked
    ├── ModelBroken       because it is no valid graph (exit 2: the request is wrong)
    └── ModelUnsupported  because it cannot run one of its nodes (exit 1: the answer is no)
"""


class ProfilerError(Exception):
    exit_code = 3


class UnknownDevice(ProfilerError):
    exit_code = 2


class DeviceUnavailable(ProfilerError):
    pass


class ModelRejected(ProfilerError):
    pass


class ModelBroken(ModelRejected):
    exit_code = 2


class ModelUnsupported(ModelRejected):
    exit_code = 1
