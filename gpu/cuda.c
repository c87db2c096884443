/*
 * The cuda back end: opening a device, and the way of a batch through it.  Three streams overlap: rows come in, the
 * forward pass runs, hidden states go out; two batches are under way, each with its own input and output.
 */
#include "gpu/cuda.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/batch.h"
#include "gpu/check.h"
#include "gpu/forward.h"
#include "gpu/graphs.h"
#include "gpu/layout.h"
#include "gpu/matmul.h"
#include "gpu/scan.h"
#include "gpu/slots.h"
#include "gpu/transfer.h"
#include "gpu/weights.h"
#include "model/device.h"

#define DEPTH 2
#define DEFAULT_ROWS 16384
#define MAX_HIDDEN 16384              /* of add_norm */
#define RESERVE ((size_t)256 << 20)   /* of device memory, left to the driver and to others */

/* A batch under way. */
struct turn {
	struct batch_view *view; /* page-locked */
	struct row_view *rows;   /* [max_rows] page-locked */
	float *input;            /* [max_rows, hidden_cols] on the device */
	char *output;            /* [n_planes, max_rows, hidden] in the output's dtype, on the device */
	cudaEvent_t arrived, computed, done;
};

struct cuda {
	struct device base;
	int index;
	struct layout layout;
	struct weights *weights;
	struct matmul_library library;
	struct matmul in_proj, out_proj;
	struct forward forward;
	struct graphs graphs;
	struct slots *slots;

	int *planes;         /* [layers + 1], as forward.h says */
	int *output_planes;  /* [n_outputs] */
	int *device_planes;  /* the same on the device */
	size_t n_planes;

	cudaStream_t compute, in, out;
	struct batch_view *view; /* on the device: the batch that computes */
	struct turn turns[DEPTH];
	unsigned submitted; /* batches so far: of whoever submits, one at a time */
	unsigned waited;    /* likewise of whoever waits */
	atomic_bool lost;
};

static struct cuda *cuda_of(struct device *device)
{
	return (struct cuda *)device;
}

const struct forward *cuda_forward_of(struct device *device)
{
	return &cuda_of(device)->forward;
}

static int check_options(const struct model *model, const struct device_options *options, struct error *err)
{
	const struct shape *s = &model->shape;

	if (options->window == 0)
		return error_set(err, ERR_ARGUMENT, "window is 0: expected at least 1 row");
	if (options->max_rows > 0 && options->max_rows < options->window)
		return error_set(err, ERR_ARGUMENT, "batches of %zu rows: expected at least a window of %zu",
				 options->max_rows, options->window);
	for (size_t i = 0; i < options->n_outputs; i++)
		if (options->outputs[i] != OUTPUT_FINAL &&
		    (options->outputs[i] < 0 || (size_t)options->outputs[i] >= s->num_layers))
			return error_set(err, ERR_ARGUMENT, "output of layer %d: expected 0 to %zu",
					 options->outputs[i], s->num_layers - 1);
	if (!dtype_is_float(options->output_dtype))
		return error_set(err, ERR_ARGUMENT, "output as %s: expected float32, float16 or bfloat16",
				 dtype_name(options->output_dtype));
	if (s->state_size > SCAN_MAX_STATE || s->head_dim > SCAN_MAX_HEAD_DIM || s->hidden_size > MAX_HIDDEN)
		return error_set(err, ERR_UNSUPPORTED,
				 "device cuda: state_size %zu, head_dim %zu, hidden_size %zu: at most %d, %d, %d",
				 s->state_size, s->head_dim, s->hidden_size, SCAN_MAX_STATE, SCAN_MAX_HEAD_DIM,
				 MAX_HIDDEN);
	if (s->head_dim % 4 != 0)
		return error_set(err, ERR_UNSUPPORTED, "device cuda: head_dim %zu: expected a multiple of 4",
				 s->head_dim);
	if (s->num_heads % s->gated_norm_groups != 0)
		return error_set(err, ERR_UNSUPPORTED, "device cuda: %zu heads in %zu groups of the gated norm",
				 s->num_heads, s->gated_norm_groups);
	return 0;
}

