/* The recurrence of Dao & Gu 2024 (arXiv:2405.21060, equations 1 and 2 with a scalar A): see reference.h. */
#include "tests/reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *zeroed(size_t n, size_t size)
{
	void *memory = calloc(n, size);

	if (!memory) {
		fputs("reference: out of memory\n", stderr);
		exit(1);
	}
	return memory;
}

/* A layer's weights as float32, and what its rows leave behind. */
struct layer_run {
	const struct shape *shape;
	float *norm, *in_proj, *in_proj_bias, *conv, *conv_bias, *dt_bias, *a_log, *d, *gated_norm, *out_proj,
		*out_proj_bias;
	double *conv_state; /* [conv_dim, conv_kernel] */
	double *ssm_state;  /* [num_heads, head_dim, state_size] */
	double *normed;     /* [hidden_size] */
	double *projected;  /* [in_proj_rows]: z, x, B, C, dt */
	double *xbc;        /* [conv_dim] */
	double *y;          /* [d_inner] */
};

static float *widened(const struct tensor *tensor, size_t n)
{
	float *weights = zeroed(n, sizeof *weights);

	tensor_widen(tensor, weights, n);
	return weights;
}

static struct layer_run layer_open(const struct shape *s, const struct layer *layer)
{
	return (struct layer_run){
		.shape = s,
		.norm = widened(&layer->norm, s->hidden_size),
		.in_proj = widened(&layer->in_proj, s->in_proj_rows * s->hidden_size),
		.in_proj_bias = widened(&layer->in_proj_bias, s->in_proj_rows),
		.conv = widened(&layer->conv, s->conv_dim * s->conv_kernel),
		.conv_bias = widened(&layer->conv_bias, s->conv_dim),
		.dt_bias = widened(&layer->dt_bias, s->num_heads),
		.a_log = widened(&layer->a_log, s->num_heads),
		.d = widened(&layer->d, s->num_heads),
		.gated_norm = widened(&layer->gated_norm, s->d_inner),
		.out_proj = widened(&layer->out_proj, s->hidden_size * s->d_inner),
		.out_proj_bias = widened(&layer->out_proj_bias, s->hidden_size),
		.conv_state = zeroed(s->conv_dim * s->conv_kernel, sizeof(double)),
		.ssm_state = zeroed(shape_ssm_state_floats(s), sizeof(double)),
		.normed = zeroed(s->hidden_size, sizeof(double)),
		.projected = zeroed(s->in_proj_rows, sizeof(double)),
		.xbc = zeroed(s->conv_dim, sizeof(double)),
		.y = zeroed(s->d_inner, sizeof(double)),
	};
}

static void layer_close(struct layer_run *run)
{
	float *const weights[] = {
		run->norm, run->in_proj, run->in_proj_bias, run->conv, run->conv_bias, run->dt_bias, run->a_log, run->d,
		run->gated_norm, run->out_proj, run->out_proj_bias
	};
	double *const values[] = {
		run->conv_state, run->ssm_state, run->normed, run->projected, run->xbc, run->y
	};

	for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
		free(weights[i]);
	for (size_t i = 0; i < sizeof values / sizeof *values; i++)
		free(values[i]);
}

static double silu(double x)
{
	return x / (1 + exp(-x));
}

/* x [n] divided by its root mean square, times weight. */
static void normalise(const double *x, const float *weight, size_t n, double epsilon, double *out)
{
	double squares = 0;

	for (size_t i = 0; i < n; i++)
		squares += x[i] * x[i];
	for (size_t i = 0; i < n; i++)
		out[i] = x[i] / sqrt(squares / (double)n + epsilon) * (double)weight[i];
}

/* out [rows] = bias + weight [rows, n] x [n] */
static void multiply(const float *weight, const float *bias, const double *x, size_t rows, size_t n, double *out)
{
	for (size_t r = 0; r < rows; r++) {
		out[r] = (double)bias[r];
		for (size_t i = 0; i < n; i++)
			out[r] += (double)weight[r * n + i] * x[i];
	}
}

