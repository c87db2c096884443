/*
 * The first half of the straight line: receive a message, have it decoded and checked, find its stream, have its rows
 * placed there.  A message is refused as a whole or accepted as a whole: a new life is built detached.
 */
#include "daemon/server.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/arrival.h"
#include "daemon/clock.h"

/* --- find the stream: which life does the message mean? --- */

enum epoch { EPOCH_SAME, EPOCH_NEW, EPOCH_STALE };

/*
 * Compare the message's epoch with the stream's.  After a gap reset a producer may go on in its own numbering; on
 * EPOCH_SAME *ret_origin is what its positions are ahead by.
 */
static enum epoch compare_epoch(const struct stream *stream, const struct arrival *arrival, uint64_t *ret_origin)
{
	uint64_t epoch = arrival->message.epoch;
	uint64_t latest = arrival->router ? stream->epoch : stream->source_epoch;

	*ret_origin = 0;
	if (arrival->router && epoch == stream->epoch)
		return EPOCH_SAME;
	if (epoch == stream->source_epoch) {
		*ret_origin = stream->source_origin;
		return EPOCH_SAME;
	}
	return epoch > latest ? EPOCH_NEW : EPOCH_STALE;
}

/* What a message says of positions, got and from, in the stream's own numbering. */
static uint64_t translate(uint64_t pos, uint64_t origin)
{
	return pos > origin ? pos - origin : 0;
}

static int stale(const struct stream *stream, struct arrival *arrival, struct error *err)
{
	return error_set(err, REFUSED_STALE_EPOCH, "epoch %" PRIu64 " is over, the stream is in epoch %" PRIu64,
			 arrival->message.epoch, arrival->router ? stream->epoch : stream->source_epoch);
}

/* A detached life that the message begins, after old (or NULL). */
static int begin_life(struct server *server, const struct arrival *arrival, const struct stream *old,
		      struct stream **ret_stream, struct error *err)
{
	uint64_t epoch = arrival->message.epoch;
	int rc;

	if (server->phase != SERVER_SERVING)
		return error_set(err, REFUSED_SHUTTING_DOWN, "the daemon takes no more input");
	if (old && epoch <= old->epoch && stream_next_epoch(old, &epoch, err)) /* it never learned of our gap resets */
		return err->code;
	rc = stream_new(server, arrival->id, arrival->id_size, epoch, arrival->peer, ret_stream, err);
	if (rc)
		return rc;
	(*ret_stream)->source_epoch = arrival->message.epoch;
	(*ret_stream)->reply = old && old->feeder == arrival->peer && old->reply;
	return 0;
}

/* --- the types of message --- */

#define HELD 1 /* the message was put aside and will be handled later */
#define DONE 2 /* nothing is left to do with it */

/* Put the message aside until the stream is loaded, or there is room for it. */
static int hold(struct server *server, struct arrival *arrival, struct held_list *list, struct error *err)
{
	if (list && held_add(server, list, arrival->frames, arrival->router))
		return HELD;
	arrival->has_expected = arrival->message.has_pos;
	arrival->expected = arrival->message.pos;
	return error_set(err, REFUSED_NO_CREDIT,
			 "the stream is not in memory yet and too many messages wait: send it again");
}

/* Begin to load a known stream, or a state of it that rewinds it; the message waits for that. */
static int load(struct server *server, struct arrival *arrival, struct saved *saved, struct stream *stream,
		uint64_t origin, struct error *err)
{
	const struct message *m = &arrival->message;

	resuming_start(server, stream, saved, m->type == MESSAGE_OPEN && m->has_from, translate(m->from, origin));
	stream_install(server, stream);
	return hold(server, arrival, &stream->held, err);
}

/* Is a message to a closed stream for what its peer still lacks, rather than a new start? */
static bool goes_on(const struct message *m)
{
	return m->type == MESSAGE_OPEN ? m->has_from : m->type == MESSAGE_DATA && m->has_pos && m->pos;
}

