/*
 * The daemon's sockets over ZeroMQ: both ends of the straight line.  Nothing here waits; that is endpoint_poll.c's.
 *
 * What a multipart message may run into shows at its first frame (a ROUTER's peer gone or full, a subscriber without
 * room): ZeroMQ judges whole messages, so the frames behind an accepted first one always follow it.
 */
#include "protocol/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <zmq.h>

#include "protocol/connections.h"
#include "protocol/endpoint_private.h"
#include "protocol/subscribers.h"
#include "protocol/tally.h"
#include "protocol/zap.h"

#define HANDSHAKE_MS 5000          /* a connection that has not said hello by then is closed */
#define RECONNECT_MS 100           /* first pause, doubled up to the longest */
#define RECONNECT_MAX_MS 5000
#define KEEPALIVE_IDLE_S 15        /* after so long TCP asks whether the other machine is there, */
#define KEEPALIVE_INTERVAL_S 5
#define UNTAKEN_MS 300000          /* and one that takes nothing of what is sent to it for so long is gone */
#define CURVE_BYTES 64             /* that encryption adds to a frame, at most */
#define SOCKETS_MAX 64             /* of a context; connections do not count */

struct endpoint_storage {
	zmq_msg_t kept[ENDPOINT_FRAMES_MAX];
	size_t n_kept;
};

int endpoint_failed(struct error *err, const char *what)
{
	return error_set(err, ERR_SYSTEM, "%s: %s", what, zmq_strerror(errno));
}

int endpoint_context_new(int io_threads, struct endpoint_context **ret_context, struct error *err)
{
	struct endpoint_context *context = calloc(1, sizeof *context);
	int status;

	if (!context)
		return error_memory(err, "a ZeroMQ context");
	context->zmq = zmq_ctx_new();
	if (!context->zmq || zmq_ctx_set(context->zmq, ZMQ_IO_THREADS, io_threads) != 0
	    || zmq_ctx_set(context->zmq, ZMQ_MAX_SOCKETS, SOCKETS_MAX) != 0) {
		status = endpoint_failed(err, "ZeroMQ context");
		endpoint_context_free(context);
		return status;
	}
	*ret_context = context;
	return 0;
}

void endpoint_context_free(struct endpoint_context *context)
{
	if (!context)
		return;
	if (context->zmq)
		while (zmq_ctx_term(context->zmq) != 0 && errno == EINTR)
			;
	free(context);
}

struct option {
	int name, value;
};

static int set_options(void *socket, const struct option *options, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (zmq_setsockopt(socket, options[i].name, &options[i].value, sizeof options[i].value) != 0)
			return -1;
	return 0;
}

/*
 * What ZeroMQ would otherwise leave unlimited, off, or waiting for ever.  Heartbeats are answered, but none sent:
 * where messages of a broken connection wait in a full queue, libzmq 4.3 ends the process when it sends one (issue
 * 4364) or answers one; epoll.c keeps it from that.
 */
static int configure(void *socket, const struct endpoint_options *options)
{
	const int64_t largest = (int64_t)options->message_bytes + (options->secret_key ? CURVE_BYTES : 0);
	const struct option common[] = {
		{ ZMQ_LINGER, 0 },
		{ ZMQ_SNDHWM, options->send_high_water },
		{ ZMQ_RCVHWM, options->receive_high_water },
		{ ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS },
		{ ZMQ_RECONNECT_IVL, RECONNECT_MS },
		{ ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS },
		{ ZMQ_TCP_KEEPALIVE, 1 },
		{ ZMQ_TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S },
		{ ZMQ_TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL_S },
		{ ZMQ_TCP_MAXRT, UNTAKEN_MS }
	};

	if (zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof largest) != 0)
		return -1;
	return set_options(socket, common, sizeof common / sizeof *common);
}

/* Where peers have rights of their own, none may take over another one's routing id. */
static int configure_kind(void *socket, enum endpoint_kind kind, bool keyed)
{
	const struct option ingest[] = { { ZMQ_ROUTER_MANDATORY, 1 }, { ZMQ_ROUTER_HANDOVER, !keyed } };
	static const struct option control[] = { { ZMQ_ROUTER_MANDATORY, 1 } };
	static const struct option publish[] = { { ZMQ_XPUB_NODROP, 1 } };

	switch (kind) {
	case ENDPOINT_INGEST:
		return set_options(socket, ingest, 2);
	case ENDPOINT_CONTROL:
		return set_options(socket, control, 1);
	case ENDPOINT_PUBLISH:
		return set_options(socket, publish, 1);
	case ENDPOINT_SUBSCRIBE:
		return zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0);
	case ENDPOINT_ZAP:
		return 0;
	}
	return 0;
}

