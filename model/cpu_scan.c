/*
 * The convolution, the selective scan and the gate of one layer.  The scan is the chunked form of arXiv:2405.21060: in
 * a chunk, with L[t] the sum of a dt over its rows up to t,
 *
 *   y[t] = exp(L[t]) C[t] S + sum over s <= t of (C[t] B[s]) exp(L[t] - L[s]) dt[s] x[s] + D x[t]
 *   S    = exp(L[end]) S    + sum over s of B[s] exp(L[end] - L[s]) dt[s] x[s]
 *
 * Chunks begin anew with every window, and sums run in one order, row by row: rows that follow change nothing.
 */
#include "model/cpu_kernels.h"
#include "model/cpu_vector.h"

#define CHUNK ((size_t)CPU_CHUNK)
#define BLOCK ((size_t)CPU_BLOCK)

/* What a thread works in: its scratch memory taken apart. */
struct scratch {
	float *x;              /* [CHUNK, head_dim] */
	float *mix;            /* [CHUNK, CHUNK]: what row t takes of x[s] */
	float *dt, *log_decay; /* [CHUNK] of one head */
	float *transposed;     /* [state_size, CHUNK]: B */
	float *state;          /* [state_size, head_dim], of an unfinished window */
};

static struct scratch scratch_at(const struct cpu_scan *scan, float *memory)
{
	struct scratch scratch;

	scratch.x = memory;
	scratch.mix = scratch.x + CHUNK * scan->head_dim;
	scratch.dt = scratch.mix + CHUNK * CHUNK;
	scratch.log_decay = scratch.dt + CHUNK;
	scratch.transposed = scratch.log_decay + CHUNK;
	scratch.state = scratch.transposed + scan->state_size * CHUNK;
	return scratch;
}

/* silu(conv(x)) of rows first ... of a run, for one block of the columns x, B, C: out [rows], out_stride apart. */
static void convolve(const struct cpu_scan *scan, const struct cpu_run *run, size_t block, size_t first, size_t rows,
		     float *out, size_t out_stride)
{
	const size_t past = scan->taps - 1;
	const size_t z_blocks = scan->heads * scan->head_dim / BLOCK;
	const float *in = scan->in.data + (z_blocks + block) * scan->in.block_stride + run->first * BLOCK;
	const float *history = run->cache + scan->history + block * past * BLOCK;
	const float *weight = scan->conv + block * scan->taps * BLOCK;

	for (size_t v = 0; v < BLOCK; v += LANES)
		for (size_t t = 0; t < rows; t++) {
			vec sum = vec_load(scan->conv_bias + block * BLOCK + v);

			for (size_t k = 0; k < scan->taps; k++) {
				const size_t i = first + t + k;
				const float *x = i < past ? history + i * BLOCK : in + (i - past) * BLOCK;

				sum = vec_fma(vec_load(weight + k * BLOCK + v), vec_load(x + v), sum);
			}
			vec_store(out + t * out_stride + v, vec_silu(sum));
		}
}

/* The last taps - 1 of the history and the first `rows` rows of a run become the history. */
static void advance_history(const struct cpu_scan *scan, const struct cpu_run *run, size_t block, size_t rows)
{
	const size_t past = scan->taps - 1;
	const size_t z_blocks = scan->heads * scan->head_dim / BLOCK;
	const float *in = scan->in.data + (z_blocks + block) * scan->in.block_stride + run->first * BLOCK;
	float *history = run->cache + scan->history + block * past * BLOCK;

	for (size_t i = 0; i < past; i++) {
		const float *x = i + rows < past ? history + (i + rows) * BLOCK : in + (i + rows - past) * BLOCK;

		memmove(history + i * BLOCK, x, BLOCK * sizeof *x);
	}
}

