/* The daemon's sockets against plain ZeroMQ peers: transports, frames, full and vanished peers, slow subscribers. */
#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <zmq.h>

#include "protocol/endpoint_private.h"
#include "protocol/tally.h"
#include "protocol/zap.h"

#define PATIENCE_MS 20000 /* what is bound to come has come by then, or the test fails */

static const struct endpoint_options options = {
	.message_bytes = 1 << 20, .send_high_water = 10, .receive_high_water = 10
};

static struct endpoint_context *context; /* the daemon's */
static void *peers;                      /* the peers' own */
static char ipc_address[64];
static struct error err;
static int n_lent; /* by send_lent */
static atomic_int n_released; /* frames that were lent and came back */

static void set_up(void)
{
	n_lent = 0;
	n_released = 0;
	snprintf(ipc_address, sizeof ipc_address, "ipc:///tmp/check_endpoint.%d", (int)getpid());
	ck_assert_int_eq(endpoint_context_new(1, &context, &err), 0);
	peers = zmq_ctx_new();
	ck_assert_ptr_nonnull(peers);
}

static void tear_down(void)
{
	zmq_ctx_term(peers);
	endpoint_context_free(context);
	unlink(ipc_address + strlen("ipc://"));
}

static struct endpoint *open_endpoint(enum endpoint_kind kind, const char *address)
{
	struct endpoint *endpoint;

	ck_assert_int_eq(endpoint_new(context, kind, &options, &endpoint, &err), 0);
	ck_assert_msg(endpoint_attach(endpoint, address, &err) == 0, "%s", err.text);
	return endpoint;
}

static void set_option(void *socket, int name, int value)
{
	ck_assert_int_eq(zmq_setsockopt(socket, name, &value, sizeof value), 0);
}

static void *open_peer(int type, const char *identity, int high_water)
{
	void *socket = zmq_socket(peers, type);

	ck_assert_ptr_nonnull(socket);
	set_option(socket, ZMQ_LINGER, 0);
	set_option(socket, ZMQ_RCVTIMEO, PATIENCE_MS);
	set_option(socket, ZMQ_SNDTIMEO, PATIENCE_MS);
	set_option(socket, ZMQ_RCVHWM, high_water);
	if (identity)
		ck_assert_int_eq(zmq_setsockopt(socket, ZMQ_ROUTING_ID, identity, strlen(identity)), 0);
	if (type == ZMQ_SUB)
		ck_assert_int_eq(zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0), 0);
	return socket;
}

static void *connect_peer(int type, const char *identity, int high_water, const struct endpoint *endpoint)
{
	void *socket = open_peer(type, identity, high_water);

	ck_assert_int_eq(zmq_connect(socket, endpoint_address(endpoint)), 0);
	return socket;
}

static void peer_send(void *socket, const char *const *frames, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ck_assert_int_ge(zmq_send(socket, frames[i], strlen(frames[i]), i + 1 < n ? ZMQ_SNDMORE : 0), 0);
}

/* Receive one frame as text; false if there is none. */
static bool peer_receive(void *socket, char *text, size_t room, int flags)
{
	const int size = zmq_recv(socket, text, room - 1, flags);

	if (size < 0)
		return false;
	text[(size_t)size < room ? (size_t)size : room - 1] = '\0';
	return true;
}

static void receive(struct endpoint *endpoint, struct endpoint_message *message)
{
	const bool wanted = true;
	bool ready = false;

	ck_assert_int_eq(endpoint_poll(&endpoint, &wanted, &ready, 1, NULL, NULL, 0, PATIENCE_MS, &err), 0);
	ck_assert(ready);
	ck_assert_int_eq(endpoint_receive(endpoint, message, &err), 1);
}

static void assert_frame(const struct endpoint_message *message, size_t i, const char *want)
{
	ck_assert_uint_eq(message->frame[i].size, strlen(want));
	ck_assert_mem_eq(message->frame[i].data, want, strlen(want));
}

