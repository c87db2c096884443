/*
 * Connections under watch: see connections.h.  A monitor tells which file descriptors are connections.  Its events are
 * sent before what follows from them: whoever is told the time at its handshake was connected by then, and a message of
 * a file descriptor that was connected later is a dead connection's.
 */
#include "protocol/connections.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <zmq.h>

#define DESCRIPTORS_MAX (1 << 20)
#define EVENT_BYTES 6 /* 16 bits of what, 32 of which file descriptor or why; an address is in the frame behind it */
#define FAILURES (ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) /* not of a refused key */
#define EVENTS (ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_CONNECTED | ZMQ_EVENT_DISCONNECTED | FAILURES)
#define LITTLE 65536  /* bytes: a handshake, heartbeats, the start of a message */

struct connection {
	uint64_t since; /* by the clock */
	bool there;
	bool unwanted;     /* the next one is to be cut */
	bool whole;        /* a whole message came since the last look, */
	uint64_t whole_at; /* and the last of them when so many bytes had come, */
	int64_t whole_ms;  /* at this time; 0: not looked at yet */
	unsigned int user;
};

struct connections {
	void *socket, *events;
	unsigned char event[EVENT_BYTES];
	bool waits; /* the event, for memory */
	uint64_t clock;
	struct strangers strangers;
	struct connection *item; /* [n], by file descriptor */
	size_t n;
};

int connections_new(void *context, void *socket, struct connections **ret_connections, struct error *err)
{
	static const int unlimited = 0;
	struct connections *connections = calloc(1, sizeof *connections);
	char address[64];

	if (!connections)
		return error_memory(err, "connections");
	snprintf(address, sizeof address, "inproc://connections-%p", socket);
	connections->socket = socket;
	if (zmq_socket_monitor(socket, address, EVENTS) == 0
	    && (connections->events = zmq_socket(context, ZMQ_PAIR)) != NULL
	    && zmq_setsockopt(connections->events, ZMQ_RCVHWM, &unlimited, sizeof unlimited) == 0
	    && zmq_connect(connections->events, address) == 0) {
		*ret_connections = connections;
		return 0;
	}
	error_set(err, ERR_SYSTEM, "watching connections: %s", zmq_strerror(errno));
	connections_free(connections);
	return err->code;
}

void connections_free(struct connections *connections)
{
	if (!connections)
		return;
	zmq_socket_monitor(connections->socket, NULL, 0);
	if (connections->events)
		zmq_close(connections->events);
	free(connections->item);
	free(connections);
}

/* --- who is there --- */

/* Make room for a file descriptor; false without memory. */
static bool make_room(struct connections *connections, size_t fd)
{
	size_t n = connections->n ? connections->n : 64;
	struct connection *grown;

	if (fd < connections->n)
		return true;
	while (n <= fd)
		n *= 2;
	grown = realloc(connections->item, n * sizeof *grown);
	if (!grown)
		return false;
	memset(grown + connections->n, 0, (n - connections->n) * sizeof *grown);
	connections->item = grown;
	connections->n = n;
	return true;
}

/* A peer without a key mostly leaves on hearing that one is asked for, before it has said that it has none. */
static void note_stranger(struct connections *connections, uint16_t event, uint32_t why)
{
	if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL && why == ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
		connections->strangers.mistaken++;
	else
		connections->strangers.keyless++;
}

/* False without memory: it is to be noted later. */
static bool note_event(struct connections *connections)
{
	bool unwanted;
	uint16_t event;
	uint32_t fd; /* or why */

	memcpy(&event, connections->event, sizeof event);
	memcpy(&fd, connections->event + sizeof event, sizeof fd);
	if (event & FAILURES)
		note_stranger(connections, event, fd);
	if (event & FAILURES || fd >= DESCRIPTORS_MAX)
		return true;
	if (!make_room(connections, fd))
		return false;
	if (event == ZMQ_EVENT_DISCONNECTED) {
		connections->item[fd].there = false;
		return true;
	}
	unwanted = connections->item[fd].unwanted;
	connections->item[fd] = (struct connection){ .since = ++connections->clock, .there = true };
	if (unwanted)
		connections_cut(connections, (int)fd);
	return true;
}

