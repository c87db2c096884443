/*
 * Memory to disk: what changed is saved on an interval, before it leaves memory, and when the daemon stops.
 *
 * A state is a cut at a window boundary with the rows behind it, taken when all that the cache has seen is emitted and
 * nothing of the stream is in flight; a stream that never pauses is kept out of the next batch until then.
 */
#include "daemon/states.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/server.h"

#define EVICTION_SCAN 64 /* least recently used streams looked at for one that can go */
#define NAMED_MAX 20     /* streams that could not be saved */
#define HANG_MS 1000     /* without a free slot: no stream waits for one any longer */

/* --- when --- */

void saving_note(struct server *server, struct stream *stream)
{
	if (!server->store || stream->changed)
		return;
	stream->changed = true;
	if (stream->phase == STREAM_LIVE && !link_listed(&stream->unsaved)) {
		stream->unsaved_ms = server->now_ms;
		list_append(&server->unsaved, &stream->unsaved);
	}
}

bool saving_quiet(const struct stream *stream)
{
	return stream->phase == STREAM_LIVE && !stream->before && !stream->in_flight && !stream->outbox &&
	       !stream->slot && stream->computed >= stream->cut;
}

/* Have all slots been taken for as long as a disk hangs? */
static bool slots_hang(struct server *server)
{
	return !states_slot(server) && server->now_ms - server->slot_ms >= HANG_MS;
}

void saving_hold(struct server *server, struct stream *stream)
{
	/* a full peer may stay so: the stream's turn comes later */
	if (!stream->outbox && !stream->slot && stream->computed >= stream->cut && !slots_hang(server))
		list_add(&server->on_hold, &stream->hold);
	else
		saving_release(server, stream);
}

void saving_release(struct server *server, struct stream *stream)
{
	list_remove(&stream->hold);
	stream_wake(server, stream);
}

static void release_all(struct server *server)
{
	struct link *link;

	while ((link = list_first(&server->on_hold)))
		saving_release(server, list_entry(link, struct stream, hold));
}

void saving_cut(struct server *server, struct stream *stream)
{
	stream->cut = stream->accepted / server->config->window * server->config->window;
	saving_release(server, stream);
}

void saving_hurry(struct server *server, struct stream *stream)
{
	if (!stream->changed)
		return;
	stream->unsaved_ms = 0;
	list_prepend(&server->unsaved, &stream->unsaved);
}

/* --- taking a state --- */

/* Rows behind the cache, less than a window of them. */
static void copy_pending(const struct server *server, const struct stream *stream, struct state *state)
{
	size_t hidden_size = server->model->shape.hidden_size;
	const struct block *block = stream->blocks;
	uint64_t n = stream->accepted - stream->computed;

	state->position = n ? block->position[0] : stream->next;
	if (n > server->config->window - 1)
		n = server->config->window - 1;
	state->pending_rows = n;
	if (!n)
		return;
	for (size_t i = 0; i < n; i++)
		dtype_widen(block->dtype[i], block->rows + i * hidden_size, hidden_size,
			    state->pending + i * hidden_size);
	memcpy(state->positions, block->position, n * sizeof *state->positions);
}

void saving_take(struct server *server, struct stream *stream, struct slot *slot)
{
	struct state *state = slot->state;

	memcpy(state->stream, stream->id, stream->id_size);
	state->stream_size = stream->id_size;
	state->epoch = stream->epoch;
	state->source_epoch = stream->source_epoch;
	state->source_origin = stream->source_origin;
	state->emitted = stream->emitted;
	state->reply = stream->reply;
	state->got = stream->got;
	state->window = server->config->window;
	snprintf(state->model, sizeof state->model, "%s", server->model->fingerprint);
	snprintf(state->device, sizeof state->device, "%s", stream->lane->device->description);
	copy_pending(server, stream, state);
	slot->stream = stream;
	slot->job = (struct job){ .kind = JOB_EXPORT, .cache = stream->cache, .state = state->cache };
	stream->slot = slot;
	stream->in_flight++;
	list_remove(&stream->hold);
	worker_submit(stream->lane->worker, &slot->job);
}