static void nap(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static void count_release(void *data, void *arg)
{
	(void)data;
	ck_assert_ptr_eq(arg, &n_released);
	atomic_fetch_add(&n_released, 1);
}

static enum endpoint_sent send_lent(struct endpoint *endpoint, const char *first, const char *second, const void *data,
				    size_t size)
{
	const struct endpoint_frame frames[] = {
		{ .data = first, .size = strlen(first) },
		{ .data = second, .size = strlen(second) },
		{ .data = data, .size = size, .release = count_release, .arg = &n_released },
	};
	enum endpoint_sent sent;

	n_lent++;
	ck_assert_int_eq(endpoint_send(endpoint, frames, 3, &sent, &err), 0);
	return sent;
}

static const char *transport(int i)
{
	return i == 0 ? "inproc://x" : i == 1 ? ipc_address : "tcp://127.0.0.1:*";
}

/* A published message reaches a subscriber over every transport, whichever side binds. */
START_TEST(publish_reaches_subscribe)
{
	struct endpoint *bound = open_endpoint(_i < 3 ? ENDPOINT_PUBLISH : ENDPOINT_SUBSCRIBE, transport(_i % 3));
	struct endpoint *publish, *subscribe, *connected;
	struct endpoint_message message;
	char address[300];

	snprintf(address, sizeof address, ">%s", endpoint_address(bound));
	connected = open_endpoint(_i < 3 ? ENDPOINT_SUBSCRIBE : ENDPOINT_PUBLISH, address);
	publish = _i < 3 ? bound : connected;
	subscribe = _i < 3 ? connected : bound;
	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	for (int got = 0; got == 0; nap()) {
		ck_assert_int_eq(send_lent(publish, "ecg", "header", "payload", 7), ENDPOINT_SENT);
		got = endpoint_receive(subscribe, &message, &err);
	}
	ck_assert_uint_eq(message.n_frames, 3);
	assert_frame(&message, 0, "ecg");
	assert_frame(&message, 1, "header");
	assert_frame(&message, 2, "payload");
	endpoint_message_clear(&message);
	endpoint_free(publish, 0);
	endpoint_free(subscribe, 0);
}
END_TEST

START_TEST(router_answers_its_peer)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, transport(_i));
	void *peer = connect_peer(ZMQ_DEALER, "me", 10, ingest);
	struct endpoint_message message;
	char text[32];

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	peer_send(peer, (const char *const[]){ "ecg", "header" }, 2);
	receive(ingest, &message);
	ck_assert_uint_eq(message.n_frames, 3);
	assert_frame(&message, 0, "me");
	assert_frame(&message, 1, "ecg");
	assert_frame(&message, 2, "header");
	ck_assert_int_eq(send_lent(ingest, "me", "ack", "more", 4), ENDPOINT_SENT);
	ck_assert(peer_receive(peer, text, sizeof text, 0));
	ck_assert_str_eq(text, "ack");
	ck_assert(peer_receive(peer, text, sizeof text, 0));
	ck_assert_str_eq(text, "more");
	ck_assert_int_eq(endpoint_receive(ingest, &message, &err), 0);
	ck_assert_uint_eq(message.n_frames, 0);
	endpoint_message_clear(&message);
	zmq_close(peer);
	endpoint_free(ingest, 0);
}
END_TEST

/* Of a message with many frames the first are kept, all are counted, and the next message is whole. */
START_TEST(many_frames)
{
	static const char *const frames[] = { "1", "2", "3", "4", "5", "6", "7", "8", "", "10" };
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, ipc_address);
	void *peer = connect_peer(ZMQ_DEALER, "me", 10, ingest);
	struct endpoint_message message;

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	peer_send(peer, frames, 10);
	peer_send(peer, frames + 9, 1);
	receive(ingest, &message);
	ck_assert_uint_eq(message.n_frames, 11);
	assert_frame(&message, ENDPOINT_FRAMES_MAX - 1, "6");
	receive(ingest, &message);
	ck_assert_uint_eq(message.n_frames, 2);
	assert_frame(&message, 1, "10");
	endpoint_message_clear(&message);
	endpoint_message_clear(&message);
	zmq_close(peer);
	endpoint_free(ingest, 0);
}
END_TEST

