/*
 * The control socket: one request, one answer.  A table names the commands; each writes what its answer holds.
 */
#include "daemon/server.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/clock.h"
#include "daemon/durable.h"
#include "daemon/reload.h"
#include "daemon/requests.h"
#include "protocol/control.h"

#define ANSWER_BYTES ((size_t)512 << 10)
#define STREAMS_MAX 1000 /* in one answer: the longest there is */
#define STREAM_BYTES ((size_t)MESSAGE_STREAM_MAX + 128) /* of it */

_Static_assert(STREAMS_MAX * STREAM_BYTES < ANSWER_BYTES, "so many streams with the longest of ids fit");

typedef int command(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err);

static const char *const phases[] = {
	[SERVER_SERVING] = "serving", [SERVER_DRAINING] = "draining", [SERVER_STOPPING] = "stopping"
};

static void put_addresses(struct control_writer *answer, const char *name, const struct endpoint *endpoint)
{
	if (endpoint && endpoint_address(endpoint))
		control_put_str(answer, name, endpoint_address(endpoint));
}

static void put_counters(struct server *server, struct control_writer *answer)
{
	const struct stats *stats = &server->stats;
	const struct {
		const char *name;
		uint64_t value;
	} counters[] = {
		{ "messages_in", stats->messages_in },
		{ "rows_in", stats->rows_in },
		{ "rows_out", stats->rows_out },
		{ "windows", stats->windows },
		{ "batches", stats->batches },
		{ "failed_batches", stats->failed_batches },
		{ "duplicate_rows", stats->duplicate_rows },
		{ "gaps", stats->gaps },
		{ "dropped_messages", stats->drops },
		{ "stalls", stats->stalls },
	};

	for (size_t i = 0; i < sizeof counters / sizeof counters[0]; i++)
		control_put_uint(answer, counters[i].name, counters[i].value);
	control_open_map(answer, "refused");
	for (int i = 0; i < REFUSAL_COUNT; i++)
		if (stats->refused[i])
			control_put_uint(answer, refusal_name(ERR_REFUSED - i), stats->refused[i]);
	control_close(answer);
	control_put_uint(answer, "refused_keys", server->security.refused);
}

/* Where the caches of the streams are, on a device between whose memory and the host's they move. */
static void put_caches(struct device *device, struct control_writer *answer)
{
	struct cache_counts counts;

	if (!device->backend->cache_counts)
		return;
	device->backend->cache_counts(device, &counts);
	control_open_map(answer, "caches");
	control_put_uint(answer, "slots", counts.slots);
	control_put_uint(answer, "on_device", counts.device);
	control_put_uint(answer, "on_host", counts.host);
	control_put_uint(answer, "moved_out", counts.moved_out);
	control_put_uint(answer, "moved_in", counts.moved_in);
	control_close(answer);
}

static void put_devices(struct server *server, struct control_writer *answer)
{
	control_open_array(answer, "devices");
	for (size_t i = 0; i < server->n_lanes; i++) {
		control_open_map(answer, NULL);
		control_put_str(answer, "name", server->config->device.item[i]);
		control_put_uint(answer, "streams", server->lanes[i].streams);
		control_put_float(answer, "busy_s", (double)worker_busy_ns(server->lanes[i].worker) / 1e9);
		put_caches(server->lanes[i].device, answer);
		control_close(answer);
	}
	control_close(answer);
}

static void put_states(struct server *server, struct control_writer *answer)
{
	const struct state_stats *stats = &server->state_stats;

	control_open_map(answer, "states");
	control_put_str(answer, "dir", server->config->state.dir);
	control_put_str(answer, "error", stats->failing ? stats->why : "");
	control_put_uint(answer, "streams_on_disk", server->saved.n);
	control_put_uint(answer, "written", stats->saved);
	control_put_uint(answer, "written_bytes", stats->saved_bytes);
	control_put_float(answer, "write_s", (double)stats->save_ns / 1e9);
	control_put_uint(answer, "errors", stats->errors);
	control_put_uint(answer, "resumed", stats->resumed);
	control_put_uint(answer, "evicted", stats->evicted);
	control_put_uint(answer, "damaged", stats->damaged);
	control_close(answer);
}