/* Save a quiet stream; the slot is free. */
static bool save(struct server *server, struct stream *stream, struct slot *slot, bool evict)
{
	struct saved *saved = states_get(server, stream->key);

	if (!saved || saved->slot) { /* what the life before leaves to do on disk comes first; rows need not wait */
		saving_release(server, stream);
		return false;
	}
	saving_take(server, stream, slot);
	slot->use = SLOT_SAVING;
	slot->evict = evict;
	slot->since_ms = stream->unsaved_ms;
	slot->saved = saved;
	slot->generation = (struct generation){
		.number = ++server->last_number, .epoch = stream->epoch, .emitted = stream->emitted, .known = true,
		.reach = state_next(slot->state),
	};
	memcpy(slot->task.key, saved->key, sizeof slot->task.key);
	saved->slot = slot;
	saved->closed = false;
	stream->changed = false;
	list_remove(&stream->unsaved);
	if (stream->accepted - stream->computed > slot->state->pending_rows) /* windows that wait for the device */
		saving_note(server, stream);
	return true;
}

/* The stream's state is not on disk after all: say so, and try again. */
static void save_failed(struct server *server, struct slot *slot, const struct error *error)
{
	struct stream *stream = slot->stream;

	if (slot->saved)
		generations_spare(&slot->saved->generations);
	server->retry_disk_ms = states_failed(server, STORE_WRITE, slot->task.key, error);
	release_all(server); /* there is nothing to wait for until the disk is tried again */
	if (stream) {
		stream->slot = NULL;
		saving_note(server, stream);
		if (link_listed(&stream->unsaved))
			saving_hurry(server, stream); /* once the disk is tried again */
	}
	states_free_slot(server, slot);
}

void saving_copied(struct server *server, struct slot *slot)
{
	struct stream *stream = slot->stream;
	struct saved *saved = slot->saved;
	struct store_job *task = &slot->task;

	stream->in_flight--;
	if (slot->job.error.code) {
		save_failed(server, slot, &slot->job.error);
	} else if (!saved) { /* forgotten meanwhile */
		states_free_slot(server, slot);
	} else {
		generations_doom(&saved->generations, &slot->generation, server->config->state.keep, stream->reply,
				 stream->got);
		*task = (struct store_job){
			.task = STORE_WRITE, .state = slot->state, .number = slot->generation.number,
			.generations = saved->generations, .owner = slot
		};
		memcpy(task->key, saved->key, sizeof task->key);
		store_submit(server->store, task);
	}
	stream_wake(server, stream);
	stream_settle(server, stream);
}

void saving_written(struct server *server, struct slot *slot)
{
	struct state_stats *stats = &server->state_stats;
	struct stream *stream = slot->stream;
	const struct store_job *task = &slot->task;
	bool evict = slot->evict;

	if (task->error.code) {
		save_failed(server, slot, &task->error);
		return;
	}
	states_well(server, STORE_WRITE);
	stats->saved++;
	stats->saved_bytes += task->bytes;
	stats->save_ns += task->ns;
	if (slot->saved) {
		slot->saved->marked = false;
		for (size_t i = 0; i < task->generations.n; i++)
			if (task->generations.item[i].doomed)
				generations_remove(&slot->saved->generations, task->generations.item[i].number);
		generations_add(&slot->saved->generations, &slot->generation);
	}
	states_free_slot(server, slot);
	if (!stream)
		return;
	if (stream->feeder && stream->feeder->router)
		list_add(&server->dirty, &stream->dirty);
	if (evict && !stream->changed)
		saving_evict(server, stream);
}

/* Start saving the streams that are due. */
static int64_t save_due(struct server *server)
{
	int64_t interval = server->phase == SERVER_STOPPING ? 0 : (int64_t)(server->config->state.interval * 1000);
	struct link *link = list_first(&server->unsaved), *next;

	if (!link)
		return INT64_MAX;
	if (server->now_ms < server->retry_disk_ms)
		return server->retry_disk_ms;
	for (size_t held = 0; link && held < STATE_SLOTS; link = next) {
		struct stream *stream = list_entry(link, struct stream, unsaved);
		struct slot *slot = states_slot(server);

		next = list_next(&server->unsaved, link);
		if (stream->unsaved_ms + interval > server->now_ms && stream->unsaved_ms > server->save_all_ms)
			return stream->unsaved_ms + interval;
		if (!slot && (saving_quiet(stream) || slots_hang(server)))
			break;
		if (saving_quiet(stream))
			save(server, stream, slot, false);
		else
			saving_hold(server, stream);
		held += link_listed(&stream->hold) && !stream->before; /* while a life before ends, others go on */
	}
	return INT64_MAX; /* what is due waits for a slot or a batch to finish */
}

