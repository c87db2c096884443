/*
 * A daemon whose device, memory or sockets fail, in steps between fakes of them: what is refused, what waits and comes
 * right again, and what ends the daemon.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fake_daemon.h"
#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/stepped_daemon.h"
#include "tests/suite.h"

/* --- devices --- */

/* How often a batch fails before the end, and for how long it is left in peace in between. */
static const struct { int code; unsigned failures; int64_t ms; } endings[] = {
	{ ERR_DEVICE, 3, 250 + 1000 }, { ERR_DEVICE_LOST, 1, 0 }
};

START_TEST(a_device_of_no_more_use_ends_the_daemon)
{
	int64_t began;

	start(false, SETTINGS("window=4"));
	feed('a');
	began = run.server.now_ms;
	fake_broken = endings[_i].code;
	say_rows('x', 'a', 9, 3);
	ck_assert_int_eq(end_of_run(), endings[_i].code);
	ck_assert_int_ge(run.server.now_ms - began, endings[_i].ms);
	ck_assert_uint_eq(run.server.stats.failed_batches, endings[_i].failures);
}
END_TEST

START_TEST(devices_must_be_alike)
{
	fake_folder_make();
	ck_assert_int_eq(fake_daemon_open(&run.server, false, SETTINGS("device=[cpu, cuda]"), &run.error),
			 ERR_ARGUMENT);
	ck_assert_ptr_nonnull(strstr(run.error.text, "cuda is \"another fake\": they must be alike"));
	fake_folder_remove();
}
END_TEST

/* What the daemon's page says of its health. */
static void ask_for_health(char *text, size_t size)
{
	static const char request[] = "GET /healthz HTTP/1.0\r\n\r\n";
	struct sockaddr_in address = { .sin_family = AF_INET };
	const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ssize_t n;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)atoi(strchr(http_address(run.server.http), ':') + 1));
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
	ck_assert_int_eq(write(fd, request, sizeof request - 1), sizeof request - 1);
	UNTIL((n = recv(fd, text, size - 1, MSG_DONTWAIT)) > 0);
	text[n] = '\0';
	close(fd);
}

START_TEST(a_device_stuck_for_a_minute_is_no_sign_of_health)
{
	char text[1024];

	start(false, SETTINGS("metrics.listen=127.0.0.1:0"));
	feed('a');
	fake_stuck = true;
	say_rows('x', 'a', 9, 3);
	ask_for_health(text, sizeof text);
	ck_assert_ptr_nonnull(strstr(text, " 200 "));
	fake_time_passes(UINT64_C(61000000000));
	ask_for_health(text, sizeof text);
	ck_assert_ptr_nonnull(strstr(text, " 503 "));
	fake_stuck = false;
	hear_rows('a', 12);
	ask_for_health(text, sizeof text);
	ck_assert_ptr_nonnull(strstr(text, " 200 "));
	stop();
}
END_TEST

START_TEST(caches_are_counted_where_they_are)
{
	struct control control;
	struct wire_reader devices;
	struct control caches;
	uint64_t moved = 0;
	size_t n = 0;

	start(false, SETTINGS("window=4"));
	feed('a');
	ask("status", "-", NULL);
	control = answered(NULL);
	ck_assert_int_eq(control_get_maps(&control, "devices", &devices, &n, &run.error), 0);
	ck_assert_uint_eq(n, 1);
	control = control_next(&devices);
	ck_assert_int_eq(control_get_map(&control, "caches", &caches, &run.error), 0);
	ck_assert_int_eq(control_get_uint(&caches, "moved_out", &moved, &run.error), 0);
	ck_assert_uint_eq(moved, 5);
	ask("metrics", "-", NULL);
	answered(NULL);
	ck_assert_uint_eq(run.server.metrics.streams[PLACE_HOST], 1);
	ck_assert_uint_eq(run.server.metrics.streams[PLACE_DEVICE], 0);
	stop();
}
END_TEST

/* --- copies of caches --- */

