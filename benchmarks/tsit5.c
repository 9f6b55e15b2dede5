/* Adaptive Tsit5 for the gradient flow of the unconstrained features model, as a limit for the speed of one core.
 *
 *     R(H, W, b) = 1/2 ||W H + b 1^T - Y||_F^2,   (H, W, b)' = -grad R
 *
 * Lanes run one after the other in one thread.  The sizes are macros, so that every loop has a known length:
 * CLASSES, SAMPLES (per class), FEATURES.
 *
 * Tableau, error weights and the free fourth-order interpolant: Ch. Tsitouras, "Runge-Kutta pairs of order 5(4)
 * satisfying only the first column simplifying assumption", Computers & Mathematics with Applications 62 (2011).
 * First step: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", section II.4.
 * Step control: I control with the largest of four block errors, a block being W, the class means, the features'
 * deviations from them, or b:  ||err|| / (rtol (||block at the start|| + max(||block before||, ||block after||))).
 */
#include <math.h>
#include <stddef.h>
#include <string.h>

#define COLUMNS (CLASSES * SAMPLES)
#define ROW ((FEATURES + 3) / 4 * 4) /* rows are padded with zeros to whole vectors */
#define W_SIZE (CLASSES * ROW)
#define H_SIZE (COLUMNS * ROW)
#define B_OFFSET (W_SIZE + H_SIZE)
#define SIZE ((B_OFFSET + CLASSES + 7) / 8 * 8)
#define NUM_BLOCKS 4
#define NUM_METRICS 5
#define MAX_STEPS 1000000

/* A state is [W rows | H columns | b]; H is stored transposed so that both matrices have rows of equal length. */
typedef double state[SIZE] __attribute__((aligned(64)));

static const double A[6][6] = {
    {0.161},
    {-0.008480655492356989, 0.335480655492357},
    {2.8971530571054935, -6.359448489975075, 4.3622954328695815},
    {5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525},
    {5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383},
    {0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774}};
static const double ERROR[7] = {-0.001780011052226,    -0.000816434459657, 0.007880878010262, -0.144711007173263,
                                0.582357165452555,     -0.458082105929187, 1.0 / 66.0};

static void field(const double *restrict z, double *restrict out) {
    const double *w = z, *h = z + W_SIZE, *b = z + B_OFFSET;
    double *dw = out, *dh = out + W_SIZE, *db = out + B_OFFSET;
    double residual[CLASSES][COLUMNS]; /* the negative residual, so that no sign needs to be flipped */
    memset(out, 0, sizeof(state));
    for (int c = 0; c < CLASSES; c++)
        for (int j = 0; j < COLUMNS; j++) {
            double sum = 0.0;
            for (int i = 0; i < ROW; i++) sum += w[c * ROW + i] * h[j * ROW + i];
            residual[c][j] = (j / SAMPLES == c) - b[c] - sum;
        }
    for (int c = 0; c < CLASSES; c++)
        for (int j = 0; j < COLUMNS; j++) {
            const double g = residual[c][j];
            db[c] += g;
            for (int i = 0; i < ROW; i++) dw[c * ROW + i] += g * h[j * ROW + i];
        }
    for (int j = 0; j < COLUMNS; j++)
        for (int c = 0; c < CLASSES; c++)
            for (int i = 0; i < ROW; i++) dh[j * ROW + i] += residual[c][j] * w[c * ROW + i];
}

static double square(double x) { return x * x; }

static double sum_of_squares(const double *x, int size) {
    double sum = 0.0;
    for (int i = 0; i < size; i++) sum += x[i] * x[i];
    return sum;
}

static void class_mean(const double *restrict z, int c, double *restrict mean) {
    for (int i = 0; i < ROW; i++) {
        double sum = 0.0;
        for (int n = 0; n < SAMPLES; n++) sum += z[W_SIZE + (c * SAMPLES + n) * ROW + i];
        mean[i] = sum / SAMPLES;
    }
}

/* The 2-norms of W, the class means (counted SAMPLES times), the deviations from them, and b. */
static void block_norms(const double *restrict z, double norms[NUM_BLOCKS]) {
    double means = 0.0, deviations = 0.0;
    for (int c = 0; c < CLASSES; c++) {
        double mean[ROW];
        class_mean(z, c, mean);
        means += SAMPLES * sum_of_squares(mean, ROW);
        for (int n = 0; n < SAMPLES; n++)
            for (int i = 0; i < ROW; i++) deviations += square(z[W_SIZE + (c * SAMPLES + n) * ROW + i] - mean[i]);
    }
    norms[0] = sqrt(sum_of_squares(z, W_SIZE));
    norms[1] = sqrt(means);
    norms[2] = sqrt(deviations);
    norms[3] = sqrt(sum_of_squares(z + B_OFFSET, CLASSES));
}