/* A frame beyond the limit ends its peer's connection; other peers do not notice. */
START_TEST(too_large_a_frame)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, ipc_address);
	void *hostile = connect_peer(ZMQ_DEALER, "hostile", 10, ingest);
	void *peer = connect_peer(ZMQ_DEALER, "me", 10, ingest);
	struct endpoint_message message;
	char *large = calloc(1, options.message_bytes + 1);

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	ck_assert_int_ge(zmq_send(hostile, large, options.message_bytes + 1, 0), 0);
	peer_send(peer, (const char *const[]){ "fine" }, 1);
	receive(ingest, &message);
	assert_frame(&message, 0, "me");
	ck_assert_int_ge(zmq_send(peer, large, options.message_bytes, 0), 0);
	receive(ingest, &message);
	assert_frame(&message, 0, "me");
	ck_assert_uint_eq(message.frame[1].size, options.message_bytes);
	endpoint_message_clear(&message);
	free(large);
	zmq_close(hostile);
	zmq_close(peer);
	endpoint_free(ingest, 0);
}
END_TEST

START_TEST(peer_that_is_gone)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, transport(_i));
	void *peer = connect_peer(ZMQ_DEALER, "me", 10, ingest);
	struct endpoint_message message;
	enum endpoint_sent sent;

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	ck_assert_int_eq(send_lent(ingest, "nobody", "", "payload", 7), ENDPOINT_GONE);
	ck_assert_int_eq(n_released, 1);
	peer_send(peer, (const char *const[]){ "hello" }, 1);
	receive(ingest, &message);
	zmq_close(peer);
	do {
		sent = send_lent(ingest, "me", "", "payload", 7);
		nap();
	} while (sent != ENDPOINT_GONE);
	endpoint_message_clear(&message);
	endpoint_free(ingest, 0);
	endpoint_context_free(context);
	context = NULL;
	ck_assert_int_eq(n_released, n_lent);
}
END_TEST

/* A peer that does not read: full, and what was lent comes back; once it reads, it goes on, and nothing was lost. */
START_TEST(peer_that_is_full)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, transport(_i));
	void *peer = connect_peer(ZMQ_DEALER, "me", 1, ingest);
	const size_t size = 1 << 18;
	char *payload = calloc(1, size), number[16], text[16];
	struct endpoint_message message;
	int n = 0, released;

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	peer_send(peer, (const char *const[]){ "hello" }, 1);
	receive(ingest, &message);
	for (int fulls = 0; fulls < 3; nap()) {
		snprintf(number, sizeof number, "%d", n);
		if (send_lent(ingest, "me", number, payload, size) == ENDPOINT_SENT)
			n++;
		else
			fulls++;
	}
	ck_assert_int_gt(n, 0);
	released = n_released;
	ck_assert_int_eq(send_lent(ingest, "me", number, payload, size), ENDPOINT_FULL);
	ck_assert_int_eq(n_released, released + 1);
	for (int i = 0; i < n; i++) {
		snprintf(number, sizeof number, "%d", i);
		ck_assert(peer_receive(peer, text, sizeof text, 0));
		ck_assert_str_eq(text, number);
		ck_assert(peer_receive(peer, text, sizeof text, 0));
	}
	while (send_lent(ingest, "me", "last", payload, size) != ENDPOINT_SENT)
		nap();
	ck_assert(peer_receive(peer, text, sizeof text, 0));
	ck_assert_str_eq(text, "last");
	endpoint_message_clear(&message);
	zmq_close(peer);
	endpoint_free(ingest, 0);
	endpoint_context_free(context);
	context = NULL;
	ck_assert_int_eq(n_released, n_lent);
	free(payload);
}
END_TEST