START_TEST(a_state_that_cannot_be_copied_out_is_refused)
{
	start(false, SETTINGS("window=4"));
	feed('a');
	fake_broken = ERR_DEVICE;
	ask("export", "a", NULL);
	answered("internal");
	fake_broken = 0;
	ask("export", "a", NULL);
	answered(NULL);
	say_rows('x', 'a', 9, 3);
	hear_rows('a', 12);
	stop();
}
END_TEST

START_TEST(a_device_that_is_lost_while_it_copies_ends_the_daemon)
{
	start(false, SETTINGS("window=4"));
	feed('a');
	fake_broken = ERR_DEVICE_LOST;
	ask("export", "a", NULL);
	ck_assert_int_eq(end_of_run(), ERR_DEVICE_LOST);
	answered("internal");
}
END_TEST

START_TEST(a_state_that_cannot_be_copied_in_makes_no_stream)
{
	struct control exported;

	start(false, SETTINGS("window=4"));
	feed('a');
	exported = export_of("a");
	fake_broken = ERR_DEVICE;
	ask("import", "b", &exported);
	answered("internal");
	fake_broken = 0;
	ask("close", "b", NULL);
	answered("closed");
	exported = export_of("a");
	ask("import", "b", &exported);
	answered(NULL);
	ck_assert_uint_eq(open_stream('x', 'b'), 9);
	say_rows('x', 'b', 9, 3);
	hear_rows('b', 12);
	stop();
}
END_TEST

START_TEST(a_state_that_cannot_be_copied_in_replaces_nothing)
{
	struct control exported;

	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	open_stream('x', 'b');
	exported = export_of("b");
	fake_broken = ERR_DEVICE;
	ask("import", "a", &exported);
	answered("internal");
	fake_broken = 0;
	run.n_seen = 0; /* older acks */
	ck_assert_uint_eq(open_stream('x', 'a'), 9);
	stop();
}
END_TEST

/* For as long as it cannot come back nobody knows what its next epoch is. */
START_TEST(a_stream_on_disk_is_replaced_when_it_can_come_back)
{
	struct control exported, replaced;
	uint64_t errors, epoch = 0;

	start(true, SETTINGS("state.interval=1000", "streams.max=2"));
	feed('a');
	feed('b');
	snapshot("b"); /* so that it can leave while nothing can be copied */
	open_stream('x', 'c'); /* a, which is idle longest, leaves memory */
	exported = export_of("c");
	errors = run.server.state_stats.errors;
	fake_broken = ERR_DEVICE;
	ask("import", "a", &exported);
	UNTIL(run.server.state_stats.errors > errors);
	fake_broken = 0;
	replaced = answered(NULL);
	ck_assert(!control_get_uint(&replaced, "epoch", &epoch, &run.error) && epoch == 1);
	stop();
}
END_TEST

START_TEST(a_state_that_is_copied_in_when_there_is_no_room_any_more_is_refused)
{
	struct control exported;

	start(false, SETTINGS("window=4", "streams.max=2"));
	feed('a');
	exported = export_of("a");
	fake_stuck = true;
	ask("import", "b", &exported);
	UNTIL(run.server.slots[0].use == SLOT_RESUMING && run.server.slots[0].stream->in_flight);
	open_stream('x', 'c');
	fake_stuck = false;
	answered("too_many_streams");
	say_rows('x', 'c', 0, 4);
	hear_rows('c', 4);
	stop();
}
END_TEST

START_TEST(a_state_that_cannot_be_copied_is_saved_later)
{
	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	fake_broken = ERR_DEVICE;
	ask("snapshot", "a", NULL);
	answered("internal");
	ck_assert_uint_eq(run.server.state_stats.errors, 1);
	fake_broken = 0;
	snapshot("a");
	ck_assert_uint_eq(run.server.state_stats.saved, 1);
	stop();
}
END_TEST

START_TEST(another_streams_failure_is_no_failure_of_a_snapshot)
{
	char key[HASH_TEXT], mark[256];

	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	feed('b');
	say('x', 'b', &(struct message){ .type = MESSAGE_FLUSH });
	hear_rows('b', 9);
	snapshot("b");
	store_key("b", 1, key);
	snprintf(mark, sizeof mark, "%s/%s.closed", run.server.config->state.dir, key);
	ck_assert_int_eq(mkdir(mark, 0700), 0);
	fake_stuck = true;
	ask("snapshot", "a", NULL);
	UNTIL(run.server.slots[0].use == SLOT_SAVING);
	say('x', 'b', &(struct message){ .type = MESSAGE_CLOSE });
	UNTIL(run.server.state_stats.errors);
	fake_stuck = false;
	answered(NULL);
	ask("snapshot", "", NULL); /* of all: the mark is among it */
	answered("internal");
	ck_assert_int_eq(rmdir(mark), 0);
	stop();
}
END_TEST

