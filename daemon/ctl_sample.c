/* What a daemon says of itself: see ctl_sample.h.  Three requests: metrics, status and streams. */
#include "daemon/ctl_sample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ctl.h"

#define TIMEOUT_MS 5000

/* Which number of the metrics goes where: a number by itself, or one in a map. */
static const struct {
	const char *name, *part;
	size_t offset;
} numbers[] = {
	{ "mamba2d_uptime_seconds", NULL, offsetof(struct sample, uptime) },
	{ "mamba2d_rows_in_total", NULL, offsetof(struct sample, rows_in) },
	{ "mamba2d_rows_out_total", NULL, offsetof(struct sample, rows_out) },
	{ "mamba2d_windows_computed_total", NULL, offsetof(struct sample, windows) },
	{ "mamba2d_batches_total", NULL, offsetof(struct sample, batches) },
	{ "mamba2d_batch_rows", "sum", offsetof(struct sample, batch_rows) },
	{ "mamba2d_batch_limit_rows", NULL, offsetof(struct sample, batch_limit) },
	{ "mamba2d_worker_busy_seconds_total", NULL, offsetof(struct sample, busy) },
	{ "mamba2d_devices", NULL, offsetof(struct sample, devices) },
	{ "mamba2d_credit_stalls_total", NULL, offsetof(struct sample, credit_stalls) },
	{ "mamba2d_dropped_messages_total", NULL, offsetof(struct sample, dropped) },
	{ "mamba2d_gaps_total", NULL, offsetof(struct sample, gaps) },
	{ "mamba2d_streams", "device", offsetof(struct sample, device) },
	{ "mamba2d_streams", "host", offsetof(struct sample, host) },
	{ "mamba2d_streams", "disk", offsetof(struct sample, disk) },
	{ "mamba2d_streams_ready", NULL, offsetof(struct sample, ready) },
	{ "mamba2d_streams_stalled", NULL, offsetof(struct sample, stalled) },
	{ "mamba2d_peers", NULL, offsetof(struct sample, peers) },
	{ "process_resident_memory_bytes", NULL, offsetof(struct sample, resident_bytes) },
	{ "mamba2d_cache_bytes", NULL, offsetof(struct sample, cache_bytes) },
	{ "mamba2d_queue_bytes", NULL, offsetof(struct sample, queue_bytes) },
};

/* Send cmd; the answer is the client's until the next one.  1: refused. */
static int ask(struct client *client, const char *cmd, const void *prefix, size_t size, struct control *ret_answer,
	       struct error *err)
{
	struct control_writer writer;
	char request[1024];
	int rc;

	control_begin_request(&writer, request, sizeof request, cmd);
	control_put_bin(&writer, "prefix", prefix, size);
	rc = client_request(client, request, control_finish(&writer), TIMEOUT_MS, ret_answer, err);
	return rc ? rc : ctl_refused("top", ret_answer) ? 1 : 0;
}

/* Copy the string of a key, as far as there is room. */
static void copy_text(const struct control *map, const char *key, char *text, size_t size)
{
	const char *bytes = "";
	size_t length = 0;
	struct error error;

	control_get_bytes(map, key, &bytes, &length, &error);
	snprintf(text, size, "%.*s", (int)length, bytes);
}

/* --- metrics --- */

static int read_numbers(const struct control *answer, struct sample *sample, struct error *err)
{
	int rc = 0;

	for (size_t i = 0; !rc && i < sizeof numbers / sizeof numbers[0]; i++) {
		double *number = (double *)(void *)((char *)sample + numbers[i].offset);
		struct control map = *answer;

		if (numbers[i].part)
			rc = control_get_map(answer, numbers[i].name, &map, err);
		if (!rc)
			rc = control_get_number(&map, numbers[i].part ? numbers[i].part : numbers[i].name, number, err);
	}
	return rc;
}

/* Refusals of all kinds. */
static double sum_refused(const struct control *answer)
{
	struct control map;
	struct error error;
	struct wire_reader reader;
	double sum = 0;

	if (control_get_map(answer, "mamba2d_refused_total", &map, &error))
		return 0;
	reader = map.map;
	for (size_t n = wire_next(&reader).count; n > 0; n--) {
		struct wire_value value;

		wire_skip(&reader);
		value = wire_next(&reader);
		sum += value.type == WIRE_UINT ? (double)value.uint : 0;
	}
	return sum;
}

static int read_latency(const struct control *answer, struct sample *sample, struct error *err)
{
	struct sample_histogram *h = &sample->latency;
	struct control map;
	size_t n = 0;
	int rc;

	if ((rc = control_get_map(answer, "mamba2d_window_latency_seconds", &map, err)) ||
	    (rc = control_get_numbers(&map, "le", h->le, SAMPLE_BUCKETS_MAX, &n, err)) ||
	    (rc = control_get_numbers(&map, "count", h->count, SAMPLE_BUCKETS_MAX, &h->n, err)))
		return rc;
	if (h->n > SAMPLE_BUCKETS_MAX || h->n != n + 1 || !n)
		h->n = 0; /* buckets of another daemon than this */
	return 0;
}

