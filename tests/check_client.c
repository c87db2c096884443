/* The C client against the daemon's sockets: feeding, subscribing, control, and what a broken daemon may send. */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zmq.h>

#include "protocol/client.h"
#include "protocol/control.h"
#include "protocol/endpoint.h"
#include "protocol/refusal.h"

#define PATIENCE_MS 20000 /* what is bound to come has come by then, or the test fails */

static const struct endpoint_options options = {
	.message_bytes = 1 << 20, .send_high_water = 10, .receive_high_water = 10
};

static struct endpoint_context *context;
static struct endpoint *endpoint; /* the daemon's side */
static struct endpoint_message received;
static struct client *client;
static struct error err;

static void set_up(void)
{
	ck_assert_int_eq(endpoint_context_new(1, &context, &err), 0);
	ck_assert_int_eq(endpoint_message_init(&received, &err), 0);
}

static void tear_down(void)
{
	client_free(client, 0);
	client = NULL;
	endpoint_message_clear(&received);
	endpoint_free(endpoint, 0);
	endpoint = NULL;
	endpoint_context_free(context);
}

static void join(enum endpoint_kind kind, enum client_kind client_kind)
{
	ck_assert_int_eq(endpoint_new(context, kind, &options, &endpoint, &err), 0);
	ck_assert_int_eq(endpoint_attach(endpoint, "tcp://127.0.0.1:*", &err), 0);
	ck_assert_int_eq(client_new(client_kind, endpoint_address(endpoint), NULL, &client, &err), 0);
}

static void receive(void)
{
	const bool wanted = true;
	bool ready;

	ck_assert_int_eq(endpoint_poll(&endpoint, &wanted, &ready, 1, NULL, NULL, 0, PATIENCE_MS, &err), 0);
	ck_assert_int_eq(endpoint_receive(endpoint, &received, &err), 1);
}

/* Answer the peer that was received from last with these frames. */
static void answer(const struct endpoint_frame *frames, size_t n)
{
	struct endpoint_frame all[8] = { { .data = received.frame[0].data, .size = received.frame[0].size } };
	enum endpoint_sent sent;

	memcpy(all + 1, frames, n * sizeof *frames);
	ck_assert_int_eq(endpoint_send(endpoint, all, n + 1, &sent, &err), 0);
	ck_assert_int_eq(sent, ENDPOINT_SENT);
}

START_TEST(rows_there_and_hidden_states_back)
{
	static const float rows[2][3] = { { 1, 2, 3 }, { 4, 5, 6 } };
	const struct message data = { .type = MESSAGE_DATA, .has_pos = true, .pos = 7, .has_shape = true, .rows = 2,
				      .columns = 3, .dtype = DTYPE_FLOAT32 };
	struct message hidden = data, decoded;
	struct client_message got;
	char header[MESSAGE_HEADER_MAX];

	join(ENDPOINT_INGEST, CLIENT_INGEST);
	ck_assert_int_eq(client_send(client, "ecg", 3, &data, rows, PATIENCE_MS, &err), 0);
	receive();
	ck_assert_uint_eq(received.n_frames, 4);
	ck_assert_mem_eq(received.frame[1].data, "ecg", 3);
	ck_assert_int_eq(message_decode(received.frame[2].data, received.frame[2].size, &decoded, &err), 0);
	ck_assert_uint_eq(decoded.pos, 7);
	ck_assert_uint_eq(received.frame[3].size, sizeof rows);
	ck_assert_mem_eq(received.frame[3].data, rows, sizeof rows);

	hidden.type = MESSAGE_HIDDEN;
	answer((const struct endpoint_frame[]){ { .data = "ecg", .size = 3 },
						{ .data = header, .size = message_encode(&hidden, header) },
						{ .data = rows, .size = sizeof rows } }, 3);
	ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), 1);
	ck_assert_int_eq(got.header.type, MESSAGE_HIDDEN);
	ck_assert_uint_eq(got.stream_size, 3);
	ck_assert_mem_eq(got.stream, "ecg", 3);
	ck_assert_uint_eq(got.payload_size, sizeof rows);
	ck_assert_mem_eq(got.payload, rows, sizeof rows);
	ck_assert_int_eq(client_receive(client, 0, &got, &err), 0);
}
END_TEST

