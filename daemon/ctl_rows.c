/*
 * mamba2ctl send and recv: rows of a .npy file to a running daemon, and published hidden states from it.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ctl.h"
#include "daemon/npy.h"
#include "protocol/client.h"
#include "protocol/refusal.h"
#include "protocol/streamid.h"

#define DEFAULT_INGEST "tcp://127.0.0.1:5701"
#define DEFAULT_PUBLISH "tcp://127.0.0.1:5702"
#define TIMEOUT_MS 30000
#define ROWS_PER_MESSAGE 1024

/* --- send --- */

struct sending {
	const char *address, *path;
	struct ctl_keys keys;
	unsigned char stream[MESSAGE_STREAM_MAX];
	size_t stream_size;
	bool flush, end;
	struct client *client;
	struct npy in;
	struct client_stream state;
	uint64_t next; /* rows before this position are accepted */
};

static int read_send_arguments(int argc, char **argv, struct sending *s)
{
	static const struct option options[] = {
		{ "ingest", required_argument, NULL, 'i' }, { "flush", no_argument, NULL, 'f' },
		{ "end", no_argument, NULL, 'e' }, CTL_KEY_OPTIONS, { NULL, 0, NULL, 0 }
	};
	struct error err;
	int option;

	*s = (struct sending){ .address = DEFAULT_INGEST };
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'i')
			s->address = optarg;
		else if (option == 'f')
			s->flush = true;
		else if (option == 'e')
			s->end = true;
		else if (!ctl_keys_option(&s->keys, option, optarg))
			return ctl_usage("send", NULL);
	}
	if (argc - optind != 2)
		return ctl_usage("send", "expected STREAM and IN.npy");
	s->path = argv[optind + 1];
	return streamid_parse(argv[optind], s->stream, &s->stream_size, &err) ? ctl_usage("send", err.text) : 0;
}

static int send_header(struct sending *s, struct message *message, const void *payload, struct error *err)
{
	message->epoch = s->state.epoch;
	return client_send(s->client, s->stream, s->stream_size, message, payload, TIMEOUT_MS, err);
}

/* Take in what the daemon says about the stream; wait for it up to timeout_ms. */
static int hear(struct sending *s, int timeout_ms, struct error *err)
{
	struct client_message message;
	int rc = client_receive(s->client, timeout_ms, &message, err);

	if (rc == 0 && timeout_ms)
		return error_set(err, ERR_SYSTEM, "%s: no answer within %d s", s->address, timeout_ms / 1000);
	if (rc > 0 && message.header.type == MESSAGE_ACK)
		s->next = message.header.next;
	return rc <= 0 ? rc : client_stream_update(&s->state, &message.header, err);
}

/* Send the file's rows from the stream's position first on, until all are accepted. */
static int send_rows(struct sending *s, uint64_t first, struct error *err)
{
	size_t row_bytes = (s->in.columns ? s->in.columns : 1) * dtype_size(s->in.dtype);
	uint64_t last = first + s->in.rows;
	int rc = 0;

	while (!rc && s->next < last) {
		uint64_t rows =
			last - s->state.position < ROWS_PER_MESSAGE ? last - s->state.position : ROWS_PER_MESSAGE;

		if (rows > client_stream_room(&s->state))
			rows = client_stream_room(&s->state);
		if (rows) {
			struct message message = {
				.type = MESSAGE_DATA,
				.has_pos = true,
				.pos = s->state.position,
				.has_shape = true,
				.rows = rows,
				.columns = s->in.columns,
				.dtype = s->in.dtype,
			};

			rc = send_header(s, &message,
					 (const char *)s->in.data + (s->state.position - first) * row_bytes, err);
			s->state.position += rows;
		}
		if (!rc)
			rc = hear(s, rows ? 0 : TIMEOUT_MS, err);
	}
	return rc;
}

/* Flush or close the stream if asked to, and wait until its rows are published. */
static int finish_rows(struct sending *s, uint64_t last, struct error *err)
{
	struct message message = { .type = s->end ? MESSAGE_CLOSE : MESSAGE_FLUSH };
	int rc = 0;

	if (s->flush || s->end)
		rc = send_header(s, &message, NULL, err);
	while (!rc && (s->flush || s->end) && s->state.done < last)
		rc = hear(s, TIMEOUT_MS, err);
	return rc;
}

int ctl_send(int argc, char **argv)
{
	struct message open = { .type = MESSAGE_OPEN };
	struct sending s;
	struct error err;
	uint64_t first;
	int rc = read_send_arguments(argc, argv, &s);

	if (rc)
		return rc;
	if ((rc = npy_open(s.path, &s.in, &err)) ||
	    (rc = ctl_connect(CLIENT_INGEST, s.address, &s.keys, &s.client, &err)) ||
	    (rc = send_header(&s, &open, NULL, &err)))
		goto out;
	while (!rc && !s.state.open)
		rc = hear(&s, TIMEOUT_MS, &err);
	first = s.next = s.state.position;
	if (!rc)
		rc = send_rows(&s, first, &err);
	if (!rc)
		rc = finish_rows(&s, first + s.in.rows, &err);
	if (!rc)
		printf("%zu rows accepted from position %" PRIu64 " on\n", s.in.rows, first);
out:
	client_free(s.client, 5000);
	npy_close(&s.in);
	return rc ? ctl_fail("send", err.code <= ERR_REFUSED ? CTL_REFUSED : CTL_FAILED, &err) : CTL_OK;
}

