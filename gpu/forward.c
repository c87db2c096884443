/*
 * The forward pass, layer by layer, as a sequence of launches on one stream:
 *
 *   normed = norm(residual += scale * mixed)       add_norm
 *   proj = normed in_proj^T                        matmul
 *   gated = SSM(conv(proj)) * silu(z)              scan, or the chunk kernels
 *   mixed = gated out_proj^T                       matmul; the gated norm's scale waits for the next add_norm
 */
#include "gpu/forward.h"

#include <string.h>

#include "gpu/add_norm.h"
#include "gpu/boxes.h"
#include "gpu/check.h"
#include "gpu/gated_norm.h"
#include "gpu/scan.h"

bool forward_chunked(const struct layout *layout, enum precision precision, size_t window)
{
	const int columns = BLOCK_SLICES * SLICE, head_dim = layout->head_dim;

	return precision == PRECISION_BFLOAT16 && window >= CHUNK_MIN_WINDOW && layout->taps == 4 &&
	       (layout->state == 64 || layout->state == 128) && head_dim % SLICE == 0 &&
	       layout->inner / layout->groups % GROUP_COLUMNS == 0 &&
	       layout->inner / GROUP_COLUMNS % layout->gated_norm_groups == 0 &&
	       (head_dim % columns == 0 || columns % head_dim == 0) && columns / head_dim <= CHUNK_HEADS(layout->state);
}

/* Bytes of the working memory, in the order in which forward_open takes it. */
struct sizes {
	size_t residual, normed, proj, gated, mixed, squares, x, bc, scores, steps, states, known;
	size_t state_chunks;
};

static struct sizes sizes_of(const struct forward *f, const struct batch_limits *limits)
{
	const struct layout *l = &f->layout;
	size_t rows = limits->rows, number = f->bfloat16 ? 2 : 4, slices = (size_t)(l->inner / SLICE);
	size_t parts = (size_t)(f->chunked ? l->inner / GROUP_COLUMNS : l->heads);
	size_t window_chunks = (limits->window + CHUNK_ROWS - 1) / CHUNK_ROWS;
	struct sizes s = {
		.residual = rows * (size_t)l->hidden_cols * sizeof(float),
		.normed = rows * (size_t)l->hidden_cols * number,
		.proj = rows * (size_t)l->proj_cols * number,
		.gated = rows * (size_t)l->inner_cols * number,
		.mixed = rows * (size_t)l->hidden_cols * number,
		.squares = rows * parts * sizeof(float),
	};

	if (!f->chunked)
		return s;
	s.state_chunks = f->on_chip ? (rows / limits->window + 1) * window_chunks : limits->chunks;
	s.x = s.state_chunks * slices * CHUNK_ROWS * SLICE * number;
	s.bc = limits->units * 2 * (size_t)l->groups * 16 * (size_t)l->state * number;
	s.scores = limits->score_tiles * (size_t)l->groups * 256 * sizeof(float);
	s.steps = limits->units * (size_t)l->heads * 16 * STEP_PLANES * sizeof(float);
	s.known = s.state_chunks * sizeof(unsigned);
	s.states = s.state_chunks * slices * SLICE * (size_t)l->state * number;
	return s;
}

size_t forward_bytes(const struct forward *forward, const struct batch_limits *limits)
{
	struct sizes s = sizes_of(forward, limits);

	return s.residual + s.normed + s.proj + s.gated + s.mixed + s.squares + s.x + s.bc + s.scores + s.steps +
	       s.states + s.known;
}

/* Zeroed device memory, freed by forward_close. */
static int take(struct forward *f, size_t bytes, void *ret_memory, struct error *err)
{
	void *memory;
	int rc;

	if (bytes == 0)
		return 0;
	rc = cuda_check(cudaMalloc(&memory, bytes), "working memory", err);
	if (rc != 0)
		return rc;
	f->memory[f->n_memory++] = memory;
	memcpy(ret_memory, &memory, sizeof(memory));
	return cuda_check(cudaMemsetAsync(memory, 0, bytes, f->stream), "clearing working memory", err);
}

int forward_open(struct forward *forward, struct error *err)
{
	struct forward *f = forward;
	struct sizes s = sizes_of(f, &f->limits);
	struct { size_t bytes; void *to; } blocks[] = {
		{ s.residual, &f->residual }, { s.normed, &f->normed }, { s.proj, &f->proj },
		{ s.gated, &f->gated }, { s.mixed, &f->mixed }, { s.squares, &f->squares },
		{ s.x, &f->chunk.x }, { s.bc, &f->chunk.bc },
		{ s.scores, &f->chunk.scores }, { s.steps, &f->chunk.steps }, { s.states, &f->chunk.states },
		{ s.known, &f->chunk.known },
	};
	int rc = 0;

	for (size_t i = 0; i < sizeof(blocks) / sizeof(*blocks) && rc == 0; i++)
		rc = take(f, blocks[i].bytes, blocks[i].to, err);
	f->parts = f->chunked ? f->layout.inner / GROUP_COLUMNS : f->layout.heads;
	f->state_chunks = s.state_chunks;
	f->chunk.proj = f->proj;
	f->chunk.gated = f->gated;
	f->chunk.squares = f->squares;
	if (rc == 0 && f->on_chip)
		rc = boxes_of(f->proj, f->limits.rows, (size_t)f->layout.proj_cols, CHUNK_ROWS, GROUP_COLUMNS,
			      &f->proj_boxes, err);
	if (rc == 0 && f->on_chip)
		rc = cuda_check(chunk_segments_setup(), "preparing kernels", err);
	if (rc == 0 && f->chunked)
		rc = cuda_check(chunk_prepare_setup(f->hopper), "preparing kernels", err);
	if (rc == 0 && f->chunked)
		rc = cuda_check(chunk_states_setup(), "preparing kernels", err);
	if (rc == 0 && f->chunked && f->hopper)
		rc = cuda_check(chunk_heads_setup(), "preparing kernels", err);
	if (rc == 0 && f->chunked)
		rc = cuda_check(chunk_outputs_setup(), "preparing kernels", err);
	return rc;
}

