/*
 * The client's side of the protocol over ZeroMQ: a DEALER to ingest, a SUB to publish, or a DEALER to control.
 */
#include "protocol/client.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zmq.h>

#include "protocol/refusal.h"

#define FRAMES_MAX 3
#define EVENTS "inproc://events"
#define HIGH_WATER 1000          /* messages queued to be sent, and published ones that were received */
#define KEEPALIVE_IDLE_S 15      /* after so long TCP asks whether the other machine is there, */
#define KEEPALIVE_INTERVAL_S 5   /* this often, */
#define KEEPALIVE_COUNT 3        /* and so many times */
#define HEARTBEAT_INTERVAL_MS 5000
#define HEARTBEAT_TIMEOUT_MS 15000 /* a daemon silent for so long is connected to anew */
#define RECONNECT_MS 100         /* first pause, doubled up to the longest */
#define RECONNECT_MAX_MS 5000

struct client {
	void *context;
	void *socket;
	void *events; /* of a client with keys: that it is not let in */
	char *address;
	zmq_msg_t frame[FRAMES_MAX]; /* of the message received last */
	size_t n_frames;             /* initialised ones */
};

static int zmq_error(struct error *err, const struct client *client, const char *what)
{
	return error_set(err, ERR_SYSTEM, "%s %s: %s", what, client->address, zmq_strerror(errno));
}

static int cannot_connect(struct error *err, const struct client *client)
{
	if (errno == EINVAL || errno == EPROTONOSUPPORT)
		return error_set(err, ERR_ARGUMENT, "cannot connect to \"%s\", expected tcp://HOST:PORT or ipc://PATH",
				 client->address);
	return zmq_error(err, client, "cannot connect to");
}

/*
 * What a SUB has received is bounded by its queue, what others have by credit, or by their one question.  Heartbeats
 * beside a queue that may be full end the process (libzmq's issue 3937), so a SUB has those of TCP.
 */
static int configure(void *socket, enum client_kind kind)
{
	const bool published = kind == CLIENT_SUBSCRIBE;
	const struct { int name, value; } options[] = {
		{ ZMQ_LINGER, 0 },
		{ ZMQ_SNDHWM, HIGH_WATER },
		{ ZMQ_RCVHWM, published ? HIGH_WATER : 0 },
		{ ZMQ_HEARTBEAT_IVL, published ? 0 : HEARTBEAT_INTERVAL_MS },
		{ ZMQ_HEARTBEAT_TIMEOUT, published ? 0 : HEARTBEAT_TIMEOUT_MS },
		{ ZMQ_TCP_KEEPALIVE, 1 },
		{ ZMQ_TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S },
		{ ZMQ_TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_S },
		{ ZMQ_TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT },
		{ ZMQ_RECONNECT_IVL, RECONNECT_MS },
		{ ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS },
		{ ZMQ_IPV6, 1 }
	};

	for (size_t i = 0; i < sizeof options / sizeof *options; i++)
		if (zmq_setsockopt(socket, options[i].name, &options[i].value, sizeof options[i].value) != 0)
			return -1;
	return 0;
}

/* Show keys, and learn if they are not let in. */
static int show_keys(struct client *client, const struct client_keys *keys)
{
	void *socket = client->socket;

	if (!keys)
		return 0;
	if (zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, keys->server, KEY_TEXT) != 0
	    || zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, keys->own.public_key, KEY_TEXT) != 0
	    || zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, keys->own.secret_key, KEY_TEXT) != 0
	    || zmq_socket_monitor(socket, EVENTS, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0)
		return -1;
	client->events = zmq_socket(client->context, ZMQ_PAIR);
	return client->events ? zmq_connect(client->events, EVENTS) : -1;
}

int client_new(enum client_kind kind, const char *address, const struct client_keys *keys, struct client **ret_client,
	       struct error *err)
{
	struct client *client = calloc(1, sizeof *client);
	int status;

	if (client)
		client->address = strdup(address);
	if (!client || !client->address) {
		free(client);
		return error_memory(err, "a client");
	}
	client->context = zmq_ctx_new();
	if (client->context)
		client->socket = zmq_socket(client->context, kind == CLIENT_SUBSCRIBE ? ZMQ_SUB : ZMQ_DEALER);
	if (!client->socket || configure(client->socket, kind) != 0 || show_keys(client, keys) != 0
	    || zmq_connect(client->socket, address) != 0) {
		status = cannot_connect(err, client);
		client_free(client, 0);
		return status;
	}
	*ret_client = client;
	return 0;
}

static void drop_frames(struct client *client)
{
	while (client->n_frames > 0)
		zmq_msg_close(&client->frame[--client->n_frames]);
}