/* dt = clamp(softplus(dt + bias)) and log_decay = sum of a dt from the chunk's start, for all heads. */
static void discretise(const struct cpu_scan *scan, const struct cpu_chunk *chunk, size_t row)
{
	const size_t conv_columns = (scan->heads * scan->head_dim + 2 * scan->groups * scan->state_size);
	const size_t dt_block = (scan->heads * scan->head_dim + conv_columns) / BLOCK;

	for (size_t h = 0; h < scan->heads; h += LANES) {
		const float *in = scan->in.data + (dt_block + h / BLOCK) * scan->in.block_stride;
		const size_t column = h / BLOCK * scan->dt_stride + h % BLOCK;
		const vec bias = vec_load(scan->dt_bias + h), a = vec_load(scan->a + h);
		vec sum = vec_set(0);

		for (size_t t = row; t < row + chunk->rows; t++) {
			vec dt = vec_softplus(vec_load(in + t * BLOCK + h % BLOCK) + bias);

			dt = vec_min(vec_max(dt, vec_set(scan->dt_min)), vec_set(scan->dt_max));
			sum = vec_fma(a, dt, sum);
			vec_store(scan->dt + column + t * BLOCK, dt);
			vec_store(scan->log_decay + column + t * BLOCK, sum);
		}
	}
}

/* Rows of a tile; those beyond the last present one stand for it, and what they yield is not used. */
static void tile_rows(const float *x, size_t stride, size_t rows, const float *ret_rows[TILE_ROWS])
{
	for (size_t r = 0; r < TILE_ROWS; r++)
		ret_rows[r] = x + (r < rows ? r : rows - 1) * stride;
}

/* acc[r][v] += sum over k < n of x[r][k x_step] y[k y_step][v] */
INLINE void tile_sum(vec acc[TILE_ROWS][2], const int vecs, const float *const x[TILE_ROWS], size_t x_step,
		     const float *y, size_t y_step, size_t n)
{
	for (size_t k = 0; k < n; k++) {
		vec right[2];

#pragma GCC unroll 2
		for (int v = 0; v < vecs; v++)
			right[v] = vec_load(y + k * y_step + v * LANES);
#pragma GCC unroll 8
		for (int r = 0; r < TILE_ROWS; r++) {
			const vec left = vec_set(x[r][k * x_step]);

#pragma GCC unroll 2
			for (int v = 0; v < vecs; v++)
				acc[r][v] = vec_fma(left, right[v], acc[r][v]);
		}
	}
}

/* scores[t][s] = C[t] . B[s] for rows s <= t of a chunk; beyond, anything. */
static void score(const struct cpu_scan *scan, const struct cpu_chunk *chunk, size_t row, size_t group,
		  float *transposed)
{
	const size_t stride = scan->groups * scan->state_size;
	const float *b = scan->b + row * stride + group * scan->state_size;
	const float *c = scan->c + row * stride + group * scan->state_size;

	for (size_t s = 0; s < chunk->rows; s++)
		for (size_t n = 0; n < scan->state_size; n++)
			transposed[n * CHUNK + s] = b[s * stride + n];
	for (size_t t = 0; t < chunk->rows; t += TILE_ROWS) {
		const float *rows[TILE_ROWS];

		tile_rows(c + t * stride, stride, chunk->rows - t, rows);
		for (size_t s = 0; s < t + TILE_ROWS; s += 2 * LANES) {
			float *out = scan->scores + ((row + t) * scan->groups + group) * CHUNK + s;
			vec acc[TILE_ROWS][2] = { 0 };

			tile_sum(acc, 2, rows, 1, transposed + s, CHUNK, scan->state_size);
			for (size_t r = 0; r < TILE_ROWS && t + r < chunk->rows; r++, out += scan->groups * CHUNK) {
				vec_store(out, acc[r][0]);
				vec_store(out + LANES, acc[r][1]);
			}
		}
	}
}

