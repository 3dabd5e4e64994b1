"""What can go wrong, and which exit code the commands answer with.

DnaError
├── RequestError          2  the request is wrong: a flag, a name, a file
│   ├── TableError           a latency table that cannot be read or lacks what is asked of it
│   ├── DataError            a data set or an image that cannot be used
│   ├── TeacherError         a teacher that cannot be cut or taught with
│   └── RunError             a run folder that is missing, incomplete or of another kind
├── MachineError          3  the machine failed: a full disk, a package that is missing
│   └── CannotRun            a file that is whole but cannot be run on this machine
└── NegativeAnswer        1  the request was fine and the answer is no
    ├── NothingFits          no network of the space is within the budget
    └── CheckFailed          an exported network did not pass its verification

Problems with a device are `profilers.ProfilerError` (exit 3). The commands know both trees; any other
exception is a bug and keeps its traceback.
"""


def first_line(error: BaseException, longest: int = 160) -> str:
    """What another library's exception says, short enough to stand inside our own line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]


class DnaError(Exception):
    """A deliberate error: one line that says what, where, what was expected and what to do next."""

    exit_code = 2


class RequestError(DnaError):
    pass


class TableError(RequestError):
    pass


class DataError(RequestError):
    pass


class TeacherError(RequestError):
    pass


class RunError(RequestError):
    pass


class MachineError(DnaError):
    exit_code = 3


class CannotRun(MachineError):
    pass


class NegativeAnswer(DnaError):
    exit_code = 1


class NothingFits(NegativeAnswer):
    pass


class CheckFailed(NegativeAnswer):
    pass