/* --- recv --- */

struct receiving {
	const char *address, *path; /* path NULL: print */
	struct ctl_keys keys;
	unsigned char prefix[MESSAGE_STREAM_MAX];
	size_t prefix_size;
	uint64_t count; /* rows; 0: until the stream's end */
	uint64_t rows;
	struct client *client;
	float *data; /* what was received, widened */
	size_t columns, capacity;
};

static int read_recv_arguments(int argc, char **argv, struct receiving *r)
{
	static const struct option options[] = {
		{ "publish", required_argument, NULL, 'p' }, { "count", required_argument, NULL, 'c' },
		{ "out", required_argument, NULL, 'o' }, CTL_KEY_OPTIONS, { NULL, 0, NULL, 0 }
	};
	struct error err;
	char *end;
	int option;

	*r = (struct receiving){ .address = DEFAULT_PUBLISH };
	while ((option = getopt_long(argc, argv, "o:", options, NULL)) != -1) {
		if (option == 'p')
			r->address = optarg;
		else if (option == 'o')
			r->path = optarg;
		else if (ctl_keys_option(&r->keys, option, optarg))
			continue;
		else if (option != 'c')
			return ctl_usage("recv", NULL);
		else if (!(r->count = strtoull(optarg, &end, 10)) || *end)
			return ctl_usage("recv", "--count: expected a number of rows");
	}
	if (optind < argc && streamid_parse(argv[optind], r->prefix, &r->prefix_size, &err))
		return ctl_usage("recv", err.text);
	return argc - optind > 1 ? ctl_usage("recv", "too many arguments") : 0;
}

static void print_message(const struct client_message *message)
{
	static const char *const events[] = {
		[EVENT_GAP] = "gap", [EVENT_RESET] = "reset", [EVENT_CLOSED] = "closed", [EVENT_EVICTED] = "evicted"
	};
	const struct message *h = &message->header;
	char id[STREAMID_TEXT_MAX];

	streamid_format(message->stream, message->stream_size, id);
	if (h->type == MESSAGE_EVENT) {
		printf("%s epoch %" PRIu64 " pos %" PRIu64 " event %s %s\n", id, h->epoch, h->pos, events[h->event],
		       h->text);
		return;
	}
	printf("%s epoch %" PRIu64 " pos %" PRIu64 " rows %" PRIu64, id, h->epoch, h->pos, h->rows);
	if (h->has_layer)
		printf(" layer %" PRIu64, h->layer);
	puts(h->end ? " end" : "");
}

/* Keep the final hidden states for the file. */
static int collect(struct receiving *r, const struct client_message *message, struct error *err)
{
	const struct message *h = &message->header;

	if (!h->rows)
		return 0;
	if (r->columns && h->columns != r->columns)
		return error_set(err, ERR_FORMAT, "rows of %" PRIu64 " columns after rows of %zu", h->columns,
				 r->columns);
	r->columns = h->columns;
	if (r->rows + h->rows > r->capacity) {
		size_t capacity = (r->rows + h->rows) * 2;
		float *data = realloc(r->data, capacity * r->columns * sizeof *data);

		if (!data)
			return error_memory(err, "hidden states");
		r->data = data;
		r->capacity = capacity;
	}
	dtype_widen(h->dtype, message->payload, h->rows * r->columns, r->data + r->rows * r->columns);
	return 0;
}

static int receive(struct receiving *r, struct error *err)
{
	bool ended = false;

	while (!ended && (!r->count || r->rows < r->count)) {
		struct client_message message;
		int rc = client_receive(r->client, -1, &message, err);

		if (rc <= 0)
			return rc;
		if (r->path && message.header.type == MESSAGE_HIDDEN && !message.header.has_layer)
			rc = collect(r, &message, err);
		if (rc < 0)
			return rc;
		if (!r->path)
			print_message(&message);
		fflush(stdout);
		if (message.header.type == MESSAGE_HIDDEN && !message.header.has_layer)
			r->rows += message.header.rows;
		ended = message.header.type == MESSAGE_EVENT && message.header.event == EVENT_CLOSED &&
			(r->path || r->count);
	}
	return 0;
}

static int write_file(const struct receiving *r, struct error *err)
{
	struct npy_writer writer;
	int rc = npy_create(&writer, r->path, r->rows, r->columns, err);

	if (!rc && !(rc = npy_append(&writer, r->data, r->rows, err)))
		rc = npy_commit(&writer, err);
	if (rc)
		npy_abandon(&writer);
	return rc;
}

int ctl_recv(int argc, char **argv)
{
	struct receiving r;
	struct error err;
	int rc = read_recv_arguments(argc, argv, &r);

	if (rc)
		return rc;
	if (!(rc = ctl_connect(CLIENT_SUBSCRIBE, r.address, &r.keys, &r.client, &err)) &&
	    !(rc = client_subscribe(r.client, r.prefix, r.prefix_size, &err)))
		rc = receive(&r, &err);
	if (!rc && r.path)
		rc = write_file(&r, &err);
	client_free(r.client, 0);
	free(r.data);
	return rc ? ctl_fail("recv", CTL_FAILED, &err) : CTL_OK;
}