START_TEST(a_stream_comes_back_when_its_state_can_be_copied)
{
	start_evicted();
	fake_broken = ERR_DEVICE;
	say_open('x', 'a');
	UNTIL(run.server.state_stats.errors == 2);
	ck_assert_uint_eq(run.n_seen, 0);
	ck_assert_uint_eq(run.server.state_stats.damaged, 0);
	fake_broken = 0;
	ck_assert_uint_eq(hear('a', MESSAGE_ACK).next, 9);
	say_rows('x', 'a', 9, 3);
	hear_rows('a', 12);
	stop();
}
END_TEST

/* --- memory --- */

START_TEST(rows_wait_for_memory_for_their_hidden_states)
{
	start(false, SETTINGS("window=4"));
	open_stream('x', 'a');
	say_rows('x', 'a', 0, 1);
	UNTIL(run.server.stats.rows_in == 1);
	fake_full = true;
	say_rows('x', 'a', 1, 7);
	UNTIL(run.server.stats.rows_in == 8);
	for (int i = 0; i < 20; i++)
		turn();
	ck_assert_uint_eq(run.server.stats.batches, 0);
	ck_assert(run.timeout_ms >= 0 && run.timeout_ms < 100); /* it will look again by itself */
	fake_full = false;
	hear_rows('a', 8);
	stop();
}
END_TEST

START_TEST(a_stream_without_memory_to_come_back_is_refused)
{
	start_evicted();
	fake_full = true;
	say_open('x', 'a');
	ck_assert_int_eq(hear('a', MESSAGE_ERROR).code, REFUSED_INTERNAL);
	fake_full = false;
	ck_assert_uint_eq(open_stream('x', 'a'), 9);
	stop();
}
END_TEST

/* Streams wait for the place of one that cannot leave, but only so many; those beyond are told to come again. */
START_TEST(what_waits_for_room_is_bounded)
{
	const char first = 'b', last = 'z';
	struct message message;
	unsigned served = 0, refused = 0;

	start(true, SETTINGS("streams.max=1", "limits.message_bytes=1024"));
	open_stream('x', 'a');
	run.deaf = 'x';
	for (uint64_t pos = 0; pos < 8; pos++)
		say_rows('x', 'a', pos, 1);
	for (char stream = first; stream <= last; stream++)
		say_open('y', stream);
	UNTIL(run.server.stats.messages_in == 1 + 8 + (size_t)(last - first + 1));
	ck_assert_uint_le(run.server.held_bytes, 4096);
	run.deaf = '\0';
	for (char stream = first; stream <= last; stream++) {
		UNTIL(heard(stream, MESSAGE_ACK, &message) || heard(stream, MESSAGE_ERROR, &message));
		served += message.type == MESSAGE_ACK;
		refused += message.type == MESSAGE_ERROR && message.code == REFUSED_NO_CREDIT;
	}
	ck_assert_uint_gt(served, 0);
	ck_assert_uint_gt(refused, 0);
	ck_assert_uint_eq(served + refused, (unsigned)(last - first + 1));
	ck_assert_uint_eq(open_stream('y', last), 0);
	stop();
}
END_TEST

/* What bounds the requests that wait: their memory, or their number. */
START_TEST(requests_that_wait_are_bounded)
{
	const unsigned n = 400;

	start(true, SETTINGS("state.interval=1000",
			     _i ? "limits.message_bytes=67108864" : "limits.message_bytes=4096"));
	feed('a');
	fake_stuck = true;
	for (unsigned i = 0; i < n; i++)
		ask(i % 2 ? "snapshot" : "export", "a", NULL);
	UNTIL(run.n_answers + run.server.n_requests == n);
	answered("no_credit");
	ck_assert_uint_gt(run.server.n_requests, 10);
	ck_assert_uint_le(run.server.n_requests, 256);
	ck_assert_uint_gt(run.server.held_bytes, 0);
	ck_assert_uint_le(run.server.held_bytes, 4 * run.server.config->limits.message_bytes);
	fake_stuck = false;
	UNTIL(run.n_answers == n);
	ck_assert_uint_eq(run.server.held_bytes, 0);
	ask("export", "a", NULL);
	answered(NULL);
	stop();
}
END_TEST

