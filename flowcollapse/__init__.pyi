from . import initial as initial, metrics as metrics, plot as plot, theory as theory
from ._errors import (
    CacheWarning as CacheWarning,
    DevicesWarning as DevicesWarning,
    PrecisionWarning as PrecisionWarning,
    UsageError as UsageError,
)
from .comparison import compare as compare
from .compilation_cache import enable_compilation_cache as enable_compilation_cache
from .coordinates import to_class_means as to_class_means
from .descent import Descent as Descent
from .flow import Flow as Flow
from .hessian import sharpness as sharpness
from .model import UFM as UFM, State as State, risk as risk, velocity as velocity
from .modified import HeavyBallFlow as HeavyBallFlow, ModifiedFlow as ModifiedFlow
from .settings import enable_x64 as enable_x64, use_cpu_cores as use_cpu_cores
from .simulation import simulate as simulate
from .spectrum import hessian_spectrum as hessian_spectrum
from .stopping import Verdict as Verdict
from .sweeps.run import Interrupted as Interrupted, sweep as sweep
from .sweeps.store import open_sweep as open_sweep
from .theory.prediction import predict as predict
from .trajectory import Trajectory as Trajectory

__all__: list[str]
__version__: str
