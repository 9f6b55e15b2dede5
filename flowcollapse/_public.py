"""The public names, in one place: `import flowcollapse as fc` has each of them as `fc.<name>`."""

from . import initial as initial, metrics as metrics
from ._errors import UsageError as UsageError
from .coordinates import class_mean_state as to_class_means
from .descent import Descent as Descent
from .flow import Flow as Flow
from .model import UFM as UFM, State as State, risk as risk, velocity as velocity
from .precision import enable_x64 as enable_x64
from .simulate import simulate as simulate
from .stopping import Verdict as Verdict
from .trajectory import Trajectory as Trajectory

__all__ = [
    "UFM",
    "Descent",
    "Flow",
    "State",
    "Trajectory",
    "UsageError",
    "Verdict",
    "enable_x64",
    "initial",
    "metrics",
    "risk",
    "simulate",
    "to_class_means",
    "velocity",
]
