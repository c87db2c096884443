/*
 * Subscribers with keys, at the moments in which ZeroMQ 4.3.4 would mistake who asked for what: a subscriber that is
 * gone before its subscription is read, and messages that are no subscriptions.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <zmq.h>

#include "protocol/endpoint.h"
#include "protocol/subscribers.h"
#include "protocol/zap.h"
#include "tests/suite.h"

#define PATIENCE 2000 /* turns of 10 ms: what is bound to happen has happened by then, or the test fails */
#define A_WHILE 20    /* turns in which something that was sent arrives; too few only make a test pass that should */

static struct endpoint_context *context;
static struct endpoint *zap, *publish;
static struct subscribers *subscribers;
static struct endpoint_message message;
static struct key_pair own, keys[2]; /* the daemon's; those of users 1 and 2 */
static void *peers;
static struct error err;

static void set_up(void)
{
	struct endpoint_options options = { .message_bytes = 1000, .send_high_water = 10, .receive_high_water = 10 };

	ck_assert_int_eq(keys_generate(&own, &err), 0);
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(keys_generate(&keys[i], &err), 0);
	options.secret_key = own.secret_key;
	ck_assert_int_eq(endpoint_context_new(1, &context, &err), 0);
	ck_assert_int_eq(endpoint_message_init(&message, &err), 0);
	ck_assert_int_eq(zap_open(context, &zap, &err), 0);
	ck_assert_int_eq(endpoint_new(context, ENDPOINT_PUBLISH, &options, &publish, &err), 0);
	ck_assert_msg(endpoint_attach(publish, "tcp://127.0.0.1:*", &err) == 0, "%s", err.text);
	subscribers = endpoint_subscribers(publish);
	peers = zmq_ctx_new();
}

static void tear_down(void)
{
	zmq_ctx_term(peers);
	endpoint_message_clear(&message);
	endpoint_free(publish, 0);
	endpoint_free(zap, 0);
	endpoint_context_free(context);
}

static unsigned int find(void *arg, const unsigned char key[KEY_BYTES], const char *address, size_t size)
{
	char text[KEY_TEXT];

	(void)arg;
	(void)address;
	(void)size;
	keys_format(key, text);
	for (unsigned int i = 0; i < 2; i++)
		if (!strcmp(text, keys[i].public_key))
			return i + 1;
	return ENDPOINT_NOBODY;
}

static uint64_t now(void *arg)
{
	(void)arg;
	return connections_time(endpoint_connections(publish));
}

/* Let in who knocks, and let the publish socket take in what arrives; nothing is read from it. */
static void turn(int n)
{
	struct endpoint *const endpoints[] = { zap, publish };
	static const bool wanted[] = { true, true };
	const struct zap_rules rules = { .find = find, .time = now };
	bool ready[2];

	for (int i = 0; i < n; i++) {
		ck_assert_int_eq(endpoint_poll(endpoints, wanted, ready, 2, NULL, NULL, 0, 0, &err), 0);
		ck_assert_int_eq(zap_serve(zap, &message, &rules, &err), 0);
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
}

/* Connect with the key of a user, and let what it sends arrive. */
static void *connect_user(unsigned int user)
{
	void *socket = zmq_socket(peers, ZMQ_XSUB);
	const int zero = 0;

	zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
	zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, own.public_key, KEY_TEXT);
	zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, keys[user - 1].public_key, KEY_TEXT);
	zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, keys[user - 1].secret_key, KEY_TEXT);
	ck_assert_int_eq(zmq_connect(socket, endpoint_address(publish)), 0);
	return socket;
}

static void say(void *socket, const char *text)
{
	ck_assert_int_eq(zmq_send(socket, text, strlen(text), 0), (int)strlen(text));
	turn(A_WHILE);
}

/* Grant what is asked for; how many subscriptions there were. */
static int grant_all(void)
{
	struct subscription asked;
	int n = 0;

	while (subscribers_next(subscribers, &asked, &err) > 0) {
		ck_assert_int_eq((asked.add ? subscribers_grant : subscribers_withdraw)(subscribers, asked.prefix,
											asked.size, &err), 0);
		n++;
	}
	return n;
}

