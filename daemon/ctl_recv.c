/*
 * mamba2ctl recv: what a running daemon publishes, printed line by line; or the hidden states of one life of one stream
 * in a .npy file, each where its position says, so that what was missed leaves rows of NaN and shifts nothing.
 */
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ctl.h"
#include "daemon/npy.h"
#include "protocol/refusal.h"
#include "protocol/streamid.h"

#define DEFAULT_PUBLISH "tcp://127.0.0.1:5702"

struct receiving {
	const char *address, *path; /* path NULL: print */
	struct ctl_keys keys;
	unsigned char id[MESSAGE_STREAM_MAX]; /* the stream, or when printing a prefix of those */
	size_t id_size;
	uint64_t count; /* rows; 0: until the stream's end */
	uint64_t rows;  /* received */
	struct client *client;

	/* For the file: */
	uint64_t epoch;
	uint64_t first, next; /* position of the first row, and behind the last one */
	uint64_t stride;      /* between positions: more than 1 where only last rows are published; 0: not known yet */
	uint64_t *position;   /* [capacity] */
	float *data;          /* [capacity, columns], widened */
	size_t columns, capacity;
	bool began_anew;      /* the stream did: the file ends before that */
};

static int read_arguments(int argc, char **argv, struct receiving *r)
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
	if (optind == argc && r->path)
		return ctl_usage("recv", "-o: expected the id of one stream");
	if (optind < argc && streamid_parse(argv[optind], r->id, &r->id_size, &err))
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

/* --- collecting --- */

static int grow(struct receiving *r, uint64_t rows, struct error *err)
{
	size_t capacity = (r->rows + rows) * 2;
	float *data;
	uint64_t *position;

	if (r->rows + rows <= r->capacity)
		return 0;
	data = realloc(r->data, capacity * r->columns * sizeof *data);
	if (!data)
		return error_memory(err, "hidden states");
	r->data = data;
	position = realloc(r->position, capacity * sizeof *position);
	if (!position)
		return error_memory(err, "hidden states");
	r->position = position;
	r->capacity = capacity;
	return 0;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
	return b ? common_divisor(b, a % b) : a;
}

/* Keep the rows of a message that were not there yet: after a crash some may come again. */
static int collect(struct receiving *r, const struct client_message *message, struct error *err)
{
	const struct message *h = &message->header;
	uint64_t skip = r->rows && h->pos < r->next ? r->next - h->pos : 0;
	size_t row_bytes = dtype_size(h->dtype) * h->columns;
	int rc;

	if (skip >= h->rows)
		return 0;
	if (r->columns && h->columns != r->columns)
		return error_set(err, ERR_FORMAT, "rows of %" PRIu64 " columns after rows of %zu", h->columns,
				 r->columns);
	r->columns = h->columns;
	rc = grow(r, h->rows - skip, err);
	if (rc)
		return rc;
	if (!r->rows)
		r->first = h->pos;
	dtype_widen(h->dtype, (const char *)message->payload + skip * row_bytes, (h->rows - skip) * r->columns,
		    r->data + r->rows * r->columns);
	for (uint64_t i = skip; i < h->rows; i++) {
		r->stride = common_divisor(r->stride, h->pos + i - r->first);
		r->position[r->rows++] = h->pos + i;
	}
	r->next = h->pos + h->rows;
	return 0;
}

/* Take a message in for the file.  *ret_ended: it was the last. */
static int keep(struct receiving *r, const struct client_message *message, bool *ret_ended, struct error *err)
{
	const struct message *h = &message->header;

	if (message->stream_size != r->id_size || memcmp(message->stream, r->id, r->id_size))
		return 0; /* another one whose id begins so */
	if (r->rows && h->epoch != r->epoch) {
		r->began_anew = *ret_ended = true;
		return 0;
	}
	r->epoch = h->epoch;
	if (h->type == MESSAGE_EVENT)
		*ret_ended = h->event == EVENT_CLOSED;
	return h->type == MESSAGE_HIDDEN && !h->has_layer ? collect(r, message, err) : 0;
}

static int receive(struct receiving *r, struct error *err)
{
	bool ended = false;

	while (!ended && (!r->count || r->rows < r->count)) {
		struct client_message message;
		int rc = client_receive(r->client, -1, &message, err);

		if (rc > 0 && r->path)
			rc = keep(r, &message, &ended, err) ? err->code : rc;
		if (rc <= 0)
			return rc;
		if (r->path)
			continue;
		print_message(&message);
		fflush(stdout);
		if (message.header.type == MESSAGE_HIDDEN && !message.header.has_layer)
			r->rows += message.header.rows;
		ended = message.header.type == MESSAGE_EVENT && message.header.event == EVENT_CLOSED && r->count;
	}
	return 0;
}

/* --- the file --- */

/* Append n rows of NaN. */
static int append_missed(struct npy_writer *writer, size_t columns, uint64_t n, struct error *err)
{
	float *row = malloc((columns ? columns : 1) * sizeof *row);
	int rc = row ? 0 : error_memory(err, "a row");

	for (size_t i = 0; !rc && i < columns; i++)
		row[i] = NAN;
	for (uint64_t i = 0; !rc && i < n; i++)
		rc = npy_append(writer, row, 1, err);
	free(row);
	return rc;
}

/* Write the rows, and NaN for those that were missed: *ret_missed of them. */
static int write_file(struct receiving *r, uint64_t *ret_missed, struct error *err)
{
	uint64_t stride = r->stride ? r->stride : 1;
	uint64_t all = r->rows ? (r->position[r->rows - 1] - r->first) / stride + 1 : 0;
	struct npy_writer writer;
	int rc = npy_create(&writer, r->path, all, r->columns, err);

	for (size_t i = 0; !rc && i < r->rows; i++) {
		uint64_t expected = i ? r->position[i - 1] + stride : r->first;

		rc = append_missed(&writer, r->columns, (r->position[i] - expected) / stride, err);
		if (!rc)
			rc = npy_append(&writer, r->data + i * r->columns, 1, err);
	}
	if (!rc)
		rc = npy_commit(&writer, err);
	if (rc)
		npy_abandon(&writer);
	*ret_missed = all - r->rows;
	return rc;
}

/* Write the file, say what is in it, and what is not: the exit status. */
static int finish_file(struct receiving *r)
{
	struct error err;
	uint64_t missed;

	if (write_file(r, &missed, &err))
		return ctl_fail("recv", CTL_FAILED, &err);
	printf("%" PRIu64 " rows from position %" PRIu64 " on written to %s\n", r->rows + missed, r->first, r->path);
	if (r->began_anew)
		fprintf(stderr, "mamba2ctl recv: the stream began anew at position %" PRIu64 "\n", r->next);
	if (missed)
		fprintf(stderr, "mamba2ctl recv: %" PRIu64 " rows were missed: they are NaN\n", missed);
	return missed || r->began_anew ? CTL_FAILED : CTL_OK;
}

int ctl_recv(int argc, char **argv)
{
	struct receiving r;
	struct error err;
	int rc = read_arguments(argc, argv, &r), status = CTL_OK;

	if (rc)
		return rc;
	if (!(rc = ctl_connect(CLIENT_SUBSCRIBE, r.address, &r.keys, &r.client, &err)) &&
	    !(rc = client_subscribe(r.client, r.id, r.id_size, &err)))
		rc = receive(&r, &err);
	if (rc)
		status = ctl_fail("recv", err.code == REFUSED_DENIED ? CTL_REFUSED : CTL_FAILED, &err);
	else if (r.path)
		status = finish_file(&r);
	client_free(r.client, 0);
	free(r.data);
	free(r.position);
	return status;
}