void forward_close(struct forward *forward)
{
	for (size_t i = 0; i < forward->n_memory; i++)
		cudaFree(forward->memory[i]);
	forward->n_memory = 0;
}

/*
 * A segment's chunks follow each other, on one block for every few heads.  Where that leaves most processors idle
 * behind the longest segment, all chunks at once win, although their states go through memory: each of a chunk's
 * blocks then counts as 8/3 of the time that a chunk takes in its segment (measured: gpu/NOTES.md).
 */
enum mixer forward_mixer(const struct forward *forward, const struct batch_size *size)
{
	size_t blocks = (size_t)chunk_blocks(&forward->layout);

	if (!forward->chunked)
		return MIXER_SCAN;
	if (!forward->on_chip)
		return MIXER_CHUNKS;
	if (size->longest > 1 && size->longest * (size_t)forward->processors * 3 / 8 > size->chunks * blocks &&
	    size->chunks <= forward->state_chunks)
		return MIXER_CHUNKS;
	return MIXER_SEGMENTS;
}

/* Before layer i, or with i = layers behind the last one. */
static cudaError_t next_layer(const struct forward *f, int i, size_t rows)
{
	bool last = i == f->layout.layers;
	struct add_norm args = {
		.residual = f->residual,
		.from_input = i < 2,
		.mixer = i > 0 ? f->mixed : NULL,
		.bias = i > 0 ? f->weights->layers[i - 1].out_bias : NULL,
		.squares = i > 0 && f->layout.gated_norm_groups == 1 ? f->squares : NULL,
		.parts = f->parts,
		.weight = last ? f->weights->norm_f : f->weights->layers[i].norm,
		.normed = last ? NULL : f->normed,
		.stream_plane = i > 0 ? f->planes[i - 1] : -1,
		.normed_plane = last ? f->planes[i] : -1,
		.max_rows = f->limits.rows,
		.early = f->hopper && i > 0,
		.output_dtype = f->output_dtype,
	};

	return add_norm(&f->layout, &args, f->bfloat16, f->view, rows, f->processors, f->stream);
}

cudaError_t forward_mix(const struct forward *forward, int i, const struct batch_size *size, enum mixer mixer)
{
	const struct forward *f = forward;
	const struct layout *l = &f->layout;
	const struct layer_weights *weights = &f->weights->layers[i];
	struct scan args = { weights, i, f->proj, f->gated, f->squares, f->hopper };
	const int processors = f->processors;
	const bool few = size->chunks <= (size_t)processors;
	const bool apart = f->hopper && !few && chunk_heads_serves(l, size->segments, processors);
	const bool early = f->hopper && (few || apart); /* otherwise blocks would share processors */
	cudaError_t status;

	if (mixer == MIXER_SCAN)
		return scan(l, &args, f->bfloat16, f->view, size->segments, f->stream);
	status = chunk_prepare(l, weights, i, &f->chunk, mixer == MIXER_CHUNKS, f->view, size->chunks, f->hopper,
			       processors, f->stream);
	if (status == cudaSuccess && mixer == MIXER_SEGMENTS)
		return chunk_segments(l, weights, i, &f->chunk, &f->proj_boxes, f->view, size->segments, processors,
				      f->stream);
	if (status == cudaSuccess)
		status = apart ? chunk_heads(l, i, &f->chunk, f->view, size->segments, processors, f->stream) :
				 chunk_states(l, i, &f->chunk, f->view, size->segments, early, f->stream);
	if (status == cudaSuccess)
		status = chunk_outputs(l, weights, i, &f->chunk, f->view, size->chunks, early, apart, processors,
				       f->stream);
	return status;
}

static int run_layer(const struct forward *f, int i, const struct batch_size *size, enum mixer mixer,
		     struct error *err)
{
	const struct layer_weights *w = &f->weights->layers[i];
	int rc = cuda_check(next_layer(f, i, size->rows), "add_norm", err);

	if (rc == 0)
		rc = matmul_run(f->in_proj, f->normed, w->in_proj, w->in_proj_bias, f->proj, size->rows, err);
	if (rc == 0)
		rc = cuda_check(forward_mix(f, i, size, mixer), "mixer", err);
	if (rc == 0 && f->layout.gated_norm_groups > 1)
		rc = cuda_check(gated_norm(&f->layout, f->gated, f->bfloat16, f->squares, f->parts, f->view,
					   size->rows, f->stream), "gated norm", err);
	if (rc == 0)
		rc = matmul_run(f->out_proj, f->gated, w->out_proj, NULL, f->mixed, size->rows, err);
	return rc;
}

int forward_run(const struct forward *forward, const struct batch_size *size, enum mixer mixer, struct error *err)
{
	int rc = 0;

	for (int i = 0; i < forward->layout.layers && rc == 0; i++)
		rc = run_layer(forward, i, size, mixer, err);
	if (rc == 0)
		rc = cuda_check(next_layer(forward, forward->layout.layers, size->rows), "final norm", err);
	return rc;
}