static int read_stages(const struct control *answer, struct sample *sample, struct error *err)
{
	const struct {
		const char *name;
		double *sum;
	} stages[] = { { "wait", &sample->wait }, { "compute", &sample->compute }, { "send", &sample->send } };
	struct control all, stage;
	int rc = control_get_map(answer, "mamba2d_window_stage_seconds", &all, err);

	for (size_t i = 0; !rc && i < sizeof stages / sizeof stages[0]; i++) {
		rc = control_get_map(&all, stages[i].name, &stage, err);
		if (!rc)
			rc = control_get_number(&stage, "sum", stages[i].sum, err);
	}
	return rc;
}

/* --- status and streams --- */

static int read_status(const struct control *answer, struct sample *sample, struct error *err)
{
	char model[200], device[100], version[32];
	uint64_t window = 0;

	copy_text(answer, "state", sample->state, sizeof sample->state);
	copy_text(answer, "model", model, sizeof model);
	copy_text(answer, "device", device, sizeof device);
	copy_text(answer, "version", version, sizeof version);
	if (control_get_uint(answer, "window", &window, err))
		return err->code;
	snprintf(sample->what, sizeof sample->what, "%s, %.80s on %.60s, window %llu", version,
		 strrchr(model, '/') ? strrchr(model, '/') + 1 : model, device, (unsigned long long)window);
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	return strcmp(((const struct sample_stream *)a)->id, ((const struct sample_stream *)b)->id);
}

static int read_stream(const struct control *map, struct sample_stream *stream, struct error *err)
{
	const char *id = "";
	size_t size = 0;
	int rc;

	if ((rc = control_get_bytes(map, "stream", &id, &size, err)) ||
	    (rc = control_get_number(map, "next", &stream->next, err)) ||
	    (rc = control_get_number(map, "done", &stream->done, err)) ||
	    (rc = control_get_number(map, "queued_rows", &stream->queued, err)) ||
	    (rc = control_get_number(map, "epoch", &stream->epoch, err)))
		return rc;
	streamid_format(id, size, stream->id);
	copy_text(map, "feeder", stream->feeder, sizeof stream->feeder);
	copy_text(map, "state", stream->state, sizeof stream->state);
	return 0;
}

/* Rows per second of each stream that was there before, too. */
static void rate_streams(struct sample *sample, const struct sample *before)
{
	for (size_t i = 0; i < sample->n_streams; i++) {
		struct sample_stream *stream = &sample->streams[i], *old = NULL;

		if (before && before->n_streams)
			old = bsearch(stream, before->streams, before->n_streams, sizeof *old, compare_ids);
		stream->rate = old && old->epoch <= stream->epoch && old->next <= stream->next
				       ? (stream->next - old->next) / (sample->uptime - before->uptime)
				       : NAN;
	}
}

static int read_streams(const struct control *answer, struct sample *sample, struct error *err)
{
	struct wire_reader reader;
	size_t n = 0;
	int rc;

	if ((rc = control_get_number(answer, "total", &sample->matching, err)) ||
	    (rc = control_get_maps(answer, "streams", &reader, &n, err)))
		return rc;
	sample->streams = calloc(n ? n : 1, sizeof *sample->streams);
	if (!sample->streams)
		return error_memory(err, "streams");
	for (; !rc && sample->n_streams < n; sample->n_streams++) {
		const struct control map = control_next(&reader);

		rc = read_stream(&map, &sample->streams[sample->n_streams], err);
	}
	if (n)
		qsort(sample->streams, sample->n_streams, sizeof *sample->streams, compare_ids);
	return rc;
}

/* --- all of it --- */

int sample_take(struct client *client, const void *prefix, size_t size, const struct sample *before,
		struct sample *ret_sample, struct error *err)
{
	struct control answer;
	int rc;

	*ret_sample = (struct sample){ .streams = NULL };
	if ((rc = ask(client, "metrics", "", 0, &answer, err)) || (rc = read_numbers(&answer, ret_sample, err)) ||
	    (rc = read_latency(&answer, ret_sample, err)) || (rc = read_stages(&answer, ret_sample, err)))
		return rc;
	ret_sample->refused = sum_refused(&answer);
	if ((rc = ask(client, "status", "", 0, &answer, err)) || (rc = read_status(&answer, ret_sample, err)) ||
	    (rc = ask(client, "streams", prefix, size, &answer, err)) ||
	    (rc = read_streams(&answer, ret_sample, err)))
		return rc;
	rate_streams(ret_sample, before);
	return 0;
}

void sample_free(struct sample *sample)
{
	free(sample->streams);
	sample->streams = NULL;
	sample->n_streams = 0;
}

double sample_quantile(const struct sample *now, const struct sample *before, double p)
{
	const struct sample_histogram *h = &now->latency, *old = &before->latency;
	double all = 0, under = 0;

	if (!h->n || h->n != old->n)
		return NAN;
	for (size_t i = 0; i < h->n; i++)
		all += h->count[i] - old->count[i];
	if (all <= 0)
		return NAN;
	for (size_t i = 0; i + 1 < h->n; i++) {
		const double here = h->count[i] - old->count[i], from = i ? h->le[i - 1] : 0;

		if (here > 0 && under + here >= p * all)
			return from + (h->le[i] - from) * (p * all - under) / here;
		under += here;
	}
	return h->le[h->n - 2]; /* or more */
}