/* A client that comes back with its identity takes over from its lost connection. */
START_TEST(identity_is_handed_over)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, ipc_address);
	void *lost = connect_peer(ZMQ_DEALER, "me", 10, ingest), *peer;
	struct endpoint_message message;
	char text[16];

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	peer_send(lost, (const char *const[]){ "first" }, 1);
	receive(ingest, &message);
	peer = connect_peer(ZMQ_DEALER, "me", 10, ingest);
	peer_send(peer, (const char *const[]){ "second" }, 1);
	receive(ingest, &message);
	assert_frame(&message, 1, "second");
	ck_assert_int_eq(send_lent(ingest, "me", "hello again", "", 0), ENDPOINT_SENT);
	ck_assert(peer_receive(peer, text, sizeof text, 0));
	ck_assert_str_eq(text, "hello again");
	endpoint_message_clear(&message);
	zmq_close(lost);
	zmq_close(peer);
	endpoint_free(ingest, 0);
}
END_TEST

/* Take one whole message and return its topic. */
static bool take(void *subscriber, char *topic, size_t room, int flags)
{
	char rest[16];

	return peer_receive(subscriber, topic, room, flags) && peer_receive(subscriber, rest, sizeof rest, 0)
	    && peer_receive(subscriber, rest, sizeof rest, 0);
}

/* Publish until the subscriber has got something, so that it is known to have subscribed. */
static void await_subscription(struct endpoint *publish, void *subscriber)
{
	char topic[16];

	while (!take(subscriber, topic, sizeof topic, ZMQ_DONTWAIT)) {
		send_lent(publish, "probe", "", "", 0);
		nap();
	}
}

/*
 * One subscriber stands still, one reads: the one that reads gets everything, and every message that the other one
 * missed was reported.  Once it has caught up nothing is reported any more.
 */
START_TEST(slow_subscriber)
{
	struct endpoint *publish = open_endpoint(ENDPOINT_PUBLISH, transport(_i));
	void *healthy = connect_peer(ZMQ_SUB, NULL, 100, publish), *stalled = connect_peer(ZMQ_SUB, NULL, 1, publish);
	const size_t size = 1 << 18;
	const int n = 200;
	char *payload = calloc(1, size), number[16], topic[16];
	int missed = 0, got = 0;

	await_subscription(publish, healthy);
	await_subscription(publish, stalled);
	for (int i = 0; i < n; i++) {
		snprintf(number, sizeof number, "%d", i);
		missed += send_lent(publish, number, "header", payload, size) == ENDPOINT_DROPPED;
		do
			ck_assert(take(healthy, topic, sizeof topic, 0));
		while (strcmp(topic, "probe") == 0);
		ck_assert_str_eq(topic, number);
	}
	ck_assert_int_gt(missed, 0);
	ck_assert_int_lt(missed, n);
	while (strcmp(topic, "end") != 0) {
		send_lent(publish, "end", "", "", 0);
		while (strcmp(topic, "end") != 0 && take(stalled, topic, sizeof topic, ZMQ_DONTWAIT))
			got += strcmp(topic, "end") != 0 && strcmp(topic, "probe") != 0;
		while (take(healthy, number, sizeof number, ZMQ_DONTWAIT))
			;
		nap();
	}
	ck_assert_int_gt(got, 0);
	ck_assert_int_ge(missed, n - got);
	while (send_lent(publish, "over", "", "", 0) != ENDPOINT_SENT) {
		while (take(healthy, topic, sizeof topic, ZMQ_DONTWAIT)
		       || take(stalled, topic, sizeof topic, ZMQ_DONTWAIT))
			;
		nap();
	}
	zmq_close(healthy);
	zmq_close(stalled);
	endpoint_free(publish, 0);
	free(payload);
}
END_TEST

START_TEST(nobody_subscribes)
{
	struct endpoint *publish = open_endpoint(ENDPOINT_PUBLISH, "tcp://127.0.0.1:*");

	for (int i = 1; i <= 100; i++) {
		ck_assert_int_eq(send_lent(publish, "ecg", "header", "payload", 7), ENDPOINT_SENT);
		ck_assert_int_eq(n_released, i);
	}
	endpoint_free(publish, 0);
}
END_TEST