static void convolve(struct layer_run *run)
{
	const size_t taps = run->shape->conv_kernel;

	for (size_t i = 0; i < run->shape->conv_dim; i++) {
		double *state = run->conv_state + i * taps, sum = (double)run->conv_bias[i];

		memmove(state, state + 1, (taps - 1) * sizeof *state);
		state[taps - 1] = run->projected[run->shape->d_inner + i];
		for (size_t k = 0; k < taps; k++)
			sum += (double)run->conv[i * taps + k] * state[k];
		run->xbc[i] = silu(sum);
	}
}

/* S = exp(a dt) S + dt x B;  y = S C + D x, for one head. */
static void scan(struct layer_run *run, size_t head)
{
	const struct shape *s = run->shape;
	const size_t group = head / (s->num_heads / s->n_groups);
	const double *b = run->xbc + s->d_inner + group * s->state_size, *c = b + s->n_groups * s->state_size;
	const double raw = run->projected[s->d_inner + s->conv_dim + head] + (double)run->dt_bias[head];
	const double dt = fmin(fmax(log1p(exp(raw)), (double)s->dt_min), (double)s->dt_max);
	const double decay = exp(-exp((double)run->a_log[head]) * dt);

	for (size_t p = 0; p < s->head_dim; p++) {
		const size_t column = head * s->head_dim + p;
		double *state = run->ssm_state + column * s->state_size;

		run->y[column] = (double)run->d[head] * run->xbc[column];
		for (size_t n = 0; n < s->state_size; n++) {
			state[n] = decay * state[n] + dt * run->xbc[column] * b[n];
			run->y[column] += state[n] * c[n];
		}
	}
}

/* h [hidden_size] of one row goes through the layer. */
static void run_row(struct layer_run *run, double *h)
{
	const struct shape *s = run->shape;
	const size_t group = s->d_inner / s->gated_norm_groups;
	const double epsilon = (double)s->norm_epsilon;

	normalise(h, run->norm, s->hidden_size, epsilon, run->normed);
	multiply(run->in_proj, run->in_proj_bias, run->normed, s->in_proj_rows, s->hidden_size, run->projected);
	convolve(run);
	for (size_t head = 0; head < s->num_heads; head++)
		scan(run, head);
	for (size_t i = 0; i < s->d_inner; i++)
		run->y[i] *= silu(run->projected[i]);
	for (size_t i = 0; i < s->d_inner; i += group)
		normalise(run->y + i, run->gated_norm + i, group, epsilon, run->y + i);
	multiply(run->out_proj, run->out_proj_bias, run->y, s->hidden_size, s->d_inner, run->normed);
	for (size_t i = 0; i < s->hidden_size; i++)
		h[i] += run->normed[i];
}

static float *store_cache(const struct layer_run *run, float *cache)
{
	const size_t taps = run->shape->conv_kernel;

	for (size_t i = 0; i < run->shape->conv_dim; i++)
		for (size_t k = 1; k < taps; k++)
			*cache++ = (float)run->conv_state[i * taps + k];
	for (size_t i = 0; i < shape_ssm_state_floats(run->shape); i++)
		*cache++ = (float)run->ssm_state[i];
	return cache;
}

void reference_run(const struct model *model, const float *rows, size_t n, float *hidden, float *cache)
{
	const struct shape *s = &model->shape;
	const size_t columns = s->hidden_size;
	double *h = zeroed(n * columns, sizeof *h);
	float *norm_f = widened(&model->norm_f, columns);

	for (size_t i = 0; i < n * columns; i++)
		h[i] = (double)rows[i];
	for (size_t i = 0; i < s->num_layers; i++) {
		struct layer_run run = layer_open(s, &model->layers[i]);

		for (size_t r = 0; r < n; r++)
			run_row(&run, h + r * columns);
		cache = store_cache(&run, cache);
		layer_close(&run);
	}
	for (size_t r = 0; r < n; r++) {
		normalise(h + r * columns, norm_f, columns, (double)s->norm_epsilon, h + r * columns);
		for (size_t i = 0; i < columns; i++)
			hidden[r * columns + i] = (float)h[r * columns + i];
	}
	free(norm_f);
	free(h);
}