/* The message is for a stream that is not in memory.  0: nor is it known elsewhere. */
static int find_elsewhere(struct server *server, struct arrival *arrival, struct error *err)
{
	enum message_type type = arrival->message.type;
	bool draining = table_find(&server->streams, arrival->id, arrival->id_size);
	struct saved *saved = NULL;
	struct stream *stream;
	char key[HASH_TEXT];
	enum room room;

	if (server->store) {
		store_key(arrival->id, arrival->id_size, key);
		saved = states_find(server, key);
	}
	if (saved && saved->damage)
		return error_set(err, REFUSED_STATE_DAMAGED, "%s", saved->damage);
	if (draining)
		saved = NULL; /* its states are those of the life that ends */
	if (saved && saved->closed && !goes_on(&arrival->message)) {
		if (type == MESSAGE_CLOSE && arrival->message.has_got)
			states_forget(server, saved);
		saved = NULL;
	}
	if (!saved && type == MESSAGE_CLOSE && arrival->message.has_got)
		return DONE; /* the peer has all that it wanted */
	if (!saved && type != MESSAGE_DATA && type != MESSAGE_OPEN)
		return error_set(err, REFUSED_CLOSED, "no such stream is open");
	if (server->phase != SERVER_SERVING)
		return error_set(err, REFUSED_SHUTTING_DOWN, "the daemon takes no more input");
	room = draining ? ROOM_YES : saving_make_room(server);
	if (room == ROOM_SOON || (!list_empty(&server->waiting) && !arrival->held)) /* behind those who came first */
		return hold(server, arrival, waiting_get(server, arrival->id, arrival->id_size), err);
	if (room == ROOM_NONE)
		return error_set(err, REFUSED_TOO_MANY_STREAMS, "%zu streams are open, streams.max allows no more",
				 server->streams.n);
	if (!saved || (!saved->generations.n && !saved->slot))
		return 0;
	if (stream_new(server, arrival->id, arrival->id_size, arrival->message.epoch, NULL, &stream, err))
		return err->code;
	return load(server, arrival, saved, stream, 0, err); /* where its origin is another it is rewound then */
}

/* Rows are to come again from before what was emitted: from a state on disk, at worst from position 0. */
static int rewind_stream(struct server *server, struct arrival *arrival, struct stream *stream, uint64_t origin,
			 struct stream **ret_stream, struct error *err)
{
	struct saved *saved = states_find(server, stream->key);
	int rc = stream_rewind(server, stream, ret_stream, err);

	if (rc)
		return rc;
	if (saved && states_has(saved, stream->epoch))
		return load(server, arrival, saved, *ret_stream, origin, err);
	stream_install(server, *ret_stream);
	return 0;
}

/*
 * Does the message go on with a closed stream whose last rows are still on their way?  What they leave on disk answers
 * it.  Messages behind such a one keep their order.
 */
static bool waits_for_end(const struct server *server, const struct arrival *arrival, const struct stream *stream)
{
	if (!server->store || stream->phase != STREAM_ENDING)
		return false;
	return stream->held.first || (goes_on(&arrival->message) && arrival->message.epoch == stream->source_epoch);
}

/* What stream the message is for: in place, or a detached life that it begins; or HELD, DONE. */
static int choose_life(struct server *server, struct arrival *arrival, struct stream **ret_stream, bool *ret_new,
		       uint64_t *ret_origin, struct error *err)
{
	struct table_entry *entry = table_find(&server->streams, arrival->id, arrival->id_size);
	struct stream *stream = entry ? list_entry(entry, struct stream, entry) : NULL;
	const struct message *m = &arrival->message;
	int rc;

	*ret_new = true;
	*ret_origin = 0;
	if (!arrival->held && waiting_find(server, arrival->id, arrival->id_size))
		return hold(server, arrival, waiting_find(server, arrival->id, arrival->id_size), err);
	if (stream && (stream->phase == STREAM_LOADING || waits_for_end(server, arrival, stream)))
		return hold(server, arrival, &stream->held, err);
	if ((m->type == MESSAGE_OPEN || m->type == MESSAGE_DATA) &&
	    limits_check_streams(server, arrival->peer, stream, err))
		return err->code;
	if (!stream || stream->phase != STREAM_LIVE) {
		rc = find_elsewhere(server, arrival, err);
		return rc ? rc : begin_life(server, arrival, NULL, ret_stream, err);
	}
	if (m->type != MESSAGE_OPEN && stream->feeder && stream->feeder != arrival->peer)
		return error_set(err, REFUSED_DENIED, "another peer feeds this stream: open it to take over");
	switch (compare_epoch(stream, arrival, ret_origin)) {
	case EPOCH_STALE:
		return stale(stream, arrival, err);
	case EPOCH_NEW:
		return begin_life(server, arrival, stream, ret_stream, err);
	case EPOCH_SAME:
		break;
	}
	if (server->phase != SERVER_SERVING && m->type == MESSAGE_DATA && m->rows)
		return error_set(err, REFUSED_SHUTTING_DOWN, "the daemon takes no more input");
	*ret_new = false;
	if (m->type == MESSAGE_OPEN && m->has_from && translate(m->from, *ret_origin) < stream->emitted)
		return rewind_stream(server, arrival, stream, *ret_origin, ret_stream, err);
	*ret_stream = stream;
	return 0;
}

/*
 * What the peer says it has got; what it lacks comes after that.  A peer that opens may lack what another one had; the
 * state on disk then has to say so.
 */
static void note_got(struct server *server, struct stream *stream, const struct message *m, uint64_t origin, bool reply)
{
	uint64_t got = m->has_got ? translate(m->got, origin) : m->has_from ? translate(m->from, origin) : stream->got;
	bool changed = reply != stream->reply || (m->type == MESSAGE_OPEN && got < stream->got);

	stream->reply = reply;
	if (m->type == MESSAGE_OPEN || got > stream->got)
		stream->got = got;
	if (m->type == MESSAGE_OPEN)
		stream->durable = 0;
	if (changed)
		saving_note(server, stream);
}