static void send_topic(const char *topic)
{
	const struct endpoint_frame frame = { .data = topic, .size = strlen(topic) };
	enum endpoint_sent sent;

	ck_assert_int_eq(endpoint_send(publish, &frame, 1, &sent, &err), 0);
	turn(A_WHILE / 4);
}

/* Whether the next message that has arrived is text. */
static bool hears(void *socket, const char *text)
{
	char bytes[64] = "";

	return zmq_recv(socket, bytes, sizeof bytes - 1, ZMQ_DONTWAIT) >= 0 && !strcmp(bytes, text);
}

START_TEST(nothing_is_heard_before_it_is_granted)
{
	void *socket = connect_user(1);
	struct subscription asked;
	int n = 0;

	zmq_send(socket, "\1a", 2, 0);
	while ((n = subscribers_next(subscribers, &asked, &err)) == 0)
		turn(1);
	ck_assert_int_eq(n, 1);
	ck_assert(asked.user == 1 && asked.add && asked.size == 1 && !memcmp(asked.prefix, "a", 1));
	send_topic("a1");
	ck_assert(!hears(socket, "a1"));
	ck_assert_int_eq(subscribers_grant(subscribers, "ab", 2, &err), 0);
	send_topic("a2");
	send_topic("ab");
	for (int i = 0; i < PATIENCE && !hears(socket, "ab"); i++)
		turn(1);
	say(socket, (const char[]){ '\0', 'a', '\0' });
	zmq_close(socket);
}
END_TEST

/* ZeroMQ remembers a pointer to the connection, which it frees. */
START_TEST(who_is_gone_gets_nothing)
{
	void *socket = connect_user(1);

	say(socket, "\1a");
	say(socket, "\1b");
	zmq_close(socket);
	turn(A_WHILE);
	ck_assert_int_eq(grant_all(), 0);
	send_topic("a");
}
END_TEST

/* The same, where another subscriber has the file descriptor by then. */
START_TEST(who_is_gone_is_not_taken_for_the_next)
{
	void *socket = connect_user(1), *next;

	say(socket, "\1a");
	zmq_close(socket);
	turn(A_WHILE);
	next = connect_user(2);
	turn(A_WHILE);
	ck_assert_int_eq(grant_all(), 0);
	send_topic("a");
	ck_assert(!hears(next, "a"));
	zmq_close(next);
}
END_TEST

/* One that no longer is a subscription makes ZeroMQ take the sender of the next for the one of this. */
START_TEST(nonsense_puts_nobody_in_anothers_place)
{
	void *reader = connect_user(1), *liar = connect_user(2);

	turn(A_WHILE);
	say(liar, "nonsense");
	say(reader, "\1secret");
	say(liar, "\1public");
	grant_all();
	for (int i = 0; i < PATIENCE; i++) {
		send_topic("secret");
		ck_assert(!hears(liar, "secret"));
		if (hears(reader, "secret"))
			break;
		turn(1);
		grant_all(); /* who was cut off comes again */
		ck_assert_int_lt(i, PATIENCE - 1);
	}
	zmq_close(reader);
	zmq_close(liar);
}
END_TEST

START_TEST(a_user_is_cut_off)
{
	void *one = connect_user(1), *two = connect_user(2);
	int granted = 0;

	say(one, "\1a");
	say(two, "\1a");
	for (int i = 0; i < PATIENCE && granted < 2; i++, turn(1))
		granted += grant_all();
	ck_assert_int_eq(granted, 2);
	connections_cut_user(endpoint_connections(publish), 1);
	turn(A_WHILE);
	send_topic("a");
	for (int i = 0; !hears(two, "a"); i++, turn(1))
		ck_assert_int_lt(i, PATIENCE);
	turn(A_WHILE);
	ck_assert(!hears(one, "a"));
	zmq_close(one);
	zmq_close(two);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("subscribers");
	TCase *tests = tcase_create("subscribers");

	tcase_add_checked_fixture(tests, set_up, tear_down);
	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, nothing_is_heard_before_it_is_granted);
	tcase_add_test(tests, who_is_gone_gets_nothing);
	tcase_add_test(tests, who_is_gone_is_not_taken_for_the_next);
	tcase_add_test(tests, nonsense_puts_nobody_in_anothers_place);
	tcase_add_test(tests, a_user_is_cut_off);
	suite_add_tcase(suite, tests);
	return suite_run(suite);
}
