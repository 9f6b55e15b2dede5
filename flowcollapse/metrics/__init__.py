"""Collapse metrics of a state: strong collapse, neural collapse, the distance to S, risk and conserved quantities.

Every metric is one function of `W`, `b` and the split of the features into class means `B = Hbar diag(sqrt n)` and a
within-class part `L`, so it is the same in every kind of columns. `M = [mu_c - mu_G]` holds the class means minus
their unweighted mean; `s = sqrt N`; `P = I - 1 1^T / C` (the identity without a bias).

| name | definition | source |
|---|---|---|
| `snc1` | `||W W^T - s P||_F`; other losses `||W W^T - rho s P / q||_F` | the paper, as its figures plot it |
| `snc2` | `||H - q (W (x) 1_N)^T / s||_F / ||H||_F`, `q = (lam_W/lam_H)^1/2`, 1 for the squared error | the paper |
| `snc3` | `||b - 1/C||_2`; other losses: b minus its mean, or b itself if it decays | the paper |
| `distance`, `relative_distance` | `||z - Pi_S z||_E`, and over `||z||_E` | the paper, Figure 2 |
| `nc1` | `tr(S_W S_B^+) / C` | Papyan, Han and Donoho 2020 |
| `nc1_trace` | `tr S_W / tr S_B` | Tirer, Huang and Niles-Weed 2023 |
| `nc2_norm_h`, `nc2_norm_w` | std over mean of the class means' lengths, of the classifier's rows | Papyan et al. |
| `nc2_angle_h`, `nc2_angle_w` | mean of `|cos + 1/(C-1)|` over pairs | Papyan et al. |
| `nc2_etf_h`, `nc2_etf_w` | `|| M^T M / ||M^T M|| - P / sqrt(C-1) ||_F`, `W W^T` likewise | Zhu et al. 2021 |
| `nc3` | `|| W^T/||W|| - M/||M|| ||_F` | Papyan et al. |
| `nc4` | share of samples where the classifier and the nearest class mean disagree | Papyan et al. |
| `cdnv` | `(s_i^2 + s_j^2) / (2 ||mu_i - mu_j||^2)` over pairs | Galanti, Gyorgy and Hutter 2021 |
| `margin` | smallest `z_y - max_{j != y} z_j` over the samples | Soudry et al. 2018 |
| `normalised_margin` | `margin / (1/2 (||W||^2 + ||H||^2))` | Lyu and Li 2020; Ji et al. 2022 |
| `smoothed_margin` | `-ln(e^R - 1) / (||W||^2 + ||H||^2)`, R the summed loss without decay | Lyu and Li 2020 |
| `logit_spread` | `min_rho ||P Z - rho P Y|| / ||P Z||` with the logits Z and the labels Y | Thrampoulidis et al. |
| `alignment` | `|| W^T U/||W^T U|| - B V/||B V|| ||_F`, U, V the singular vectors of the targets | derived here |
| `residual_norm` | `||dR/dZ||_op` without decay; only on request | derived here |
| `risk`, `grad_norm` | the risk and the norm of its gradient | the paper |
| `balancedness` | `||W^T W - H H^T - (the same at the start)||_F / ||H at the start||_F^2` | conserved by the flow |
| `sharpness` | the largest eigenvalue of the risk's Hessian; costly, computed only on request | Lanczos 1950 |

| `nc2_etf_unit_h`, `nc2_etf_unit_w` | `nc2_etf` of the unit vectors: angles alone, for unequal lengths | Zhu et al. |
| `gnc2_log`, `gnc2_riesz` | mean of `-ln d` and `1/d` over pairs, d between directions of two means | Liu et al. 2023 |
| `gnc2_log_cv`, `gnc2_riesz_cv` | std over mean of `-ln d` and of `1/d` over pairs | Wu and Papyan 2024 |
| `nc3_etf` | `|| W M / ||W M||_F - P / sqrt(C-1) ||_F` | Zhu et al. |
| `unc3` | std over mean of `w_c . m_c` over the classes | Wu and Papyan 2024 |
| `nc5` | mean of `|cos(mu_c, mu_out)|`, `mu_out` the mean of features outside the classes | Ben Ammar et al. 2024 |
| `ncc_error` | share of samples whose nearest class mean is that of another class | Galanti et al. |
| `effective_rank_means` | `exp(-sum q ln q)`, q the shares of the eigenvalues of `M M^T` | Roy and Vetterli 2007 |
| `effective_rank_features` | the same for the covariance of all samples; costly | Roy and Vetterli 2007 |
| `nc1_class` | `tr S_c / tr S_B` of each class; its mean weighted by the counts is `nc1_trace` | derived here |
| `class_distances` | `||mu_i - mu_j||` | |

A ratio whose denominator vanishes (near H = 0) is NaN.

From `nc2_etf_unit_h` to `unc3`, metrics are computed in runs on request only; from `nc5` on, they exist for measured
features alone (`from_features`, `Accumulator`, `fc.measure`); `nc5` does not centre the means. On an exact simplex of
dual class means all are 0, apart from `gnc2_log = -ln(2C/(C-1))/2`, `gnc2_riesz = ((C-1)/(2C))^1/2` and the effective
ranks, C - 1.

For a loss of the softmax, SNC1 to SNC3 measure against its collapsed minimum, whose logits are `rho P` with
`rho = loss.collapsed_logit(sqrt(lam_W lam_H) / s, C)`. Cross-entropy and the focal loss have none without decay. The
metrics from `margin` to `alignment` are defaults for losses of the softmax, and can be requested for any loss. The
smoothed margin of cross-entropy without decay and bias never decreases along a flow once R is below ln 2. The logits
`P Y` maximise the margin for all counts (Thrampoulidis et al. 2022), and the targets behind `alignment` are
`P diag(sqrt n)`, so without decay both apply to unequal counts too. At a critical point of a convex loss, a residual
norm of at most `sqrt(lam_W lam_H)` certifies a global minimum."""

from .accumulator import Accumulator as Accumulator
from .evaluation import evaluate as evaluate, snc as snc
from .features import from_features as from_features
from .registry import METRICS as METRICS
from .view import Metric as Metric
