from . import initial as initial, metrics as metrics, plot as plot, theory as theory
from ._errors import UsageError as UsageError
from .coordinates import to_class_means as to_class_means
from .descent import Descent as Descent
from .flow import Flow as Flow
from .model import UFM as UFM, State as State, risk as risk, velocity as velocity
from .settings import enable_x64 as enable_x64, use_cpu_cores as use_cpu_cores
from .simulation import simulate as simulate
from .stopping import Verdict as Verdict
from .sweeps.run import Interrupted as Interrupted, sweep as sweep
from .sweeps.store import open_sweep as open_sweep
from .theory.prediction import predict as predict
from .trajectory import Trajectory as Trajectory

__all__: list[str]
__version__: str