START_TEST(messages_without_payload)
{
	const struct message open = { .type = MESSAGE_OPEN, .reply = true };
	const struct message ack = { .type = MESSAGE_ACK, .next = 5, .credit = 100 };
	struct client_message got;
	char header[MESSAGE_HEADER_MAX];

	join(ENDPOINT_INGEST, CLIENT_INGEST);
	ck_assert_int_eq(client_send(client, "ecg", 3, &open, NULL, PATIENCE_MS, &err), 0);
	receive();
	ck_assert_uint_eq(received.n_frames, 3);
	answer((const struct endpoint_frame[]){ { .data = "ecg", .size = 3 },
						{ .data = header, .size = message_encode(&ack, header) } }, 2);
	ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), 1);
	ck_assert_int_eq(got.header.type, MESSAGE_ACK);
	ck_assert_uint_eq(got.header.next, 5);
	ck_assert_ptr_null(got.payload);
}
END_TEST

/* A daemon that breaks the protocol is told of, and what it sends next is received. */
START_TEST(broken_messages_are_errors)
{
	const struct message open = { .type = MESSAGE_OPEN }, ack = { .type = MESSAGE_ACK };
	const struct message hidden = { .type = MESSAGE_HIDDEN, .has_pos = true, .has_shape = true, .rows = 1,
					.columns = 2, .dtype = DTYPE_FLOAT32 };
	char ack_header[MESSAGE_HEADER_MAX], hidden_header[MESSAGE_HEADER_MAX];
	const struct endpoint_frame id = { .data = "ecg", .size = 3 };
	const struct endpoint_frame good = { .data = ack_header, .size = message_encode(&ack, ack_header) };
	const struct endpoint_frame row = { .data = hidden_header, .size = message_encode(&hidden, hidden_header) };
	struct client_message got;

	join(ENDPOINT_INGEST, CLIENT_INGEST);
	ck_assert_int_eq(client_send(client, "ecg", 3, &open, NULL, PATIENCE_MS, &err), 0);
	receive();
	answer(&id, 1);
	answer((const struct endpoint_frame[]){ id, good, id, id, id }, 5);
	answer((const struct endpoint_frame[]){ id, id }, 2);
	answer((const struct endpoint_frame[]){ id, row }, 2);
	answer((const struct endpoint_frame[]){ id, row, id }, 3);
	answer((const struct endpoint_frame[]){ id, good, id }, 3);
	answer((const struct endpoint_frame[]){ id, good }, 2);
	ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), ERR_FORMAT);
	ck_assert_ptr_nonnull(strstr(err.text, "1 frames"));
	ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), ERR_FORMAT);
	ck_assert_ptr_nonnull(strstr(err.text, "5 frames"));
	ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), REFUSED_BAD_HEADER);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), ERR_FORMAT);
		ck_assert_ptr_nonnull(strstr(err.text, "payload"));
	}
	ck_assert_int_eq(client_receive(client, PATIENCE_MS, &got, &err), 1);
	ck_assert_int_eq(got.header.type, MESSAGE_ACK);
}
END_TEST

START_TEST(subscriber_gets_its_prefix)
{
	const struct message event = { .type = MESSAGE_EVENT, .has_pos = true, .event = EVENT_CLOSED };
	static const char *const streams[] = { "patient/1", "pilot/1", "patient/2" };
	char header[MESSAGE_HEADER_MAX];
	const size_t header_size = message_encode(&event, header);
	struct client_message got;
	bool seen_second = false;
	int status = 0;

	join(ENDPOINT_PUBLISH, CLIENT_SUBSCRIBE);
	ck_assert_int_eq(client_subscribe(client, "patient/", 8, &err), 0);
	while (!seen_second) {
		for (size_t i = 0; i < 3; i++) {
			const struct endpoint_frame frames[] = { { .data = streams[i], .size = strlen(streams[i]) },
								 { .data = header, .size = header_size } };
			enum endpoint_sent sent;

			ck_assert_int_eq(endpoint_send(endpoint, frames, 2, &sent, &err), 0);
		}
		while ((status = client_receive(client, 1, &got, &err)) > 0) {
			ck_assert_uint_eq(got.stream_size, 9);
			ck_assert_mem_eq(got.stream, "patient/", 8);
			seen_second |= memcmp(got.stream, "patient/2", 9) == 0;
		}
		ck_assert_int_eq(status, 0);
	}
}
END_TEST