void CPU_NAME(cpu_scan_inputs)(const struct cpu_scan *scan, size_t index, size_t group, float *memory)
{
	const struct cpu_chunk *chunk = &scan->chunks[index];
	const struct cpu_run *run = &scan->runs[chunk->run];
	const struct scratch scratch = scratch_at(scan, memory);
	const size_t row = run->first + chunk->first;
	const size_t stride = scan->groups * scan->state_size;
	const size_t blocks = scan->state_size / BLOCK;
	const size_t b_block = scan->heads * scan->head_dim / BLOCK + group * blocks;
	const size_t c_block = b_block + scan->groups * blocks;

	for (size_t i = 0; i < blocks; i++) {
		const size_t at = row * stride + group * scan->state_size + i * BLOCK;

		convolve(scan, run, b_block + i, chunk->first, chunk->rows, scan->b + at, stride);
		convolve(scan, run, c_block + i, chunk->first, chunk->rows, scan->c + at, stride);
	}
	if (!chunk->recurrent)
		score(scan, chunk, row, group, scratch.transposed);
	if (group == 0)
		discretise(scan, chunk, row);
}

/* mix[t][s] = scores[t][s] exp(L[t] - L[s]) dt[s] for s <= t; beyond, anything. */
static void mix_rows(const struct cpu_scan *scan, size_t row, size_t rows, size_t group, const struct scratch *scratch)
{
	for (size_t t = 0; t < rows; t++) {
		const float *scores = scan->scores + ((row + t) * scan->groups + group) * CHUNK;
		const vec log_decay = vec_set(scratch->log_decay[t]);

		for (size_t s = 0; s <= t; s += LANES) {
			const vec difference = log_decay - vec_load(scratch->log_decay + s);
			const vec decay = vec_exp(vec_min(difference, vec_set(0)));

			vec_store(scratch->mix + t * CHUNK + s,
				  vec_load(scores + s) * decay * vec_load(scratch->dt + s));
		}
	}
}

/* out = (y + D x) silu(z) */
INLINE void gate(const struct cpu_scan *scan, size_t row, size_t column, vec y, const float *x, vec d)
{
	const float *z = scan->in.data + column / BLOCK * scan->in.block_stride + row * BLOCK + column % BLOCK;

	vec_store(scan->out + row * scan->heads * scan->head_dim + column,
		  vec_fma(d, vec_load(x), y) * vec_silu(vec_load(z)));
}

/* y of rows t ... of a chunk and vecs vectors of a head's columns from p. */
INLINE void tile_output(const int vecs, const struct cpu_scan *scan, size_t row, size_t t, size_t rows, size_t head,
			size_t p, const float *state, const struct scratch *scratch)
{
	const size_t stride = scan->groups * scan->state_size;
	const float *c = scan->c + (row + t) * stride + head / (scan->heads / scan->groups) * scan->state_size;
	const float *x = scratch->x + p;
	const float *left[TILE_ROWS];
	vec acc[TILE_ROWS][2] = { 0 };

	tile_rows(c, stride, rows - t, left);
	tile_sum(acc, vecs, left, 1, state + p, scan->head_dim, scan->state_size);
#pragma GCC unroll 8
	for (size_t r = 0; r < TILE_ROWS; r++) {
		const vec decay = vec_exp(vec_set(scratch->log_decay[t + r]));

		for (int v = 0; v < vecs; v++)
			acc[r][v] *= decay;
	}
	tile_rows(scratch->mix + t * CHUNK, CHUNK, TILE_ROWS, left);
	tile_sum(acc, vecs, left, 1, x, scan->head_dim, t);
#pragma GCC unroll 8
	for (size_t s = 0; s < TILE_ROWS; s++)
#pragma GCC unroll 8
		for (size_t r = s; r < TILE_ROWS; r++)
			for (int v = 0; v < vecs; v++)
				acc[r][v] = vec_fma(vec_set(left[r][t + s]),
						    vec_load(x + (t + s) * scan->head_dim + v * LANES), acc[r][v]);
	for (size_t r = 0; r < TILE_ROWS && t + r < rows; r++)
		for (int v = 0; v < vecs; v++)
			gate(scan, row + t + r, head * scan->head_dim + p + (size_t)v * LANES, acc[r][v],
			     x + (t + r) * scan->head_dim + v * LANES, vec_set(scan->d[head]));
}