static int watch(struct endpoint *endpoint, struct error *err)
{
	int status = connections_new(endpoint->context->zmq, endpoint->socket, &endpoint->connections, err);

	if (status == 0 && endpoint->kind == ENDPOINT_PUBLISH)
		status = subscribers_new(endpoint->socket, endpoint->connections, &endpoint->subscribers, err);
	return status;
}

int endpoint_new(struct endpoint_context *context, enum endpoint_kind kind, const struct endpoint_options *options,
		 struct endpoint **ret_endpoint, struct error *err)
{
	static const int types[] = { ZMQ_ROUTER, ZMQ_SUB, ZMQ_PUB, ZMQ_ROUTER, ZMQ_REP };
	const bool asked = kind == ENDPOINT_PUBLISH && options->secret_key; /* who may subscribe; an XPUB can be */
	struct endpoint *endpoint = calloc(1, sizeof *endpoint);
	size_t fd_size = sizeof endpoint->fd;
	int status;

	if (!endpoint)
		return error_memory(err, "an endpoint");
	endpoint->kind = kind;
	endpoint->context = context;
	endpoint->ipc_mode = options->ipc_mode;
	endpoint->keyed = options->secret_key != NULL;
	if (endpoint->keyed)
		memcpy(endpoint->secret_key, options->secret_key, KEY_TEXT);
	if (kind == ENDPOINT_PUBLISH) {
		endpoint->missed = tally_new();
		if (!endpoint->missed) {
			endpoint_free(endpoint, 0);
			return error_memory(err, "an endpoint");
		}
	}
	endpoint->socket = zmq_socket(context->zmq, asked ? ZMQ_XPUB : types[kind]);
	if (!endpoint->socket || configure(endpoint->socket, options) != 0
	    || configure_kind(endpoint->socket, kind, endpoint->keyed) != 0
	    || zmq_getsockopt(endpoint->socket, ZMQ_FD, &endpoint->fd, &fd_size) != 0) {
		status = endpoint_failed(err, "ZeroMQ socket");
		endpoint_free(endpoint, 0);
		return status;
	}
	if (endpoint->keyed && watch(endpoint, err) != 0) {
		endpoint_free(endpoint, 0);
		return err->code;
	}
	*ret_endpoint = endpoint;
	return 0;
}

struct connections *endpoint_connections(struct endpoint *endpoint)
{
	return endpoint->connections;
}

struct subscribers *endpoint_subscribers(struct endpoint *endpoint)
{
	return endpoint->subscribers;
}

void endpoint_free(struct endpoint *endpoint, int linger_ms)
{
	if (!endpoint)
		return;
	subscribers_free(endpoint->subscribers);
	connections_free(endpoint->connections);
	if (endpoint->socket) {
		zmq_setsockopt(endpoint->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
		zmq_close(endpoint->socket);
	}
	if (endpoint->kind == ENDPOINT_ZAP && endpoint->address[0] != '\0')
		endpoint->context->guarded = false;
	tally_free(endpoint->missed);
	free(endpoint);
}

/* With IPv6 on, ZeroMQ reports an IPv4 address as [::ffff:127.0.0.1], which peers without IPv6 cannot connect to. */
static bool is_ipv4(const char *address)
{
	const size_t scheme = strlen("tcp://");

	if (strncmp(address, "tcp://", scheme) != 0)
		return false;
	address += scheme;
	return address[0] != '\0' && address[strspn(address, "0123456789.")] == ':';
}

/* Ask for a key at a TCP address, and for none where a socket file's mode decides; options hold for what is next. */
static int secure(struct endpoint *endpoint, const char *address)
{
	const bool tcp = strncmp(address, "tcp://", strlen("tcp://")) == 0;
	const char *domain = tcp ? ZAP_DOMAIN_KEYS : ZAP_DOMAIN_LOCAL;
	const struct option server = { ZMQ_CURVE_SERVER, tcp };

	if (!endpoint->keyed)
		return 0;
	if (tcp && zmq_setsockopt(endpoint->socket, ZMQ_CURVE_SECRETKEY, endpoint->secret_key, KEY_TEXT) != 0)
		return -1;
	if (zmq_setsockopt(endpoint->socket, ZMQ_ZAP_DOMAIN, domain, strlen(domain)) != 0)
		return -1;
	return set_options(endpoint->socket, &server, 1);
}

/* Whether somebody listens at a socket file: ZeroMQ would take its place without a word. */
static bool is_served(const char *address)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	const char *path = address + strlen("ipc://");
	bool served;
	int fd;

	if (strncmp(address, "ipc://", strlen("ipc://")) != 0 || strlen(path) >= sizeof at.sun_path)
		return false;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	memcpy(at.sun_path, path, strlen(path));
	served = connect(fd, (const struct sockaddr *)&at, sizeof at) == 0 || errno == EAGAIN;
	close(fd);
	return served;
}