/* A send that the socket cannot do fails, and what was lent is given back once. */
START_TEST(impossible_send)
{
	struct endpoint *subscribe = open_endpoint(ENDPOINT_SUBSCRIBE, ipc_address);
	const struct endpoint_frame frames[] = {
		{ .data = "a", .size = 1, .release = count_release, .arg = &n_released },
		{ .data = "b", .size = 1, .release = count_release, .arg = &n_released },
	};
	enum endpoint_sent sent;

	ck_assert_int_eq(endpoint_send(subscribe, frames, 2, &sent, &err), ERR_SYSTEM);
	ck_assert_ptr_nonnull(strstr(err.text, ipc_address));
	ck_assert_int_eq(n_released, 2);
	endpoint_free(subscribe, 0);
}
END_TEST

START_TEST(first_frame_is_released_too)
{
	struct endpoint *publish = open_endpoint(ENDPOINT_PUBLISH, ipc_address);
	const struct endpoint_frame frame = { .data = "a", .size = 1, .release = count_release, .arg = &n_released };
	enum endpoint_sent sent;

	ck_assert_int_eq(endpoint_send(publish, &frame, 1, &sent, &err), 0);
	ck_assert_int_eq(n_released, 1);
	endpoint_free(publish, 0);
}
END_TEST

/* What is waiting when the endpoint is closed leaves if it is given the time. */
START_TEST(linger)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, ipc_address);
	void *peer = connect_peer(ZMQ_DEALER, "me", 10, ingest);
	struct endpoint_message message;
	char text[16];

	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	peer_send(peer, (const char *const[]){ "hello" }, 1);
	receive(ingest, &message);
	ck_assert_int_eq(send_lent(ingest, "me", "goodbye", "", 0), ENDPOINT_SENT);
	endpoint_message_clear(&message);
	endpoint_free(ingest, PATIENCE_MS);
	ck_assert(peer_receive(peer, text, sizeof text, 0));
	ck_assert_str_eq(text, "goodbye");
	zmq_close(peer);
}
END_TEST

static unsigned int find_nobody(void *arg, const unsigned char key[KEY_BYTES], const char *address, size_t size)
{
	(void)arg;
	(void)key;
	(void)address;
	(void)size;
	return ENDPOINT_NOBODY;
}

static uint64_t no_time(void *arg)
{
	(void)arg;
	return 0;
}

/* Without a ZAP handler ZeroMQ lets everybody in, so an endpoint with keys is not opened; and there is one handler. */
START_TEST(no_keys_without_a_handler)
{
	const struct zap_rules rules = { .find = find_nobody, .time = no_time };
	struct endpoint_options keyed = options;
	struct endpoint *endpoint, *zap, *second;
	struct endpoint_message message;
	struct key_pair pair;

	ck_assert_int_eq(keys_generate(&pair, &err), 0);
	keyed.secret_key = pair.secret_key;
	ck_assert_int_eq(endpoint_new(context, (enum endpoint_kind)_i, &keyed, &endpoint, &err), 0);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(endpoint_attach(endpoint, transport(i), &err), ERR_SYSTEM);
		ck_assert_ptr_nonnull(strstr(err.text, "there is no ZAP handler"));
	}
	ck_assert_int_eq(zap_open(context, &zap, &err), 0);
	ck_assert_int_eq(zap_open(context, &second, &err), ERR_SYSTEM);
	ck_assert_int_eq(endpoint_attach(endpoint, transport(2), &err), 0);
	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	ck_assert_int_eq(zap_serve(zap, &message, &rules, &err), 0);
	endpoint_message_clear(&message);
	endpoint_free(zap, 0);
	ck_assert_int_eq(endpoint_attach(endpoint, transport(2), &err), ERR_SYSTEM);
	endpoint_free(endpoint, 0);
}
END_TEST

