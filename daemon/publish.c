/*
 * The end of the straight line: hidden states to the publish socket and to feeders that asked for them, events, acks
 * and refusals.  Rows are done once they were sent to all who get them; only then do credit and positions move on.
 */
#include "daemon/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COPY_MAX 4096 /* bytes of payload that are cheaper to copy than to lend */
#define RETRY_MS 5
#define UNTOLD_MAX 256 /* refusals that wait for their peers to read */

static void release_frame(void *data, void *arg)
{
	(void)data;
	hidden_release(arg);
}

/* A refusal for a peer that does not read just now. */
struct untold {
	struct link link;
	struct peer peer; /* its identity */
	struct message refusal;
	size_t id_size;
	unsigned char id[MESSAGE_STREAM_MAX];
};

/* Does a refusal for the peer wait?  Then all else waits behind it. */
static bool is_untold(struct server *server, const struct peer *peer)
{
	for (struct link *link = list_first(&server->untold); link; link = list_next(&server->untold, link)) {
		const struct peer *other = &list_entry(link, const struct untold, link)->peer;

		if (other->identity_size == peer->identity_size &&
		    !memcmp(other->identity, peer->identity, peer->identity_size))
			return true;
	}
	return false;
}

/* Send a message about stream to one socket; identity NULL on sockets that have none. */
static enum endpoint_sent send_message(struct server *server, struct endpoint *endpoint, const struct peer *peer,
				       const void *id, size_t id_size, const struct message *message,
				       const struct endpoint_frame *payload)
{
	unsigned char header[MESSAGE_HEADER_MAX];
	struct endpoint_frame frames[4];
	enum endpoint_sent sent = ENDPOINT_GONE;
	struct error error;
	size_t n = 0;

	if (peer && is_untold(server, peer)) {
		if (payload && payload->release)
			payload->release((void *)(uintptr_t)payload->data, payload->arg);
		return ENDPOINT_FULL;
	}
	if (peer)
		frames[n++] = (struct endpoint_frame){ .data = peer->identity, .size = peer->identity_size };
	frames[n++] = (struct endpoint_frame){ .data = id, .size = id_size };
	frames[n++] = (struct endpoint_frame){ .data = header, .size = message_encode(message, header) };
	if (payload)
		frames[n++] = *payload;
	if (endpoint_send(endpoint, frames, n, &sent, &error)) {
		log_error("%s", error.text);
		server->failed = true;
	}
	return sent;
}

/* --- hidden states --- */

/* How many rows from hidden->row on go out in one message: consecutive, and alike in having been published before. */
static size_t run_length(const struct stream *stream, const struct hidden *hidden)
{
	const uint64_t *position = hidden->position;
	bool again = position[hidden->row] < stream->published;
	size_t row = hidden->row + 1;

	while (row < hidden->end && position[row] == position[row - 1] + 1 &&
	       (position[row] < stream->published) == again)
		row++;
	return row - hidden->row;
}

/* A frame with run rows of the current output: lent if large. */
static struct endpoint_frame payload_frame(const struct server *server, struct hidden *hidden, size_t run)
{
	size_t row_bytes = server->model->shape.hidden_size * server->itemsize;
	struct endpoint_frame frame = {
		.data = hidden->data + (hidden->output * server->config->window + hidden->row) * row_bytes,
		.size = run * row_bytes,
	};

	if (frame.size > COPY_MAX) {
		frame.release = release_frame;
		frame.arg = hidden;
	}
	return frame;
}

/* Send run rows of the current output to one socket.  false: the peer is full, try again later. */
static bool send_output(struct server *server, struct stream *stream, struct hidden *hidden, size_t run,
			const struct message *message, bool reply)
{
	struct endpoint *endpoint = reply ? server->ingest : server->publish;
	struct endpoint_frame payload;
	enum endpoint_sent sent;

	if (run) {
		payload = payload_frame(server, hidden, run);
		if (payload.release)
			atomic_fetch_add_explicit(&hidden->refs, 1, memory_order_relaxed);
	}
	sent = send_message(server, endpoint, reply ? stream->feeder : NULL, stream->id, stream->id_size, message,
			    run ? &payload : NULL);
	if (sent == ENDPOINT_FULL)
		return false;
	if (sent == ENDPOINT_GONE && reply)
		stream_feed(server, stream, NULL);
	if (sent == ENDPOINT_DROPPED) {
		server->stats.drops++;
		if (log_tap_open(&server->drops, 1))
			log_warning("a subscriber is too slow: hidden states dropped for it");
	}
	return true;
}

