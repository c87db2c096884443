/*
 * The lives of streams: begin, flush, end, make way for the next.  A life leaves when it has nothing in flight and
 * nothing to send; stream_settle is the one place that decides so.
 */
#include "daemon/server.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- peers --- */

struct peer *peer_get(struct server *server, const void *identity, size_t identity_size)
{
	struct table_entry *entry = table_find(&server->peers, identity, identity_size);
	struct peer *peer = entry ? list_entry(entry, struct peer, entry) : NULL;

	if (!peer) {
		assert(identity_size <= sizeof peer->identity); /* ZeroMQ's limit */
		peer = calloc(1, sizeof *peer);
		if (!peer)
			return NULL;
		peer->router = true;
		peer->account = &peer->own;
		peer->identity_size = identity_size;
		memcpy(peer->identity, identity, identity_size);
		peer->entry.key = peer->identity;
		peer->entry.key_size = identity_size;
		table_insert(&server->peers, &peer->entry);
	}
	peer->holds++;
	return peer;
}

void peer_release(struct server *server, struct peer *peer)
{
	if (!peer || --peer->holds || !peer->router)
		return;
	table_remove(&server->peers, &peer->entry);
	free(peer);
}

/* --- a life --- */

struct stream *stream_find(struct server *server, const void *id, size_t id_size)
{
	struct table_entry *entry = table_find(&server->streams, id, id_size);
	struct stream *stream = entry ? list_entry(entry, struct stream, entry) : NULL;

	return stream && stream->phase == STREAM_LIVE ? stream : NULL;
}

int stream_new(struct server *server, const void *id, size_t id_size, uint64_t epoch, struct peer *feeder,
	       struct stream **ret_stream, struct error *err)
{
	struct lane *lane = lanes_choose(server);
	struct stream *stream;
	int rc;

	if (server->streams.n >= server->config->streams.max && !table_find(&server->streams, id, id_size))
		return error_set(err, REFUSED_TOO_MANY_STREAMS, "%zu streams are open, streams.max allows no more",
				 server->streams.n);
	stream = pool_leaves_enough() ? calloc(1, sizeof *stream) : NULL;
	if (!stream)
		return error_memory(err, "stream");
	rc = lane->device->backend->cache_new(lane->device, &stream->cache, err);
	if (rc) {
		free(stream);
		return rc;
	}
	stream->lane = lane;
	lane->streams++;
	memcpy(stream->id, id, id_size);
	stream->id_size = id_size;
	stream->entry.key = stream->id;
	stream->entry.key_size = id_size;
	if (server->store)
		store_key(id, id_size, stream->key);
	stream->phase = STREAM_LIVE;
	stream->epoch = stream->source_epoch = epoch;
	stream->active_ms = server->now_ms;
	stream_feed(server, stream, feeder);
	*ret_stream = stream;
	return 0;
}

int stream_add_block(struct server *server, struct stream *stream, struct error *err)
{
	struct block *block = block_take(server);

	if (!block)
		return error_memory(err, "rows of a window");
	if (stream->last_block)
		stream->last_block->next = block;
	else
		stream->blocks = block;
	stream->last_block = block;
	if (!stream->unsubmitted)
		stream->unsubmitted = block;
	return 0;
}

static void free_blocks(struct server *server, struct block *block)
{
	while (block) {
		struct block *next = block->next;

		block_give(server, block);
		block = next;
	}
}

void stream_free(struct server *server, struct stream *stream)
{
	struct held *held;

	list_remove(&stream->ready);
	list_remove(&stream->dirty);
	list_remove(&stream->stalled);
	list_remove(&stream->unflushed);
	list_remove(&stream->unsaved);
	list_remove(&stream->silent);
	list_remove(&stream->idle);
	list_remove(&stream->hold);
	if (stream->slot)
		stream->slot->stream = NULL;
	while ((held = held_pop(server, &stream->held)))
		free(held);
	stream_feed(server, stream, NULL);
	limits_count_stream(stream, NULL);
	free_blocks(server, stream->blocks);
	while (stream->outbox) {
		struct hidden *hidden = stream->outbox;

		stream->outbox = hidden->next;
		hidden_release(hidden);
	}
	stream->lane->device->backend->cache_free(stream->lane->device, stream->cache);
	stream->lane->streams--;
	free(stream);
}

