/*
 * mamba2ctl send: the rows of a .npy file to a running daemon, as a stream.
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
#define TIMEOUT_MS 30000
#define SILENT_MS 2000 /* so long nothing is said of a daemon that does not answer */
#define ROWS_PER_MESSAGE 1024

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

static int read_arguments(int argc, char **argv, struct sending *s)
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

static int open_stream(struct sending *s, struct error *err)
{
	struct message open = { .type = MESSAGE_OPEN };

	return send_header(s, &open, NULL, err);
}

/* Take in what the daemon says about the stream; wait for it up to timeout_ms. */
static int hear(struct sending *s, int timeout_ms, struct error *err)
{
	struct client_message message;
	const struct message *header = &message.header;
	const int silent_ms = !s->state.open && timeout_ms > SILENT_MS ? SILENT_MS : timeout_ms;
	int rc = client_receive(s->client, silent_ms, &message, err);

	if (rc == 0 && silent_ms < timeout_ms) {
		fprintf(stderr, "mamba2ctl send: %s: no answer yet\n", s->address);
		rc = client_receive(s->client, timeout_ms - silent_ms, &message, err);
	}
	if (rc == 0 && timeout_ms)
		return error_set(err, ERR_SYSTEM, "%s: no answer within %d s: is it a daemon's ingest socket, and does "
				 "it ask for keys?", s->address, timeout_ms / 1000);
	if (rc <= 0)
		return rc;
	if (header->type == MESSAGE_ERROR && header->code == REFUSED_STALE_EPOCH && !s->state.open &&
	    header->epoch > s->state.epoch) {
		s->state.epoch = header->epoch; /* the stream was reset: the file goes on with its latest life */
		return open_stream(s, err);
	}
	if (header->type == MESSAGE_ACK)
		s->next = header->next;
	return client_stream_update(&s->state, header, err);
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

/* The exit status after a failure. */
static int status(const struct sending *s, const struct error *error)
{
	if (error->code <= ERR_REFUSED)
		return CTL_REFUSED;
	return error->code == ERR_SYSTEM && s->client && !s->state.open ? CTL_NO_DAEMON : CTL_FAILED;
}

int ctl_send(int argc, char **argv)
{
	struct sending s;
	struct error err;
	uint64_t first;
	int rc = read_arguments(argc, argv, &s);

	if (rc)
		return rc;
	if ((rc = npy_open(s.path, &s.in, &err)) ||
	    (rc = ctl_connect(CLIENT_INGEST, s.address, &s.keys, &s.client, &err)) ||
	    (rc = open_stream(&s, &err)))
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
	client_free(s.client, rc ? 0 : 5000);
	npy_close(&s.in);
	return rc ? ctl_fail("send", status(&s, &err), &err) : CTL_OK;
}