/* Send run rows of every output.  false: stopped at hidden->output, to be tried again. */
static bool send_run(struct server *server, struct stream *stream, struct hidden *hidden, size_t run)
{
	const struct config *config = server->config;
	bool last = stream->phase == STREAM_ENDING && hidden->first + hidden->row + run == stream->accepted;
	bool again = run && hidden->position[hidden->row] < stream->published;
	struct message message = {
		.type = MESSAGE_HIDDEN,
		.epoch = stream->epoch,
		.has_shape = true,
		.rows = run,
		.columns = server->model->shape.hidden_size,
		.dtype = (enum dtype)config->output.dtype,
		.pos = run ? hidden->position[hidden->row] : stream->next,
		.has_pos = true,
		.has_t = hidden->has_t && hidden->t_row >= hidden->row && hidden->t_row < hidden->row + run,
		.t = hidden->t,
	};

	for (; hidden->output < config->output.n_outputs; hidden->output++) {
		int layer = config->output.outputs[hidden->output];

		message.has_layer = layer != OUTPUT_FINAL;
		message.layer = message.has_layer ? (uint64_t)layer : 0;
		message.end = last && hidden->output + 1 == config->output.n_outputs;
		if (!hidden->published && !again && !send_output(server, stream, hidden, run, &message, false))
			return false;
		hidden->published = true;
		if (stream->reply && stream->feeder && stream->feeder->router &&
		    !send_output(server, stream, hidden, run, &message, true))
			return false;
		hidden->published = false;
	}
	hidden->output = 0;
	stream->end_sent |= last;
	return true;
}

/* The rows before hidden->row of this window are sent. */
static void rows_done(struct server *server, struct stream *stream, const struct hidden *hidden)
{
	uint64_t done = hidden->first + hidden->row;
	uint64_t position = hidden->position[hidden->row - 1] + 1;

	if (done <= stream->done)
		return;
	if (stream->feeder)
		stream->feeder->outstanding -= done - stream->done;
	server->stats.rows_out += done - stream->done;
	stream->done = done;
	stream->emitted = position;
	saving_note(server, stream);
	if (stream->published < position)
		stream->published = position;
	if (stream->feeder && stream->feeder->router)
		list_add(&server->dirty, &stream->dirty);
}

/* Send all of one window that is still to be sent.  false: the feeder is full, or memory is short. */
static bool send_window(struct server *server, struct stream *stream, struct hidden *hidden)
{
	if (!hidden->end) {
		hidden->output = server->config->output.n_outputs - 1; /* the end mark is one message */
		return send_run(server, stream, hidden, 0);
	}
	if (hidden->first + hidden->row < stream->done)
		hidden->row = stream->done - hidden->first < hidden->end ? (size_t)(stream->done - hidden->first)
									 : hidden->end;
	while (hidden->row < hidden->end) {
		size_t run;

		if (server->config->output.rows == ROWS_LAST)
			hidden->row = hidden->end - 1;
		run = run_length(stream, hidden);
		if (!send_run(server, stream, hidden, run))
			return false;
		hidden->row += run;
		rows_done(server, stream, hidden);
	}
	return true;
}

/* What failed now waits no longer because something else fails as well. */
static void retry_later(struct server *server)
{
	if (server->retry_ms <= server->now_ms)
		server->retry_ms = server->now_ms + RETRY_MS;
}

/* Does the feeder take this one for the end of the stream?  Without reply, it is the last ack that tells. */
static bool is_end(const struct stream *stream, const struct hidden *hidden)
{
	return stream->phase == STREAM_ENDING && stream->reply && hidden->first + hidden->end == stream->accepted;
}

void publish_hidden(struct server *server, struct stream *stream)
{
	list_remove(&stream->stalled);
	while (stream->outbox) {
		struct hidden *hidden = stream->outbox;

		if (!states_let_speak(server, stream, is_end(stream, hidden)))
			return;
		if (!send_window(server, stream, hidden)) {
			server->stats.stalls++;
			retry_later(server);
			list_append(&server->stalled, &stream->stalled);
			return;
		}
		stream->outbox = hidden->next;
		if (hidden->end)
			metrics_window(&server->metrics, hidden);
		server->stats.windows_out += hidden->end == server->config->window;
		hidden_release(hidden);
	}
	stream_wake(server, stream);
	stream_settle(server, stream);
}