static int command_status(struct server *server, const struct asked *asked, struct control_writer *answer,
			  struct error *err)
{
	const struct device *device = server->lanes[0].device;

	(void)asked;
	(void)err;
	control_put_str(answer, "version", PACKAGE_VERSION);
	control_put_str(answer, "state", phases[server->phase]);
	control_put_float(answer, "uptime_s", (double)(clock_ns() - server->started_ns) / 1e9);
	control_put_str(answer, "model", server->config->model);
	control_put_str(answer, "fingerprint", server->model->fingerprint);
	control_put_uint(answer, "hidden_size", server->model->shape.hidden_size);
	control_put_uint(answer, "layers", server->model->shape.num_layers);
	control_put_str(answer, "device", device->description);
	control_put_str(answer, "precision", precision_name(device->precision));
	control_put_uint(answer, "window", device->window);
	control_put_uint(answer, "batch_rows", device->max_rows);
	control_put_uint(answer, "credit_rows", server->config->limits.credit_rows);
	control_open_map(answer, "sockets");
	put_addresses(answer, "ingest", server->ingest);
	put_addresses(answer, "subscribe", server->subscribe);
	put_addresses(answer, "publish", server->publish);
	put_addresses(answer, "control", server->control);
	if (server->http)
		control_put_str(answer, "metrics", http_address(server->http));
	control_close(answer);
	control_put_uint(answer, "streams", server->streams.n);
	control_put_uint(answer, "peers", server->peers.n);
	control_put_uint(answer, "cache_bytes",
			 server->streams.n * shape_cache_floats(&server->model->shape) * sizeof(float));
	control_put_uint(answer, "queue_bytes", blocks_bytes(server));
	if (server->store)
		put_states(server, answer);
	put_devices(server, answer);
	control_put_float(answer, "worker_busy_s", (double)lanes_busy_ns(server) / 1e9);
	put_counters(server, answer);
	return 0;
}

static void put_stream(struct control_writer *answer, const struct stream *stream)
{
	static const char *const names[] = {
		[STREAM_LOADING] = "loading", [STREAM_LIVE] = "live", [STREAM_RETIRED] = "retired",
		[STREAM_ENDING] = "ending"
	};

	control_open_map(answer, NULL);
	control_put_bin(answer, "stream", stream->id, stream->id_size);
	control_put_str(answer, "state", names[stream->phase]);
	control_put_uint(answer, "epoch", stream->epoch);
	control_put_uint(answer, "next", stream->next);
	control_put_uint(answer, "done", stream->done == stream->accepted ? stream->next : stream->emitted);
	control_put_uint(answer, "queued_rows", stream->accepted - stream->done);
	control_put_str(answer, "feeder", !stream->feeder ? "none" : stream->feeder->router ? "ingest" : "subscribe");
	control_close(answer);
}

/* streams {prefix?}: up to STREAMS_MAX of them, and how many there are. */
static int command_streams(struct server *server, const struct asked *asked, struct control_writer *answer,
			   struct error *err)
{
	const struct table_entry *entry = NULL;
	const char *prefix = "";
	size_t prefix_size = 0, listed = 0, matching = 0;

	if (control_get_bytes(&asked->control, "prefix", &prefix, &prefix_size, err))
		return err->code;
	control_open_array(answer, "streams");
	while ((entry = table_next(&server->streams, entry))) {
		if (entry->key_size < prefix_size || memcmp(entry->key, prefix, prefix_size) ||
		    !security_allows(server, server->message.user, RIGHT_CONTROL, entry->key, entry->key_size))
			continue;
		matching++;
		if (listed < STREAMS_MAX) {
			put_stream(answer, list_entry(entry, const struct stream, entry));
			listed++;
		}
	}
	control_close(answer);
	control_put_uint(answer, "total", matching);
	return 0;
}