/* --- sockets --- */

START_TEST(hidden_states_wait_behind_a_refusal)
{
	start(false, SETTINGS("window=32", "limits.credit_rows=100"));
	open_stream('x', 'a');
	run.deaf = 'x';
	say_rows('x', 'a', 50, 1); /* a gap */
	say_rows('x', 'a', 0, 64);
	UNTIL(run.server.stats.stalls > 1);
	run.deaf = '\0';
	ck_assert_int_eq(hear('a', MESSAGE_ERROR).code, REFUSED_GAP);
	hear_rows('a', 64);
	stop();
}
END_TEST

START_TEST(a_socket_that_fails_ends_the_daemon)
{
	start(false, SETTINGS("window=4"));
	feed('a');
	fake_world.broken = true;
	if (_i)
		ask("export", "a", NULL);
	else
		say_rows('x', 'a', 9, 3);
	ck_assert_int_eq(end_of_run(), ERR_SYSTEM);
}
END_TEST

START_TEST(a_daemon_that_ends_while_a_state_is_copied_in_leaves_nothing_behind)
{
	struct control exported;

	start(false, SETTINGS("window=4"));
	feed('a');
	exported = export_of("a");
	fake_stuck = true;
	ask("import", "b", &exported);
	UNTIL(run.server.slots[0].use == SLOT_RESUMING && run.server.slots[0].stream->in_flight);
	fake_world.broken = true;
	ask("status", "a", NULL);
	ck_assert_int_eq(end_of_run(), ERR_SYSTEM);
	memset(run.server.slots, 0, sizeof run.server.slots); /* so that it shows if the stream is lost */
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("failures");
	TCase *cases = tcase_create("failures");

	tcase_set_timeout(cases, 120);
	tcase_add_loop_test(cases, a_device_of_no_more_use_ends_the_daemon, 0, 2);
	tcase_add_test(cases, devices_must_be_alike);
	tcase_add_test(cases, a_device_stuck_for_a_minute_is_no_sign_of_health);
	tcase_add_test(cases, caches_are_counted_where_they_are);
	tcase_add_test(cases, a_state_that_cannot_be_copied_out_is_refused);
	tcase_add_test(cases, a_device_that_is_lost_while_it_copies_ends_the_daemon);
	tcase_add_test(cases, a_state_that_cannot_be_copied_in_makes_no_stream);
	tcase_add_test(cases, a_state_that_cannot_be_copied_in_replaces_nothing);
	tcase_add_test(cases, a_stream_on_disk_is_replaced_when_it_can_come_back);
	tcase_add_test(cases, a_state_that_is_copied_in_when_there_is_no_room_any_more_is_refused);
	tcase_add_test(cases, a_state_that_cannot_be_copied_is_saved_later);
	tcase_add_test(cases, another_streams_failure_is_no_failure_of_a_snapshot);
	tcase_add_test(cases, a_stream_comes_back_when_its_state_can_be_copied);
	tcase_add_test(cases, rows_wait_for_memory_for_their_hidden_states);
	tcase_add_test(cases, a_stream_without_memory_to_come_back_is_refused);
	tcase_add_test(cases, what_waits_for_room_is_bounded);
	tcase_add_loop_test(cases, requests_that_wait_are_bounded, 0, 2);
	tcase_add_test(cases, hidden_states_wait_behind_a_refusal);
	tcase_add_loop_test(cases, a_socket_that_fails_ends_the_daemon, 0, 2);
	tcase_add_test(cases, a_daemon_that_ends_while_a_state_is_copied_in_leaves_nothing_behind);
	suite_add_tcase(suite, cases);
	return suite_run(suite);
}