static enum precision choose_precision(const struct model *model, enum precision asked)
{
	enum dtype dtype = model->layers[0].in_proj.dtype;

	if (asked != PRECISION_AUTO)
		return asked;
	return dtype == DTYPE_FLOAT32 ? PRECISION_FLOAT32 : PRECISION_BFLOAT16;
}

/* Find the device and say what it is. */
static int find_device(struct cuda *cuda, int index, struct error *err)
{
	struct cudaDeviceProp properties;
	int n = 0, rc;

	if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
		cudaGetLastError();
		return error_set(err, ERR_UNSUPPORTED, "device cuda: no NVIDIA GPU with a driver for CUDA %d.%d",
				 CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
	}
	if (index < 0 || index >= n)
		return error_set(err, ERR_UNSUPPORTED, "device cuda:%d: this machine has %d", index, n);
	cuda->index = index;
	rc = cuda_check(cudaSetDevice(index), "choosing the device", err);
	if (rc == 0)
		rc = cuda_check(cudaGetDeviceProperties(&properties, index), "asking for properties", err);
	if (rc != 0)
		return rc;
	if (properties.major < 8)
		return error_set(err, ERR_UNSUPPORTED, "device cuda:%d: compute capability %d.%d, 8.0 is the least",
				 index, properties.major, properties.minor);
	cuda->forward.processors = properties.multiProcessorCount;
	cuda->forward.hopper = properties.major == 9 && properties.minor == 0;
	cuda->forward.on_chip = cuda->forward.chunked && cuda->forward.hopper && chunk_segments_serves(&cuda->layout);
	snprintf(cuda->base.description, sizeof(cuda->base.description), "cuda %.48s sm_%d%d %s", properties.name,
		 properties.major, properties.minor, precision_name(cuda->base.precision));
	return 0;
}

/* Streams: the one that computes waits for nobody but its input; copies go first where both want to start. */
static int make_streams(struct cuda *cuda, struct error *err)
{
	const unsigned flags = cudaStreamNonBlocking;
	int least, greatest, rc = cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "streams", err);

	if (rc == 0)
		rc = cuda_check(cudaStreamCreateWithPriority(&cuda->compute, flags, least), "stream", err);
	if (rc == 0)
		rc = cuda_check(cudaStreamCreateWithPriority(&cuda->in, flags, greatest), "stream", err);
	if (rc == 0)
		rc = cuda_check(cudaStreamCreateWithPriority(&cuda->out, flags, greatest), "stream", err);
	return rc;
}

/* Give every distinct output a plane. */
static int assign_planes(struct cuda *cuda, const struct device_options *options, struct error *err)
{
	size_t layers = cuda->base.model->shape.num_layers, bytes = options->n_outputs * sizeof(int);
	int rc;

	cuda->output_planes = malloc(bytes + 1);
	cuda->planes = malloc((layers + 1) * sizeof(*cuda->planes));
	if (!cuda->output_planes || !cuda->planes)
		return error_memory(err, "outputs");
	for (size_t i = 0; i <= layers; i++)
		cuda->planes[i] = -1;
	for (size_t i = 0; i < options->n_outputs; i++) {
		int *plane = &cuda->planes[options->outputs[i] == OUTPUT_FINAL ? (int)layers : options->outputs[i]];

		if (*plane < 0)
			*plane = (int)cuda->n_planes++;
		cuda->output_planes[i] = *plane;
	}
	rc = cuda_check(cudaMalloc((void **)&cuda->device_planes, bytes + 1), "outputs", err);
	if (rc == 0)
		rc = cuda_check(cudaMemcpy(cuda->device_planes, cuda->output_planes, bytes, cudaMemcpyHostToDevice),
				"outputs", err);
	return rc;
}