/* Keep no stream waiting for slots that hang.  Returns when to look again. */
static int64_t look_at_slots(struct server *server)
{
	if (states_slot(server))
		server->slot_ms = server->now_ms;
	else if (slots_hang(server))
		release_all(server);
	else if (!list_empty(&server->on_hold))
		return server->slot_ms + HANG_MS;
	return INT64_MAX;
}

int64_t saving_start(struct server *server)
{
	int64_t slot_ms = look_at_slots(server), retry_ms, due_ms;

	if (!server->store)
		return slot_ms;
	retry_ms = states_retry(server);
	due_ms = save_due(server);
	due_ms = slot_ms < due_ms ? slot_ms : due_ms;
	return retry_ms < due_ms ? retry_ms : due_ms;
}

bool saving_finished(struct server *server)
{
	if (!server->store)
		return true;
	for (size_t i = 0; i < STATE_SLOTS; i++)
		if (server->slots[i].use != SLOT_FREE)
			return false;
	return list_empty(&server->unsaved) && states_marked(server, server->marks_begun);
}

void saving_give_up(struct server *server)
{
	struct table_entry *entry = NULL;
	size_t n = 0;

	while (server->store && (entry = table_next(&server->streams, entry))) {
		struct stream *stream = list_entry(entry, struct stream, entry);
		struct log_about about = { stream->id, stream->id_size, NULL };

		if (!stream->changed && !(stream->slot && stream->slot->use == SLOT_SAVING))
			continue;
		if (n++ < NAMED_MAX)
			log_about(LOG_LEVEL_ERROR, &about, "not saved: rows from %" PRIu64 " on must come again",
				  states_durable(server, stream));
	}
	if (n > NAMED_MAX)
		log_error("%zu more streams are not saved", n - NAMED_MAX);
}

/* --- leaving memory --- */

/* Note what the stream was, for when it comes back in this run. */
static void remember_stream(struct server *server, const struct stream *stream)
{
	struct saved *saved = states_find(server, stream->key);

	if (!saved)
		return;
	saved->remembered = true;
	saved->reply = stream->reply;
	saved->epoch = stream->epoch;
	saved->got = stream->got;
	saved->published = stream->published;
	free(saved->feeder);
	saved->feeder = NULL;
	saved->feeder_size = 0;
	if (stream->feeder && stream->feeder->router && (saved->feeder = malloc(stream->feeder->identity_size + 1))) {
		saved->feeder_size = stream->feeder->identity_size;
		memcpy(saved->feeder, stream->feeder->identity, saved->feeder_size);
	}
}

static bool let_go(struct server *server, struct stream *stream)
{
	if (link_listed(&stream->dirty) && !publish_ack(server, stream))
		return false; /* it owes its feeder an ack */
	remember_stream(server, stream);
	publish_event(server, stream, EVENT_EVICTED, stream->next,
		      "its state is on disk; it comes back with its next message");
	server->state_stats.evicted++;
	table_remove(&server->streams, &stream->entry);
	stream_free(server, stream);
	return true;
}

bool saving_evict(struct server *server, struct stream *stream)
{
	struct slot *slot = states_slot(server);

	if (!saving_quiet(stream) || stream_more(server, stream, 0))
		return false;
	if (stream->changed || !states_find(server, stream->key))
		return slot && server->now_ms >= server->retry_disk_ms && save(server, stream, slot, true);
	return let_go(server, stream);
}

/* Streams that leave once they are saved. */
static size_t streams_leaving(const struct server *server)
{
	size_t n = 0;

	for (size_t i = 0; i < STATE_SLOTS; i++)
		n += server->slots[i].use == SLOT_SAVING && server->slots[i].evict && server->slots[i].stream;
	return n;
}

enum room saving_make_room(struct server *server)
{
	const size_t max = server->config->streams.max, wanted = server->waiters.n ? server->waiters.n : 1;
	struct link *link = list_first(&server->idle), *next;

	for (size_t i = 0; server->store && link && i < EVICTION_SCAN && server->streams.n >= max; i++, link = next) {
		struct stream *stream = list_entry(link, struct stream, idle);

		if (server->streams.n + wanted <= max + streams_leaving(server))
			break;
		next = list_next(&server->idle, link);
		if (saving_evict(server, stream) || !states_slot(server))
			continue;
		stream->active_ms = server->now_ms; /* as it cannot leave now: others are looked at first */
		list_append(&server->idle, &stream->idle);
	}
	if (server->streams.n < max)
		return ROOM_YES;
	return server->store && server->now_ms >= server->retry_disk_ms ? ROOM_SOON : ROOM_NONE;
}