static bool next_event(struct connections *connections)
{
	int size;

	while ((size = zmq_recv(connections->events, connections->event, EVENT_BYTES, ZMQ_DONTWAIT)) >= 0 ||
	       errno == EINTR) {
		int more = 0;
		size_t more_size = sizeof more;

		zmq_getsockopt(connections->events, ZMQ_RCVMORE, &more, &more_size);
		if (size == EVENT_BYTES && more)
			return true;
	}
	return false;
}

void connections_catch_up(struct connections *connections)
{
	while (connections->waits || next_event(connections)) {
		connections->waits = !note_event(connections);
		if (connections->waits)
			return;
	}
}

/* What is known of a file descriptor; NULL: it is no connection. */
static struct connection *find(struct connections *connections, int fd)
{
	if (fd < 0 || (size_t)fd >= connections->n || !connections->item[fd].there)
		return NULL;
	return &connections->item[fd];
}

uint64_t connections_time(struct connections *connections)
{
	connections_catch_up(connections);
	return connections->clock;
}

bool connections_there(struct connections *connections, int fd, uint64_t time)
{
	const struct connection *connection;

	connections_catch_up(connections);
	connection = find(connections, fd);
	return connection && connection->since <= time;
}

void connections_cut(struct connections *connections, int fd)
{
	struct connection *connection = find(connections, fd);

	if (!connection)
		return;
	shutdown(fd, SHUT_RDWR);
	connection->there = false;
}

void connections_cut_next(struct connections *connections, int fd)
{
	if (find(connections, fd))
		connections_cut(connections, fd);
	else if (fd >= 0 && fd < DESCRIPTORS_MAX && make_room(connections, (size_t)fd))
		connections->item[fd].unwanted = true;
}

void connections_cut_user(struct connections *connections, unsigned int user)
{
	connections_catch_up(connections);
	for (size_t fd = 0; fd < connections->n; fd++)
		if (connections->item[fd].user == user)
			connections_cut(connections, (int)fd);
}

void connections_strangers(struct connections *connections, struct strangers *strangers)
{
	connections_catch_up(connections);
	strangers->keyless += connections->strangers.keyless;
	strangers->mistaken += connections->strangers.mistaken;
	connections->strangers = (struct strangers){ 0, 0 };
}

/* --- what they send --- */

void connections_note(struct connections *connections, int fd, unsigned int user)
{
	struct connection *connection;

	connections_catch_up(connections);
	connection = find(connections, fd);
	if (!connection)
		return; /* it is gone */
	connection->user = user;
	connection->whole = true;
}

/* Bytes that have come over a file descriptor; 0 if it is not TCP. */
static uint64_t received(int fd)
{
	struct tcp_info info;
	socklen_t size = sizeof info;

	memset(&info, 0, sizeof info);
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_bytes_received : 0;
}

/* Bytes since the last whole message. */
static uint64_t look(struct connection *connection, int fd, int64_t now_ms)
{
	const uint64_t bytes = received(fd);

	if (connection->whole || connection->whole_ms == 0) {
		connection->whole_ms = now_ms;
		connection->whole_at = connection->whole ? bytes : 0;
		connection->whole = false;
	}
	return bytes > connection->whole_at ? bytes - connection->whole_at : 0;
}

void connections_unfinished(struct connections *connections, int64_t now_ms, struct unfinished *ret_unfinished)
{
	struct unfinished unfinished = { .fd = -1 };

	connections_catch_up(connections);
	for (size_t fd = 0; fd < connections->n; fd++) {
		struct connection *connection = find(connections, (int)fd);
		const uint64_t bytes = connection ? look(connection, (int)fd, now_ms) : 0;

		unfinished.bytes += bytes;
		if (bytes <= LITTLE || (unfinished.fd >= 0 && connection->whole_ms >= unfinished.fd_since_ms))
			continue;
		unfinished.fd = (int)fd;
		unfinished.fd_bytes = bytes;
		unfinished.fd_since_ms = connection->whole_ms;
	}
	*ret_unfinished = unfinished;
}