/* A socket file is made with its mode: it is never there with another one. */
static int bind_with_mode(struct endpoint *endpoint, const char *address)
{
	const mode_t before = endpoint->ipc_mode ? umask(~endpoint->ipc_mode & 0777) : 0;
	const int status = zmq_bind(endpoint->socket, address), failure = errno;

	if (endpoint->ipc_mode)
		umask(before);
	errno = failure;
	return status;
}

int endpoint_attach(struct endpoint *endpoint, const char *address, struct error *err)
{
	const bool connects = address[0] == '>';
	size_t size = sizeof endpoint->address;
	struct option ipv6 = { ZMQ_IPV6, 1 };

	if (address[0] == '>' || address[0] == '@')
		address++;
	if (endpoint->keyed && !endpoint->context->guarded)
		return error_set(err, ERR_SYSTEM, "%s: there is no ZAP handler, so anybody would be let in", address);
	if (!connects && is_served(address))
		return error_set(err, ERR_SYSTEM, "cannot bind to %s: another process listens there", address);
	ipv6.value = !is_ipv4(address);
	if (set_options(endpoint->socket, &ipv6, 1) != 0 || secure(endpoint, address) != 0
	    || (connects ? zmq_connect(endpoint->socket, address) : bind_with_mode(endpoint, address)) != 0)
		return error_set(err, ERR_SYSTEM, "cannot %s %s: %s", connects ? "connect to" : "bind to", address,
				 zmq_strerror(errno));
	if (endpoint->kind == ENDPOINT_ZAP)
		endpoint->context->guarded = true;
	if (zmq_getsockopt(endpoint->socket, ZMQ_LAST_ENDPOINT, endpoint->address, &size) != 0)
		return endpoint_failed(err, address);
	return 0;
}

const char *endpoint_address(const struct endpoint *endpoint)
{
	return endpoint->address;
}

int endpoint_message_init(struct endpoint_message *message, struct error *err)
{
	struct endpoint_storage *storage = calloc(1, sizeof *storage);

	if (!storage)
		return error_memory(err, "a message");
	*message = (struct endpoint_message){ .storage = storage };
	return 0;
}

static void drop_frames(struct endpoint_message *message)
{
	struct endpoint_storage *storage = message->storage;

	for (size_t i = 0; i < storage->n_kept; i++)
		zmq_msg_close(&storage->kept[i]);
	storage->n_kept = 0;
	message->n_frames = 0;
}

void endpoint_message_clear(struct endpoint_message *message)
{
	if (!message->storage)
		return;
	drop_frames(message);
	free(message->storage);
	message->storage = NULL;
}

/* Receive one frame into frame, which is initialised here; false if there is none, or on error, with errno. */
static bool receive_frame(void *socket, zmq_msg_t *frame)
{
	int size;

	zmq_msg_init(frame);
	do
		size = zmq_msg_recv(frame, socket, ZMQ_DONTWAIT);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		zmq_msg_close(frame);
	return size >= 0;
}

static void keep_frame(struct endpoint_message *message, zmq_msg_t *frame)
{
	const size_t i = message->storage->n_kept++;

	message->frame[i].data = zmq_msg_data(frame);
	message->frame[i].size = zmq_msg_size(frame);
}

