/*
 * The selective scan of one head over one chunk of rows: the chunked form of arXiv:2405.21060.  With L[t] the sum of a
 * dt over the chunk's rows up to t,
 *
 *   y[t] = exp(L[t]) C[t] S + sum over s <= t of (C[t] B[s]) exp(L[t] - L[s]) dt[s] x[s] + D x[t]
 *   S    = exp(L[end]) S    + sum over s of B[s] exp(L[end] - L[s]) dt[s] x[s]
 *
 * Sums run in one order, row by row: rows that follow change nothing.  The two products with S take most of the time;
 * with scan->pairs their operands are bfloat16, and S itself stays float32.
 */
#include "model/cpu_scan.h"

#define VECS 2 /* of a tile: with TILE_ROWS rows enough sums to keep the multipliers busy */

static const struct fetch no_fetch = { 0 };

/* Where B and C of the part's first row and group are, in numbers. */
static size_t group_offset(const struct cpu_part *part)
{
	return (part->row * part->scan->groups + part->group) * part->scan->state_size;
}

/* mix[t][s] = scores[t][s] exp(L[t] - L[s]) dt[s] for s <= t; beyond, anything. */
static void mix_rows(const struct cpu_part *part)
{
	const struct cpu_scan *scan = part->scan;
	const struct cpu_scratch *scratch = part->scratch;

	for (size_t t = 0; t < part->rows; t++) {
		const float *scores = scan->scores + ((part->row + t) * scan->groups + part->group) * CHUNK;
		const vec log_decay = vec_set(scratch->log_decay[t]);

		for (size_t s = 0; s <= t; s += LANES) {
			const vec difference = log_decay - vec_load(scratch->log_decay + s);
			const vec decay = vec_exp(vec_min(difference, vec_set(0)));

			vec_store(scratch->mix + t * CHUNK + s,
				  vec_load(scores + s) * decay * vec_load(scratch->dt + s));
		}
	}
}

/* out = (y + D x) silu(z) for vecs vectors of the head's columns, from p, of row t. */
INLINE void gate(const int vecs, const struct cpu_part *part, size_t t, size_t p, const vec *y)
{
	const struct cpu_scan *scan = part->scan;
	const float *x = part->scratch->x + t * scan->head_dim;
	float *squares = part->scratch->squares + t * BLOCK;
	const size_t column = part->head * scan->head_dim, row = part->row + t;
	vec sum = vec_load(squares);

#pragma GCC unroll 4
	for (int v = 0; v < vecs; v++) {
		const size_t at = p + (size_t)v * LANES;
		const float *z = scan->in.data + row * BLOCK + at % BLOCK +
				 (cpu_scan_z(scan, part->head) + at / BLOCK) * scan->in.block_stride;
		const vec out = vec_fma(vec_set(scan->d[part->head]), vec_load(x + at), y[v]) * vec_silu(vec_load(z));

		sum = vec_fma(out, out, sum);
		operand_store(&scan->out, row, column + at, out * vec_load(scan->out_weight + column + at));
	}
	vec_store(squares, sum);
}

/* acc = C S for rows t ... and columns p ...; rows beyond the part's yield what is not used. */
INLINE void tile_from_state(tile acc, const int vecs, const bool pairs, const struct cpu_part *part, size_t t,
			    size_t p, const float *state, const float *upcoming)
{
	const struct cpu_scan *scan = part->scan;
	const size_t stride = scan->groups * scan->state_size, c = group_offset(part) + t * stride;
	const size_t n = scan->state_size, step = scan->head_dim;

#pragma GCC unroll 8
	for (int r = 0; r < TILE_ROWS; r++)
		for (int v = 0; v < vecs; v++)
			acc[r][v] = vec_set(0);
	if (pairs)
		tile_sum_pairs(acc, TILE_ROWS, vecs, scan->c_pairs + c / 2, stride / 2, 1,
			       part->scratch->state_pairs + p, step, n / 2, (struct fetch){ upcoming, 64 });
	else
		tile_sum(acc, TILE_ROWS, vecs, scan->c + c, stride, 1, state + p, step, n,
			 (struct fetch){ upcoming, 32 });
}

