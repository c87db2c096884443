/*
 * Control requests that wait: for a copy by the worker, for the disk, for a slot.  The peer's frames are kept, and the
 * answer is sent when the work is done; meanwhile the loop goes on.
 *
 * A reset is done at once, and answered when the new life, without a row yet, is on disk.  An export is a state on its way out through a slot, an import one on its way in; a fork is both, through one slot.
 */
#include "daemon/requests.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server.h"

#define HEAD_BYTES 512 /* of an answer, beside a state's bytes */
#define REQUESTS_MAX 256 /* that wait */

enum request_kind { REQUEST_RESET, REQUEST_SNAPSHOT, REQUEST_EXPORT, REQUEST_FORK, REQUEST_IMPORT };

struct request {
	struct request *next;
	enum request_kind kind;
	struct held_list frames; /* one message: whom to answer; it counts among what is held until then */
	size_t id_size, to_size;
	unsigned char id[MESSAGE_STREAM_MAX]; /* SNAPSHOT: id_size 0: all streams */
	unsigned char to[MESSAGE_STREAM_MAX]; /* FORK, IMPORT: the stream that is made */
	char key[HASH_TEXT];   /* of id */
	int64_t since_ms;      /* SNAPSHOT: what had changed by then is to be saved */
	uint64_t tasks_begun;  /* SNAPSHOT: until then */
	enum { RESET_ASKED, RESET_BEGUN, RESET_REMOVING } stage; /* RESET: the stream is as it was, in `epoch`, forgotten */
	uint64_t epoch;        /* RESET */
	bool slotted;          /* a slot is at work for it */
};

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

/* Send the answer and forget the request. */
static void answer(struct server *server, struct request *request, const void *bytes, size_t size)
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

static void refuse(struct server *server, struct request *request, const struct error *error)
{
	char bytes[1024];
	struct control_writer writer;

	control_begin_refusal(&writer, bytes, sizeof bytes, error->code, error->text);
	answer(server, request, bytes, control_finish(&writer));
}

/* stream: the one that was made; NULL: none was. */
static void succeed(struct server *server, struct request *request, const struct stream *stream)
{
	char bytes[HEAD_BYTES];
	struct control_writer writer;

	control_begin_answer(&writer, bytes, sizeof bytes);
	if (stream) {
		control_put_uint(&writer, "epoch", stream->epoch);
		control_put_uint(&writer, "next", stream->next);
	}
	answer(server, request, bytes, control_finish(&writer));
}

/* Answer an export with the state as the bytes of a file. */
static void send_state(struct server *server, struct request *request, const struct state *state)
{
	struct control_writer writer;
	struct error error;
	void *file = NULL;
	char *bytes = NULL;
	size_t size;

	if (statefile_encode(&server->model->shape, state, &file, &size, &error)) {
		refuse(server, request, &error);
		return;
	}
	bytes = malloc(size + HEAD_BYTES);
	if (!bytes) {
		error_memory(&error, "a state");
		refuse(server, request, &error);
	} else {
		control_begin_answer(&writer, bytes, size + HEAD_BYTES);
		control_put_uint(&writer, "epoch", state->epoch);
		control_put_uint(&writer, "position", state->position);
		control_put_uint(&writer, "pending", state->pending_rows);
		control_put_bin(&writer, "state", file, size);
		answer(server, request, bytes, control_finish(&writer));
	}
	free(bytes);
	free(file);
}

/* Have the stream saved that the request names, if it names one, and that is not being done. */
static void hurry(struct server *server, const struct request *request)
{
	struct stream *stream = stream_find(server, request->id, request->id_size);

	if (stream && !stream->slot)
		saving_hurry(server, stream);
}

/* --- a state goes in --- */

/*
 * Is there room for the stream that the request makes?  ROOM_SOON: it must wait.  Making room frees streams and takes
 * slots: look for them afterwards.
 */
static enum room find_room(struct server *server, const struct request *request)
{
	struct table_entry *entry = table_find(&server->streams, request->to, request->to_size);

	if (entry) /* one that is loading is only half there */
		return list_entry(entry, struct stream, entry)->phase == STREAM_LOADING ? ROOM_SOON : ROOM_YES;
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
		refuse(server, request, &error);
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
		refuse(server, request, &error);
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

/* The slot holds the state that was asked for. */
static void serve(struct server *server, struct slot *slot)
{
	struct request *request = slot->request;

	if (request->kind == REQUEST_FORK) {
		give(server, request, slot);
		return;
	}
	send_state(server, request, slot->state);
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
		refuse(server, request, &error);
	} else {
		serve(server, slot);
	}
}

void requests_read(struct server *server, struct slot *slot)
{
	struct request *request = slot->request;
	struct error error = slot->task.error;

	if (!error.code) {
		serve(server, slot);
		return;
	}
	error.code = REFUSED_STATE_DAMAGED;
	states_free_slot(server, slot);
	refuse(server, request, &error);
}