static double largest(const double part[NUM_BLOCKS], const double start[NUM_BLOCKS], const double before[NUM_BLOCKS],
                      const double after[NUM_BLOCKS], double rtol) {
    double worst = 0.0;
    for (int k = 0; k < NUM_BLOCKS; k++) {
        const double scale = rtol * (start[k] + fmax(before[k], after[k]));
        if (scale > 0.0) worst = fmax(worst, part[k] / scale);
    }
    return worst;
}

/* SNC1, SNC2, SNC3, distance to the invariant subspace over the norm of the state, risk. */
static void metrics(const double *restrict z, double out[NUM_METRICS]) {
    const double *w = z, *h = z + W_SIZE, *b = z + B_OFFSET, s = sqrt((double)SAMPLES);
    double gram = 0.0, duality = 0.0, bias = 0.0, risk = 0.0, distance = 0.0, mean_bias = 0.0, norm = 0.0;
    double gap[CLASSES][ROW], gap_sum[ROW] = {0}, w_sum[ROW] = {0}, mean_sum[ROW] = {0};

    for (int c = 0; c < CLASSES; c++) {
        double mean[ROW];
        class_mean(z, c, mean);
        for (int i = 0; i < ROW; i++) {
            gap[c][i] = w[c * ROW + i] - s * mean[i];
            gap_sum[i] += gap[c][i];
            w_sum[i] += w[c * ROW + i];
            mean_sum[i] += mean[i];
        }
        for (int n = 0; n < SAMPLES; n++)
            for (int i = 0; i < ROW; i++) {
                const double x = h[(c * SAMPLES + n) * ROW + i];
                duality += square(x - w[c * ROW + i] / s);
                distance += square(x - mean[i]);
            }
        for (int d = 0; d < CLASSES; d++) {
            double sum = 0.0;
            for (int i = 0; i < ROW; i++) sum += w[c * ROW + i] * w[d * ROW + i];
            gram += square(sum - s * ((c == d) - 1.0 / CLASSES));
        }
        for (int j = 0; j < COLUMNS; j++) {
            double sum = b[c] - (j / SAMPLES == c);
            for (int i = 0; i < ROW; i++) sum += w[c * ROW + i] * h[j * ROW + i];
            risk += 0.5 * square(sum);
        }
        bias += square(b[c] - 1.0 / CLASSES);
        mean_bias += b[c] / CLASSES;
    }
    for (int c = 0; c < CLASSES; c++) {
        distance += square(b[c] - mean_bias);
        for (int i = 0; i < ROW; i++) distance += 0.5 * square(gap[c][i] - gap_sum[i] / CLASSES);
    }
    distance += (sum_of_squares(w_sum, ROW) + SAMPLES * sum_of_squares(mean_sum, ROW)) / CLASSES;
    norm = sum_of_squares(z, SIZE);
    out[0] = sqrt(gram);
    out[1] = sqrt(duality / sum_of_squares(h, H_SIZE));
    out[2] = sqrt(bias);
    out[3] = sqrt(distance / norm);
    out[4] = risk;
}

static void interpolate(const double *restrict z, double *const k[7], double h, double x, double *restrict out) {
    const double x2 = x * x, weights[7] = {
        -1.0530884977290216 * x * (x - 1.3299890189751412) * (x2 - 1.4364028541716351 * x + 0.7139816917074209),
        0.1017 * x2 * (x2 - 2.1966568338249754 * x + 1.2949852507374631),
        2.490627285651252793 * x2 * (x2 - 2.38535645472061657 * x + 1.57803468208092486),
        -16.54810288924490272 * x2 * (x - 1.21712927295533244) * (x - 0.61620406037800089),
        47.37952196281928122 * x2 * (x - 1.203071208372362603) * (x - 0.658047292653547382),
        -34.87065786149660974 * x2 * (x - 1.2) * (x - 2.0 / 3.0),
        2.5 * x2 * (x - 1.0) * (x - 0.6)};
    memcpy(out, z, sizeof(state));
    for (int m = 0; m < 7; m++)
        for (int i = 0; i < SIZE; i++) out[i] += h * weights[m] * k[m][i];
}

static double first_step(const double *z, const double *k, const double norms[NUM_BLOCKS], double rtol,
                         double *work, double *slope) {
    double part[NUM_BLOCKS], zero[NUM_BLOCKS] = {0}, size, speed, bend;
    block_norms(k, part);
    speed = largest(part, norms, norms, zero, rtol);
    size = largest(norms, norms, norms, zero, rtol);
    const double trial = size < 1e-5 || speed < 1e-5 ? 1e-6 : 0.01 * size / speed;
    for (int i = 0; i < SIZE; i++) work[i] = z[i] + trial * k[i];
    field(work, slope);
    for (int i = 0; i < SIZE; i++) work[i] = (slope[i] - k[i]) / trial;
    block_norms(work, part);
    bend = fmax(speed, largest(part, norms, norms, zero, rtol));
    return fmin(100.0 * trial, bend < 1e-15 ? fmax(1e-6, 1e-3 * trial) : pow(0.01 / bend, 0.2));
}

