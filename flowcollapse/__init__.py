"""The laboratory for the gradient flow of neural collapse."""

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

__version__ = "0.1.0"