/* y of rows t ... and columns p ... */
INLINE void tile_output(const int vecs, const bool pairs, const struct cpu_part *part, size_t t, size_t p,
			const float *state, const float *upcoming)
{
	const struct cpu_scratch *scratch = part->scratch;
	const size_t head_dim = part->scan->head_dim;
	const float *mix = scratch->mix + t * CHUNK, *x = scratch->x + p;
	tile acc;

	tile_from_state(acc, vecs, pairs, part, t, p, state, upcoming);
#pragma GCC unroll 8
	for (size_t r = 0; r < TILE_ROWS; r++) {
		const vec decay = vec_exp(vec_set(scratch->log_decay[t + r]));

		for (int v = 0; v < vecs; v++)
			acc[r][v] *= decay;
	}
	tile_sum(acc, TILE_ROWS, vecs, mix, CHUNK, 1, x, head_dim, t, no_fetch);
#pragma GCC unroll 8
	for (size_t s = 0; s < TILE_ROWS; s++)
#pragma GCC unroll 8
		for (size_t r = s; r < TILE_ROWS; r++)
			for (int v = 0; v < vecs; v++)
				acc[r][v] = vec_fma(vec_set(mix[r * CHUNK + t + s]),
						    vec_load(x + (t + s) * head_dim + v * LANES), acc[r][v]);
	for (size_t r = 0; r < TILE_ROWS && t + r < part->rows; r++)
		gate(vecs, part, t + r, p, acc[r]);
}

/* All y of the part.  Meanwhile the first half of the upcoming state is fetched. */
INLINE void output_rows(const bool pairs, const struct cpu_part *part, const float *state, const float *upcoming)
{
	const size_t head_dim = part->scan->head_dim, state_size = part->scan->state_size;
	size_t fetched = 0;

	for (size_t t = 0; t < part->rows; t += TILE_ROWS) {
		size_t p = 0;

		for (; p + VECS * LANES <= head_dim; p += VECS * LANES, fetched += state_size * 8)
			tile_output(VECS, pairs, part, t, p, state, upcoming + fetched);
		for (; p < head_dim; p += LANES)
			tile_output(1, pairs, part, t, p, state, upcoming + fetched);
		if (fetched >= head_dim * state_size / 2)
			fetched = 0;
	}
}

/* weight = exp(L[end] - L[s]) dt[s]: what is left of row s at the chunk's end; 0 where there is no such row. */
static void weigh_rows(const struct cpu_part *part, float weight[CHUNK])
{
	const struct cpu_scratch *scratch = part->scratch;
	const vec end = vec_set(scratch->log_decay[part->rows - 1]);

	for (size_t s = 0; s < CHUNK; s += LANES) {
		const vec difference = end - vec_load(scratch->log_decay + s);

		vec_store(weight + s, vec_exp(vec_min(difference, vec_set(0))) * vec_load(scratch->dt + s));
	}
}

/* x[s] *= weight[s] */
static void weigh_x(const struct cpu_part *part, const float weight[CHUNK])
{
	const size_t head_dim = part->scan->head_dim;

	for (size_t s = 0; s < part->rows; s++)
		for (size_t p = 0; p < head_dim; p += LANES) {
			float *x = part->scratch->x + s * head_dim + p;

			vec_store(x, vec_load(x) * vec_set(weight[s]));
		}
}

/* The same, into pairs of rows; an odd last row is paired with zeros. */
static void weigh_x_pairs(const struct cpu_part *part, const float weight[CHUNK])
{
	const size_t head_dim = part->scan->head_dim;

	for (size_t s = 0; s < part->rows; s += 2)
		for (size_t p = 0; p < head_dim; p += LANES) {
			const float *x = part->scratch->x + s * head_dim + p;
			const vec first = vec_load(x) * vec_set(weight[s]);
			vec second = vec_set(0);

			if (s + 1 < part->rows)
				second = vec_load(x + head_dim) * vec_set(weight[s + 1]);
			vec_store_pairs(part->scratch->x_pairs + s / 2 * head_dim + p, first, second);
		}
}

/* next = decay S + B x for TILE_ROWS numbers of the state from n and columns p ... */
INLINE void tile_state(const int vecs, const bool pairs, const struct cpu_part *part, size_t n, size_t p, vec decay,
		       const float *state, float *next)
{
	const struct cpu_scan *scan = part->scan;
	const size_t head_dim = scan->head_dim, at = n * head_dim + p, stride = scan->groups * scan->state_size;
	tile acc;

#pragma GCC unroll 8
	for (size_t r = 0; r < TILE_ROWS; r++)
		for (int v = 0; v < vecs; v++)
			acc[r][v] = decay * vec_load(state + at + r * head_dim + v * LANES);
	if (pairs)
		tile_sum_pairs(acc, TILE_ROWS, vecs, scan->b_pairs + group_offset(part) + n, 1, stride,
			       part->scratch->x_pairs + p, head_dim, (part->rows + 1) / 2, no_fetch);
	else
		tile_sum(acc, TILE_ROWS, vecs, scan->b + group_offset(part) + n, 1, stride, part->scratch->x + p,
			 head_dim, part->rows, no_fetch);
#pragma GCC unroll 8
	for (size_t r = 0; r < TILE_ROWS; r++)
		for (int v = 0; v < vecs; v++)
			vec_store(next + at + r * head_dim + v * LANES, acc[r][v]);
}

