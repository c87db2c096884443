/*
 * Control requests that wait: for a copy by the worker, for the disk, for a slot.  The peer's frames are kept, and the
 * answer is sent when the work is done; meanwhile the loop goes on.
 *
 * An export is a state on its way out through a slot, an import one on its way in; a fork is both, through one slot.
 * What waits until something is on disk is in durable.c.
 */
#include "daemon/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/durable.h"
#include "daemon/server.h"

#define REQUESTS_MAX 256 /* that wait */

/* --- answering --- */

static void remove_request(struct server *server, struct request *request)
{
	struct request **at = &server->requests;

	while (*at != request)
		at = &(*at)->next;
	*at = request->next;
	server->n_requests--;
	free(held_pop(server, &request->frames));
	free(request);
}

void request_answer(struct server *server, struct request *request, const void *bytes, size_t size)
{
	struct endpoint_message message;
	enum endpoint_sent sent;
	struct error error;

	held_message(request->frames.first, &message);
	if (control_answer(server->control, &message, bytes, size, &sent, &error)) {
		log_error("%s", error.text);
		server->failed = true;
	}
	remove_request(server, request);
}

void request_refuse(struct server *server, struct request *request, const struct error *error)
{
	char bytes[1024];
	struct control_writer writer;

	control_begin_refusal(&writer, bytes, sizeof bytes, error->code, error->text);
	request_answer(server, request, bytes, control_finish(&writer));
}

/* stream: the one that was made. */
static void succeed(struct server *server, struct request *request, const struct stream *stream)
{
	char bytes[REQUEST_HEAD_BYTES];
	struct control_writer writer;

	control_begin_answer(&writer, bytes, sizeof bytes);
	control_put_uint(&writer, "epoch", stream->epoch);
	control_put_uint(&writer, "next", stream->next);
	request_answer(server, request, bytes, control_finish(&writer));
}

/* Answer an export with the state as the bytes of a file.  damage: of a newer one; NULL: there is none. */
static void send_state(struct server *server, struct request *request, const struct state *state, const char *damage)
{
	struct control_writer writer;
	struct error error;
	void *file = NULL;
	char *bytes = NULL;
	size_t size;

	if (statefile_encode(&server->model->shape, state, &file, &size, &error)) {
		request_refuse(server, request, &error);
		return;
	}
	bytes = malloc(size + REQUEST_HEAD_BYTES);
	if (!bytes) {
		error_memory(&error, "a state");
		request_refuse(server, request, &error);
	} else {
		control_begin_answer(&writer, bytes, size + REQUEST_HEAD_BYTES);
		control_put_uint(&writer, "epoch", state->epoch);
		control_put_uint(&writer, "position", state->position);
		control_put_uint(&writer, "pending", state->pending_rows);
		if (damage)
			control_put_str(&writer, "damaged", damage);
		control_put_bin(&writer, "state", file, size);
		request_answer(server, request, bytes, control_finish(&writer));
	}
	free(bytes);
	free(file);
}

/* What is on disk of a stream with this key that can go on; NULL: nothing. */
static struct saved *find_on_disk(struct server *server, const char key[HASH_TEXT])
{
	struct saved *saved = states_find(server, key);

	return saved && saved->generations.n && !saved->closed ? saved : NULL;
}

/* --- a state goes in --- */

/*
 * Is there room for the stream that the request makes?  ROOM_SOON: it must wait, also until the one that it replaces is
 * back from disk: the next epoch is the one after that one's.  Making room frees streams and takes slots: look for them
 * afterwards.
 */
static enum room find_room(struct server *server, const struct request *request)
{
	struct table_entry *entry = table_find(&server->streams, request->to, request->to_size);
	struct saved *saved;
	struct error error;
	char key[HASH_TEXT];

	if (entry) /* one that is loading is only half there */
		return list_entry(entry, struct stream, entry)->phase == STREAM_LOADING ? ROOM_SOON : ROOM_YES;
	store_key(request->to, request->to_size, key);
	saved = find_on_disk(server, key);
	if (saved && !saved->damage && server->phase == SERVER_SERVING)
		return resuming_bring_back(server, request->to, request->to_size, saved, &error) ? ROOM_NONE : ROOM_SOON;
	return saving_make_room(server);
}

/* Others came first; their states may need the slot to leave. */
static void try_again(struct server *server, struct request *request, struct slot *slot)
{
	states_free_slot(server, slot);
	request->slotted = false;
}

