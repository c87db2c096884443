/*
 * Disk to memory: a stream that is known but not in memory comes back with its next message.  Messages that arrive
 * before it is there are held and handled then, in order.
 */
#include "daemon/states.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/requests.h"
#include "daemon/server.h"

/* Ask the store for the state; the slot is free. */
static void read_state(struct server *server, struct stream *stream, struct slot *slot)
{
	struct saved *saved = states_find(server, stream->key);

	slot->use = SLOT_RESUMING;
	slot->stream = stream;
	slot->saved = NULL;
	stream->slot = slot;
	slot->task = (struct store_job){
		.task = STORE_READ, .state = slot->state, .rewinding = stream->rewinding,
		.epoch_known = stream->rewound, .epoch = stream->epoch, .from = stream->from, .owner = slot
	};
	if (saved)
		slot->task.generations = saved->generations;
	memcpy(slot->task.key, stream->key, sizeof slot->task.key);
	store_submit(server->store, &slot->task);
}

void resuming_start(struct server *server, struct stream *stream, struct saved *saved, bool rewinding, uint64_t from)
{
	stream->phase = STREAM_LOADING;
	stream->rewinding = rewinding;
	stream->from = from;
	saved->closed = false;
	list_append(&server->loading, &stream->unsaved);
	resuming_go_on(server);
}

int64_t resuming_go_on(struct server *server)
{
	struct link *next;
	int64_t due_ms = INT64_MAX;

	for (struct link *link = list_first(&server->loading); link; link = next) {
		struct stream *stream = list_entry(link, struct stream, unsaved);
		const struct saved *saved = states_find(server, stream->key);
		struct slot *slot = states_slot(server);

		next = list_next(&server->loading, link);
		if (!slot)
			break; /* they wait for one */
		if (stream->retry_ms > server->now_ms) {
			due_ms = stream->retry_ms < due_ms ? stream->retry_ms : due_ms;
			continue;
		}
		if (saved && saved->slot)
			continue; /* a state of the life before is being written: what can be read changes with it */
		list_remove(link);
		read_state(server, stream, slot);
	}
	return due_ms;
}

void resuming_go_live(struct server *server, struct stream *stream, bool saved)
{
	struct held_list list = stream->held;

	stream->held = (struct held_list){ NULL, NULL };
	stream->phase = STREAM_LIVE;
	stream->changed = false;
	list_append(&server->idle, &stream->idle);
	if (!saved) { /* and whoever brought it may rely on it */
		saving_note(server, stream);
		saving_hurry(server, stream);
	}
	server->state_stats.resumed++;
	if (stream->feeder && stream->feeder->router)
		list_add(&server->dirty, &stream->dirty);
	ingest_held(server, &list);
}

/* It does not come back: the messages that wait are handled without it. */
static void begin_anew(struct server *server, struct stream *stream)
{
	struct held_list list = stream->held;

	stream->held = (struct held_list){ NULL, NULL };
	stream->phase = STREAM_RETIRED;
	stream_settle(server, stream);
	ingest_held(server, &list);
}

/* It cannot be had just now, for want of the disk, the device or memory: its messages wait on. */
static void try_later(struct server *server, struct slot *slot, const struct error *error)
{
	struct stream *stream = slot->stream;

	stream->retry_ms = states_failed(server, STORE_READ, stream->key, error);
	states_free_slot(server, slot);
	list_append(&server->loading, &stream->unsaved);
}

/* It cannot be had: the messages that waited are refused with why. */
static void give_up(struct server *server, struct stream *stream, struct saved *saved, const char *why)
{
	struct log_about about = { stream->id, stream->id_size, refusal_name(REFUSED_STATE_DAMAGED) };

	log_about(LOG_LEVEL_ERROR, &about, "cannot be resumed: %s", why);
	server->state_stats.damaged++;
	free(saved->damage);
	saved->damage = strdup(why);
	begin_anew(server, stream);
}

/* Take over what reading taught of the generations; consumers are told where the stream goes on from an older one. */
static void learn(struct server *server, struct stream *stream, struct saved *saved, const struct store_job *task)
{
	states_learn(server, stream->id, stream->id_size, saved, task);
	if (!saved->fell_back)
		return;
	saved->fell_back = false;
	if (task->found)
		stream->epoch = task->state->epoch;
	publish_event(server, stream, EVENT_RESET, task->state->position,
		      "the newest state is damaged: resumed from the one before");
}