void stream_feed(struct server *server, struct stream *stream, struct peer *feeder)
{
	struct peer *old = stream->feeder;
	uint64_t outstanding = stream->accepted - stream->done;

	if (old == feeder)
		return;
	if (feeder) {
		feeder->holds++;
		feeder->outstanding += outstanding;
		limits_count_stream(stream, feeder->account);
	} else if (!stream->account->lasting) {
		limits_count_stream(stream, NULL);
	}
	stream->feeder = feeder;
	if (old) {
		old->outstanding -= outstanding;
		peer_release(server, old);
	}
}

size_t stream_more(const struct server *server, const struct stream *stream, uint64_t taken)
{
	uint64_t window = server->config->window;
	uint64_t full = (stream->accepted - stream->submitted) / window * window;

	if (stream->before || link_listed(&stream->hold) || link_listed(&stream->stalled) ||
	    link_listed(&stream->silent))
		return 0;
	if (taken < full)
		return window;
	if (taken == full && stream->flush_to > stream->submitted + full && stream->flush_to > stream->flushed)
		return stream->flush_to - stream->submitted - full;
	return 0;
}

void stream_wake(struct server *server, struct stream *stream)
{
	if (stream_more(server, stream, 0))
		list_add(&stream->lane->ready, &stream->ready);
}

void stream_flush_later(struct server *server, struct stream *stream)
{
	if (server->config->streams.flush_after <= 0 || stream->flushed == stream->accepted ||
	    !(stream->accepted % server->config->window) || link_listed(&stream->unflushed))
		return;
	stream->unflushed_ms = server->now_ms;
	list_append(&server->unflushed, &stream->unflushed);
}

void stream_flush(struct server *server, struct stream *stream)
{
	stream->flush_to = stream->accepted;
	list_remove(&stream->unflushed);
	stream_wake(server, stream);
}

/* Take no more rows, and emit those there are. */
static void stream_close(struct server *server, struct stream *stream, enum stream_phase phase)
{
	stream->phase = phase;
	list_remove(&stream->hold);
	list_remove(&stream->unsaved);
	list_remove(&stream->idle);
	stream_flush(server, stream);
	stream_settle(server, stream);
}

/* Publish the event with which a life begins, if it has one. */
static void stream_announce(struct server *server, struct stream *stream)
{
	if (stream->has_event)
		publish_event(server, stream, stream->event, 0, stream->event_text);
	stream->has_event = false;
}

void stream_install(struct server *server, struct stream *stream)
{
	struct table_entry *entry = table_find(&server->streams, stream->id, stream->id_size);
	struct stream *old = entry ? list_entry(entry, struct stream, entry) : NULL;

	if (old)
		table_remove(&server->streams, entry);
	table_insert(&server->streams, &stream->entry);
	if (stream->phase == STREAM_LIVE)
		list_append(&server->idle, &stream->idle);
	if (!old) /* its states are that one's until it has ended */
		states_begun(server, stream);
	if (stream->epoch)
		saving_note(server, stream); /* a restart must not bring the epoch before back, */
	if (stream->has_event)
		saving_hurry(server, stream); /* nor may one that the daemon began come again with other rows */
	if (!old) {
		stream_announce(server, stream);
		return;
	}
	stream->before = old;
	old->after = stream;
	if (old->phase == STREAM_LIVE)
		stream_close(server, old, STREAM_RETIRED);
}

void stream_end(struct server *server, struct stream *stream, enum message_event event)
{
	stream->end_event = event;
	stream_close(server, stream, STREAM_ENDING);
}

int stream_rewind(struct server *server, struct stream *stream, struct stream **ret_stream, struct error *err)
{
	struct stream *life = NULL;
	int rc = stream_new(server, stream->id, stream->id_size, stream->epoch, stream->feeder, &life, err);

	if (rc)
		return rc;
	life->source_epoch = stream->source_epoch;
	life->source_origin = stream->source_origin;
	life->rewound = true;
	stream_feed(server, stream, NULL);
	stream->accepted = stream->submitted; /* the rest will come again */
	*ret_stream = life;
	return 0;
}

