/*
 * Decode and check: what can be said of a message without knowing its stream.
 */
#include "daemon/arrival.h"

#include <inttypes.h>

#include "daemon/server.h"

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

int arrival_parse(const struct server *server, bool router, const struct endpoint_message *message,
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