int resuming_bring_back(struct server *server, const void *id, size_t id_size, struct saved *saved, struct error *err)
{
	struct stream *stream;

	if (server->phase != SERVER_SERVING)
		return error_set(err, REFUSED_SHUTTING_DOWN, "the daemon brings no stream back any more");
	if (saving_make_room(server) == ROOM_SOON)
		return 0;
	if (stream_new(server, id, id_size, 0, NULL, &stream, err))
		return err->code;
	resuming_start(server, stream, saved, false, 0);
	stream_install(server, stream);
	return 0;
}

/* What was remembered when the stream left memory in this run, and what the state does not say. */
static void recall(struct server *server, struct stream *stream)
{
	struct saved *saved = states_find(server, stream->key);
	struct peer *feeder;

	if (!saved || !saved->remembered)
		return;
	saved->remembered = false;
	stream->reply = saved->reply;
	if (saved->epoch == stream->epoch) { /* not where the newest states were damaged */
		stream->got = saved->got;
		if (saved->published > stream->published)
			stream->published = saved->published;
	}
	feeder = saved->feeder ? peer_get(server, saved->feeder, saved->feeder_size) : NULL;
	if (!feeder)
		return;
	stream_feed(server, stream, feeder);
	peer_release(server, feeder);
}

void resuming_read(struct server *server, struct slot *slot)
{
	struct stream *stream = slot->stream;
	struct store_job *task = &slot->task;
	struct saved *saved = states_find(server, stream->key);

	if (task->error.code && task->error.code != ERR_FORMAT && task->error.code != ERR_UNSUPPORTED) {
		try_later(server, slot, &task->error);
		return;
	}
	states_well(server, STORE_READ);
	assert(saved); /* while a stream comes back its states are not forgotten: all that would do so waits */
	if (task->error.code) {
		char why[sizeof task->error.text];

		snprintf(why, sizeof why, "%s", task->error.text);
		states_free_slot(server, slot);
		give_up(server, stream, saved, why);
		return;
	}
	learn(server, stream, saved, task);
	if (!task->found) { /* no state is old enough: start from position 0 */
		states_free_slot(server, slot);
		recall(server, stream);
		resuming_go_live(server, stream, false);
		return;
	}
	resuming_give(stream, slot);
}

void resuming_give(struct stream *stream, struct slot *slot)
{
	slot->use = SLOT_RESUMING;
	slot->stream = stream;
	slot->job = (struct job){ .kind = JOB_IMPORT, .cache = stream->cache, .state = slot->state->cache };
	stream->slot = slot;
	stream->in_flight++;
	worker_submit(stream->lane->worker, &slot->job);
}

int resuming_adopt(struct server *server, struct stream *stream, const struct state *state, struct error *err)
{
	uint64_t done = 0;

	while (done < state->pending_rows && state->positions[done] < state->emitted)
		done++;
	if (state->pending_rows) {
		int rc = stream_add_block(server, stream, err);

		if (rc)
			return rc;
		memcpy(stream->blocks->rows, state->pending,
		       state->pending_rows * server->model->shape.hidden_size * sizeof *state->pending);
		memcpy(stream->blocks->position, state->positions, state->pending_rows * sizeof *state->positions);
		for (size_t i = 0; i < state->pending_rows; i++)
			stream->blocks->dtype[i] = DTYPE_FLOAT32;
	}
	stream->epoch = state->epoch;
	stream->source_epoch = state->source_epoch;
	stream->source_origin = state->source_origin;
	stream->accepted = state->pending_rows;
	stream->done = stream->flushed = done;
	stream->next = state_next(state);
	stream->emitted = state->emitted;
	stream->reply = state->reply;
	stream->got = state->got;
	if (stream->feeder)
		stream->feeder->outstanding += stream->accepted - stream->done;
	if (stream->published < stream->emitted)
		stream->published = stream->emitted;
	stream_flush_later(server, stream);
	if (strcmp(state->device, stream->lane->device->description))
		log_info("a state made on \"%s\" goes on here", state->device);
	return 0;
}

void resuming_copied(struct server *server, struct slot *slot)
{
	struct stream *stream = slot->stream;
	struct error error = slot->job.error;
	struct saved *saved;

	stream->in_flight--;
	if (slot->request) {
		requests_given(server, slot);
		return;
	}
	saved = states_find(server, stream->key);
	assert(saved);
	if (error.code || resuming_adopt(server, stream, slot->state, &error)) {
		try_later(server, slot, &error);
		return;
	}
	recall(server, stream);
	states_free_slot(server, slot);
	resuming_go_live(server, stream, !saved->marked);
}
