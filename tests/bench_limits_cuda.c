/*
 * Limits of a cuda device: the matrix products of all layers through cuBLASLt under a graph, as the device runs them
 * and of the model's own widths, with the device's own weights and with the activations that the last forward pass
 * left, because products of zeros run faster than others; and copying device memory, counting what is read and what is
 * written.  Beside them, what is between the products.
 */
#include <stdlib.h>

#include "gpu/check.h"
#include "gpu/cuda.h"
#include "tests/bench_limits.h"

#define COPY_BYTES ((size_t)2 << 30) /* far more than the L2 cache */
#define AT_ONCE 4                    /* launches between two looks at the clock */
#define SECONDS 0.2                  /* of launches: a GPU slows down when it works for long */

struct bench_meter {
	const struct forward *forward;
	size_t rows;
	struct matmul narrow; /* in_proj of the model's own width, to a multiple of 8 */
	cudaGraphExec_t products, model_widths, mixers; /* of all layers */
	cudaEvent_t start, stop;
	void *from, *to; /* [COPY_BYTES] */
};

static int enqueue_in_and_out(const struct bench_meter *meter, const struct matmul *in_proj, struct error *err)
{
	const struct forward *f = meter->forward;
	int rc = 0;

	for (int i = 0; i < f->layout.layers && rc == 0; i++) {
		const struct layer_weights *w = &f->weights->layers[i];

		rc = matmul_run_library(in_proj, f->normed, w->in_proj, w->in_proj_bias, f->proj, meter->rows, err);
		if (rc == 0)
			rc = matmul_run_library(f->out_proj, f->gated, w->out_proj, NULL, f->mixed, meter->rows, err);
	}
	return rc;
}

static int enqueue_products(const struct bench_meter *meter, struct error *err)
{
	return enqueue_in_and_out(meter, meter->forward->in_proj, err);
}

static int enqueue_model_widths(const struct bench_meter *meter, struct error *err)
{
	return enqueue_in_and_out(meter, &meter->narrow, err);
}

static int enqueue_mixers(const struct bench_meter *meter, struct error *err)
{
	const struct forward *f = meter->forward;
	const size_t window = f->limits.window, chunks = (window + CHUNK_ROWS - 1) / CHUNK_ROWS;
	struct batch_size size = {
		.rows = meter->rows, .segments = f->limits.segments, .chunks = meter->rows / window * chunks
	};
	int rc = 0;

	size.longest = size.chunks / size.segments;
	for (int i = 0; i < f->layout.layers && rc == 0; i++)
		rc = cuda_check(forward_mix(f, i, &size, forward_mixer(f, &size)), "mixer", err);
	return rc;
}

static int capture(const struct bench_meter *meter,
		   int (*enqueue)(const struct bench_meter *meter, struct error *err), cudaGraphExec_t *ret_run,
		   struct error *err)
{
	cudaStream_t stream = meter->forward->stream;
	cudaGraph_t graph = NULL;
	cudaError_t status;
	int rc = cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing", err);

	if (rc != 0)
		return rc;
	rc = enqueue(meter, err);
	status = cudaStreamEndCapture(stream, &graph);
	if (rc == 0)
		rc = cuda_check(status, "capturing", err);
	if (rc == 0)
		rc = cuda_check(cudaGraphInstantiate(ret_run, graph, 0), "instantiating a graph", err);
	if (graph)
		cudaGraphDestroy(graph);
	return rc;
}

static cudaError_t launch_products(const struct bench_meter *meter)
{
	return cudaGraphLaunch(meter->products, meter->forward->stream);
}

static cudaError_t launch_model_widths(const struct bench_meter *meter)
{
	return cudaGraphLaunch(meter->model_widths, meter->forward->stream);
}

static cudaError_t launch_mixers(const struct bench_meter *meter)
{
	return cudaGraphLaunch(meter->mixers, meter->forward->stream);
}

static cudaError_t launch_copy(const struct bench_meter *meter)
{
	return cudaMemcpyAsync(meter->to, meter->from, COPY_BYTES, cudaMemcpyDeviceToDevice, meter->forward->stream);
}