/* The state after the part.  Meanwhile the second half of the upcoming state is fetched. */
INLINE void advance_state(const bool pairs, const struct cpu_part *part, const float *state, float *next,
			  const float *upcoming)
{
	const vec decay = vec_exp(vec_set(part->scratch->log_decay[part->rows - 1]));
	const size_t head_dim = part->scan->head_dim;
	float weight[CHUNK];

	upcoming += part->scan->state_size * head_dim / 2;
	weigh_rows(part, weight);
	if (pairs)
		weigh_x_pairs(part, weight);
	else
		weigh_x(part, weight);
	for (size_t n = 0; n < part->scan->state_size; n += TILE_ROWS) {
		size_t p = 0;

		for (; p + VECS * LANES <= head_dim; p += VECS * LANES) {
			for (size_t i = 0; i < TILE_ROWS * VECS * LANES / 2; i += 16, upcoming += 16)
				__builtin_prefetch(upcoming, 1, 2);
			tile_state(VECS, pairs, part, n, p, decay, state, next);
		}
		for (; p < head_dim; p += LANES)
			tile_state(1, pairs, part, n, p, decay, state, next);
	}
}

/* A copy of S in pairs along its numbers n. */
static void pair_state(const struct cpu_part *part, const float *state)
{
	const size_t head_dim = part->scan->head_dim;

	for (size_t n = 0; n < part->scan->state_size; n += 2)
		for (size_t p = 0; p < head_dim; p += LANES)
			vec_store_pairs(part->scratch->state_pairs + n / 2 * head_dim + p,
					vec_load(state + n * head_dim + p), vec_load(state + (n + 1) * head_dim + p));
}

void CPU_NAME(cpu_chunk_scan)(const struct cpu_part *part, const float *state, float *next, const float *upcoming)
{
	mix_rows(part);
	if (part->scan->pairs) {
		pair_state(part, state);
		output_rows(true, part, state, upcoming);
	} else {
		output_rows(false, part, state, upcoming);
	}
	if (next && part->scan->pairs)
		advance_state(true, part, state, next, upcoming);
	else if (next)
		advance_state(false, part, state, next, upcoming);
}

/* S = exp(a dt) S + B dt x;  y = C S; for columns p ... */
INLINE void step_columns(const int vecs, const struct cpu_part *part, size_t p, const float *state, float *next,
			 const float *upcoming)
{
	const struct cpu_scan *scan = part->scan;
	const float *b = scan->b + group_offset(part), *c = scan->c + group_offset(part);
	const vec decay = vec_exp(vec_set(part->scratch->log_decay[0])), dt = vec_set(part->scratch->dt[0]);
	vec y[4], x[4];

#pragma GCC unroll 4
	for (int v = 0; v < vecs; v++) {
		y[v] = vec_set(0);
		x[v] = vec_load(part->scratch->x + p + v * LANES) * dt;
	}
	for (size_t n = 0; n < scan->state_size; n++)
#pragma GCC unroll 4
		for (int v = 0; v < vecs; v++) {
			const size_t at = n * scan->head_dim + p + (size_t)v * LANES;
			const vec s = vec_fma(vec_set(b[n]), x[v], decay * vec_load(state + at));

			__builtin_prefetch(upcoming + at, 1, 2);
			y[v] = vec_fma(vec_set(c[n]), s, y[v]);
			vec_store(next + at, s);
		}
	gate(vecs, part, 0, p, y);
}

void CPU_NAME(cpu_chunk_step)(const struct cpu_part *part, const float *state, float *next, const float *upcoming)
{
	const size_t head_dim = part->scan->head_dim;
	size_t p = 0;

	for (; p + 4 * LANES <= head_dim; p += 4 * LANES)
		step_columns(4, part, p, state, next, upcoming);
	for (; p < head_dim; p += LANES)
		step_columns(1, part, p, state, next, upcoming);
}