static size_t output_bytes(const struct cuda *cuda, size_t rows)
{
	return cuda->n_planes * rows * (size_t)cuda->layout.hidden * dtype_size(cuda->base.output_dtype);
}

/* The largest batch, where the options leave it open: one whose working memory is a small part of what there is. */
static int choose_rows(struct cuda *cuda, const struct device_options *options, struct error *err)
{
	size_t window = options->window, rows = options->max_rows, available, total;
	struct device *device = &cuda->base;
	int rc = cuda_check(cudaMemGetInfo(&available, &total), "asking for free memory", err);

	if (rc != 0)
		return rc;
	if (rows == 0) {
		rows = DEFAULT_ROWS > window ? DEFAULT_ROWS / window * window : window;
		while (rows > window) {
			struct batch_limits limits = batch_limits(rows, rows, window, cuda->forward.chunked);
			size_t bytes = forward_bytes(&cuda->forward, &limits);

			if (bytes + DEPTH * output_bytes(cuda, rows) <= available / 4)
				break;
			rows = rows / 2 / window * window;
		}
		if (rows < window)
			rows = window;
	}
	device->window = window;
	device->max_rows = rows;
	device->max_segments = options->max_segments > 0 ? options->max_segments : rows;
	return 0;
}

static int make_turns(struct cuda *cuda, struct error *err)
{
	const struct batch_limits *limits = &cuda->forward.limits;
	size_t input = limits->rows * (size_t)cuda->layout.hidden_cols * sizeof(float);
	int rc = cuda_check(cudaMalloc((void **)&cuda->view, limits->bytes), "a batch", err);

	if (rc == 0)
		rc = cuda_check(cudaMemset(cuda->view, 0, limits->bytes), "a batch", err);
	for (int i = 0; i < DEPTH && rc == 0; i++) {
		struct turn *t = &cuda->turns[i];

		rc = cuda_check(cudaMallocHost((void **)&t->view, limits->bytes), "page-locked memory", err);
		if (rc == 0)
			rc = cuda_check(cudaMallocHost((void **)&t->rows, limits->rows * sizeof(*t->rows)),
					"page-locked memory", err);
		if (rc == 0)
			rc = cuda_check(cudaMalloc((void **)&t->input, input), "a batch's input", err);
		if (rc == 0)
			rc = cuda_check(cudaMemset(t->input, 0, input), "a batch's input", err);
		if (rc == 0)
			rc = cuda_check(cudaMalloc((void **)&t->output, output_bytes(cuda, limits->rows) + 1),
					"a batch's output", err);
		if (rc == 0)
			rc = cuda_check(cudaEventCreateWithFlags(&t->arrived, cudaEventDisableTiming), "event", err);
		if (rc == 0)
			rc = cuda_check(cudaEventCreateWithFlags(&t->computed, cudaEventDisableTiming), "event", err);
		if (rc == 0)
			rc = cuda_check(cudaEventCreateWithFlags(&t->done, cudaEventDisableTiming), "event", err);
	}
	return rc;
}

static const void *in_proj_at(const void *weights, size_t i)
{
	return ((const struct weights *)weights)->layers[i].in_proj;
}

static const void *out_proj_at(const void *weights, size_t i)
{
	return ((const struct weights *)weights)->layers[i].out_proj;
}

static int make_products(struct cuda *cuda, struct error *err)
{
	const struct layout *l = &cuda->layout;
	struct weights *w = cuda->weights;
	struct matmul_weights in = { in_proj_at, w, (size_t)l->layers, w->layers[0].in_proj_bias };
	struct matmul_weights out = { out_proj_at, w, (size_t)l->layers, NULL };
	bool bfloat16 = cuda->forward.bfloat16;
	int rc = matmul_library_open(&cuda->library, cuda->forward.hopper, cuda->compute, err);

	if (rc == 0)
		rc = matmul_tune(&cuda->library, (size_t)l->proj_cols, (size_t)l->hidden_cols, bfloat16,
				 cuda->base.max_rows, &in, &cuda->in_proj, err);
	if (rc == 0)
		rc = matmul_tune(&cuda->library, (size_t)l->hidden_cols, (size_t)l->inner_cols, bfloat16,
				 cuda->base.max_rows, &out, &cuda->out_proj, err);
	return rc;
}