/* close {stream}: as if its producer had closed it. */
static int command_close(struct server *server, const struct asked *asked, struct control_writer *answer,
			 struct error *err)
{
	struct stream *stream = stream_find(server, asked->stream.bytes, asked->stream.size);

	if (!stream)
		return error_set(err, REFUSED_CLOSED, "no such stream is open");
	control_put_uint(answer, "next", stream->next);
	stream_end(server, stream, EVENT_CLOSED);
	return 0;
}

/* drain: take no more input; what was accepted goes out. */
static int command_drain(struct server *server, const struct asked *asked, struct control_writer *answer,
			 struct error *err)
{
	(void)asked;
	(void)err;
	server_drain(server, false);
	control_put_str(answer, "state", phases[server->phase]);
	return 0;
}

static void put_names(struct control_writer *answer, const char *name, const struct config_change *changes, size_t n,
		      bool live)
{
	control_open_array(answer, name);
	for (size_t i = 0; i < n; i++)
		if (changes[i].live == live)
			control_put_str(answer, NULL, changes[i].name);
	control_close(answer);
}

/* reload: read the configuration again; the names of the keys that changed, and of those that need a restart. */
static int command_reload(struct server *server, const struct asked *asked, struct control_writer *answer,
			  struct error *err)
{
	struct config_change changes[CONFIG_CHANGES_MAX];
	size_t n;

	(void)asked;
	if (reload(server, changes, &n, err))
		return err->code;
	put_names(answer, "changed", changes, n, true);
	put_names(answer, "restart", changes, n, false);
	return 0;
}

/* metrics: all of them. */
static int command_metrics(struct server *server, const struct asked *asked, struct control_writer *answer,
			   struct error *err)
{
	(void)asked;
	(void)err;
	metrics_put(server, answer);
	return 0;
}

/* What a command needs control of: any stream, all of them, or those that its request names (all if it names none). */
enum scope { ANY, ALL, NAMED };

static const struct {
	const char *name;
	command *run;
	enum scope scope;
	size_t takes, needs; /* NAMED: how many of the keys stream and to the request may have, and must */
} commands[] = {
	{ "status", command_status, ANY, 0, 0 },
	{ "streams", command_streams, ANY, 0, 0 }, /* lists those that the peer controls */
	{ "metrics", command_metrics, ANY, 0, 0 },
	{ "reset", durable_reset, NAMED, 1, 1 },
	{ "close", command_close, NAMED, 1, 1 },
	{ "drain", command_drain, ALL, 0, 0 },
	{ "reload", command_reload, ALL, 0, 0 },
	{ "snapshot", durable_snapshot, NAMED, 1, 0 },
	{ "export", requests_export, NAMED, 1, 1 },
	{ "import", requests_import, NAMED, 1, 0 },
	{ "fork", requests_fork, NAMED, 2, 2 },
};

/* May the peer that asks run commands[i]? */
static int check_rights(const struct server *server, size_t i, struct error *err)
{
	unsigned user = server->message.user;
	size_t n_prefixes;

	rights_prefixes(server->security.rights, user, RIGHT_CONTROL, &n_prefixes);
	if (commands[i].scope == ANY && !n_prefixes)
		return error_set(err, REFUSED_DENIED, "this key may not control anything");
	if (commands[i].scope == ALL && !security_allows(server, user, RIGHT_CONTROL, NULL, 0))
		return error_set(err, REFUSED_DENIED, "%s: this key may not control all streams", commands[i].name);
	return 0;
}

