/*
 * Streams with replies over one connection, each kept a number of windows ahead of what has come back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "protocol/client.h"
#include "tests/bench_daemon.h"

#define TIMEOUT_MS 60000
#define WARM 0.1 /* of the time, before anything counts */

struct stream {
	char id[32];
	uint64_t sent, done; /* rows */
};

struct load {
	const struct bench_options *options;
	struct client *client;
	struct stream *stream; /* [streams] */
	size_t under_way;      /* windows, of all streams */
	uint64_t epoch;        /* a new one each run: the streams start anew */
	void *rows;            /* [window, columns] sent over and over: what they hold does not change the time */
};

static void send(struct load *load, struct stream *stream, struct message *message)
{
	struct error err;

	message->epoch = load->epoch;
	bench_check(client_send(load->client, stream->id, strlen(stream->id), message, load->rows, TIMEOUT_MS, &err),
		    &err);
}

static void send_window(struct load *load, struct stream *stream)
{
	struct message message = {
		.type = MESSAGE_DATA,
		.has_pos = true,
		.pos = stream->sent,
		.has_shape = true,
		.rows = load->options->window,
		.columns = load->options->columns,
		.dtype = load->options->dtype,
		.has_t = true,
		.t = (uint64_t)(bench_now() * 1e9),
	};

	stream->sent += load->options->window;
	load->under_way++;
	send(load, stream, &message);
}

struct load *load_new(const struct bench_options *options, const char *address)
{
	const size_t n = options->window * options->columns;
	struct load *load = bench_must(calloc(1, sizeof *load));
	float *rows = bench_must(malloc(n * sizeof *rows));
	struct error err;

	load->options = options;
	load->epoch = (uint64_t)time(NULL);
	load->rows = bench_must(malloc(n * dtype_size(options->dtype)));
	load->stream = bench_must(calloc(options->streams, sizeof *load->stream));
	for (size_t i = 0; i < n; i++)
		rows[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
	dtype_narrow(options->dtype, rows, n, load->rows);
	free(rows);
	bench_check(client_new(CLIENT_INGEST, address, NULL, &load->client, &err), &err);
	for (size_t i = 0; i < options->streams; i++) {
		struct message open = { .type = MESSAGE_OPEN, .reply = true };

		snprintf(load->stream[i].id, sizeof load->stream[i].id, "bench-%zu", i);
		send(load, &load->stream[i], &open);
	}
	return load;
}

/* The stream with this id: its number stands behind "bench-". */
static struct stream *find_stream(struct load *load, const char *id, size_t size)
{
	size_t i = 0;

	for (size_t at = strlen("bench-"); at < size; at++)
		i = i * 10 + (size_t)(id[at] - '0');
	return &load->stream[i];
}

/* Take one message; returns the stream whose window came back, or NULL if it is about something else. */
static struct stream *take(struct load *load, struct bench_samples *samples)
{
	struct client_message message;
	struct stream *stream;
	struct error err;
	int rc = client_receive(load->client, TIMEOUT_MS, &message, &err);

	if (rc == 0)
		rc = error_set(&err, ERR_SYSTEM, "nothing came for a minute");
	else if (rc > 0 && message.header.type == MESSAGE_ERROR)
		rc = error_set(&err, message.header.code, "%s", message.header.text);
	bench_check(rc < 0 ? rc : 0, &err);
	if (message.header.type != MESSAGE_HIDDEN && message.header.type != MESSAGE_DATA) /* that is an echo */
		return NULL;
	stream = find_stream(load, message.stream, message.stream_size);
	stream->done += message.header.rows;
	samples->rows += (double)message.header.rows;
	bench_sample(samples, bench_now() - (double)message.header.t / 1e9);
	load->under_way--;
	return stream;
}

static void keep_busy(struct load *load, double seconds, struct bench_samples *samples)
{
	const double start = bench_now();

	while (bench_now() < start + seconds) {
		struct stream *stream = take(load, samples);

		if (stream)
			send_window(load, stream);
	}
	samples->seconds += bench_now() - start;
}

void load_run(struct load *load, double seconds, struct bench_samples *samples)
{
	struct bench_samples none = { .n = BENCH_SAMPLES_MAX };

	for (size_t k = 0; k < load->options->ahead; k++)
		for (size_t i = 0; i < load->options->streams; i++)
			send_window(load, &load->stream[i]);
	keep_busy(load, seconds * WARM, &none);
	keep_busy(load, seconds * (1 - WARM), samples);
	while (load->under_way > 0)
		take(load, &none);
}

void load_free(struct load *load)
{
	client_free(load->client, 0);
	free(load->stream);
	free(load->rows);
	free(load);
}
