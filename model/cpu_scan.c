/*
 * What lies between the two products of a layer, for one group or head of one run: first B, C, their products and dt
 * of every chunk, then head by head the convolution of x, the scan and the gate, chunk after chunk.
 */
#include "model/cpu_scan.h"

static struct cpu_scratch scratch_at(const struct cpu_scan *scan, float *memory)
{
	struct cpu_scratch scratch;

	scratch.x = memory;
	scratch.mix = scratch.x + CHUNK * scan->head_dim;
	scratch.dt = scratch.mix + CHUNK * CHUNK;
	scratch.log_decay = scratch.dt + CHUNK;
	scratch.squares = scratch.log_decay + CHUNK;
	scratch.transposed = scratch.squares + CHUNK * BLOCK;
	scratch.state = scratch.transposed + scan->state_size * CHUNK;
	scratch.x_pairs = (uint32_t *)(scratch.state + scan->state_size * scan->head_dim);
	scratch.state_pairs = scratch.x_pairs + CHUNK / 2 * scan->head_dim;
	return scratch;
}

/* dt = clamp(softplus(dt + bias)) and log_decay = sum of a dt from the chunk's start, for all heads. */
static void discretise(const struct cpu_scan *scan, const struct cpu_chunk *chunk, size_t row)
{
	for (size_t h = 0; h < scan->heads; h += LANES) {
		const float *in = scan->in.data + (cpu_scan_dt(scan) + h / BLOCK) * scan->in.block_stride;
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

/* scores[t ... t + rows - 1][s] = C[t] . B[s] */
INLINE void score_rows(const int rows, const float *c, size_t stride, const float *transposed, size_t columns,
		       size_t state_size, float *scores, size_t scores_stride)
{
	for (size_t s = 0; s < columns; s += LANES) {
		tile acc;

#pragma GCC unroll 8
		for (int r = 0; r < rows; r++)
			acc[r][0] = vec_set(0);
		tile_sum(acc, rows, 1, c, stride, 1, transposed + s, CHUNK, state_size, (struct fetch){ 0 });
#pragma GCC unroll 8
		for (int r = 0; r < rows; r++)
			vec_store(scores + (size_t)r * scores_stride + s, acc[r][0]);
	}
}

/* scores[t][s] = C[t] . B[s] for rows s <= t of a chunk; beyond, anything. */
static void score(const struct cpu_scan *scan, size_t rows, const float *b, const float *c, float *transposed,
		  float *scores)
{
	const size_t stride = scan->groups * scan->state_size, scores_stride = scan->groups * CHUNK;
	size_t t = 0;

	for (size_t s = 0; s < rows; s++)
		for (size_t n = 0; n < scan->state_size; n++)
			transposed[n * CHUNK + s] = b[s * stride + n];
	for (; t + TILE_ROWS <= rows; t += TILE_ROWS)
		score_rows(TILE_ROWS, c + t * stride, stride, transposed, t + TILE_ROWS, scan->state_size,
			   scores + t * scores_stride, scores_stride);
	for (; t < rows; t++)
		score_rows(1, c + t * stride, stride, transposed, t + 1, scan->state_size, scores + t * scores_stride,
			   scores_stride);
}

/* B in pairs of rows, an odd last row with zeros; C in pairs of numbers. */
static void pair_inputs(const struct cpu_scan *scan, size_t row, size_t rows, size_t group)
{
	const size_t stride = scan->groups * scan->state_size;
	const size_t first = row * stride + group * scan->state_size;

	for (size_t t = 0; t < rows; t++)
		for (size_t n = 0; n < scan->state_size; n += LANES)
			vec_store_bfloat16((uint16_t *)scan->c_pairs + first + t * stride + n,
					   vec_load(scan->c + first + t * stride + n));
	for (size_t t = 0; t < rows; t += 2)
		for (size_t n = 0; n < scan->state_size; n += LANES) {
			const float *b = scan->b + first + t * stride + n;
			const vec second = t + 1 < rows ? vec_load(b + stride) : vec_set(0);

			vec_store_pairs(scan->b_pairs + first + t / 2 * stride + n, vec_load(b), second);
		}
}

void CPU_NAME(cpu_scan_inputs)(const struct cpu_scan *scan, size_t index, size_t group, float *memory)
{
	const struct cpu_chunk *chunk = &scan->chunks[index];
	const struct cpu_run *run = &scan->runs[chunk->run];
	const size_t row = run->first + chunk->first, stride = scan->groups * scan->state_size;
	const size_t blocks = scan->state_size / BLOCK;
	const size_t b_block = scan->heads * scan->head_dim / BLOCK + group * blocks;
	const size_t c_block = b_block + scan->groups * blocks;
	float *b = scan->b + row * stride + group * scan->state_size;
	float *c = scan->c + row * stride + group * scan->state_size;

	for (size_t i = 0; i < blocks; i++) {
		CPU_NAME(cpu_convolve)(scan, run, b_block + i, chunk->first, chunk->rows, b + i * BLOCK, stride);
		CPU_NAME(cpu_convolve)(scan, run, c_block + i, chunk->first, chunk->rows, c + i * BLOCK, stride);
	}
	if (!chunk->recurrent) {
		score(scan, chunk->rows, b, c, scratch_at(scan, memory).transposed,
		      scan->scores + (row * scan->groups + group) * CHUNK);
		if (scan->pairs)
			pair_inputs(scan, row, chunk->rows, group);
	}
	if (group == 0)
		discretise(scan, chunk, row);
}

/* x, dt and log_decay of a chunk and head go to the scratch memory. */
static void gather(const struct cpu_part *part, const struct cpu_run *run, const struct cpu_chunk *chunk)
{
	const struct cpu_scan *scan = part->scan;
	const size_t blocks = scan->head_dim / BLOCK;
	const size_t at = part->head / BLOCK * scan->dt_stride + part->row * BLOCK + part->head % BLOCK;

	for (size_t i = 0; i < blocks; i++)
		CPU_NAME(cpu_convolve)(scan, run, part->head * blocks + i, chunk->first, chunk->rows,
				       part->scratch->x + i * BLOCK, scan->head_dim);
	for (size_t t = 0; t < chunk->rows; t++) {
		part->scratch->dt[t] = scan->dt[at + t * BLOCK];
		part->scratch->log_decay[t] = scan->log_decay[at + t * BLOCK];
		vec_store(part->scratch->squares + t * BLOCK, vec_set(0));
	}
}

/* The lanes of out's squares are added up, for the gated norm. */
static void sum_squares(const struct cpu_part *part)
{
	const struct cpu_operand *out = &part->scan->out;

	for (size_t t = 0; t < part->rows; t++)
		out->squares[part->head * out->squares_stride + part->row + t] =
			vec_sum(vec_load(part->scratch->squares + t * BLOCK));
}

/* A head's columns of x enter its conv state; those of B and C are the business of a group's first head. */
static void advance_histories(const struct cpu_scan *scan, const struct cpu_run *run, size_t head, size_t rows)
{
	const size_t blocks = scan->head_dim / BLOCK, group_blocks = scan->state_size / BLOCK;
	const size_t heads_per_group = scan->heads / scan->groups;
	const size_t b_block = scan->heads * blocks + head / heads_per_group * group_blocks;

	for (size_t i = 0; i < blocks; i++)
		CPU_NAME(cpu_convolve_advance)(scan, run, head * blocks + i, rows);
	for (size_t i = 0; i < group_blocks && head % heads_per_group == 0; i++) {
		CPU_NAME(cpu_convolve_advance)(scan, run, b_block + i, rows);
		CPU_NAME(cpu_convolve_advance)(scan, run, b_block + scan->groups * group_blocks + i, rows);
	}
}

void CPU_NAME(cpu_scan_head)(const struct cpu_scan *scan, size_t run_index, size_t head, const float *upcoming,
			     float *memory)
{
	const struct cpu_run *run = &scan->runs[run_index];
	const struct cpu_scratch scratch = scratch_at(scan, memory);
	float *cached = run->cache + scan->state + head * scan->head_dim * scan->state_size;
	const float *state = cached;
	size_t whole = 0;

	for (size_t i = run->first_chunk; i < run->first_chunk + run->n_chunks; i++) {
		const struct cpu_chunk *chunk = &scan->chunks[i];
		const struct cpu_part part = {
			.scan = scan, .scratch = &scratch, .row = run->first + chunk->first, .rows = chunk->rows,
			.head = head, .group = head / (scan->heads / scan->groups)
		};
		float *next = chunk->keep ? cached : chunk->advance ? scratch.state : NULL;

		gather(&part, run, chunk);
		if (chunk->recurrent)
			CPU_NAME(cpu_chunk_step)(&part, state, next, upcoming);
		else
			CPU_NAME(cpu_chunk_scan)(&part, state, next, upcoming);
		sum_squares(&part);
		if (next)
			state = next;
		if (chunk->keep)
			whole = chunk->first + chunk->rows;
	}
	if (whole > 0)
		advance_histories(scan, run, head, whole);
}