static int make_forward(struct cuda *cuda, struct error *err)
{
	struct forward *f = &cuda->forward;

	f->weights = cuda->weights;
	f->in_proj = &cuda->in_proj;
	f->out_proj = &cuda->out_proj;
	f->stream = cuda->compute;
	f->view = cuda->view;
	f->planes = cuda->planes;
	f->output_dtype = cuda->base.output_dtype;
	return forward_open(f, err);
}

/* The caches' slots come last and take what is left, unless they are told how much. */
static int make_slots(struct cuda *cuda, size_t bytes, struct error *err)
{
	size_t available, total;
	int rc = 0;

	if (bytes == 0) {
		rc = cuda_check(cudaMemGetInfo(&available, &total), "asking for free memory", err);
		if (rc == 0)
			bytes = available > RESERVE ? available - RESERVE : 0;
	}
	if (rc == 0)
		rc = slots_new(&cuda->layout, bytes, cuda->compute, &cuda->slots, err);
	if (rc != 0)
		return rc;
	if (cuda->base.max_segments > slots_count(cuda->slots))
		cuda->base.max_segments = slots_count(cuda->slots);
	return 0;
}

static int build(struct cuda *cuda, const struct device_options *options, struct error *err)
{
	int rc = find_device(cuda, options->index, err);

	if (rc == 0)
		rc = make_streams(cuda, err);
	if (rc == 0)
		rc = weights_upload(cuda->base.model, &cuda->layout, cuda->base.precision, cuda->compute,
				    &cuda->weights, err);
	if (rc == 0)
		rc = assign_planes(cuda, options, err);
	if (rc == 0)
		rc = choose_rows(cuda, options, err);
	if (rc != 0)
		return rc;
	cuda->forward.limits = batch_limits(cuda->base.max_rows, cuda->base.max_segments, cuda->base.window,
					    cuda->forward.chunked);
	rc = make_turns(cuda, err);
	if (rc == 0)
		rc = make_products(cuda, err);
	if (rc == 0)
		rc = make_forward(cuda, err);
	if (rc == 0)
		rc = graphs_open(&cuda->graphs, &cuda->forward, err);
	if (rc == 0)
		rc = make_slots(cuda, options->cache_bytes, err);
	return rc;
}

static void cuda_close(struct device *device)
{
	struct cuda *cuda = cuda_of(device);

	cudaSetDevice(cuda->index);
	cudaDeviceSynchronize();
	slots_free(cuda->slots);
	graphs_close(&cuda->graphs);
	forward_close(&cuda->forward);
	matmul_library_close(&cuda->library);
	for (int i = 0; i < DEPTH; i++) {
		struct turn *t = &cuda->turns[i];

		cudaFreeHost(t->view);
		cudaFreeHost(t->rows);
		cudaFree(t->input);
		cudaFree(t->output);
		for (int e = 0; e < 3; e++) {
			cudaEvent_t event = e == 0 ? t->arrived : e == 1 ? t->computed : t->done;

			if (event)
				cudaEventDestroy(event);
		}
	}
	cudaFree(cuda->view);
	cudaFree(cuda->device_planes);
	free(cuda->output_planes);
	free(cuda->planes);
	weights_free(cuda->weights);
	for (int i = 0; i < 3; i++) {
		cudaStream_t stream = i == 0 ? cuda->compute : i == 1 ? cuda->in : cuda->out;

		if (stream)
			cudaStreamDestroy(stream);
	}
	free(cuda);
}