/* Begin an export or fork, if the stream is quiet and a slot free. */
static void go_on_out(struct server *server, struct request *request)
{
	struct stream *stream;
	struct saved *saved = NULL;
	struct slot *slot;
	struct error error;
	char key[HASH_TEXT];

	if (request->kind == REQUEST_FORK && find_room(server, request) == ROOM_SOON)
		return;
	slot = states_slot(server);
	if (!slot)
		return;
	stream = stream_find(server, request->id, request->id_size);
	if (stream && !saving_quiet(stream)) {
		saving_hold(stream);
		return;
	}
	if (!stream && server->store) {
		store_key(request->id, request->id_size, key);
		saved = states_find(server, key);
	}
	if (!stream && (!saved || !saved->generations.n)) {
		error_set(&error, REFUSED_CLOSED, "no such stream is known");
		refuse(server, request, &error);
		return;
	}
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
	memcpy(slot->task.key, key, sizeof key);
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
		refuse(server, request, &error);
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

/* Begin to bring a stream back from disk, as soon as there is room: it has to be known which epoch it is in. */
static int bring_back(struct server *server, const struct request *request, struct saved *saved, struct error *err)
{
	struct stream *stream;

	if (server->phase != SERVER_SERVING)
		return error_set(err, REFUSED_SHUTTING_DOWN, "the daemon brings no stream back any more");
	if (saving_make_room(server) == ROOM_SOON)
		return 0;
	if (stream_new(server, request->id, request->id_size, 0, NULL, &stream, err))
		return err->code;
	resuming_start(server, stream, saved, false, 0);
	stream_install(server, stream);
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
		return bring_back(server, request, saved, err);
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
	if (request->stage == RESET_REMOVING || (saved && saved->closed))
		return true;
	if (!saved) /* not written yet, or closed since */
		return !stream || stream->epoch < request->epoch;
	on_disk = &saved->generations;
	return on_disk->n && on_disk->item[on_disk->n - 1].known && on_disk->item[on_disk->n - 1].epoch >= request->epoch;
}

static void go_on_reset(struct server *server, struct request *request)
{
	struct control_writer writer;
	char bytes[HEAD_BYTES];
	struct error error;

	if (request->stage == RESET_ASKED && begin_reset(server, request, &error)) {
		refuse(server, request, &error);
	} else if (request->stage != RESET_ASKED && reset_done(server, request)) {
		control_begin_answer(&writer, bytes, sizeof bytes);
		control_put_uint(&writer, "epoch", request->epoch);
		answer(server, request, bytes, control_finish(&writer));
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
	if (server->failed_tasks || server->tasks_begun - server->tasks < request->tasks_begun)
		return false; /* marks and removals of streams that were closed */
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
	if (snapshot_done(server, request))
		succeed(server, request, NULL);
	else
		hurry(server, request);
}

/* Does the request wait for what this task was to do with the states of this stream? */
static bool needs(const struct request *request, enum store_task task, const char *key)
{
	if (request->kind == REQUEST_RESET)
		return !strcmp(request->key, key);
	return request->kind == REQUEST_SNAPSHOT && task != STORE_READ &&
	       (!request->id_size || !strcmp(request->key, key));
}

void requests_failed(struct server *server, enum store_task task, const char key[HASH_TEXT], const struct error *error)
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
		refuse(server, request, &refused);
	}
}

void requests_go_on(struct server *server)
{
	struct request *next;

	for (struct request *request = server->requests; request; request = next) {
		next = request->next;
		if (request->slotted)
			continue;
		if (request->kind == REQUEST_RESET)
			go_on_reset(server, request);
		else if (request->kind == REQUEST_SNAPSHOT)
			go_on_snapshot(server, request);
		else if (request->kind == REQUEST_IMPORT)
			go_on_in(server, request);
		else
			go_on_out(server, request);
	}
}

void requests_free(struct server *server)
{
	for (size_t i = 0; i < STATE_SLOTS; i++) /* streams that are nowhere else yet */
		if (server->slots[i].use == SLOT_RESUMING && server->slots[i].request)
			stream_free(server, server->slots[i].stream);
	while (server->requests)
		remove_request(server, server->requests);
}

/* --- beginning --- */

/* Keep the request that is being handled; what it asks for is done from the next turn of the loop on. */
static int begin(struct server *server, enum request_kind kind, const struct stream_id *stream,
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
		.tasks_begun = server->tasks_begun
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

int requests_reset(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	struct stream *stream = stream_find(server, asked->stream.bytes, asked->stream.size);
	uint64_t epoch = 0;

	if (server->store)
		return begin(server, REQUEST_RESET, &asked->stream, &asked->to, err);
	if (!stream)
		return error_set(err, REFUSED_CLOSED, "no such stream is open");
	if (reset(server, stream, &epoch, err))
		return err->code;
	control_put_uint(answer, "epoch", epoch);
	return 0;
}

int requests_snapshot(struct server *server, const struct asked *asked, struct control_writer *answer,
		      struct error *err)
{
	struct stream *stream = stream_find(server, asked->stream.bytes, asked->stream.size);
	struct link *link;

	(void)answer;
	if (!server->store)
		return error_set(err, REFUSED_INTERNAL, "states are not kept: state.dir is not set");
	if (asked->stream.size && !stream)
		return error_set(err, REFUSED_CLOSED, "no such stream is in memory");
	if (begin(server, REQUEST_SNAPSHOT, &asked->stream, &asked->to, err) < 0)
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

int requests_export(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	(void)answer;
	return begin(server, REQUEST_EXPORT, &asked->stream, &asked->to, err);
}

int requests_fork(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	(void)answer;
	return begin(server, REQUEST_FORK, &asked->stream, &asked->to, err);
}

int requests_import(struct server *server, const struct asked *asked, struct control_writer *answer, struct error *err)
{
	(void)answer;
	if (!control_has(&asked->control, "state"))
		return error_set(err, REFUSED_BAD_HEADER, "state: missing, expected the bytes of a state file");
	return begin(server, REQUEST_IMPORT, &asked->to, &asked->stream, err);
}