/* Integrates z from 0 to times[num_times - 1]; curve[num_times][NUM_METRICS] may be NULL.  Returns 0 at the end time. */
static int lane(double *z, const double *times, int num_times, double rtol, double *curve, int *accepted,
                int *rejected) {
    static state stages[7], work, scratch;
    double *k[7], start[NUM_BLOCKS], before[NUM_BLOCKS], after[NUM_BLOCKS], part[NUM_BLOCKS];
    const double end = times[num_times - 1];
    double t = 0.0;
    int next = 0;
    *accepted = *rejected = 0;
    for (int m = 0; m < 7; m++) k[m] = stages[m];
    for (; curve && next < num_times && times[next] <= 0.0; next++) metrics(z, curve + NUM_METRICS * next);

    field(z, k[0]);
    block_norms(z, start);
    memcpy(before, start, sizeof(start));
    double h = first_step(z, k[0], start, rtol, work, k[1]);
    while (t < end) {
        if (*accepted + *rejected >= MAX_STEPS) return 1;
        const int last = t + h >= end * (1.0 - 1e-14);
        if (last) h = end - t;
#pragma GCC unroll 6
        for (int m = 1; m < 7; m++) { /* the last row is the solution itself: stage 7 is the next step's first */
            for (int i = 0; i < SIZE; i++) {
                double sum = 0.0;
#pragma GCC unroll 6
                for (int n = 0; n < m; n++) sum += A[m - 1][n] * k[n][i];
                work[i] = z[i] + h * sum;
            }
            field(work, k[m]);
        }
        for (int i = 0; i < SIZE; i++) {
            double sum = 0.0;
#pragma GCC unroll 7
            for (int n = 0; n < 7; n++) sum += ERROR[n] * k[n][i];
            scratch[i] = h * sum;
        }
        block_norms(scratch, part);
        block_norms(work, after);
        const double error = largest(part, start, before, after, rtol);
        const double factor = fmin(10.0, 0.9 * pow(fmax(error, 1e-30), -0.2));
        if (error <= 1.0) {
            const double arrival = last ? end : t + h;
            for (; curve && next < num_times && times[next] <= arrival; next++) {
                const double x = (times[next] - t) / h;
                if (x < 1.0) interpolate(z, k, h, x, scratch);
                metrics(x < 1.0 ? scratch : work, curve + NUM_METRICS * next);
            }
            double *swap = k[0];
            k[0] = k[6];
            k[6] = swap;
            memcpy(z, work, sizeof(state));
            memcpy(before, after, sizeof(after));
            t = arrival;
            h *= fmax(1.0, factor);
            ++*accepted;
        } else {
            h *= fmax(0.2, fmin(1.0, factor));
            ++*rejected;
        }
    }
    return 0;
}

/* Row-major arrays: H0, H [lanes][FEATURES][COLUMNS], W0, W [lanes][CLASSES][FEATURES], b0, b [lanes][CLASSES],
 * times [lanes][num_times], curves [lanes][num_times][NUM_METRICS] or NULL.  Returns how many lanes did not finish. */
int solve(int lanes, int num_times, double rtol, const double *H0, const double *W0, const double *b0,
          const double *times, double *H, double *W, double *b, double *curves, int *accepted, int *rejected) {
    static state z;
    int failures = 0;
    for (int l = 0; l < lanes; l++) {
        const size_t h_at = (size_t)l * FEATURES * COLUMNS, w_at = (size_t)l * CLASSES * FEATURES;
        memset(z, 0, sizeof(z));
        for (int i = 0; i < FEATURES; i++) {
            for (int c = 0; c < CLASSES; c++) z[c * ROW + i] = W0[w_at + c * FEATURES + i];
            for (int j = 0; j < COLUMNS; j++) z[W_SIZE + j * ROW + i] = H0[h_at + i * COLUMNS + j];
        }
        for (int c = 0; c < CLASSES; c++) z[B_OFFSET + c] = b0[l * CLASSES + c];
        failures += lane(z, times + (size_t)l * num_times, num_times, rtol,
                         curves ? curves + (size_t)l * num_times * NUM_METRICS : NULL, accepted + l, rejected + l);
        for (int i = 0; i < FEATURES; i++) {
            for (int c = 0; c < CLASSES; c++) W[w_at + c * FEATURES + i] = z[c * ROW + i];
            for (int j = 0; j < COLUMNS; j++) H[h_at + i * COLUMNS + j] = z[W_SIZE + j * ROW + i];
        }
        for (int c = 0; c < CLASSES; c++) b[l * CLASSES + c] = z[B_OFFSET + c];
    }
    return failures;
}