static int cuda_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		     struct error *err)
{
	struct cuda *cuda;
	int rc = check_options(model, options, err);

	if (rc != 0)
		return rc;
	cuda = aligned_alloc(_Alignof(struct cuda), sizeof(*cuda)); /* tensor maps want more than calloc gives */
	if (!cuda)
		return error_memory(err, "device cuda");
	memset(cuda, 0, sizeof(*cuda));
	layout_of(&model->shape, &cuda->layout);
	cuda->base = (struct device){
		.backend = &backend_cuda,
		.model = model,
		.n_outputs = options->n_outputs,
		.output_dtype = options->output_dtype,
		.precision = choose_precision(model, options->precision),
		.depth = DEPTH,
	};
	cuda->forward.layout = cuda->layout;
	cuda->forward.bfloat16 = cuda->base.precision == PRECISION_BFLOAT16;
	cuda->forward.chunked = forward_chunked(&cuda->layout, cuda->base.precision, options->window);
	rc = build(cuda, options, err);
	if (rc != 0) {
		cuda_close(&cuda->base);
		return rc;
	}
	model_release_pages(model);
	*ret_device = &cuda->base;
	return 0;
}

static int cuda_cache_new(struct device *device, struct cache **ret_cache, struct error *err)
{
	return slots_cache_new(cuda_of(device)->slots, ret_cache, err);
}

static void cuda_cache_free(struct device *device, struct cache *cache)
{
	slots_cache_free(cuda_of(device)->slots, cache);
}

static void cuda_cache_counts(struct device *device, struct cache_counts *ret_counts)
{
	slots_counts(cuda_of(device)->slots, ret_counts);
}

static int check_lost(struct cuda *cuda, struct error *err)
{
	cudaSetDevice(cuda->index); /* each thread has its own current device */
	return cuda->lost ? error_set(err, ERR_DEVICE_LOST, "device cuda: lost to an earlier error") : 0;
}

static int note_lost(struct cuda *cuda, int rc)
{
	if (rc == ERR_DEVICE_LOST)
		cuda->lost = true;
	return rc;
}

static int cuda_cache_export(struct device *device, const struct cache *cache, float *state, struct error *err)
{
	struct cuda *cuda = cuda_of(device);
	int rc = check_lost(cuda, err);

	return rc != 0 ? rc : note_lost(cuda, slots_export(cuda->slots, cache, state, err));
}

static int cuda_cache_import(struct device *device, struct cache *cache, const float *state, struct error *err)
{
	struct cuda *cuda = cuda_of(device);
	int rc = check_lost(cuda, err);

	return rc != 0 ? rc : note_lost(cuda, slots_import(cuda->slots, cache, state, err));
}

static void *cuda_host_alloc(struct device *device, size_t bytes)
{
	void *memory = NULL;

	cudaSetDevice(cuda_of(device)->index);
	if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) != cudaSuccess) {
		cudaGetLastError();
		return NULL;
	}
	return memory;
}

static void cuda_host_free(struct device *device, void *memory)
{
	(void)device;
	cudaFreeHost(memory);
}

static int check_batch(const struct cuda *cuda, const struct batch *batch, struct error *err)
{
	size_t rows = 0;

	for (size_t i = 0; i < batch->n_segments; i++) {
		if (batch->segments[i].rows == 0)
			return error_set(err, ERR_ARGUMENT, "device cuda: segment %zu of the batch has no rows", i);
		rows += batch->segments[i].rows;
	}
	if (rows > cuda->base.max_rows || batch->n_segments > cuda->base.max_segments || rows == 0)
		return error_set(err, ERR_ARGUMENT,
				 "device cuda: a batch of %zu rows in %zu segments: 1 to %zu and %zu", rows,
				 batch->n_segments, cuda->base.max_rows, cuda->base.max_segments);
	return 0;
}

/* Rows -> the turn's input, behind what they carried before. */
static int receive(struct cuda *cuda, struct turn *t, size_t rows, struct error *err)
{
	const struct layout *l = &cuda->layout;
	int rc = cuda_check(transfer_in(t->rows, rows, l->hidden, l->hidden_cols, t->input, cuda->in),
			    "copying rows in", err);

	if (rc == 0)
		rc = cuda_check(cudaEventRecord(t->arrived, cuda->in), "copying rows in", err);
	if (rc == 0)
		rc = cuda_check(cudaStreamWaitEvent(cuda->compute, t->arrived, 0), "copying rows in", err);
	return rc;
}

