/*
 * Packing the weights.  Matrices go from the mapped file to page-locked memory, a piece at a time, from there to the
 * device and through a kernel that converts them; while one piece is under way the next one is read.
 */
#include "gpu/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/check.h"
#include "gpu/convert.h"

#define PIECE ((size_t)16 << 20)

/* Two page-locked buffers, their twins on the device, and an event each: its piece has been converted. */
struct upload {
	const struct layout *layout;
	bool bfloat16;
	size_t number_size; /* of a packed matrix's numbers */
	cudaStream_t stream;
	char *host[2], *device[2];
	cudaEvent_t done[2];
	unsigned turn;
};

static int upload_open(struct upload *up, struct error *err)
{
	int rc = 0;

	for (int i = 0; i < 2 && rc == 0; i++) {
		rc = cuda_check(cudaMallocHost((void **)&up->host[i], PIECE), "page-locked memory", err);
		if (rc == 0)
			rc = cuda_check(cudaMalloc((void **)&up->device[i], PIECE), "memory for weights", err);
		if (rc == 0)
			rc = cuda_check(cudaEventCreateWithFlags(&up->done[i], cudaEventDisableTiming), "event", err);
	}
	return rc;
}

static void upload_close(struct upload *up)
{
	cudaStreamSynchronize(up->stream);
	for (int i = 0; i < 2; i++) {
		cudaFreeHost(up->host[i]);
		cudaFree(up->device[i]);
		if (up->done[i])
			cudaEventDestroy(up->done[i]);
	}
}