/* The number that the ZAP handler gave to a message's sender.  What ZeroMQ puts in front may lack it. */
static unsigned int user_of(const struct endpoint *endpoint, struct endpoint_storage *storage)
{
	const bool addressed = endpoint->kind == ENDPOINT_INGEST || endpoint->kind == ENDPOINT_CONTROL;
	const char *id = zmq_msg_gets(&storage->kept[storage->n_kept - 1], "User-Id"), *routing_id;
	unsigned int user;
	uint64_t time;

	if (!id || !zap_read_user(id, &user, &time))
		return ENDPOINT_NOBODY;
	if (addressed) {
		/* Routing ids that ZeroMQ makes begin with a zero byte.  One that was chosen could be another's. */
		routing_id = zmq_msg_data(&storage->kept[0]);
		if (zmq_msg_size(&storage->kept[0]) == 0 || routing_id[0] != '\0')
			return ENDPOINT_NOBODY;
	}
	return user;
}

static int descriptor_of(struct endpoint_storage *storage)
{
	return zmq_msg_get(&storage->kept[storage->n_kept - 1], ZMQ_SRCFD);
}

void endpoint_cut(struct endpoint *endpoint, const struct endpoint_message *message)
{
	if (endpoint->connections && message->storage && message->storage->n_kept > 0)
		connections_cut(endpoint->connections, descriptor_of(message->storage));
}

int endpoint_receive(struct endpoint *endpoint, struct endpoint_message *message, struct error *err)
{
	struct endpoint_storage *storage = message->storage;
	bool more = true;

	drop_frames(message);
	endpoint->settled = false;
	while (more) {
		zmq_msg_t beyond;
		const bool kept = storage->n_kept < ENDPOINT_FRAMES_MAX;
		zmq_msg_t *frame = kept ? &storage->kept[storage->n_kept] : &beyond;

		if (!receive_frame(endpoint->socket, frame)) {
			const int status = errno == EAGAIN ? 0 : endpoint_failed(err, endpoint->address);

			endpoint->settled = status == 0;
			drop_frames(message);
			return status;
		}
		more = zmq_msg_more(frame);
		message->n_frames++;
		if (kept)
			keep_frame(message, frame);
		else
			zmq_msg_close(frame);
	}
	message->user = ENDPOINT_ANYBODY;
	if (endpoint->keyed) {
		message->user = user_of(endpoint, storage);
		connections_note(endpoint->connections, descriptor_of(storage), message->user);
	}
	return 1;
}

static void release(const struct endpoint_frame *frame)
{
	if (frame->release)
		frame->release((void *)(uintptr_t)frame->data, frame->arg);
}

static void release_all(const struct endpoint_frame *frames, size_t n)
{
	for (size_t i = 0; i < n; i++)
		release(&frames[i]);
}

/* Make a frame's copy, or lend its memory. */
static int build(zmq_msg_t *msg, const struct endpoint_frame *frame)
{
	if (frame->release)
		return zmq_msg_init_data(msg, (void *)(uintptr_t)frame->data, frame->size, frame->release, frame->arg);
	if (zmq_msg_init_size(msg, frame->size) != 0)
		return -1;
	if (frame->size > 0)
		memcpy(zmq_msg_data(msg), frame->data, frame->size);
	return 0;
}