/* Read the ids that commands[i] takes; the peer must have control of what they name. */
static int read_ids(const struct server *server, size_t i, struct asked *asked, struct error *err)
{
	static const char *const keys[] = { "stream", "to" };
	struct stream_id *const ids[] = { &asked->stream, &asked->to };

	for (size_t k = 0; k < commands[i].takes; k++) {
		struct stream_id *id = ids[k];

		if (control_get_bytes(&asked->control, keys[k], &id->bytes, &id->size, err))
			return err->code;
		if (!id->size ? id->bytes || k < commands[i].needs : id->size > MESSAGE_STREAM_MAX)
			return error_set(err, REFUSED_BAD_HEADER, "%s: expected a stream id of 1 to %d bytes", keys[k],
					 MESSAGE_STREAM_MAX);
		if (!security_allows(server, server->message.user, RIGHT_CONTROL, id->bytes, id->size))
			return error_set(err, REFUSED_DENIED, "%s: this key may not control %s", commands[i].name,
					 id->size ? "this stream" : "all streams");
	}
	return 0;
}

static int run(struct server *server, const void *bytes, size_t size, struct control_writer *answer, struct error *err)
{
	struct asked asked = { .stream = { NULL, 0 } };
	const char *cmd = NULL;
	size_t length = 0;

	if (control_read(bytes, size, &asked.control, err) ||
	    control_get_bytes(&asked.control, "cmd", &cmd, &length, err))
		return err->code;
	for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
		if (cmd && strlen(commands[i].name) == length && !memcmp(commands[i].name, cmd, length))
			return check_rights(server, i, err) || read_ids(server, i, &asked, err)
				       ? err->code : commands[i].run(server, &asked, answer, err);
	return error_set(err, REFUSED_BAD_HEADER,
			 "cmd: expected status, streams, metrics, reset, close, drain, reload, snapshot, export, "
			 "import or fork");
}

/* Run a request and write its answer to buffer [ANSWER_BYTES]; returns its length, 0 if the request waits. */
static size_t write_answer(struct server *server, const void *request, size_t size, void *buffer)
{
	struct control_writer answer;
	struct error refused;
	size_t length;
	int rc;

	control_begin_answer(&answer, buffer, ANSWER_BYTES);
	rc = run(server, request, size, &answer, &refused);
	if (rc == REQUEST_WAITS)
		return 0;
	if (rc)
		control_begin_refusal(&answer, buffer, ANSWER_BYTES, refused.code, refused.text);
	length = control_finish(&answer);
	assert(length <= ANSWER_BYTES);
	return length;
}

void *commands_answer(struct server *server, unsigned user, const char *cmd, const char *prefix, size_t *ret_size)
{
	unsigned char request[512];
	struct control_writer writer;
	size_t size, prefix_size = prefix ? strlen(prefix) : 0;
	void *buffer = malloc(ANSWER_BYTES);

	if (!buffer)
		return NULL;
	control_begin_request(&writer, request, sizeof request, cmd);
	control_put_bin(&writer, "prefix", prefix, prefix_size < MESSAGE_STREAM_MAX ? prefix_size : MESSAGE_STREAM_MAX);
	size = control_finish(&writer);
	server->message.user = user; /* as if it had come as a message */
	*ret_size = write_answer(server, request, size, buffer);
	return buffer;
}

static int answer_request(struct server *server, size_t frame, struct error *err)
{
	static unsigned char buffer[ANSWER_BYTES];
	size_t length = write_answer(server, server->message.frame[frame].data, server->message.frame[frame].size,
				     buffer);
	enum endpoint_sent sent;

	return length ? control_answer(server->control, &server->message, buffer, length, &sent, err) : 0;
}

int commands_receive(struct server *server, struct error *err)
{
	const uint64_t end = clock_ns() + TURN_NS;
	int rc;

	do {
		size_t frame;

		rc = endpoint_receive(server->control, &server->message, err);
		if (rc <= 0)
			return rc;
		frame = control_request_frame(&server->message);
		rc = frame && security_knows(server, server->control, &server->message) ?
			     answer_request(server, frame, err) : 0;
	} while (!rc && clock_ns() < end);
	return rc;
}