void client_free(struct client *client, int linger_ms)
{
	if (!client)
		return;
	drop_frames(client);
	if (client->events)
		zmq_close(client->events);
	if (client->socket) {
		zmq_setsockopt(client->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
		zmq_close(client->socket);
	}
	if (client->context)
		while (zmq_ctx_term(client->context) != 0 && errno == EINTR)
			;
	free(client->address);
	free(client);
}

int client_subscribe(struct client *client, const void *prefix, size_t size, struct error *err)
{
	if (zmq_setsockopt(client->socket, ZMQ_SUBSCRIBE, prefix, size) != 0)
		return zmq_error(err, client, "cannot subscribe at");
	return 0;
}

/* Wait until the socket can be sent to or received from: 1, or 0 after timeout_ms or a signal. */
static int wait_for(struct client *client, short events, int timeout_ms, struct error *err)
{
	zmq_pollitem_t items[] = {
		{ .socket = client->socket, .events = events }, { .socket = client->events, .events = ZMQ_POLLIN }
	};
	const int n = zmq_poll(items, client->events ? 2 : 1, timeout_ms);

	if (n < 0 && errno != EINTR)
		return zmq_error(err, client, "waiting for");
	if (n > 0 && items[1].revents)
		return error_set(err, REFUSED_DENIED, "%s does not let this key in", client->address);
	return n > 0;
}

static int send_frame(struct client *client, const void *data, size_t size, bool more)
{
	int sent;

	do
		sent = zmq_send(client->socket, data, size, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -1 : 0;
}

int client_send(struct client *client, const void *stream, size_t stream_size, const struct message *message,
		const void *payload, int timeout_ms, struct error *err)
{
	const size_t payload_size = message_payload_bytes(message);
	char header[MESSAGE_HEADER_MAX];
	const size_t header_size = message_encode(message, header);
	const int ready = wait_for(client, ZMQ_POLLOUT, timeout_ms, err);

	if (ready < 0)
		return ready;
	if (ready == 0)
		return error_set(err, ERR_SYSTEM, "%s takes nothing within %d ms", client->address, timeout_ms);
	if (send_frame(client, stream, stream_size, true) != 0
	    || send_frame(client, header, header_size, payload_size > 0) != 0
	    || (payload_size > 0 && send_frame(client, payload, payload_size, false) != 0))
		return zmq_error(err, client, "cannot send to");
	return 0;
}

/* Receive a message without waiting: 1, and *ret_n frames, of which FRAMES_MAX are kept; 0 if there is none. */
static int receive_frames(struct client *client, size_t *ret_n, struct error *err)
{
	bool more = true;
	size_t n = 0;

	drop_frames(client);
	while (more) {
		zmq_msg_t *frame = &client->frame[n < FRAMES_MAX ? n : FRAMES_MAX - 1];
		int size;

		if (n >= FRAMES_MAX)
			zmq_msg_close(&client->frame[--client->n_frames]);
		zmq_msg_init(frame);
		client->n_frames++;
		do
			size = zmq_msg_recv(frame, client->socket, ZMQ_DONTWAIT);
		while (size < 0 && errno == EINTR);
		if (size < 0)
			return errno == EAGAIN ? 0 : zmq_error(err, client, "cannot receive from");
		more = zmq_msg_more(frame);
		n++;
	}
	*ret_n = n;
	return 1;
}

int client_receive(struct client *client, int timeout_ms, struct client_message *ret_message, struct error *err)
{
	struct client_message received = { .payload = NULL };
	zmq_msg_t *frame = client->frame;
	size_t n_frames;
	int status = receive_frames(client, &n_frames, err);

	if (status == 0) {
		status = wait_for(client, ZMQ_POLLIN, timeout_ms, err);
		if (status > 0)
			status = receive_frames(client, &n_frames, err);
	}
	if (status <= 0)
		return status;
	if (n_frames != 2 && n_frames != 3)
		return error_set(err, ERR_FORMAT, "a message of %zu frames from %s, expected 2 or 3", n_frames,
				 client->address);
	received.stream = zmq_msg_data(&frame[0]);
	received.stream_size = zmq_msg_size(&frame[0]);
	status = message_decode(zmq_msg_data(&frame[1]), zmq_msg_size(&frame[1]), &received.header, err);
	if (status != 0)
		return status;
	if (n_frames == 3) {
		received.payload = zmq_msg_data(&frame[2]);
		received.payload_size = zmq_msg_size(&frame[2]);
	}
	if (received.payload_size != message_payload_bytes(&received.header))
		return error_set(err, ERR_FORMAT, "a payload of %zu bytes from %s, expected %zu", received.payload_size,
				 client->address, message_payload_bytes(&received.header));
	*ret_message = received;
	return 1;
}

int client_request(struct client *client, const void *request, size_t size, int timeout_ms,
		   struct control *ret_answer, struct error *err)
{
	size_t n_frames;
	int status = wait_for(client, ZMQ_POLLOUT, timeout_ms, err);

	if (status > 0 && send_frame(client, request, size, false) != 0)
		return zmq_error(err, client, "cannot send to");
	if (status > 0)
		status = wait_for(client, ZMQ_POLLIN, timeout_ms, err);
	if (status > 0)
		status = receive_frames(client, &n_frames, err);
	if (status < 0)
		return status;
	if (status == 0)
		return error_set(err, ERR_SYSTEM,
				 "no answer from %s within %d ms: is it there, and does it ask for keys?",
				 client->address, timeout_ms);
	if (n_frames != 1)
		return error_set(err, ERR_FORMAT, "an answer of %zu frames from %s, expected 1", n_frames,
				 client->address);
	return control_read(zmq_msg_data(&client->frame[0]), zmq_msg_size(&client->frame[0]), ret_answer, err);
}

uint64_t client_stream_room(const struct client_stream *stream)
{
	const uint64_t under_way = stream->position > stream->done ? stream->position - stream->done : 0;

	return stream->open && under_way < stream->credit ? stream->credit - under_way : 0;
}

int client_stream_update(struct client_stream *stream, const struct message *message, struct error *err)
{
	if (message->type == MESSAGE_ACK) {
		if (!stream->open || message->epoch != stream->epoch)
			stream->position = message->next;
		stream->open = true;
		stream->epoch = message->epoch;
		stream->done = message->done;
		stream->durable = message->durable;
		stream->credit = message->credit;
	} else if (message->type == MESSAGE_ERROR && message->has_expected) {
		stream->position = message->expected;
	} else if (message->type == MESSAGE_ERROR) {
		return error_set(err, message->code, "%s: %s", refusal_name(message->code), message->text);
	}
	return 0;
}
