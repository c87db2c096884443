/*
 * The first half of the straight line: receive a message, decode and check it, find its stream, place its rows.
 *
 * A message is refused as a whole or accepted as a whole: rows are widened and checked in the stream's own blocks
 * behind the accepted ones, and a new life is built detached; only when all is well do the counts move.
 */
#include "daemon/server.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/clock.h"

/* A message on its way through this file. */
struct arrival {
	const struct endpoint_message *frames;
	bool held; /* it waited already */
	bool router;
	const unsigned char *identity; /* of the peer; router only */
	size_t identity_size;
	const unsigned char *id; /* of the stream */
	size_t id_size;
	const unsigned char *payload;
	size_t payload_size;
	struct message message;
	struct peer *peer;
	bool has_expected;
	uint64_t expected; /* for the refusal, in the producer's own numbering */
};

/* --- decode and check: what can be said of a message without knowing its stream --- */

static int check_payload(const struct server *server, const struct arrival *arrival, struct error *err)
{
	const struct message *m = &arrival->message;
	size_t hidden_size = server->model->shape.hidden_size;
	size_t expected = message_payload_bytes(m);

	if (arrival->payload_size > server->config->limits.message_bytes)
		return error_set(err, REFUSED_BAD_SIZE, "payload of %zu bytes, limits.message_bytes allows %" PRIu64
				 ": split the message", arrival->payload_size, server->config->limits.message_bytes);
	if (arrival->payload_size != expected)
		return error_set(err, REFUSED_BAD_SIZE, "payload of %zu bytes, expected %zu by shape and dtype",
				 arrival->payload_size, expected);
	if (!m->has_shape)
		return 0;
	if (m->rows > UINT32_MAX || (m->has_pos && m->pos > POSITION_MAX))
		return error_set(err, REFUSED_BAD_SHAPE, "pos %" PRIu64 " and %" PRIu64 " rows: expected less than "
				 "2^63 and 2^32", m->pos, m->rows);
	if (dtype_is_float(m->dtype) && m->columns != hidden_size)
		return error_set(err, REFUSED_BAD_SHAPE, "shape [%" PRIu64 ", %" PRIu64 "], expected [rows, %zu]",
				 m->rows, m->columns, hidden_size);
	if (m->rows && !dtype_is_float(m->dtype) && !server->model->embeddings.data)
		return error_set(err, REFUSED_BAD_DTYPE, "dtype %s: the checkpoint has no embeddings for token ids",
				 dtype_name(m->dtype));
	return 0;
}

/* Split a received message into its parts. */
static int parse(const struct server *server, bool router, const struct endpoint_message *message,
		 struct arrival *arrival, struct error *err)
{
	size_t at = router ? 1 : 0;

	*arrival = (struct arrival){ .frames = message, .held = message != &server->message, .router = router };
	if (router) {
		arrival->identity = message->frame[0].data;
		arrival->identity_size = message->frame[0].size;
	}
	if (message->n_frames > at) {
		arrival->id = message->frame[at].data;
		arrival->id_size = message->frame[at].size;
	}
	if (arrival->id_size > MESSAGE_STREAM_MAX) {
		arrival->id_size = 0; /* nothing to answer about */
		return error_set(err, REFUSED_BAD_HEADER, "stream id of %zu bytes, expected 1 to %d",
				 message->frame[at].size, MESSAGE_STREAM_MAX);
	}
	if (message->n_frames < at + 2 || message->n_frames > at + 3)
		return error_set(err, REFUSED_BAD_HEADER,
				 "%zu frames, expected stream id, header and at most a payload",
				 message->n_frames - at);
	if (!arrival->id_size)
		return error_set(err, REFUSED_BAD_HEADER, "empty stream id, expected 1 to %d bytes",
				 MESSAGE_STREAM_MAX);
	if (message->n_frames == at + 3) {
		arrival->payload = message->frame[at + 2].data;
		arrival->payload_size = message->frame[at + 2].size;
	}
	if (message_decode(message->frame[at + 1].data, message->frame[at + 1].size, &arrival->message, err))
		return err->code;
	if (arrival->message.type > MESSAGE_CLOSE)
		return error_set(err, REFUSED_BAD_HEADER, "a message of a type that only the daemon sends");
	return check_payload(server, arrival, err);
}

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

