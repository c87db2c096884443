/*
 * Throughput and latency of a running daemon, over its sockets: several streams with replies, each kept a number of
 * windows ahead of what has come back.  Prints one line of JSON.
 *
 *	bench_daemon --ingest ADDRESS --columns N [--streams S] [--window L] [--ahead K] [--dtype bfloat16] [--seconds N]
 *
 * The window should be the daemon's.  rows_per_s counts rows whose hidden states have come back; latency is from sending
 * a window to the arrival of its hidden states, which with --streams 1 --ahead 1 is what the daemon and the sockets add
 * to the device's own time.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "protocol/client.h"

#define LATENCIES_MAX 1000000
#define TIMEOUT_MS 60000

struct stream {
	char id[32];
	uint64_t sent, done; /* rows */
};

struct bench {
	const char *address, *dtype_name;
	size_t streams, window, columns, ahead;
	double seconds;
	uint64_t epoch; /* a new one each run: the streams start anew */
	enum dtype dtype;
	struct client *client;
	struct stream *stream;
	unsigned char *rows; /* [window, columns] */
	double *latency;
	size_t n_latencies;
	uint64_t rows_back;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int read_options(int argc, char **argv, struct bench *b)
{
	static const struct option options[] = {
		{ "ingest", required_argument, NULL, 'i' }, { "columns", required_argument, NULL, 'c' },
		{ "streams", required_argument, NULL, 's' }, { "window", required_argument, NULL, 'w' },
		{ "ahead", required_argument, NULL, 'a' }, { "dtype", required_argument, NULL, 'd' },
		{ "seconds", required_argument, NULL, 'n' }, { NULL, 0, NULL, 0 }
	};
	int option;

	*b = (struct bench){ .address = "tcp://127.0.0.1:5701", .dtype_name = "bfloat16", .streams = 64, .window = 256,
			     .ahead = 2, .seconds = 5, .epoch = (uint64_t)time(NULL) };
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'i': b->address = optarg; break;
		case 'c': b->columns = strtoul(optarg, NULL, 10); break;
		case 's': b->streams = strtoul(optarg, NULL, 10); break;
		case 'w': b->window = strtoul(optarg, NULL, 10); break;
		case 'a': b->ahead = strtoul(optarg, NULL, 10); break;
		case 'd': b->dtype_name = optarg; break;
		case 'n': b->seconds = strtod(optarg, NULL); break;
		default: return -1;
		}
	}
	return b->columns && b->streams && b->window && b->ahead &&
	       dtype_find(b->dtype_name, strlen(b->dtype_name), &b->dtype) && dtype_is_float(b->dtype) ? 0 : -1;
}

/* One window of random rows, sent over and over: what they hold does not change the time. */
static int make_rows(struct bench *b)
{
	size_t n = b->window * b->columns;
	float *rows = malloc(n * sizeof *rows);

	b->rows = malloc(n * dtype_size(b->dtype));
	b->stream = calloc(b->streams, sizeof *b->stream);
	b->latency = malloc(LATENCIES_MAX * sizeof *b->latency);
	if (!rows || !b->rows || !b->stream || !b->latency)
		return -1;
	for (size_t i = 0; i < n; i++)
		rows[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
	dtype_narrow(b->dtype, rows, n, b->rows);
	free(rows);
	for (size_t i = 0; i < b->streams; i++)
		snprintf(b->stream[i].id, sizeof b->stream[i].id, "bench-%zu", i);
	return 0;
}

static int send_window(struct bench *b, struct stream *stream, struct error *err)
{
	struct message message = {
		.type = MESSAGE_DATA,
		.epoch = b->epoch,
		.has_pos = true,
		.pos = stream->sent,
		.has_shape = true,
		.rows = b->window,
		.columns = b->columns,
		.dtype = b->dtype,
		.has_t = true,
		.t = (uint64_t)(now() * 1e9),
	};

	stream->sent += b->window;
	return client_send(b->client, stream->id, strlen(stream->id), &message, b->rows, TIMEOUT_MS, err);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The stream with this id: its number stands behind "bench-". */
static struct stream *find_stream(struct bench *b, const char *id, size_t size)
{
	size_t i = 0;

	for (size_t at = strlen("bench-"); at < size; at++)
		i = i * 10 + (size_t)(id[at] - '0');
	return &b->stream[i];
}

/* Take one message; a window that came back makes room for the next. */
static int take(struct bench *b, struct error *err)
{
	struct client_message message;
	struct stream *stream;
	int rc = client_receive(b->client, TIMEOUT_MS, &message, err);

	if (rc == 0)
		return error_set(err, ERR_SYSTEM, "nothing came for a minute");
	if (rc < 0)
		return rc;
	if (message.header.type == MESSAGE_ERROR)
		return error_set(err, message.header.code, "%s", message.header.text);
	if (message.header.type != MESSAGE_HIDDEN)
		return 0;
	stream = find_stream(b, message.stream, message.stream_size);
	stream->done += message.header.rows;
	b->rows_back += message.header.rows;
	if (message.header.has_t && b->n_latencies < LATENCIES_MAX)
		b->latency[b->n_latencies++] = now() - (double)message.header.t / 1e9;
	return stream->done == stream->sent - (b->ahead - 1) * b->window ? send_window(b, stream, err) : 0;
}

static int run(struct bench *b, struct error *err)
{
	double start, end;
	int rc = 0;

	for (size_t i = 0; i < b->streams && !rc; i++) {
		struct message open = { .type = MESSAGE_OPEN, .epoch = b->epoch, .reply = true };

		rc = client_send(b->client, b->stream[i].id, strlen(b->stream[i].id), &open, NULL, TIMEOUT_MS, err);
		for (size_t k = 0; k < b->ahead && !rc; k++)
			rc = send_window(b, &b->stream[i], err);
	}
	for (end = now() + b->seconds / 5; !rc && now() < end;) /* warm */
		rc = take(b, err);
	b->rows_back = b->n_latencies = 0;
	for (start = now(), end = start + b->seconds; !rc && now() < end;)
		rc = take(b, err);
	end = now();
	if (rc)
		return rc;
	qsort(b->latency, b->n_latencies, sizeof *b->latency, compare);
	printf("{\"streams\": %zu, \"window\": %zu, \"ahead\": %zu, \"dtype\": \"%s\", \"rows_per_s\": %.1f, "
	       "\"latency_ms_p50\": %.3f, \"latency_ms_p99\": %.3f}\n", b->streams, b->window, b->ahead, b->dtype_name,
	       (double)b->rows_back / (end - start), b->n_latencies ? b->latency[b->n_latencies / 2] * 1e3 : 0.0,
	       b->n_latencies ? b->latency[b->n_latencies * 99 / 100] * 1e3 : 0.0);
	return 0;
}

int main(int argc, char **argv)
{
	struct bench b;
	struct error err;

	if (read_options(argc, argv, &b) || make_rows(&b)) {
		fprintf(stderr,
			"usage: bench_daemon --ingest ADDRESS --columns N [--streams S] [--window L] [--ahead K] "
			"[--dtype D] [--seconds N]\n");
		return 2;
	}
	if (client_new(CLIENT_INGEST, b.address, NULL, &b.client, &err) || run(&b, &err)) {
		fprintf(stderr, "bench_daemon: %s\n", err.text);
		return 1;
	}
	client_free(b.client, 0);
	free(b.rows);
	free(b.stream);
	free(b.latency);
	return 0;
}
