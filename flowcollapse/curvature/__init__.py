"""The Hessian of the risk: its products, the sharpness, the spectrum, each without ever making the matrix."""

from .hessian import (
    hessian_trace as hessian_trace,
    hessian_vector_product as hessian_vector_product,
    sharpness as sharpness,
)
from .spectrum import (
    SpectralDensity as SpectralDensity,
    Spectrum as Spectrum,
    hessian_spectrum as hessian_spectrum,
    spectral_density as spectral_density,
)