/* --- place the rows --- */

/* Write n numbers' worth of rows, from the message's row first on, to dst as float32 and check them. */
static int widen(const struct server *server, const struct arrival *arrival, uint64_t first, size_t n, float *dst,
		 struct error *err)
{
	const struct message *m = &arrival->message;
	size_t hidden_size = server->model->shape.hidden_size;
	size_t row_bytes = dtype_size(m->dtype) * (m->columns ? m->columns : 1);
	const unsigned char *src = arrival->payload + first * row_bytes;

	if (!dtype_is_float(m->dtype)) {
		if (model_embed(server->model, m->dtype, src, n, dst, err))
			return err->code = REFUSED_BAD_TOKEN;
		return 0;
	}
	if (dtype_widen(m->dtype, src, n * hidden_size, dst))
		return 0;
	for (size_t i = 0; i < n * hidden_size; i++)
		if (!isfinite(dst[i]))
			return error_set(err, REFUSED_NON_FINITE,
					 "row %" PRIu64 ", column %zu of the message is not finite",
					 first + i / hidden_size, i % hidden_size);
	return 0;
}

/* Check the rows that are dropped as duplicates: a message is refused for any of its rows. */
static int check_dropped(struct server *server, const struct arrival *arrival, uint64_t n, struct error *err)
{
	for (uint64_t i = 0; i < n; i++)
		if (widen(server, arrival, i, 1, server->scratch, err))
			return err->code;
	return 0;
}

/*
 * Write the message's rows from skip on behind the stream's accepted ones, at positions from pos on, without counting
 * them.  On failure the stream is as before.
 */
static int fill(struct server *server, struct stream *stream, const struct arrival *arrival, uint64_t skip,
		uint64_t pos, struct error *err)
{
	size_t window = server->config->window, hidden_size = server->model->shape.hidden_size;
	struct block *last = stream->last_block, *unsubmitted = stream->unsubmitted;
	uint64_t count = stream->accepted;
	int rc = check_dropped(server, arrival, skip, err);

	for (uint64_t i = skip; !rc && i < arrival->message.rows;) {
		size_t at = count % window;
		size_t n = window - at;
		struct block *block;

		if (n > arrival->message.rows - i)
			n = arrival->message.rows - i;
		if (!at && stream_add_block(server, stream, err)) {
			rc = REFUSED_INTERNAL;
			break;
		}
		block = stream->last_block;
		block->arrived_ns = server->now_ns;
		rc = widen(server, arrival, i, n, block->rows + at * hidden_size, err);
		for (size_t k = 0; k < n; k++)
			block->position[at + k] = pos++;
		i += n;
		count += n;
	}
	if (!rc)
		return 0;
	while ((last ? last->next : stream->blocks)) { /* give back what was added */
		struct block **at = last ? &last->next : &stream->blocks;
		struct block *block = *at;

		*at = block->next;
		pool_give(server->blocks, block);
	}
	stream->last_block = last;
	stream->unsubmitted = unsubmitted;
	return err->code;
}

/* Count the n rows that fill wrote, the first of them at pos. */
static void count_rows(struct server *server, struct stream *stream, const struct message *m, uint64_t n, uint64_t pos)
{
	if (!n)
		return;
	if (m->has_t) {
		struct block *block = stream->last_block;

		block->has_t = true;
		block->t = m->t;
		block->t_row = (size_t)((stream->accepted + n - 1) % server->config->window);
	}
	server->stats.windows_in += (stream->accepted + n) / server->config->window -
				    stream->accepted / server->config->window;
	stream->accepted += n;
	stream->next = pos + n;
	saving_note(server, stream);
	if (stream->feeder) {
		stream->feeder->outstanding += n;
		server->stats.credit_stalls += stream->feeder->outstanding + n > server->config->limits.credit_rows;
	}
	server->stats.rows_in += n;
	stream_flush_later(server, stream);
}