/* Within the process no handler is asked: nobody vouches for what comes so, and it is not what anybody may send. */
START_TEST(a_message_that_nobody_vouches_for)
{
	struct endpoint_options keyed = options;
	struct endpoint *endpoint, *zap;
	struct endpoint_message message;
	struct key_pair pair;
	void *peer;

	ck_assert_int_eq(keys_generate(&pair, &err), 0);
	keyed.secret_key = pair.secret_key;
	ck_assert_int_eq(zap_open(context, &zap, &err), 0);
	ck_assert_int_eq(endpoint_new(context, ENDPOINT_INGEST, &keyed, &endpoint, &err), 0);
	ck_assert_int_eq(endpoint_attach(endpoint, transport(0), &err), 0);
	peer = zmq_socket(context->zmq, ZMQ_DEALER);
	ck_assert_int_eq(zmq_connect(peer, transport(0)), 0);
	peer_send(peer, (const char *[]){ "a" }, 1);
	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	receive(endpoint, &message);
	ck_assert_uint_eq(message.user, ENDPOINT_NOBODY);
	endpoint_message_clear(&message);
	zmq_close(peer);
	endpoint_free(endpoint, 0);
	endpoint_free(zap, 0);
}
END_TEST

START_TEST(addresses)
{
	struct endpoint *first = open_endpoint(ENDPOINT_INGEST, "@tcp://127.0.0.1:*"), *second;
	const char *address = endpoint_address(first);

	ck_assert_msg(strncmp(address, "tcp://127.0.0.1:", 16) == 0, "%s", address);
	ck_assert_int_eq(endpoint_new(context, ENDPOINT_INGEST, &options, &second, &err), 0);
	ck_assert_int_eq(endpoint_attach(second, address, &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "cannot bind to") && strstr(err.text, address), "%s", err.text);
	ck_assert_int_eq(endpoint_attach(second, ">carrier-pigeon://roof", &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "cannot connect to carrier-pigeon://roof: "), "%s", err.text);
	ck_assert_int_eq(endpoint_attach(second, "ipc:///no/such/folder/socket", &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "/no/such/folder/socket: No such file"), "%s", err.text);
	ck_assert_int_eq(endpoint_attach(second, "tcp://127.0.0.1:*", &err), 0);
	ck_assert_int_eq(endpoint_attach(second, ipc_address, &err), 0);
	ck_assert_str_eq(endpoint_address(second), ipc_address);
	endpoint_free(first, 0);
	endpoint_free(second, 0);
	endpoint_free(NULL, 0);
	endpoint_context_free(NULL);
}
END_TEST

/* A socket file that a killed daemon left behind is no obstacle. */
START_TEST(stale_ipc_socket)
{
	FILE *stale = fopen(ipc_address + strlen("ipc://"), "w");

	ck_assert_ptr_nonnull(stale);
	fclose(stale);
	endpoint_free(open_endpoint(ENDPOINT_INGEST, ipc_address), 0);
}
END_TEST

START_TEST(poll_tells_who_is_ready)
{
	struct endpoint *endpoints[2] = { open_endpoint(ENDPOINT_INGEST, ipc_address),
					  open_endpoint(ENDPOINT_INGEST, "tcp://127.0.0.1:*") };
	void *peer = connect_peer(ZMQ_DEALER, "me", 10, endpoints[1]);
	bool wanted[2] = { true, true }, ready[2], fd_ready[2];
	int idle[2], pipe_ends[2], fds[2];

	ck_assert_int_eq(pipe(idle), 0);
	ck_assert_int_eq(pipe(pipe_ends), 0);
	ck_assert_int_eq(write(pipe_ends[1], "x", 1), 1);
	fds[0] = idle[0];
	fds[1] = pipe_ends[0];
	ck_assert_int_eq(endpoint_poll(endpoints, wanted, ready, 2, fds, fd_ready, 2, -1, &err), 0);
	ck_assert(!ready[0] && !ready[1] && !fd_ready[0] && fd_ready[1]);
	peer_send(peer, (const char *const[]){ "hello" }, 1);
	ck_assert_int_eq(endpoint_poll(endpoints, wanted, ready, 2, fds, fd_ready, 1, -1, &err), 0);
	ck_assert(!ready[0] && ready[1] && !fd_ready[0]);
	wanted[1] = false;
	ck_assert_int_eq(endpoint_poll(endpoints, wanted, ready, 2, fds, fd_ready, 1, 0, &err), 0);
	ck_assert(!ready[0] && !ready[1]);
	zmq_close(peer);
	endpoint_free(endpoints[0], 0);
	endpoint_free(endpoints[1], 0);
}
END_TEST