/* --- events, acks, refusals --- */

void publish_event(struct server *server, const struct stream *stream, enum message_event event, uint64_t pos,
		   const char *text)
{
	struct message message = {
		.type = MESSAGE_EVENT, .epoch = stream->epoch, .has_pos = true, .pos = pos, .event = event
	};

	if (text)
		snprintf(message.text, sizeof message.text, "%s", text);
	send_message(server, server->publish, NULL, stream->id, stream->id_size, &message, NULL);
}

bool publish_ack(struct server *server, struct stream *stream)
{
	struct message message = {
		.type = MESSAGE_ACK, .epoch = stream->epoch, .next = stream->next,
		.done = stream->done == stream->accepted ? stream->next : stream->emitted,
		.durable = states_durable(server, stream),
		.credit = server->config->limits.credit_rows,
	};
	enum endpoint_sent sent;

	if (!stream->feeder || !stream->feeder->router)
		return true;
	if (stream->feeder->full_ms == server->now_ms)
		return false;
	sent = send_message(server, server->ingest, stream->feeder, stream->id, stream->id_size, &message, NULL);
	if (sent == ENDPOINT_GONE)
		stream_feed(server, stream, NULL);
	if (sent == ENDPOINT_FULL)
		stream->feeder->full_ms = server->now_ms;
	return sent != ENDPOINT_FULL;
}

/* Is nothing left of it but to end?  Then it says so itself, when the disk knows it. */
static bool is_over(const struct stream *stream)
{
	return stream->phase == STREAM_ENDING && stream->done == stream->accepted;
}

void publish_acks(struct server *server)
{
	struct link *link = list_first(&server->dirty), *next;

	for (; link; link = next) {
		struct stream *stream = list_entry(link, struct stream, dirty);

		next = list_next(&server->dirty, link);
		if (is_over(stream) || publish_ack(server, stream)) {
			list_remove(link);
		} else {
			list_append(&server->owed, link);
			retry_later(server);
		}
	}
}

static void put_off(struct server *server, const struct peer *peer, const void *id, size_t id_size,
		    const struct message *refusal)
{
	struct untold *untold = NULL;

	if (server->n_untold < UNTOLD_MAX && id_size <= sizeof untold->id)
		untold = calloc(1, sizeof *untold);
	if (!untold) {
		if (log_tap_open(&server->lost_refusals, 1))
			log_warning("a peer does not read what it is told: refusals are lost to it");
		return;
	}
	untold->peer = *peer;
	untold->refusal = *refusal;
	untold->id_size = id_size;
	if (id_size)
		memcpy(untold->id, id, id_size);
	list_append(&server->untold, &untold->link);
	server->n_untold++;
	retry_later(server);
}

void publish_refusal(struct server *server, const void *identity, size_t identity_size, const void *id, size_t id_size,
		     const struct message *refusal)
{
	struct peer peer = { .identity_size = identity_size };
	struct log_about about = { .stream = id, .stream_size = id_size, .code = refusal_name(refusal->code) };

	server->stats.refused[refusal_index(refusal->code)]++;
	if (log_tap_open(&server->refusals, 5))
		log_about(LOG_LEVEL_INFO, &about, "refused (%s): %s%s", about.code, refusal->text,
			  server->refusals.missed ? " (and others)" : "");
	if (!identity || identity_size > sizeof peer.identity)
		return;
	memcpy(peer.identity, identity, identity_size);
	if (send_message(server, server->ingest, &peer, id, id_size, refusal, NULL) == ENDPOINT_FULL)
		put_off(server, &peer, id, id_size, refusal);
}

void publish_untold(struct server *server)
{
	struct list untold;
	struct link *link;

	list_init(&untold);
	while ((link = list_first(&server->untold)))
		list_append(&untold, link);
	while ((link = list_first(&untold))) {
		struct untold *one = list_entry(link, struct untold, link);

		list_remove(link);
		if (send_message(server, server->ingest, &one->peer, one->id, one->id_size, &one->refusal, NULL) ==
		    ENDPOINT_FULL) {
			list_append(&server->untold, link);
			retry_later(server);
		} else {
			server->n_untold--;
			free(one);
		}
	}
}

void publish_free(struct server *server)
{
	struct link *link;

	while ((link = list_first(&server->untold))) {
		list_remove(link);
		free(list_entry(link, struct untold, link));
	}
}