static int handle(struct server *server, struct arrival *arrival, struct error *err)
{
	const struct message *m = &arrival->message;
	struct stream *stream, *placed;
	bool new_life;
	uint64_t origin;
	int rc = choose_life(server, arrival, &stream, &new_life, &origin, err);

	if (rc)
		return rc < 0 ? rc : 0;
	if (m->type == MESSAGE_DATA) {
		rc = arrival_place(server, arrival, stream, origin, &placed, err);
		if (rc) {
			if (new_life)
				stream_free(server, stream);
			return rc;
		}
	} else {
		placed = stream;
	}
	if (placed != stream) /* a gap began it, at its source_origin */
		origin = placed->source_origin;
	if (new_life && placed == stream)
		stream_install(server, stream);
	else if (new_life)
		stream_free(server, stream); /* a gap at its very start began another one */
	stream = placed;
	if (m->type == MESSAGE_OPEN || !stream->feeder)
		stream_feed(server, stream, arrival->peer);
	note_got(server, stream, m, origin, m->type == MESSAGE_OPEN ? m->reply && arrival->router : stream->reply);
	stream->active_ms = server->now_ms;
	list_append(&server->idle, &stream->idle);
	if (arrival->router)
		list_add(&server->dirty, &stream->dirty);
	stream_wake(server, stream);
	if (m->end || m->type == MESSAGE_CLOSE)
		stream_end(server, stream, EVENT_CLOSED);
	else if (m->flush || m->type == MESSAGE_FLUSH)
		stream_flush(server, stream);
	return 0;
}

/* Rows and streams that come too fast are refused; what ends them is not. */
static int check_rate(struct server *server, struct arrival *arrival, struct error *err)
{
	const struct stream *stream;

	if (arrival->held || !limits_count_message(server, arrival->peer, err) || arrival->message.type > MESSAGE_OPEN)
		return 0;
	stream = stream_find(server, arrival->id, arrival->id_size);
	arrival->has_expected = stream || arrival->message.has_pos;
	arrival->expected = stream ? stream->next : arrival->message.pos;
	return err->code;
}

static void refuse(struct server *server, const struct arrival *arrival, const struct error *error)
{
	struct message refusal = {
		.type = MESSAGE_ERROR, .code = error->code,
		.has_expected = arrival->has_expected, .expected = arrival->expected
	};
	const struct stream *stream = stream_find(server, arrival->id, arrival->id_size);

	refusal.epoch = stream ? stream->epoch : 0;
	snprintf(refusal.text, sizeof refusal.text, "%.255s", error->text);
	publish_refusal(server, arrival->identity, arrival->identity_size, arrival->id, arrival->id_size, &refusal);
}

bool ingest_wants_more(const struct server *server)
{
	return server->publishers.outstanding < server->config->limits.credit_rows ||
	       lanes_idle(server);
}

void ingest_message(struct server *server, bool router, const struct endpoint_message *message)
{
	struct arrival arrival;
	struct error error = { 0 };
	int rc = 0;

	if (!security_knows(server, router ? server->ingest : server->subscribe, message))
		return;
	rc = arrival_parse(server, router, message, &arrival, &error);
	if (!rc)
		rc = security_check_message(server, message->user, &arrival.message, arrival.id, arrival.id_size,
					    &error);
	if (!rc) {
		arrival.peer = router ? peer_get(server, arrival.identity, arrival.identity_size) : &server->publishers;
		rc = arrival.peer ? limits_identify(server, arrival.peer, message->user, &error)
				  : error_memory(&error, "peer");
		if (!rc)
			rc = check_rate(server, &arrival, &error);
		if (!rc)
			rc = handle(server, &arrival, &error);
		peer_release(server, arrival.peer);
	}
	if (rc)
		refuse(server, &arrival, &error);
}

void ingest_held(struct server *server, struct held_list *list)
{
	struct held *held;

	while ((held = held_pop(server, list))) {
		struct endpoint_message message;

		held_message(held, &message);
		ingest_message(server, held->router, &message);
		free(held);
	}
}

void ingest_waiting(struct server *server)
{
	while (!list_empty(&server->waiting) && saving_make_room(server) != ROOM_SOON) {
		struct held_list list = waiting_pop(server);

		ingest_held(server, &list);
	}
}

int ingest_receive(struct server *server, struct endpoint *endpoint, struct error *err)
{
	const uint64_t end = clock_ns() + TURN_NS;
	bool router = endpoint == server->ingest;

	do {
		int rc = endpoint_receive(endpoint, &server->message, err);

		server->drained = rc == 0;
		if (rc <= 0)
			return rc;
		server->stats.messages_in++;
		ingest_message(server, router, &server->message);
		if (!router && !ingest_wants_more(server))
			return 0;
	} while (clock_ns() < end);
	return 0;
}