/* Milliseconds of one launch, on average over SECONDS of them. */
static int measure(const struct bench_meter *meter, cudaError_t (*launch)(const struct bench_meter *meter),
		   double *ret_ms, struct error *err)
{
	cudaStream_t stream = meter->forward->stream;
	const double start = bench_now();
	double sum = 0;
	int rc = 0, launches = 0;

	do {
		float ms = 0;

		rc = cuda_check(cudaEventRecord(meter->start, stream), "limits", err);
		for (int i = 0; i < AT_ONCE && rc == 0; i++)
			rc = cuda_check(launch(meter), "limits", err);
		if (rc == 0)
			rc = cuda_check(cudaEventRecord(meter->stop, stream), "limits", err);
		if (rc == 0)
			rc = cuda_check(cudaEventSynchronize(meter->stop), "limits", err);
		if (rc == 0)
			rc = cuda_check(cudaEventElapsedTime(&ms, meter->start, meter->stop), "limits", err);
		sum += ms;
		launches += AT_ONCE;
	} while (rc == 0 && bench_now() - start < SECONDS);
	*ret_ms = sum / launches;
	return rc;
}

/* Of the products of all layers, padding left out. */
static double operations(const struct bench_meter *meter)
{
	const struct layout *l = &meter->forward->layout;

	return 2.0 * (double)meter->rows * l->layers * l->hidden *
	       ((double)layout_proj_rows(l) + (double)l->inner);
}

static int meter_run(struct bench_meter *meter, struct bench_limits *ret_limits, struct error *err)
{
	double copy_ms = 0, mixers_ms = 0;
	int rc = measure(meter, launch_products, &ret_limits->matmul_only_ms, err);

	if (rc == 0)
		rc = measure(meter, launch_copy, &copy_ms, err);
	if (rc == 0)
		rc = measure(meter, launch_mixers, &mixers_ms, err);
	if (rc == 0) /* last: its columns are not where the mixers look for theirs */
		rc = measure(meter, launch_model_widths, &ret_limits->model_widths_ms, err);
	if (rc != 0)
		return rc;
	ret_limits->matmul_gflops = 1e-6 * operations(meter) / ret_limits->matmul_only_ms;
	ret_limits->bytes_per_s = 2e3 * (double)COPY_BYTES / copy_ms;
	ret_limits->mixer_ms = mixers_ms / meter->forward->layout.layers;
	ret_limits->weight_bytes = meter->forward->weights->bytes;
	ret_limits->threads = 0;
	return 0;
}

static void meter_close(struct bench_meter *meter)
{
	if (meter->products)
		cudaGraphExecDestroy(meter->products);
	if (meter->model_widths)
		cudaGraphExecDestroy(meter->model_widths);
	if (meter->mixers)
		cudaGraphExecDestroy(meter->mixers);
	if (meter->start)
		cudaEventDestroy(meter->start);
	if (meter->stop)
		cudaEventDestroy(meter->stop);
	cudaFree(meter->from);
	cudaFree(meter->to);
	free(meter);
}

static const void *in_proj_at(const void *weights, size_t i)
{
	return ((const struct weights *)weights)->layers[i].in_proj;
}

static int tune_model_widths(struct bench_meter *meter, struct error *err)
{
	const struct forward *f = meter->forward;
	const struct weights *w = f->weights;
	const struct matmul_weights in = { in_proj_at, w, (size_t)f->layout.layers, w->layers[0].in_proj_bias };

	return matmul_tune(f->in_proj->library, (layout_proj_rows(&f->layout) + 7) / 8 * 8, f->in_proj->k,
			   f->in_proj->bfloat16, meter->rows, &in, &meter->narrow, err);
}

static int meter_open(struct device *device, size_t rows, struct bench_meter **ret_meter, struct error *err)
{
	struct bench_meter *meter = calloc(1, sizeof *meter);
	int rc;

	if (!meter)
		return error_memory(err, "benchmark");
	meter->forward = cuda_forward_of(device);
	meter->rows = rows;
	rc = cuda_check(cudaMalloc(&meter->from, COPY_BYTES), "memory to copy", err);
	if (rc == 0)
		rc = cuda_check(cudaMalloc(&meter->to, COPY_BYTES), "memory to copy", err);
	if (rc == 0)
		rc = cuda_check(cudaMemset(meter->from, 0x5a, COPY_BYTES), "memory to copy", err);
	if (rc == 0)
		rc = cuda_check(cudaEventCreate(&meter->start), "event", err);
	if (rc == 0)
		rc = cuda_check(cudaEventCreate(&meter->stop), "event", err);
	if (rc == 0)
		rc = capture(meter, enqueue_products, &meter->products, err);
	if (rc == 0)
		rc = tune_model_widths(meter, err);
	if (rc == 0)
		rc = capture(meter, enqueue_model_widths, &meter->model_widths, err);
	if (rc == 0)
		rc = capture(meter, enqueue_mixers, &meter->mixers, err);
	if (rc != 0) {
		meter_close(meter);
		return rc;
	}
	*ret_meter = meter;
	return 0;
}

const struct bench_meter_type bench_meter_cuda = {
	.backend = "cuda", .open = meter_open, .run = meter_run, .close = meter_close
};
