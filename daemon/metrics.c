/*
 * Metrics: see metrics.h.  The table is all there is to know of a metric; both ways of writing walk it.
 */
#include "daemon/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/clock.h"
#include "daemon/server.h"

/* --- what is observed --- */

static const double row_bounds[HISTOGRAM_BUCKETS] = { 1,   2,    4,    8,    16,   32,    64,    128,   256,
						      512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072 };
static const double second_bounds[HISTOGRAM_BUCKETS] = { 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
							 0.01,   0.025,   0.05,   0.1,   0.25,   0.5,
							 1,      2.5,     5,      10,    25,     60 };

static void observe(struct histogram *histogram, const double *bounds, double value)
{
	size_t i = 0;

	while (i < HISTOGRAM_BUCKETS && value > bounds[i])
		i++;
	histogram->count[i]++;
	histogram->sum += value;
}

void metrics_batch(struct metrics *metrics, size_t rows)
{
	observe(&metrics->batch_rows, row_bounds, (double)rows);
}

/* From one point in time to a later one, in seconds. */
static double span(uint64_t from_ns, uint64_t to_ns)
{
	return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

void metrics_window(struct metrics *metrics, const struct hidden *hidden)
{
	const uint64_t at[STAGE_COUNT + 1] = { hidden->arrived_ns, hidden->started_ns, hidden->ended_ns, clock_ns() };

	for (size_t i = 0; i < STAGE_COUNT; i++)
		observe(&metrics->window_stages[i], second_bounds, span(at[i], at[i + 1]));
	observe(&metrics->window_latency, second_bounds, span(at[0], at[STAGE_COUNT]));
}

/* --- the table --- */

enum kind { KIND_COUNTER, KIND_GAUGE, KIND_HISTOGRAM };

struct metric {
	const char *name, *help;
	enum kind kind;
	size_t offset;        /* in struct server: a uint64_t, or a struct histogram; n of them one after another */
	double unit;          /* of the uint64_t, in those that the name says; 0: 1 */
	const double *bounds; /* KIND_HISTOGRAM */
	const char *label;    /* NULL: there is one */
	const char *(*value)(int i); /* of the label */
	int n;
};

static const char *refusal_value(int i)
{
	return refusal_name(ERR_REFUSED - i);
}

static const char *place_value(int i)
{
	static const char *const names[] = { [PLACE_DEVICE] = "device", [PLACE_HOST] = "host", [PLACE_DISK] = "disk" };

	return names[i];
}

static const char *stage_value(int i)
{
	static const char *const names[] = {
		[STAGE_WAIT] = "wait", [STAGE_COMPUTE] = "compute", [STAGE_SEND] = "send"
	};

	return names[i];
}

#define METRIC(kind_, name_, field, help_) \
	.kind = (kind_), .name = (name_), .offset = offsetof(struct server, field), .help = (help_)
#define COUNTER(...) METRIC(KIND_COUNTER, __VA_ARGS__)
#define GAUGE(...) METRIC(KIND_GAUGE, __VA_ARGS__)
#define HISTOGRAM(...) METRIC(KIND_HISTOGRAM, __VA_ARGS__)

static const struct metric table[] = {
	{ COUNTER("mamba2d_messages_in_total", stats.messages_in, "Messages received from producers.") },
	{ COUNTER("mamba2d_rows_in_total", stats.rows_in, "Rows accepted.") },
	{ COUNTER("mamba2d_rows_out_total", stats.rows_out, "Rows whose hidden states were published.") },
	{ COUNTER("mamba2d_windows_in_total", stats.windows_in, "Windows whose last row was accepted.") },
	{ COUNTER("mamba2d_windows_computed_total", stats.windows, "Windows by which a cache has advanced.") },
	{ COUNTER("mamba2d_windows_out_total", stats.windows_out, "Whole windows published.") },
	{ COUNTER("mamba2d_batches_total", stats.batches, "Batches handed to the device.") },
	{ COUNTER("mamba2d_batches_failed_total", stats.failed_batches, "Batches that the device could not compute.") },
	{ HISTOGRAM("mamba2d_batch_rows", metrics.batch_rows, "Rows in a batch."), .bounds = row_bounds },
	{ GAUGE("mamba2d_batch_limit_rows", metrics.max_rows, "Rows that fit in a batch.") },
	{ GAUGE("mamba2d_batches_running", metrics.batches_running, "Batches that the device has just now.") },
	{ HISTOGRAM("mamba2d_window_latency_seconds", metrics.window_latency,
		    "From the arrival of a window's last row until it was published."), .bounds = second_bounds },
	{ HISTOGRAM("mamba2d_window_stage_seconds", metrics.window_stages,
		    "What that time is spent on: waiting for a batch, computing, being sent."),
	  .bounds = second_bounds, .label = "stage", .value = stage_value, .n = STAGE_COUNT },
	{ COUNTER("mamba2d_refused_total", stats.refused, "Messages refused, by the code that PROTOCOL.md explains."),
	  .label = "code", .value = refusal_value, .n = REFUSAL_COUNT },
	{ COUNTER("mamba2d_gaps_total", stats.gaps, "Messages before which rows were missing.") },
	{ COUNTER("mamba2d_duplicate_rows_total", stats.duplicate_rows,
		  "Rows that had been accepted before, and were dropped.") },
	{ COUNTER("mamba2d_dropped_messages_total", stats.drops, "Published messages that a slow subscriber missed.") },
	{ COUNTER("mamba2d_credit_stalls_total", stats.credit_stalls,
		  "Messages after which their producer has to wait for credit.") },
	{ COUNTER("mamba2d_reply_stalls_total", stats.stalls,
		  "Times that a producer did not read its hidden states fast enough.") },
	{ GAUGE("mamba2d_streams", metrics.streams,
		"Streams by where their state is; one in memory may have an older one on disk."),
	  .label = "place", .value = place_value, .n = PLACE_COUNT },
	{ GAUGE("mamba2d_streams_ready", metrics.ready, "Streams that wait for the next batch.") },
	{ GAUGE("mamba2d_streams_stalled", metrics.stalled,
		"Streams whose producer does not read its hidden states.") },
	{ GAUGE("mamba2d_peers", metrics.peers, "Producers that feed streams.") },
	{ GAUGE("mamba2d_cache_bytes", metrics.cache_bytes, "Caches of the streams in memory.") },
	{ GAUGE("mamba2d_queue_bytes", metrics.queue_bytes, "Memory for rows and hidden states on their way.") },
	{ COUNTER("mamba2d_state_writes_total", state_stats.saved, "States written to disk.") },
	{ COUNTER("mamba2d_state_written_bytes_total", state_stats.saved_bytes, "Bytes of states written to disk.") },
	{ COUNTER("mamba2d_state_write_seconds_total", state_stats.save_ns, "Time that writing states took."),
	  .unit = 1e-9 },
	{ COUNTER("mamba2d_state_errors_total", state_stats.errors,
		  "States that could not be written, read or removed.") },
	{ COUNTER("mamba2d_state_damaged_total", state_stats.damaged, "States on disk that were found damaged.") },
	{ COUNTER("mamba2d_streams_resumed_total", state_stats.resumed, "Streams brought back from disk.") },
	{ COUNTER("mamba2d_streams_evicted_total", state_stats.evicted, "Streams that left memory.") },
	{ COUNTER("mamba2d_worker_busy_seconds_total", metrics.busy_ns,
		  "Time with a batch on a device, of all devices: its rate is their busy share."), .unit = 1e-9 },
	{ GAUGE("mamba2d_devices", metrics.devices, "Devices that compute.") },
	{ GAUGE("mamba2d_uptime_seconds", metrics.uptime_ns, "Time since the start."), .unit = 1e-9 },
	{ GAUGE("mamba2d_serving", metrics.serving, "1: input is taken; 0: draining or stopping.") },
	{ GAUGE("process_resident_memory_bytes", metrics.resident_bytes, "Resident memory size in bytes.") },
};
#define N_METRICS (sizeof table / sizeof table[0])

/* --- what is looked up --- */

static size_t list_length(struct list *list)
{
	size_t n = 0;

	for (struct link *link = list_first(list); link; link = list_next(list, link))
		n++;
	return n;
}

static uint64_t resident_bytes(void)
{
	FILE *file = fopen("/proc/self/statm", "re");
	unsigned long long pages;
	bool known;

	if (!file)
		return 0;
	known = fscanf(file, "%*u %llu", &pages) == 1;
	fclose(file);
	return known ? pages * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/* Caches that moved from a device's memory to the host's. */
static size_t caches_on_host(const struct server *server)
{
	size_t n = 0;

	for (size_t i = 0; i < server->n_lanes; i++) {
		struct device *device = server->lanes[i].device;
		struct cache_counts counts = { .host = 0 };

		if (device->backend->cache_counts)
			device->backend->cache_counts(device, &counts);
		n += counts.host;
	}
	return n < server->streams.n ? n : server->streams.n;
}

static void look_up(struct server *server)
{
	struct metrics *m = &server->metrics;

	m->streams[PLACE_HOST] = caches_on_host(server);
	m->streams[PLACE_DEVICE] = server->streams.n - m->streams[PLACE_HOST];
	m->streams[PLACE_DISK] = server->saved.n;
	m->peers = server->peers.n;
	m->devices = server->n_lanes;
	m->ready = m->batches_running = 0;
	for (size_t i = 0; i < server->n_lanes; i++) {
		m->ready += list_length(&server->lanes[i].ready);
		m->batches_running += server->lanes[i].jobs_busy;
	}
	m->stalled = list_length(&server->stalled);
	m->max_rows = lanes_batch_rows(server);
	m->cache_bytes = server->streams.n * shape_cache_floats(&server->model->shape) * sizeof(float);
	m->queue_bytes = blocks_bytes(server);
	m->resident_bytes = resident_bytes();
	m->busy_ns = lanes_busy_ns(server);
	m->uptime_ns = clock_ns() - server->started_ns;
	m->serving = server->phase == SERVER_SERVING;
}

static const uint64_t *number_at(const struct server *server, const struct metric *metric, int i)
{
	return (const uint64_t *)(const void *)((const char *)server + metric->offset) + i;
}

static const struct histogram *histogram_at(const struct server *server, const struct metric *metric, int i)
{
	return (const struct histogram *)(const void *)((const char *)server + metric->offset) + i;
}

/* --- as text --- */

/* "{label="value",le="bound"}", or as much of it as there is. */
static void print_labels(const struct metric *metric, int i, const char *bound, FILE *out)
{
	if (!metric->label && !bound)
		return;
	fputc('{', out);
	if (metric->label)
		fprintf(out, "%s=\"%s\"%s", metric->label, metric->value(i), bound ? "," : "");
	if (bound)
		fprintf(out, "le=\"%s\"", bound);
	fputc('}', out);
}

static void print_number(const struct server *server, const struct metric *metric, int i, FILE *out)
{
	uint64_t number = *number_at(server, metric, i);

	fputs(metric->name, out);
	print_labels(metric, i, NULL, out);
	if (metric->unit > 0)
		fprintf(out, " %.9g\n", (double)number * metric->unit);
	else
		fprintf(out, " %" PRIu64 "\n", number);
}

static void print_histogram(const struct server *server, const struct metric *metric, int i, FILE *out)
{
	const struct histogram *histogram = histogram_at(server, metric, i);
	uint64_t count = 0;
	char bound[32] = "+Inf";

	for (size_t b = 0; b <= HISTOGRAM_BUCKETS; b++) {
		count += histogram->count[b];
		if (b < HISTOGRAM_BUCKETS)
			snprintf(bound, sizeof bound, "%g", metric->bounds[b]);
		else
			snprintf(bound, sizeof bound, "+Inf");
		fprintf(out, "%s_bucket", metric->name);
		print_labels(metric, i, bound, out);
		fprintf(out, " %" PRIu64 "\n", count);
	}
	fprintf(out, "%s_sum", metric->name);
	print_labels(metric, i, NULL, out);
	fprintf(out, " %.9g\n%s_count", histogram->sum, metric->name);
	print_labels(metric, i, NULL, out);
	fprintf(out, " %" PRIu64 "\n", count);
}

static void print_info(const struct server *server, FILE *out)
{
	const struct device *device = server->lanes[0].device;

	fprintf(out,
		"# HELP mamba2d_build_info What runs here.\n# TYPE mamba2d_build_info gauge\n"
		"mamba2d_build_info{version=\"%s\",device=\"%s\",precision=\"%s\",model=\"%s\"} 1\n",
		PACKAGE_VERSION, device->description, precision_name(device->precision), server->model->fingerprint);
}

char *metrics_text(struct server *server, size_t *ret_size)
{
	static const char *const kinds[] = {
		[KIND_COUNTER] = "counter", [KIND_GAUGE] = "gauge", [KIND_HISTOGRAM] = "histogram"
	};
	char *text = NULL;
	FILE *out = open_memstream(&text, ret_size);

	if (!out)
		return NULL;
	look_up(server);
	print_info(server, out);
	for (const struct metric *m = table; m < table + N_METRICS; m++) {
		fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", m->name, m->help, m->name, kinds[m->kind]);
		for (int i = 0; i < (m->label ? m->n : 1); i++)
			if (m->kind == KIND_HISTOGRAM)
				print_histogram(server, m, i, out);
			else
				print_number(server, m, i, out);
	}
	return fclose(out) ? NULL : text;
}

/* --- for a control answer --- */

static void put_histogram(const struct server *server, const struct metric *metric, int i, const char *key,
			  struct control_writer *answer)
{
	const struct histogram *histogram = histogram_at(server, metric, i);

	control_open_map(answer, key);
	control_open_array(answer, "le");
	for (size_t b = 0; b < HISTOGRAM_BUCKETS; b++)
		control_put_float(answer, NULL, metric->bounds[b]);
	control_close(answer);
	control_open_array(answer, "count");
	for (size_t b = 0; b <= HISTOGRAM_BUCKETS; b++)
		control_put_uint(answer, NULL, histogram->count[b]);
	control_close(answer);
	control_put_float(answer, "sum", histogram->sum);
	control_close(answer);
}

static void put_one(const struct server *server, const struct metric *metric, int i, const char *key,
		    struct control_writer *answer)
{
	if (metric->kind == KIND_HISTOGRAM)
		put_histogram(server, metric, i, key, answer);
	else if (metric->unit > 0)
		control_put_float(answer, key, (double)*number_at(server, metric, i) * metric->unit);
	else
		control_put_uint(answer, key, *number_at(server, metric, i));
}

void metrics_put(struct server *server, struct control_writer *answer)
{
	look_up(server);
	for (const struct metric *m = table; m < table + N_METRICS; m++) {
		if (!m->label) {
			put_one(server, m, 0, m->name, answer);
			continue;
		}
		control_open_map(answer, m->name);
		for (int i = 0; i < m->n; i++)
			put_one(server, m, i, m->value(i), answer);
		control_close(answer);
	}
}
