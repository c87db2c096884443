/*
 * Copies between windows and the device: how long the runs of neighbouring rows are decides who moves them.
 */
#include "gpu/transfer.h"

/* Bytes as float32, on average: a copy engine takes about a microsecond to begin with a run. */
#define LONG_RUN ((size_t)128 << 10)
#define FEW_RUNS 2 /* go by copy engine however short: a kernel has to ask the host where they lie */

/* Does a row lie on the host right behind the row before it, to be moved with it? */
typedef bool adjoin(const struct row_view *row, size_t row_bytes);

static bool adjoins_in(const struct row_view *row, size_t row_bytes)
{
	return (const char *)row->in == (const char *)row[-1].in + row_bytes && row->dtype == row[-1].dtype;
}

static bool adjoins_out(const struct row_view *row, size_t row_bytes)
{
	return row->out == row[-1].out + row_bytes;
}

/* The end of the run that begins at row `from`. */
static size_t run_end(const struct row_view *rows, size_t n, size_t from, adjoin *adjoins, size_t row_bytes)
{
	size_t to = from + 1;

	while (to < n && adjoins(&rows[to], row_bytes))
		to++;
	return to;
}

static bool runs_suit_engines(const struct row_view *rows, size_t n, adjoin *adjoins, size_t row_bytes)
{
	size_t runs = 0;

	for (size_t from = 0; from < n; from = run_end(rows, n, from, adjoins, row_bytes))
		runs++;
	return runs <= FEW_RUNS || n * row_bytes >= runs * LONG_RUN;
}

/* Bring rows to their places in input, as they are. */
static cudaError_t move_in(const struct row_view *rows, size_t n, int hidden, int cols, float *input,
			   cudaStream_t stream)
{
	size_t row_bytes = (size_t)hidden * sizeof(float), pitch = (size_t)cols * sizeof(float);
	cudaError_t status = cudaSuccess;

	if (!runs_suit_engines(rows, n, adjoins_in, row_bytes))
		return rows_gather(rows, n, hidden, cols, input, stream);
	for (size_t from = 0, to; from < n && status == cudaSuccess; from = to) {
		enum dtype dtype = rows[from].dtype;

		to = run_end(rows, n, from, adjoins_in, row_bytes);
		status = cudaMemcpy2DAsync(input + from * (size_t)cols + rows_offset(dtype, cols), pitch, rows[from].in,
					   row_bytes, (size_t)hidden * dtype_size(dtype), to - from,
					   cudaMemcpyHostToDevice, stream);
	}
	return status;
}

cudaError_t transfer_in(const struct row_view *rows, size_t n, int hidden, int cols, float *input, cudaStream_t stream)
{
	cudaError_t status = move_in(rows, n, hidden, cols, input, stream);
	size_t r = 0;

	while (r < n && rows[r].dtype == DTYPE_FLOAT32)
		r++;
	if (status == cudaSuccess && r < n)
		status = rows_widen(rows, n, hidden, cols, input, stream);
	return status;
}

cudaError_t transfer_out(const struct scatter *scatter, const int *planes, const struct row_view *rows, size_t n,
			 cudaStream_t stream)
{
	size_t row_bytes = scatter->row_bytes;
	cudaError_t status = cudaSuccess;

	if (!runs_suit_engines(rows, n, adjoins_out, row_bytes))
		return rows_scatter(scatter, rows, n, stream);
	for (size_t from = 0, to; from < n && status == cudaSuccess; from = to) {
		to = run_end(rows, n, from, adjoins_out, row_bytes);
		for (size_t o = 0; o < scatter->n_outputs && status == cudaSuccess; o++) {
			size_t row = (size_t)planes[o] * scatter->max_rows + from;

			status = cudaMemcpyAsync(rows[from].out + o * scatter->window * row_bytes,
						 scatter->output + row * row_bytes, (to - from) * row_bytes,
						 cudaMemcpyDeviceToHost, stream);
		}
	}
	return status;
}