/* Rows [first, first + rows) of tensor [, cols] -> dst [rows, dst_cols]. */
static int upload_rows(struct upload *up, const struct tensor *tensor, size_t first, size_t rows, size_t cols,
		       char *dst, size_t dst_cols, struct error *err)
{
	size_t row_bytes = cols * dtype_size(tensor->dtype), piece = PIECE / row_bytes;
	const char *src = (const char *)tensor->data + first * row_bytes;

	for (size_t n; rows > 0; rows -= n, src += n * row_bytes, dst += n * dst_cols * up->number_size) {
		unsigned i = up->turn++ % 2;
		int rc = cuda_check(cudaEventSynchronize(up->done[i]), "uploading weights", err);

		n = rows < piece ? rows : piece;
		if (rc == 0) {
			memcpy(up->host[i], src, n * row_bytes);
			rc = cuda_check(cudaMemcpyAsync(up->device[i], up->host[i], n * row_bytes,
							cudaMemcpyHostToDevice, up->stream), "uploading weights", err);
		}
		if (rc == 0)
			rc = cuda_check(convert_rows(up->device[i], tensor->dtype, n, cols, dst, up->bfloat16,
						     dst_cols, up->stream), "converting weights", err);
		if (rc == 0)
			rc = cuda_check(cudaEventRecord(up->done[i], up->stream), "uploading weights", err);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/* in_proj, whose sections lie further apart on the device. */
static int upload_in_proj(struct upload *up, const struct tensor *tensor, char *dst, struct error *err)
{
	const struct layout *l = up->layout;
	size_t rows = layout_proj_rows(l), row_bytes = (size_t)l->hidden_cols * up->number_size, n;

	for (size_t r = 0; r < rows; r += n) {
		size_t column = layout_proj_column(l, r);
		int rc;

		for (n = 1; r + n < rows && layout_proj_column(l, r + n) == column + n;)
			n++;
		rc = upload_rows(up, tensor, r, n, (size_t)l->hidden, dst + column * row_bytes, (size_t)l->hidden_cols,
				 err);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/* Sizes of a layer's vectors in floats, each rounded up to 64. */
struct vector_sizes {
	size_t norm, conv, conv_bias, heads, gated_norm, bias, all;
};

static size_t round_floats(size_t n)
{
	return (n + 63) / 64 * 64;
}

static struct vector_sizes vector_sizes(const struct layout *l)
{
	struct vector_sizes s = {
		.norm = round_floats((size_t)l->hidden_cols),
		.conv = round_floats((size_t)l->taps * (size_t)l->conv_cols),
		.conv_bias = round_floats((size_t)l->conv_cols),
		.heads = round_floats((size_t)l->heads),
		.gated_norm = round_floats((size_t)l->inner_cols),
		.bias = round_floats((size_t)l->proj_cols),
	};
	s.all = 2 * s.norm + s.conv + s.conv_bias + 3 * s.heads + s.gated_norm + s.bias;
	return s;
}

/* The convolution's weights [conv_dim, taps] -> [taps, conv_cols], and its bias. */
static void pack_conv(const struct layout *l, const struct layer *layer, float *conv, float *bias, float *scratch)
{
	size_t n = layout_conv_dim(l), taps = (size_t)l->taps;

	tensor_widen(&layer->conv, scratch, n * taps);
	for (size_t c = 0; c < n; c++)
		for (size_t k = 0; k < taps; k++)
			conv[k * (size_t)l->conv_cols + layout_conv_column(l, c)] = scratch[c * taps + k];
	tensor_widen(&layer->conv_bias, scratch, n);
	for (size_t c = 0; c < n; c++)
		bias[layout_conv_column(l, c)] = scratch[c];
}

static void pack_in_proj_bias(const struct layout *l, const struct layer *layer, bool bfloat16, float *to,
			      float *scratch)
{
	size_t rows = layout_proj_rows(l), cols = (size_t)l->proj_cols;
	float *wide = scratch + rows;

	tensor_widen(&layer->in_proj_bias, scratch, rows);
	memset(wide, 0, cols * sizeof(float));
	for (size_t r = 0; r < rows; r++)
		wide[layout_proj_column(l, r)] = scratch[r];
	dtype_narrow(bfloat16 ? DTYPE_BFLOAT16 : DTYPE_FLOAT32, wide, cols, to);
}

/*
 * Write a layer's vectors to host [sizes->all], which is zero, and the addresses that they will have on the device,
 * where host will lie at device, to weights.
 */
static void pack_vectors(const struct layout *l, const struct layer *layer, bool bfloat16, float *host,
			 const float *device, float *scratch, struct layer_weights *weights)
{
	struct vector_sizes s = vector_sizes(l);
	size_t heads = (size_t)l->heads, at = 0;

	tensor_widen(&layer->norm, host, (size_t)l->hidden);
	weights->norm = device;
	at += s.norm;
	pack_conv(l, layer, host + at, host + at + s.conv, scratch);
	weights->conv = device + at;
	weights->conv_bias = device + at + s.conv;
	at += s.conv + s.conv_bias;
	tensor_widen(&layer->dt_bias, host + at, heads);
	weights->dt_bias = device + at;
	at += s.heads;
	tensor_widen(&layer->a_log, scratch, heads);
	for (size_t h = 0; h < heads; h++)
		host[at + h] = (float)-exp((double)scratch[h]);
	weights->a = device + at;
	at += s.heads;
	tensor_widen(&layer->d, host + at, heads);
	weights->d = device + at;
	at += s.heads;
	tensor_widen(&layer->gated_norm, host + at, (size_t)l->inner);
	weights->gated_norm = device + at;
	at += s.gated_norm;
	tensor_widen(&layer->out_proj_bias, host + at, (size_t)l->hidden);
	weights->out_bias = layer->out_proj_bias.data ? device + at : NULL;
	at += s.norm;
	pack_in_proj_bias(l, layer, bfloat16, host + at, scratch);
	weights->in_proj_bias = layer->in_proj_bias.data ? device + at : NULL;
}

/* All vectors, norm_f last: packed on the host and copied at once. */
static int upload_vectors(const struct model *model, const struct layout *l, bool bfloat16, struct weights *weights,
			  struct error *err)
{
	struct vector_sizes s = vector_sizes(l);
	size_t n = (size_t)l->layers * s.all + s.norm;
	float *host = calloc(n, sizeof(float));
	float *scratch = malloc((layout_conv_dim(l) * (size_t)l->taps + 2 * (size_t)l->proj_cols) * sizeof(float));
	int rc = host && scratch ? 0 : error_memory(err, "packed weights");

	if (rc == 0)
		rc = cuda_check(cudaMalloc(&weights->vectors, n * sizeof(float)), "memory for weights", err);
	if (rc == 0) {
		const float *device = weights->vectors;

		for (size_t i = 0; i < (size_t)l->layers; i++)
			pack_vectors(l, &model->layers[i], bfloat16, host + i * s.all, device + i * s.all, scratch,
				     &weights->layers[i]);
		tensor_widen(&model->norm_f, host + n - s.norm, (size_t)l->hidden);
		weights->norm_f = device + n - s.norm;
		weights->bytes += n * sizeof(float);
		rc = cuda_check(cudaMemcpy(weights->vectors, host, n * sizeof(float), cudaMemcpyHostToDevice),
				"uploading weights", err);
	}
	free(scratch);
	free(host);
	return rc;
}

/* Matrix libraries want 256-byte alignment. */
static size_t round_matrix(size_t bytes)
{
	return (bytes + 255) / 256 * 256;
}

static int upload_matrices(struct upload *up, const struct model *model, struct weights *weights, struct error *err)
{
	const struct layout *l = up->layout;
	size_t in_bytes = round_matrix((size_t)l->proj_cols * (size_t)l->hidden_cols * up->number_size);
	size_t out_bytes = round_matrix((size_t)l->hidden_cols * (size_t)l->inner_cols * up->number_size);
	size_t bytes = (size_t)l->layers * (in_bytes + out_bytes);
	int rc = cuda_check(cudaMalloc(&weights->matrices, bytes), "memory for weights", err);

	if (rc == 0)
		rc = cuda_check(cudaMemsetAsync(weights->matrices, 0, bytes, up->stream), "clearing weights", err);
	weights->bytes += bytes;
	for (int i = 0; i < l->layers && rc == 0; i++) {
		char *in = (char *)weights->matrices + (size_t)i * (in_bytes + out_bytes), *out = in + in_bytes;
		const struct layer *layer = &model->layers[i];

		weights->layers[i].in_proj = in;
		weights->layers[i].out_proj = out;
		rc = upload_in_proj(up, &layer->in_proj, in, err);
		if (rc == 0)
			rc = upload_rows(up, &layer->out_proj, 0, (size_t)l->hidden, (size_t)l->inner, out,
					 (size_t)l->inner_cols, err);
	}
	if (rc == 0)
		rc = cuda_check(cudaStreamSynchronize(up->stream), "uploading weights", err);
	return rc;
}

int weights_upload(const struct model *model, const struct layout *layout, enum precision precision,
		   cudaStream_t stream, struct weights **ret_weights, struct error *err)
{
	bool bfloat16 = precision == PRECISION_BFLOAT16;
	struct upload up = {
		.layout = layout, .bfloat16 = bfloat16, .number_size = bfloat16 ? 2 : 4, .stream = stream
	};
	struct weights *weights = calloc(1, sizeof(*weights));
	int rc;

	if (!weights)
		return error_memory(err, "weights");
	weights->layers = calloc((size_t)layout->layers, sizeof(*weights->layers));
	rc = weights->layers ? upload_open(&up, err) : error_memory(err, "weights");
	if (rc == 0)
		rc = upload_vectors(model, layout, bfloat16, weights, err);
	if (rc == 0)
		rc = upload_matrices(&up, model, weights, err);
	upload_close(&up);
	if (rc != 0) {
		weights_free(weights);
		return rc;
	}
	*ret_weights = weights;
	return 0;
}

void weights_free(struct weights *weights)
{
	if (!weights)
		return;
	cudaFree(weights->matrices);
	cudaFree(weights->vectors);
	free(weights->layers);
	free(weights);
}