/* The turn's output -> the windows. */
static int deliver(struct cuda *cuda, struct turn *t, size_t rows, struct error *err)
{
	struct scatter scatter = {
		.output = t->output,
		.planes = cuda->device_planes,
		.n_outputs = cuda->base.n_outputs,
		.max_rows = cuda->base.max_rows,
		.row_bytes = (size_t)cuda->layout.hidden * dtype_size(cuda->base.output_dtype),
		.window = cuda->base.window,
	};
	int rc = cuda_check(cudaEventRecord(t->computed, cuda->compute), "the forward pass", err);

	if (rc == 0)
		rc = cuda_check(cudaStreamWaitEvent(cuda->out, t->computed, 0), "copying rows out", err);
	if (rc == 0)
		rc = cuda_check(transfer_out(&scatter, cuda->output_planes, t->rows, rows, cuda->out),
				"copying rows out", err);
	if (rc == 0)
		rc = cuda_check(cudaEventRecord(t->done, cuda->out), "copying rows out", err);
	return rc;
}

static int cuda_submit(struct device *device, const struct batch *batch, struct error *err)
{
	struct cuda *cuda = cuda_of(device);
	struct turn *t = &cuda->turns[cuda->submitted % DEPTH];
	struct batch_size size;
	int rc = check_lost(cuda, err);

	if (rc == 0)
		rc = check_batch(cuda, batch, err);
	if (rc == 0)
		rc = note_lost(cuda, slots_bring(cuda->slots, batch, err));
	if (rc != 0)
		return rc;
	size = batch_build(&cuda->forward.limits, batch, cuda->layout.hidden, dtype_size(device->output_dtype), t->view,
			   (uintptr_t)cuda->view, t->rows);
	t->view->input = t->input;
	t->view->output = t->output;
	rc = receive(cuda, t, size.rows, err);
	if (rc == 0)
		rc = cuda_check(cudaMemcpyAsync(cuda->view, t->view, size.bytes, cudaMemcpyHostToDevice, cuda->compute),
				"copying the batch in", err);
	if (rc == 0)
		rc = graphs_run(&cuda->graphs, &cuda->forward, &size, err);
	if (rc == 0)
		rc = deliver(cuda, t, size.rows, err);
	if (rc != 0) {
		/* What was enqueued may have advanced some layers' caches and not others: worth nothing now. */
		cuda->lost = true;
		return err ? err->code = ERR_DEVICE_LOST : ERR_DEVICE_LOST;
	}
	for (size_t i = 0; i < batch->n_segments; i++)
		if (batch->segments[i].rows >= device->window)
			batch->segments[i].cache->parity ^= 1;
	cuda->submitted++;
	return 0;
}

static int cuda_wait(struct device *device, struct error *err)
{
	struct cuda *cuda = cuda_of(device);
	struct turn *t = &cuda->turns[cuda->waited++ % DEPTH];
	int lost = check_lost(cuda, err);
	/* even then: what was enqueued before still writes to its windows */
	int rc = cuda_check(cudaEventSynchronize(t->done), "running the batch", lost ? NULL : err);

	if (lost || rc != 0) {
		cuda->lost = true;
		return err ? err->code = ERR_DEVICE_LOST : ERR_DEVICE_LOST;
	}
	return 0;
}

const struct backend backend_cuda = {
	.name = "cuda",
	.open = cuda_open,
	.close = cuda_close,
	.cache_new = cuda_cache_new,
	.cache_free = cuda_cache_free,
	.cache_export = cuda_cache_export,
	.cache_import = cuda_cache_import,
	.cache_counts = cuda_cache_counts,
	.host_alloc = cuda_host_alloc,
	.host_free = cuda_host_free,
	.submit = cuda_submit,
	.wait = cuda_wait,
};