/* Copy the slot's state into the cache of a detached stream: what it replaces stays until that has succeeded. */
static void give(struct server *server, struct request *request, struct slot *slot)
{
	struct stream *stream;
	struct error error;

	if (find_room(server, request) == ROOM_SOON) {
		try_again(server, request, slot);
		return;
	}
	if (stream_new(server, request->to, request->to_size, slot->state->epoch, NULL, &stream, &error)) {
		states_free_slot(server, slot);
		request_refuse(server, request, &error);
		return;
	}
	stream->phase = STREAM_LOADING;
	slot->request = request;
	resuming_give(stream, slot);
}

/* The detached stream becomes what the state says; if there is such a stream already, in its next epoch. */
static int become(struct server *server, struct stream *stream, const struct stream *old, struct state *state,
		  struct error *err)
{
	state->reply = false;
	if (old) {
		if (stream_next_epoch(old, &state->epoch, err))
			return err->code;
		state->source_epoch = state->epoch;
		state->source_origin = 0;
	}
	if (server->phase != SERVER_SERVING)
		return error_set(err, REFUSED_SHUTTING_DOWN, "the daemon takes no more input");
	return resuming_adopt(server, stream, state, err);
}

void requests_given(struct server *server, struct slot *slot)
{
	struct stream *stream = slot->stream, *old;
	struct request *request = slot->request;
	struct error error = slot->job.error;
	struct saved *saved;

	if (!error.code && find_room(server, request) != ROOM_YES) { /* no longer */
		stream_free(server, stream);
		try_again(server, request, slot);
		return;
	}
	old = stream_find(server, request->to, request->to_size);
	if (error.code || become(server, stream, old, slot->state, &error)) {
		stream_free(server, stream);
		states_free_slot(server, slot);
		request_refuse(server, request, &error);
		return;
	}
	saved = states_find(server, stream->key);
	if (saved && !old)
		states_forget(server, saved);
	stream_install(server, stream);
	states_free_slot(server, slot);
	succeed(server, request, stream);
	resuming_go_live(server, stream, false);
}

/* --- a state goes out --- */

/* The slot holds the state that was asked for, or the one before it, because of damage. */
static void serve(struct server *server, struct slot *slot, const char *damage)
{
	struct request *request = slot->request;

	if (request->kind == REQUEST_FORK) {
		give(server, request, slot);
		return;
	}
	send_state(server, request, slot->state, damage);
	states_free_slot(server, slot);
}

void requests_copied(struct server *server, struct slot *slot)
{
	struct stream *stream = slot->stream;
	struct request *request = slot->request;

	stream->in_flight--;
	stream->slot = NULL;
	slot->stream = NULL;
	stream_wake(server, stream);
	stream_settle(server, stream); /* first: the stream may have to make room for the one that is made of it */
	if (slot->job.error.code) {
		struct error error = slot->job.error;

		states_free_slot(server, slot);
		request_refuse(server, request, &error);
	} else {
		serve(server, slot, NULL);
	}
}

void requests_read(struct server *server, struct slot *slot)
{
	struct request *request = slot->request;
	struct store_job *task = &slot->task;
	struct saved *saved = states_find(server, task->key);
	struct error error = task->error;

	if (!error.code) {
		if (saved)
			states_learn(server, request->id, request->id_size, saved, task);
		serve(server, slot, task->damage.code ? task->damage.text : NULL);
		return;
	}
	error.code = error.code == ERR_FORMAT || error.code == ERR_UNSUPPORTED ? REFUSED_STATE_DAMAGED :
										 REFUSED_INTERNAL;
	states_free_slot(server, slot);
	request_refuse(server, request, &error);
}

/* Begin an export or fork, if the stream is quiet and a slot free. */
static void go_on_out(struct server *server, struct request *request)
{
	const bool room = request->kind != REQUEST_FORK || find_room(server, request) != ROOM_SOON;
	struct table_entry *entry = table_find(&server->streams, request->id, request->id_size);
	const bool ends = entry && list_entry(entry, struct stream, entry)->phase == STREAM_ENDING;
	struct stream *stream = stream_find(server, request->id, request->id_size);
	struct saved *saved = ends ? NULL : find_on_disk(server, request->key);
	struct slot *slot = states_slot(server);
	struct error error;

	if (stream && !room)
		saving_release(server, stream);
	if (!room || !slot)
		return;
	if (stream && !saving_quiet(stream)) {
		saving_hold(server, stream);
		return;
	}
	if (!stream && !saved) {
		error_set(&error, REFUSED_CLOSED, "no such stream is known");
		request_refuse(server, request, &error);
		return;
	}
	if (!stream && saved->slot)
		return; /* a state is being written: what can be read changes with it */
	request->slotted = true;
	slot->use = SLOT_SERVING;
	slot->request = request;
	if (stream) {
		saving_take(server, stream, slot);
		return;
	}
	slot->task = (struct store_job){
		.task = STORE_READ, .state = slot->state, .generations = saved->generations, .owner = slot
	};
	memcpy(slot->task.key, saved->key, sizeof slot->task.key);
	store_submit(server->store, &slot->task);
}