/* Hand a built frame to the socket; on failure, with errno, it is closed (and what was lent released). */
static int send_built(void *socket, zmq_msg_t *msg, bool more)
{
	int size, failure;

	do
		size = zmq_msg_send(msg, socket, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
	while (size < 0 && errno == EINTR);
	if (size >= 0)
		return 0;
	failure = errno;
	zmq_msg_close(msg);
	errno = failure;
	return -1;
}

/* Hand over the first frame, always as a copy: whoever is refused here still has everything it lent. */
static int offer_first(struct endpoint *endpoint, const struct endpoint_frame *frame, bool more)
{
	struct endpoint_frame copied = { .data = frame->data, .size = frame->size };
	zmq_msg_t msg;

	if (endpoint->missed) {
		copied.release = tally_release;
		copied.data = tally_track(endpoint->missed, frame->data, frame->size, &copied.arg);
		if (!copied.data)
			return -1;
	}
	if (build(&msg, &copied) != 0) {
		release(&copied);
		return -1;
	}
	return send_built(endpoint->socket, &msg, more);
}

/* Send the first frame, or fail with EAGAIN where there is no room. */
static int send_first(struct endpoint *endpoint, const struct endpoint_frame *frame, bool more)
{
	int status = offer_first(endpoint, frame, more), events;
	size_t size = sizeof events;

	if (status == 0 || errno != EAGAIN)
		return status;
	/* News of room that peers have made is looked at now and then only; asking for events looks at once. */
	if (zmq_getsockopt(endpoint->socket, ZMQ_EVENTS, &events, &size) != 0)
		return -1;
	return offer_first(endpoint, frame, more);
}

/* Send the first frame to the subscribers that have room, although one of them has none. */
static int send_first_lossy(struct endpoint *endpoint, const struct endpoint_frame *frame, bool more)
{
	const struct option drop = { ZMQ_XPUB_NODROP, 0 }, keep = { ZMQ_XPUB_NODROP, 1 };
	int status = set_options(endpoint->socket, &drop, 1);

	if (status == 0)
		status = offer_first(endpoint, frame, more);
	if (status == 0)
		status = set_options(endpoint->socket, &keep, 1);
	return status;
}

static void close_all(zmq_msg_t *msgs, size_t n)
{
	for (size_t i = 0; i < n; i++)
		zmq_msg_close(&msgs[i]);
}

/* Build all frames, or none, releasing what was lent. */
static int build_all(zmq_msg_t *msgs, const struct endpoint_frame *frames, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (build(&msgs[i], &frames[i]) != 0) {
			close_all(msgs, i);
			release_all(frames + i, n - i);
			return -1;
		}
	return 0;
}

/* Send the frames behind an accepted first one: all of them, whatever becomes of each. */
static int send_following(void *socket, zmq_msg_t *msgs, size_t n)
{
	int status = 0;

	for (size_t i = 0; i < n; i++)
		status |= send_built(socket, &msgs[i], i + 1 < n);
	return status;
}

/* Send the first frame to every subscriber that has room. */
static int publish_first(struct endpoint *endpoint, const struct endpoint_frame *frame, bool more,
			 enum endpoint_sent *ret_sent)
{
	bool dropped = false;
	int status = send_first(endpoint, frame, more);

	if (status != 0 && errno == EAGAIN) {
		dropped = true;
		status = send_first_lossy(endpoint, frame, more);
	}
	*ret_sent = tally_missed(endpoint->missed, dropped) ? ENDPOINT_DROPPED : ENDPOINT_SENT;
	return status;
}

/* Send the first frame to the peer that it names, if that is there and has room. */
static int address_first(struct endpoint *endpoint, const struct endpoint_frame *frame, bool more,
			 enum endpoint_sent *ret_sent)
{
	int status = send_first(endpoint, frame, more);

	*ret_sent = ENDPOINT_SENT;
	if (status != 0 && (errno == EAGAIN || errno == EHOSTUNREACH)) {
		*ret_sent = errno == EAGAIN ? ENDPOINT_FULL : ENDPOINT_GONE;
		status = 0;
	}
	return status;
}

/* Send the first frame, then those behind it, which are closed where it is not accepted. */
static int send_frames(struct endpoint *endpoint, const struct endpoint_frame *first, zmq_msg_t *following, size_t n,
		       enum endpoint_sent *ret_sent)
{
	int status = endpoint->kind == ENDPOINT_PUBLISH ? publish_first(endpoint, first, n > 0, ret_sent)
							: address_first(endpoint, first, n > 0, ret_sent);

	if (status == 0 && (*ret_sent == ENDPOINT_SENT || *ret_sent == ENDPOINT_DROPPED))
		return send_following(endpoint->socket, following, n);
	close_all(following, n);
	return status;
}

int endpoint_send(struct endpoint *endpoint, const struct endpoint_frame *frames, size_t n_frames,
		  enum endpoint_sent *ret_sent, struct error *err)
{
	zmq_msg_t following[ENDPOINT_FRAMES_MAX];
	const size_t n = n_frames - 1;
	int status;

	assert(n_frames >= 1 && n <= ENDPOINT_FRAMES_MAX);
	endpoint->settled = false; /* sending may take in the news that something can be received */
	/* A message once begun has to be ended: everything that takes memory comes first. */
	status = build_all(following, frames + 1, n);
	if (status == 0)
		status = send_frames(endpoint, &frames[0], following, n, ret_sent);
	if (status != 0 && errno == ENOMEM) {
		*ret_sent = ENDPOINT_FULL;
		status = 0;
	}
	if (status != 0)
		status = endpoint_failed(err, endpoint->address);
	release(&frames[0]);
	return status;
}
