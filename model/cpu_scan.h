/*
 * What the parts of the scan share: internal to cpu_scan.c, cpu_conv.c and cpu_chunk.c, which are compiled together for
 * each instruction set.
 */
#ifndef MODEL_CPU_SCAN_H
#define MODEL_CPU_SCAN_H

#include "model/cpu_tile.h"

#define CHUNK ((size_t)CPU_CHUNK)
#define BLOCK ((size_t)CPU_BLOCK)

/* What a thread works in. */
struct cpu_scratch {
	float *x;              /* [CHUNK, head_dim] after the convolution */
	float *mix;            /* [CHUNK, CHUNK]: what row t takes of x[s] */
	float *dt, *log_decay; /* [CHUNK] of one head */
	float *squares;        /* [CHUNK, BLOCK]: sums of out's squares, lane by lane */
	float *transposed;     /* [state_size, CHUNK]: B */
	float *state;          /* [state_size, head_dim], of an unfinished window */
	uint32_t *x_pairs;     /* [CHUNK / 2, head_dim] */
	uint32_t *state_pairs; /* [state_size / 2, head_dim] */
};

/* Some rows of one run, and a head. */
struct cpu_part {
	const struct cpu_scan *scan;
	const struct cpu_scratch *scratch;
	size_t row;  /* of the slice: the first */
	size_t rows;
	size_t head, group;
};

/* silu(conv(x)) of rows first ... of a run, for one block of the columns x, B, C: out [rows], out_stride apart. */
void CPU_NAME(cpu_convolve)(const struct cpu_scan *scan, const struct cpu_run *run, size_t block, size_t first,
			    size_t rows, float *out, size_t out_stride);

/* The last taps - 1 of the history and the first `rows` rows of a run become the history of one block. */
void CPU_NAME(cpu_convolve_advance)(const struct cpu_scan *scan, const struct cpu_run *run, size_t block, size_t rows);

/*
 * A chunk of several rows, whose x, dt and log_decay are in the scratch memory: reads state, writes scan->out and,
 * unless next is NULL, the state after the chunk to next, which may be state.  The memory at upcoming, as much as a
 * state, is fetched into the cache meanwhile.
 */
void CPU_NAME(cpu_chunk_scan)(const struct cpu_part *part, const float *state, float *next, const float *upcoming);

/* The same for a chunk of one row. */
void CPU_NAME(cpu_chunk_step)(const struct cpu_part *part, const float *state, float *next, const float *upcoming);

#endif