START_TEST(a_daemon_that_takes_nothing)
{
	const struct message open = { .type = MESSAGE_OPEN };
	int rc = 0;

	ck_assert_int_eq(client_new(CLIENT_INGEST, "tcp://127.0.0.1:1", NULL, &client, &err), 0);
	while (!rc)
		rc = client_send(client, "ecg", 3, &open, NULL, 0, &err);
	ck_assert_int_eq(rc, ERR_SYSTEM);
	ck_assert_ptr_nonnull(strstr(err.text, "tcp://127.0.0.1:1 takes nothing"));
}
END_TEST

/* Answers of a daemon of one command, in a thread of its own, until it is asked to stop. */
static void *serve(void *arg)
{
	bool stopped = false;

	(void)arg;
	while (!stopped) {
		struct control_writer writer;
		struct control request;
		enum endpoint_sent sent;
		char bytes[256];
		size_t frame;

		receive();
		frame = control_request_frame(&received);
		ck_assert_uint_gt(frame, 0);
		control_begin_refusal(&writer, bytes, sizeof bytes, REFUSED_BAD_HEADER, "what?");
		if (control_read(received.frame[frame].data, received.frame[frame].size, &request, NULL) == 0) {
			stopped = control_is(&request, "cmd", "stop");
			control_begin_answer(&writer, bytes, sizeof bytes);
			control_put_uint(&writer, "n_frames", received.n_frames);
		}
		ck_assert_int_eq(control_answer(endpoint, &received, bytes, control_finish(&writer), &sent, &err), 0);
	}
	return NULL;
}

static char stop[64]; /* the request to stop */

static size_t write_stop(void)
{
	struct control_writer writer;

	control_begin_request(&writer, stop, sizeof stop, "stop");
	return control_finish(&writer);
}

START_TEST(control_request_of_a_dealer)
{
	struct control reply;
	uint64_t n_frames = 0;
	bool ok = true;
	pthread_t daemon;

	join(ENDPOINT_CONTROL, CLIENT_CONTROL);
	ck_assert_int_eq(pthread_create(&daemon, NULL, serve, NULL), 0);
	ck_assert_int_eq(client_request(client, "?", 1, PATIENCE_MS, &reply, &err), 0);
	ck_assert_int_eq(control_get_bool(&reply, "ok", &ok, &err), 0);
	ck_assert(!ok);
	ck_assert_int_eq(client_request(client, stop, write_stop(), PATIENCE_MS, &reply, &err), 0);
	ck_assert_int_eq(control_get_bool(&reply, "ok", &ok, &err), 0);
	ck_assert(ok);
	ck_assert_int_eq(control_get_uint(&reply, "n_frames", &n_frames, &err), 0);
	ck_assert_uint_eq(n_frames, 2);
	pthread_join(daemon, NULL);
}
END_TEST

START_TEST(control_request_of_a_req)
{
	char reply[64];
	const int patience = PATIENCE_MS;
	struct control control;
	uint64_t n_frames = 0;
	pthread_t daemon;
	void *peers = zmq_ctx_new(), *peer = zmq_socket(peers, ZMQ_REQ);
	int size;

	join(ENDPOINT_CONTROL, CLIENT_CONTROL);
	ck_assert_int_eq(zmq_setsockopt(peer, ZMQ_RCVTIMEO, &patience, sizeof patience), 0);
	ck_assert_int_eq(zmq_connect(peer, endpoint_address(endpoint)), 0);
	ck_assert_int_eq(pthread_create(&daemon, NULL, serve, NULL), 0);
	ck_assert_int_gt(zmq_send(peer, stop, write_stop(), 0), 0);
	size = zmq_recv(peer, reply, sizeof reply, 0);
	ck_assert_int_gt(size, 0);
	ck_assert_int_eq(control_read(reply, (size_t)size, &control, &err), 0);
	ck_assert_int_eq(control_get_uint(&control, "n_frames", &n_frames, &err), 0);
	ck_assert_uint_eq(n_frames, 3);
	pthread_join(daemon, NULL);
	zmq_close(peer);
	zmq_ctx_term(peers);
}
END_TEST

