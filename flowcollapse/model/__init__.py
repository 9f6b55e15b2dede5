"""The unconstrained-features model: its sizes, its state, its risk and the gradient of the risk.

Source: Mixon, Parshall and Pi, "Neural collapse with unconstrained features" (arXiv 2011.11619). The features H are
free variables like the classifier W and the bias b, and the risk of the squared error is

    R(H, W, b) = 1/2 ||W H + b 1^T - I_C (x) 1_N^T||_F^2.

Risk and field are written once for `(W, X, b)`, where `X` is `H` or its class-mean columns (see `columns.py`).
"""

from .coordinates import to_class_means as to_class_means
from .problem import Point as Point, Problem as Problem, problem_of as problem_of, risk as risk, velocity as velocity
from .state import State as State
from .ufm import UFM as UFM