static void on_signal(int number)
{
	(void)number;
}

static void *interrupt(void *thread)
{
	for (int i = 0; i < 5; i++) {
		nap();
		pthread_kill(*(pthread_t *)thread, SIGUSR1);
	}
	return NULL;
}

START_TEST(signal_ends_poll)
{
	struct endpoint *ingest = open_endpoint(ENDPOINT_INGEST, ipc_address);
	const struct sigaction action = { .sa_handler = on_signal };
	const bool wanted = true;
	pthread_t self = pthread_self(), other;
	bool ready = true;

	ck_assert_int_eq(sigaction(SIGUSR1, &action, NULL), 0);
	ck_assert_int_eq(pthread_create(&other, NULL, interrupt, &self), 0);
	ck_assert_int_eq(endpoint_poll(&ingest, &wanted, &ready, 1, NULL, NULL, 0, PATIENCE_MS * 10, &err), 0);
	ck_assert(!ready);
	pthread_join(other, NULL);
	endpoint_free(ingest, 0);
}
END_TEST

/* The tally by itself: three messages, the second dropped to someone, is over when the first two are gone. */
START_TEST(tally_follows_generations)
{
	struct tally *tally = tally_new();
	void *copies[4], *args[4];

	for (int i = 0; i < 2; i++)
		copies[i] = tally_track(tally, "x", 1, &args[i]);
	ck_assert(!tally_missed(tally, false));
	ck_assert(tally_missed(tally, true));
	for (int i = 2; i < 4; i++) {
		copies[i] = tally_track(tally, "x", 1, &args[i]);
		ck_assert(tally_missed(tally, false));
	}
	tally_release(copies[0], args[0]);
	ck_assert(tally_missed(tally, false));
	ck_assert(tally_missed(tally, true)); /* another one, who may hold messages of the second generation */
	tally_release(copies[1], args[1]);
	ck_assert(tally_missed(tally, false));
	tally_release(copies[2], args[2]);
	ck_assert(tally_missed(tally, false));
	tally_release(copies[3], args[3]);
	ck_assert(!tally_missed(tally, false));
	copies[0] = tally_track(tally, "", 0, &args[0]);
	tally_free(tally);
	tally_release(copies[0], args[0]);
	tally_free(NULL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("endpoint");
	TCase *sockets = tcase_create("sockets");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, sockets);
	tcase_add_checked_fixture(sockets, set_up, tear_down);
	tcase_set_timeout(sockets, 120);
	tcase_add_loop_test(sockets, publish_reaches_subscribe, 0, 6);
	tcase_add_loop_test(sockets, router_answers_its_peer, 1, 3);
	tcase_add_test(sockets, many_frames);
	tcase_add_test(sockets, too_large_a_frame);
	tcase_add_loop_test(sockets, peer_that_is_gone, 1, 3);
	tcase_add_loop_test(sockets, peer_that_is_full, 1, 3);
	tcase_add_test(sockets, identity_is_handed_over);
	tcase_add_loop_test(sockets, slow_subscriber, 1, 3);
	tcase_add_test(sockets, nobody_subscribes);
	tcase_add_test(sockets, impossible_send);
	tcase_add_test(sockets, first_frame_is_released_too);
	tcase_add_test(sockets, linger);
	tcase_add_loop_test(sockets, no_keys_without_a_handler, ENDPOINT_INGEST, ENDPOINT_ZAP);
	tcase_add_test(sockets, a_message_that_nobody_vouches_for);
	tcase_add_test(sockets, addresses);
	tcase_add_test(sockets, stale_ipc_socket);
	tcase_add_test(sockets, poll_tells_who_is_ready);
	tcase_add_test(sockets, signal_ends_poll);
	tcase_add_test(sockets, tally_follows_generations);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
