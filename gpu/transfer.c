/*
 * Copies between windows and the device: how long the runs of neighbouring rows are decides who moves them.
 */
#include "gpu/transfer.h"

#define LONG_RUN ((size_t)128 << 10) /* bytes, on average: a copy engine takes about a microsecond to begin with one */
#define FEW_RUNS 2                   /* go by copy engine however short: a kernel has to ask the host where they lie */

/* Where row r lies on the host. */
typedef const char *place(const struct row_view *rows, size_t r);

static const char *place_in(const struct row_view *rows, size_t r)
{
	return (const char *)rows[r].in;
}

static const char *place_out(const struct row_view *rows, size_t r)
{
	return rows[r].out;
}

/* The end of the run that begins at row `from`. */
static size_t run_end(const struct row_view *rows, size_t n, size_t from, place *at, size_t row_bytes)
{
	size_t to = from + 1;

	while (to < n && at(rows, to) == at(rows, to - 1) + row_bytes)
		to++;
	return to;
}

static bool runs_suit_engines(const struct row_view *rows, size_t n, place *at, size_t row_bytes)
{
	size_t runs = 0;

	for (size_t from = 0; from < n; from = run_end(rows, n, from, at, row_bytes))
		runs++;
	return runs <= FEW_RUNS || n * row_bytes >= runs * LONG_RUN;
}

cudaError_t transfer_in(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream)
{
	size_t row_bytes = (size_t)hidden * sizeof(float), pitch = (size_t)cols * sizeof(float);
	cudaError_t status = cudaSuccess;

	if (!runs_suit_engines(rows, n, place_in, row_bytes))
		return rows_gather(rows, n, hidden, cols, input, stream);
	for (size_t from = 0, to; from < n && status == cudaSuccess; from = to) {
		to = run_end(rows, n, from, place_in, row_bytes);
		status = cudaMemcpy2DAsync((char *)input + from * pitch, pitch, rows[from].in, row_bytes, row_bytes,
					   to - from, cudaMemcpyHostToDevice, stream);
	}
	return status;
}

cudaError_t transfer_out(const struct scatter *scatter, const int *planes, const struct row_view *rows, size_t n,
			 cudaStream_t stream)
{
	size_t row_bytes = scatter->row_bytes;
	cudaError_t status = cudaSuccess;

	if (!runs_suit_engines(rows, n, place_out, row_bytes))
		return rows_scatter(scatter, rows, n, stream);
	for (size_t from = 0, to; from < n && status == cudaSuccess; from = to) {
		to = run_end(rows, n, from, place_out, row_bytes);
		for (size_t o = 0; o < scatter->n_outputs && status == cudaSuccess; o++) {
			size_t row = (size_t)planes[o] * scatter->max_rows + from;

			status = cudaMemcpyAsync(rows[from].out + o * scatter->window * row_bytes,
						 scatter->output + row * row_bytes, (to - from) * row_bytes,
						 cudaMemcpyDeviceToHost, stream);
		}
	}
	return status;
}