/* What to do with rows at gap_pos when the stream expects others. */
static enum gap_policy gap_policy(const struct server *server, const struct arrival *arrival)
{
	if (server->config->streams.on_gap != GAP_AUTO)
		return (enum gap_policy)server->config->streams.on_gap;
	return arrival->router ? GAP_REJECT : GAP_RESET;
}

/* Rows are missing before pos: refuse, say so and go on, or begin a new life. */
static int mind_the_gap(struct server *server, struct arrival *arrival, struct stream *stream, uint64_t pos,
			struct stream **ret_life, struct error *err)
{
	char text[160];

	snprintf(text, sizeof text, "rows %" PRIu64 " to %" PRIu64 " are missing", arrival->expected, pos - 1);
	server->stats.gaps++;
	if (gap_policy(server, arrival) == GAP_REJECT) {
		arrival->has_expected = true;
		return error_set(err, REFUSED_GAP, "pos %" PRIu64 ", expected %" PRIu64 ": %s", pos, arrival->expected,
				 text);
	}
	if (gap_policy(server, arrival) == GAP_SKIP)
		return 0;
	if (stream_reset(server, stream, text, ret_life, err))
		return err->code;
	(*ret_life)->source_epoch = arrival->message.epoch;
	(*ret_life)->source_origin = pos;
	return 0;
}

static int check_credit(struct server *server, struct arrival *arrival, uint64_t n, struct error *err)
{
	uint64_t credit = server->config->limits.credit_rows;

	if (!n || !arrival->router || arrival->peer->outstanding + n <= credit)
		return 0; /* publishers cannot be told: the loop stops reading them instead */
	arrival->has_expected = true;
	return error_set(err, REFUSED_NO_CREDIT,
			 "%" PRIu64 " rows beside %" PRIu64 " not done exceed the credit of %" PRIu64 "%s", n,
			 arrival->peer->outstanding, credit, n > credit ? ": split the message" : "");
}

/*
 * Place the message's rows into stream (a detached life or one in place), or into the new life that a gap begins.
 * On success the rows are counted and *ret_stream, in place, is where they went; on failure nothing has changed.
 */
static int place(struct server *server, struct arrival *arrival, struct stream *stream, uint64_t origin,
		 struct stream **ret_stream, struct error *err)
{
	const struct message *m = &arrival->message;
	uint64_t rows = m->has_shape ? m->rows : 0, skip = 0, pos, n;
	struct stream *life = NULL;
	int rc = 0;

	arrival->expected = stream->next + origin;
	pos = m->has_pos ? m->pos : arrival->expected;
	if (pos < arrival->expected) {
		skip = arrival->expected - pos < rows ? arrival->expected - pos : rows;
		pos = arrival->expected;
	}
	n = rows - skip;
	/* an end may come too early as well */
	if (pos > arrival->expected && (n || gap_policy(server, arrival) == GAP_REJECT))
		rc = mind_the_gap(server, arrival, stream, pos, &life, err);
	if (!rc)
		rc = check_credit(server, arrival, n, err);
	pos = life ? 0 : pos - origin;
	if (!rc)
		rc = fill(server, life ? life : stream, arrival, skip, pos, err);
	if (rc) {
		if (life)
			stream_free(server, life);
		return rc;
	}
	server->stats.duplicate_rows += skip;
	if (!life && n && pos > stream->next)
		publish_event(server, stream, EVENT_GAP, pos, "rows are missing before this position");
	if (life) {
		stream_install(server, life);
		stream = life;
	}
	count_rows(server, stream, m, n, pos);
	*ret_stream = stream;
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
		rc = place(server, arrival, stream, origin, &placed, err);
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
	rc = parse(server, router, message, &arrival, &error);
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