/* x[s] *= exp(L[end] - L[s]) dt[s]: what row s leaves in the state at the chunk's end. */
static void weigh_rows(const struct cpu_scan *scan, size_t rows, const struct scratch *scratch)
{
	for (size_t s = 0; s < CHUNK; s += LANES) {
		const vec difference = vec_set(scratch->log_decay[rows - 1]) - vec_load(scratch->log_decay + s);

		vec_store(scratch->mix + s, vec_exp(vec_min(difference, vec_set(0))) * vec_load(scratch->dt + s));
	}
	for (size_t s = 0; s < rows; s++)
		for (size_t p = 0; p < scan->head_dim; p += LANES) {
			float *x = scratch->x + s * scan->head_dim + p;

			vec_store(x, vec_load(x) * vec_set(scratch->mix[s]));
		}
}

/* next[n] = exp(L[end]) state[n] + sum over s of B[s][n] x[s], for TILE_ROWS numbers n and vecs vectors of columns. */
INLINE void tile_state(const int vecs, const struct cpu_scan *scan, const float *b, size_t rows, vec decay,
		       const float *x, const float *state, float *next)
{
	const float *left[TILE_ROWS];
	vec acc[TILE_ROWS][2];

	tile_rows(b, 1, TILE_ROWS, left);
	for (size_t r = 0; r < TILE_ROWS; r++)
		for (int v = 0; v < vecs; v++)
			acc[r][v] = decay * vec_load(state + r * scan->head_dim + v * LANES);
	tile_sum(acc, vecs, left, scan->groups * scan->state_size, x, scan->head_dim, rows);
	for (size_t r = 0; r < TILE_ROWS; r++)
		for (int v = 0; v < vecs; v++)
			vec_store(next + r * scan->head_dim + v * LANES, acc[r][v]);
}

static void advance_state(const struct cpu_scan *scan, size_t row, size_t rows, size_t head,
			  const struct scratch *scratch, const float *state, float *next)
{
	const size_t group = head / (scan->heads / scan->groups);
	const float *b = scan->b + (row * scan->groups + group) * scan->state_size;
	const vec decay = vec_exp(vec_set(scratch->log_decay[rows - 1]));

	weigh_rows(scan, rows, scratch);
	for (size_t n = 0; n < scan->state_size; n += TILE_ROWS) {
		const size_t at = n * scan->head_dim;
		size_t p = 0;

		for (; p + 2 * LANES <= scan->head_dim; p += 2 * LANES)
			tile_state(2, scan, b + n, rows, decay, scratch->x + p, state + at + p, next + at + p);
		for (; p < scan->head_dim; p += LANES)
			tile_state(1, scan, b + n, rows, decay, scratch->x + p, state + at + p, next + at + p);
	}
}

/* A chunk of several rows: reads state, leaves the state after the chunk in next unless that is NULL. */
static void scan_chunk(const struct cpu_scan *scan, size_t row, size_t rows, size_t head,
		       const struct scratch *scratch, const float *state, float *next)
{
	mix_rows(scan, row, rows, head / (scan->heads / scan->groups), scratch);
	for (size_t t = 0; t < rows; t += TILE_ROWS) {
		size_t p = 0;

		for (; p + 2 * LANES <= scan->head_dim; p += 2 * LANES)
			tile_output(2, scan, row, t, rows, head, p, state, scratch);
		for (; p < scan->head_dim; p += LANES)
			tile_output(1, scan, row, t, rows, head, p, state, scratch);
	}
	if (next)
		advance_state(scan, row, rows, head, scratch, state, next);
}

