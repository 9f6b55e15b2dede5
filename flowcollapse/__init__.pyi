from . import (
    curvature as curvature,
    gallery as gallery,
    initial as initial,
    losses as losses,
    metrics as metrics,
    model as model,
    plot as plot,
    theory as theory,
)
from ._errors import (
    CacheWarning as CacheWarning,
    DevicesWarning as DevicesWarning,
    PrecisionWarning as PrecisionWarning,
    UsageError as UsageError,
)
from .comparison.compare import compare as compare
from .compilation_cache import enable_compilation_cache as enable_compilation_cache
from .curvature.hessian import sharpness as sharpness
from .curvature.spectrum import hessian_spectrum as hessian_spectrum
from .endings.verdict import Verdict as Verdict
from .fitting.estimate import fit as fit
from .fitting.result import Fit as Fit
from .measuring.measure import measure as measure
from .methods.descent import Descent as Descent
from .methods.flow import Flow as Flow
from .methods.modified import HeavyBallFlow as HeavyBallFlow, ModifiedFlow as ModifiedFlow
from .model.coordinates import to_class_means as to_class_means
from .model.problem import risk as risk, velocity as velocity
from .model.state import State as State
from .model.ufm import UFM as UFM
from .reporting.page import report as report
from .results.trajectory import Trajectory as Trajectory
from .settings import enable_x64 as enable_x64, use_cpu_cores as use_cpu_cores
from .simulation import simulate as simulate
from .sweeps.store import open_sweep as open_sweep
from .sweeps.sweep import Interrupted as Interrupted, sweep as sweep
from .theory.small_starts.prediction import predict as predict

__all__: list[str]
__version__: str