START_TEST(frames_that_are_no_request)
{
	const struct message any = { .type = MESSAGE_OPEN };

	join(ENDPOINT_CONTROL, CLIENT_INGEST);
	ck_assert_int_eq(client_send(client, "not empty", 9, &any, NULL, PATIENCE_MS, &err), 0);
	receive();
	ck_assert_uint_eq(received.n_frames, 3);
	ck_assert_uint_eq(control_request_frame(&received), 0);
}
END_TEST

START_TEST(daemon_that_is_not_there)
{
	struct control reply;
	struct client_message got;
	char address[64];

	snprintf(address, sizeof address, "ipc:///tmp/check_client.%d.absent", (int)getpid());
	ck_assert_int_eq(client_new(CLIENT_CONTROL, address, NULL, &client, &err), 0);
	ck_assert_int_eq(client_request(client, stop, write_stop(), 10, &reply, &err), ERR_SYSTEM);
	ck_assert_msg(strstr(err.text, "no answer from") && strstr(err.text, address), "%s", err.text);
	client_free(client, 0);
	ck_assert_int_eq(client_new(CLIENT_INGEST, address, NULL, &client, &err), 0);
	ck_assert_int_eq(client_receive(client, 10, &got, &err), 0);
	client_free(client, 0);
	client = NULL;
	ck_assert_int_eq(client_new(CLIENT_INGEST, "nonsense", NULL, &client, &err), ERR_ARGUMENT);
	ck_assert_msg(strstr(err.text, "cannot connect to \"nonsense\", expected tcp://HOST:PORT or "), "%s", err.text);
}
END_TEST

START_TEST(stream_keeps_within_its_credit)
{
	struct message ack = { .type = MESSAGE_ACK, .epoch = 2, .next = 100, .done = 90, .durable = 80, .credit = 50 };
	struct message refusal = { .type = MESSAGE_ERROR, .code = REFUSED_NO_CREDIT, .has_expected = true,
				   .expected = 120 };
	struct client_stream stream = { .position = 0 };

	ck_assert_uint_eq(client_stream_room(&stream), 0);
	ck_assert_int_eq(client_stream_update(&stream, &ack, &err), 0);
	ck_assert_uint_eq(stream.position, 100);
	ck_assert_uint_eq(stream.epoch, 2);
	ck_assert_uint_eq(client_stream_room(&stream), 40);
	stream.position = 140;
	ck_assert_uint_eq(client_stream_room(&stream), 0);
	ack.done = 110;
	ack.next = 140;
	ck_assert_int_eq(client_stream_update(&stream, &ack, &err), 0);
	ck_assert_uint_eq(stream.position, 140);
	ck_assert_uint_eq(client_stream_room(&stream), 20);
	ck_assert_int_eq(client_stream_update(&stream, &refusal, &err), 0);
	ck_assert_uint_eq(stream.position, 120);
	ck_assert_uint_eq(client_stream_room(&stream), 40);
	refusal = (struct message){ .type = MESSAGE_ERROR, .code = REFUSED_NON_FINITE, .text = "row 3" };
	ck_assert_int_eq(client_stream_update(&stream, &refusal, &err), REFUSED_NON_FINITE);
	ck_assert_str_eq(err.text, "non_finite: row 3");
	ck_assert_int_eq(client_stream_update(&stream, &(struct message){ .type = MESSAGE_HIDDEN }, &err), 0);
	ck_assert_uint_eq(stream.position, 120);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("client");
	TCase *tests = tcase_create("client");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_checked_fixture(tests, set_up, tear_down);
	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, rows_there_and_hidden_states_back);
	tcase_add_test(tests, messages_without_payload);
	tcase_add_test(tests, broken_messages_are_errors);
	tcase_add_test(tests, subscriber_gets_its_prefix);
	tcase_add_test(tests, a_daemon_that_takes_nothing);
	tcase_add_test(tests, control_request_of_a_dealer);
	tcase_add_test(tests, control_request_of_a_req);
	tcase_add_test(tests, frames_that_are_no_request);
	tcase_add_test(tests, daemon_that_is_not_there);
	tcase_add_test(tests, stream_keeps_within_its_credit);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