/* S = exp(a dt) S + B dt x;  y = C S; for vecs vectors of a head's columns from p. */
INLINE void recur_columns(const int vecs, const struct cpu_scan *scan, size_t row, size_t head, size_t p,
			  const struct scratch *scratch, const float *state, float *next)
{
	const size_t group = head / (scan->heads / scan->groups);
	const float *b = scan->b + (row * scan->groups + group) * scan->state_size;
	const float *c = scan->c + (row * scan->groups + group) * scan->state_size;
	const vec decay = vec_exp(vec_set(scratch->log_decay[0]));
	vec y[4], x[4];

#pragma GCC unroll 4
	for (int v = 0; v < vecs; v++) {
		y[v] = vec_set(0);
		x[v] = vec_load(scratch->x + p + v * LANES) * vec_set(scratch->dt[0]);
	}
	for (size_t n = 0; n < scan->state_size; n++)
#pragma GCC unroll 4
		for (int v = 0; v < vecs; v++) {
			const size_t at = n * scan->head_dim + p + (size_t)v * LANES;
			const vec s = vec_fma(vec_set(b[n]), x[v], decay * vec_load(state + at));

			y[v] = vec_fma(vec_set(c[n]), s, y[v]);
			vec_store(next + at, s);
		}
#pragma GCC unroll 4
	for (int v = 0; v < vecs; v++)
		gate(scan, row, head * scan->head_dim + p + (size_t)v * LANES, y[v], scratch->x + p + v * LANES,
		     vec_set(scan->d[head]));
}

static void recur(const struct cpu_scan *scan, size_t row, size_t head, const struct scratch *scratch,
		  const float *state, float *next)
{
	size_t p = 0;

	for (; p + 4 * LANES <= scan->head_dim; p += 4 * LANES)
		recur_columns(4, scan, row, head, p, scratch, state, next);
	for (; p < scan->head_dim; p += LANES)
		recur_columns(1, scan, row, head, p, scratch, state, next);
}

/* x, dt and log_decay of a chunk and head go to the scratch memory. */
static void gather(const struct cpu_scan *scan, const struct cpu_run *run, const struct cpu_chunk *chunk, size_t head,
		   const struct scratch *scratch)
{
	const size_t blocks = scan->head_dim / BLOCK;
	const size_t at = head / BLOCK * scan->dt_stride + (run->first + chunk->first) * BLOCK + head % BLOCK;

	for (size_t i = 0; i < blocks; i++)
		convolve(scan, run, head * blocks + i, chunk->first, chunk->rows, scratch->x + i * BLOCK,
			 scan->head_dim);
	for (size_t t = 0; t < chunk->rows; t++) {
		scratch->dt[t] = scan->dt[at + t * BLOCK];
		scratch->log_decay[t] = scan->log_decay[at + t * BLOCK];
	}
}

/* A head's columns of x enter its conv state; those of B and C are the business of a group's first head. */
static void advance_histories(const struct cpu_scan *scan, const struct cpu_run *run, size_t head, size_t rows)
{
	const size_t blocks = scan->head_dim / BLOCK, group_blocks = scan->state_size / BLOCK;
	const size_t group = head / (scan->heads / scan->groups);
	const size_t b_block = scan->heads * blocks + group * group_blocks;

	for (size_t i = 0; i < blocks; i++)
		advance_history(scan, run, head * blocks + i, rows);
	if (head % (scan->heads / scan->groups))
		return;
	for (size_t i = 0; i < group_blocks; i++) {
		advance_history(scan, run, b_block + i, rows);
		advance_history(scan, run, b_block + scan->groups * group_blocks + i, rows);
	}
}

void CPU_NAME(cpu_scan_head)(const struct cpu_scan *scan, size_t index, size_t head, float *memory)
{
	const struct cpu_run *run = &scan->runs[index];
	const struct scratch scratch = scratch_at(scan, memory);
	const size_t state_floats = scan->head_dim * scan->state_size;
	float *cached = run->cache + scan->state + head * state_floats;
	const float *state = cached;
	size_t whole = 0;

	for (size_t i = run->first_chunk; i < run->first_chunk + run->n_chunks; i++) {
		const struct cpu_chunk *chunk = &scan->chunks[i];
		float *next = chunk->keep ? cached : chunk->advance ? scratch.state : NULL;

		gather(scan, run, chunk, head, &scratch);
		if (chunk->recurrent)
			recur(scan, run->first + chunk->first, head, &scratch, state, next ? next : scratch.state);
		else
			scan_chunk(scan, run->first + chunk->first, chunk->rows, head, &scratch, state, next);
		if (next)
			state = next;
		if (chunk->keep)
			whole = chunk->first + chunk->rows;
	}
	if (whole > 0)
		advance_histories(scan, run, head, whole);
}