int stream_next_epoch(const struct stream *stream, uint64_t *ret_epoch, struct error *err)
{
	if (stream->epoch == UINT64_MAX)
		return error_set(err, REFUSED_STALE_EPOCH, "the stream is in its last epoch, %" PRIu64, stream->epoch);
	*ret_epoch = stream->epoch + 1;
	return 0;
}

int stream_reset(struct server *server, struct stream *stream, const char *text, struct stream **ret_stream,
		 struct error *err)
{
	struct stream *life = NULL;
	uint64_t epoch = 0;
	int rc = stream_next_epoch(stream, &epoch, err);

	if (!rc)
		rc = stream_new(server, stream->id, stream->id_size, epoch, stream->feeder, &life, err);
	if (rc)
		return rc;
	life->reply = stream->reply;
	life->source_epoch = stream->source_epoch;
	life->has_event = true;
	life->event = EVENT_RESET;
	snprintf(life->event_text, sizeof life->event_text, "%s", text);
	*ret_stream = life;
	return 0;
}

/* The life before this one is gone: its turn has come. */
static void stream_begin(struct server *server, struct stream *stream, const struct stream *before)
{
	stream->before = NULL;
	if (before->epoch == stream->epoch && before->phase == STREAM_RETIRED && before->published > stream->published)
		stream->published = before->published;
	stream_announce(server, stream);
	stream_wake(server, stream);
	stream_settle(server, stream);
}

/* A hidden state without rows, to carry the end mark of a stream whose rows are all out. */
static bool push_end_mark(struct server *server, struct stream *stream)
{
	struct hidden *hidden = hidden_take(server, stream->accepted, 0);

	if (!hidden)
		return false;
	stream->outbox = stream->last_outbox = hidden;
	return true;
}

void stream_settle(struct server *server, struct stream *stream)
{
	struct stream *after = stream->after;
	struct held_list list;

	if (stream->phase == STREAM_LOADING || stream->phase == STREAM_LIVE || stream->before)
		return;
	if (stream->in_flight || stream->outbox || stream_more(server, stream, 0))
		return;
	if (stream->phase == STREAM_ENDING && !stream->end_sent) {
		stream->end_sent = true;
		if (push_end_mark(server, stream)) {
			publish_hidden(server, stream); /* settles again */
			return;
		}
	}
	if (stream->phase == STREAM_ENDING) {
		if (!states_let_speak(server, stream, true))
			return;
		publish_event(server, stream, stream->end_event, stream->next, NULL);
		publish_ack(server, stream);
		states_closed(server, stream);
	}
	if (after)
		stream_begin(server, after, stream);
	else
		table_remove(&server->streams, &stream->entry);
	list = stream->held;
	stream->held = (struct held_list){ NULL, NULL };
	stream_free(server, stream);
	ingest_held(server, &list);
}

int64_t stream_timers(struct server *server)
{
	int64_t flush_ms = (int64_t)(server->config->streams.flush_after * 1000);
	int64_t idle_ms = (int64_t)(server->config->streams.idle_timeout * 1000);
	int64_t due = INT64_MAX;
	struct link *link;

	while ((link = list_first(&server->unflushed))) {
		struct stream *stream = list_entry(link, struct stream, unflushed);

		due = stream->unflushed_ms + flush_ms;
		if (due > server->now_ms)
			break;
		stream_flush(server, stream);
		due = INT64_MAX;
	}
	while (idle_ms && (link = list_first(&server->idle))) {
		struct stream *stream = list_entry(link, struct stream, idle);

		if (stream->active_ms + idle_ms > server->now_ms) {
			if (stream->active_ms + idle_ms < due)
				due = stream->active_ms + idle_ms;
			break;
		}
		stream->active_ms = server->now_ms; /* if it cannot leave now: again after that time */
		list_append(&server->idle, &stream->idle);
		if (server->store)
			saving_evict(server, stream);
		else
			stream_end(server, stream, EVENT_EVICTED);
	}
	return due;
}
