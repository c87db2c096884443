/*
 * Control requests that are answered when something is on disk: a reset, when the stream's new life is, without a row
 * yet; a snapshot, when all is that had changed.
 */
#include "daemon/durable.h"

#include <inttypes.h>
#include <string.h>

#include "daemon/request.h"
#include "daemon/server.h"

/* Have the stream saved that the request names, if it names one, and that is not being done. */
static void hurry(struct server *server, const struct request *request)
{
	struct stream *stream = stream_find(server, request->id, request->id_size);

	if (stream && !stream->slot)
		saving_hurry(server, stream);
}

/* --- resets --- */

/* Begin the stream's next epoch. */
static int reset(struct server *server, struct stream *stream, uint64_t *ret_epoch, struct error *err)
{
	struct stream *life;

	if (stream_reset(server, stream, "reset by request", &life, err))
		return err->code;
	life->source_epoch = *ret_epoch = life->epoch;
	list_add(&server->dirty, &life->dirty);
	stream_install(server, life);
	return 0;
}

static int begin_reset(struct server *server, struct request *request, struct error *err)
{
	struct stream *stream = stream_find(server, request->id, request->id_size);
	struct saved *saved = states_find(server, request->key);

	if (!stream && table_find(&server->streams, request->id, request->id_size))
		return 0; /* it comes back, or ends: what comes of it is reset */
	if (!stream && (!saved || (!saved->generations.n && !saved->slot)))
		return error_set(err, REFUSED_CLOSED, "no such stream is known");
	if (!stream && !saved->damage)
		return resuming_bring_back(server, request->id, request->id_size, saved, err);
	if (stream && reset(server, stream, &request->epoch, err))
		return err->code;
	request->stage = stream ? RESET_BEGUN : RESET_REMOVING;
	if (!stream)
		states_forget(server, saved);
	return 0;
}

/* Can no kill bring the epoch before back? */
static bool reset_done(struct server *server, const struct request *request)
{
	struct stream *stream = stream_find(server, request->id, request->id_size);
	const struct saved *saved = states_find(server, request->key);
	const struct generations *on_disk;

	if (states_going(server, request->key))
		return false;
	if (request->stage == RESET_REMOVING || (saved && states_closed_on_disk(server, saved)))
		return true;
	if (!saved) /* not written yet, or closed since */
		return !stream || stream->epoch < request->epoch;
	on_disk = &saved->generations;
	return on_disk->n && on_disk->item[on_disk->n - 1].known &&
	       on_disk->item[on_disk->n - 1].epoch >= request->epoch;
}

static void go_on_reset(struct server *server, struct request *request)
{
	struct control_writer writer;
	char bytes[REQUEST_HEAD_BYTES];
	struct error error;

	if (request->stage == RESET_ASKED && begin_reset(server, request, &error)) {
		request_refuse(server, request, &error);
	} else if (request->stage != RESET_ASKED && reset_done(server, request)) {
		control_begin_answer(&writer, bytes, sizeof bytes);
		control_put_uint(&writer, "epoch", request->epoch);
		request_answer(server, request, bytes, control_finish(&writer));
	} else if (request->stage == RESET_BEGUN) {
		hurry(server, request);
	}
}

/* --- snapshots --- */

/* Is all saved that had changed when the request came? */
static bool snapshot_done(struct server *server, const struct request *request)
{
	struct stream *stream;

	if (request->id_size) {
		stream = stream_find(server, request->id, request->id_size);
		return !stream || (!stream->slot && (!stream->changed || stream->unsaved_ms > request->since_ms));
	}
	if (!states_marked(server, request->marks_begun))
		return false; /* of streams that were closed */
	for (size_t i = 0; i < STATE_SLOTS; i++)
		if (server->slots[i].use == SLOT_SAVING && server->slots[i].since_ms <= request->since_ms)
			return false;
	for (struct link *link = list_first(&server->unsaved); link; link = list_next(&server->unsaved, link))
		if (list_entry(link, struct stream, unsaved)->unsaved_ms <= request->since_ms)
			return false;
	return true;
}

static void go_on_snapshot(struct server *server, struct request *request)
{
	struct control_writer writer;
	char bytes[REQUEST_HEAD_BYTES];

	if (snapshot_done(server, request)) {
		control_begin_answer(&writer, bytes, sizeof bytes);
		request_answer(server, request, bytes, control_finish(&writer));
	} else {
		hurry(server, request);
	}
}

/* --- both --- */

void durable_go_on(struct server *server, struct request *request)
{
	if (request->kind == REQUEST_RESET)
		go_on_reset(server, request);
	else
		go_on_snapshot(server, request);
}

/* Does the request wait for what this task was to do with the states of this stream? */
static bool needs(const struct request *request, enum store_task task, const char *key)
{
	if (request->kind == REQUEST_RESET)
		return !strcmp(request->key, key);
	return request->kind == REQUEST_SNAPSHOT && task != STORE_READ &&
	       (!request->id_size || !strcmp(request->key, key));
}

void durable_failed(struct server *server, enum store_task task, const char key[HASH_TEXT], const struct error *error)
{
	struct request *next;
	struct error refused;

	for (struct request *request = server->requests; request; request = next) {
		next = request->next;
		if (!needs(request, task, key))
			continue;
		if (request->stage == RESET_BEGUN)
			error_set(&refused, REFUSED_INTERNAL, "epoch %" PRIu64 " has begun, but is not on disk yet: %s",
				  request->epoch, error->text);
		else
			error_set(&refused, REFUSED_INTERNAL, "%s", error->text);
		request_refuse(server, request, &refused);
	}
}

int durable_reset(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	struct stream *stream = stream_find(server, asked->stream.bytes, asked->stream.size);
	uint64_t epoch = 0;

	if (server->store)
		return request_begin(server, REQUEST_RESET, &asked->stream, &asked->to, err);
	if (!stream)
		return error_set(err, REFUSED_CLOSED, "no such stream is open");
	if (reset(server, stream, &epoch, err))
		return err->code;
	control_put_uint(answer, "epoch", epoch);
	return 0;
}

int durable_snapshot(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	struct stream *stream = stream_find(server, asked->stream.bytes, asked->stream.size);
	struct link *link;

	(void)answer;
	if (!server->store)
		return error_set(err, REFUSED_INTERNAL, "states are not kept: state.dir is not set");
	if (asked->stream.size && !stream)
		return error_set(err, REFUSED_CLOSED, "no such stream is in memory");
	if (request_begin(server, REQUEST_SNAPSHOT, &asked->stream, &asked->to, err) < 0)
		return err->code;
	if (stream) {
		saving_hurry(server, stream);
	} else {
		server->save_all_ms = server->now_ms;
		for (link = list_first(&server->unsaved); link; link = list_next(&server->unsaved, link))
			saving_cut(server, list_entry(link, struct stream, unsaved));
	}
	return REQUEST_WAITS;
}
