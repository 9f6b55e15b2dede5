"""The Hessian of the risk: its products, its sharpness and its spectrum, without forming the full matrix."""

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