/* Decode the state that an import brings and begin to make its stream, if a slot is free. */
static void go_on_in(struct server *server, struct request *request)
{
	struct endpoint_message message;
	struct control control;
	struct error error = { 0 };
	const char *bytes = NULL;
	size_t size = 0, frame;
	struct slot *slot;

	if (find_room(server, request) == ROOM_SOON)
		return;
	slot = states_slot(server);
	if (!slot)
		return;
	held_message(request->frames.first, &message);
	frame = control_request_frame(&message);
	if (control_read(message.frame[frame].data, message.frame[frame].size, &control, &error) ||
	    control_get_bytes(&control, "state", &bytes, &size, &error) ||
	    statefile_decode(bytes, size, "state", false, &server->model->shape, server->model->fingerprint,
			     server->config->window, slot->state, &error)) {
		error.code = error.code <= ERR_REFUSED ? error.code : REFUSED_STATE_DAMAGED;
		request_refuse(server, request, &error);
		return;
	}
	if (!request->to_size) {
		request->to_size = slot->state->stream_size;
		memcpy(request->to, slot->state->stream, request->to_size);
	}
	request->slotted = true;
	slot->use = SLOT_SERVING;
	give(server, request, slot);
}

void requests_go_on(struct server *server)
{
	struct request *next;

	for (struct request *request = server->requests; request; request = next) {
		next = request->next;
		if (request->slotted)
			continue;
		if (request->kind == REQUEST_IMPORT)
			go_on_in(server, request);
		else if (request->kind == REQUEST_EXPORT || request->kind == REQUEST_FORK)
			go_on_out(server, request);
		else
			durable_go_on(server, request);
	}
}

void requests_free(struct server *server)
{
	struct error error;

	for (size_t i = 0; i < STATE_SLOTS; i++) /* streams that are nowhere else yet */
		if (server->slots[i].use == SLOT_RESUMING && server->slots[i].request)
			stream_free(server, server->slots[i].stream);
	error_set(&error, REFUSED_SHUTTING_DOWN, "the daemon stops before it is done");
	while (server->requests)
		request_refuse(server, server->requests, &error);
}

/* --- beginning --- */

int request_begin(struct server *server, enum request_kind kind, const struct stream_id *stream,
		  const struct stream_id *to, struct error *err)
{
	struct held_list frames = { NULL, NULL };
	struct stream *life = stream_find(server, stream->bytes, stream->size);
	struct request *request = server->n_requests < REQUESTS_MAX ? calloc(1, sizeof *request) : NULL;

	if (!request || !held_add(server, &frames, &server->message, true)) {
		free(request);
		return error_set(err, REFUSED_NO_CREDIT,
				 "too many requests wait, or take too much memory: ask again a little later");
	}
	*request = (struct request){
		.next = server->requests, .kind = kind, .frames = frames,
		.id_size = stream->size, .to_size = to->size, .since_ms = server->now_ms,
		.marks_begun = server->marks_begun
	};
	if (stream->size) {
		memcpy(request->id, stream->bytes, stream->size);
		store_key(stream->bytes, stream->size, request->key);
	}
	if (to->size)
		memcpy(request->to, to->bytes, to->size);
	server->requests = request;
	server->n_requests++;
	if (life)
		saving_cut(server, life);
	return REQUEST_WAITS;
}

int requests_export(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	(void)answer;
	return request_begin(server, REQUEST_EXPORT, &asked->stream, &asked->to, err);
}

int requests_fork(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	(void)answer;
	return request_begin(server, REQUEST_FORK, &asked->stream, &asked->to, err);
}

int requests_import(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	(void)answer;
	if (!control_has(&asked->control, "state"))
		return error_set(err, REFUSED_BAD_HEADER, "state: missing, expected the bytes of a state file");
	return request_begin(server, REQUEST_IMPORT, &asked->to, &asked->stream, err);
}
