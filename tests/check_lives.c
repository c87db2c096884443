/*
 * The lives of streams whose states are kept, in steps of a daemon between fakes: what they are asked for while their
 * states are on the way, and how one life follows another when streams are rewound, reset, closed and marked.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fake_daemon.h"
#include "tests/fake_device.h"
#include "tests/stepped_daemon.h"
#include "tests/suite.h"

/* --- states that are asked for, and those that wait --- */

/* Rows that were accepted and wait for the device, which rests after a failure. */
START_TEST(a_state_that_is_asked_for_has_all_rows_accepted_before)
{
	const char *const commands[] = { "snapshot", "snapshot", "export" };
	struct control control;
	struct saved *saved;
	char key[HASH_TEXT];
	uint64_t position = 0;

	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	fake_failure = true;
	say_rows('x', 'a', 9, 11);
	UNTIL(run.server.stats.failed_batches);
	ask(commands[_i], _i ? "a" : "", NULL);
	control = answered(NULL);
	store_key("a", 1, key);
	saved = states_find(&run.server, key);
	if (saved)
		position = saved->generations.item[saved->generations.n - 1].reach;
	else
		ck_assert_int_eq(control_get_uint(&control, "position", &position, &run.error), 0);
	ck_assert_uint_eq(position, 20);
	stop();
}
END_TEST

/* On the other device: a copy of the stream's last state, to be saved, is still to come. */
START_TEST(a_state_that_is_copied_in_ends_a_stream_that_was_ending)
{
	struct control exported;

	start(true, SETTINGS("device=[cuda, cuda:1]", "state.interval=1000"));
	feed('a');
	feed('b');
	feed('c'); /* beside a: what is made next is beside b */
	fake_stuck = 1;
	ask("snapshot", "a", NULL);
	UNTIL(run.server.slots[0].use == SLOT_SAVING && run.server.slots[0].stream->in_flight);
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE, .has_got = true, .got = 8 });
	UNTIL(run.server.slots[0].stream->phase == STREAM_ENDING);
	exported = export_of("b");
	ask("import", "a", &exported);
	answered(NULL);
	fake_stuck = 0;
	ck_assert_uint_eq(open_stream('y', 'a'), 9); /* b's */
	say_rows('y', 'a', 9, 3);
	hear_rows('a', 12);
	stop();
}
END_TEST

/* The least recently used one leaves for it first: the very stream that it is made of. */
START_TEST(a_fork_waits_for_room)
{
	start(true, SETTINGS("state.interval=1000", "streams.max=2"));
	feed('a');
	feed('b');
	ask_of("fork", "a", "c", NULL);
	answered(NULL);
	ck_assert_ptr_null(stream_find(&run.server, "a", 1));
	ck_assert_uint_eq(open_stream('x', 'c'), 9);
	say_rows('x', 'c', 9, 4);
	hear_rows('c', 12);
	stop();
}
END_TEST

START_TEST(a_request_that_waits_when_the_daemon_stops_is_refused)
{
	start(true, SETTINGS("state.interval=1000", "shutdown_timeout=1"));
	feed('a');
	run.deaf = 'x';
	say_rows('x', 'a', 9, 3);
	UNTIL(!list_empty(&run.server.stalled));
	ask("export", "a", NULL); /* which waits for x to read */
	UNTIL(run.server.n_requests);
	server_drain(&run.server, true);
	ck_assert_int_eq(end_of_run(), ERR_SYSTEM);
	answered("shutting_down");
}
END_TEST

/* Behind one that cannot be saved now, as its peer does not read. */
START_TEST(a_stream_that_waits_to_be_saved_goes_on_when_a_reload_says_later)
{
	start(true, SETTINGS("state.interval=0.05"));
	open_stream('y', 'b');
	run.deaf = 'y';
	say_rows('y', 'b', 0, 9);
	UNTIL(!list_empty(&run.server.stalled));
	open_stream('x', 'a');
	fake_stuck = true;
	say_rows('x', 'a', 0, 9);
	UNTIL(!list_empty(&run.server.on_hold));
	say_rows('x', 'a', 9, 8);
	fake_daemon_set("state.interval=100000");
	ask("reload", "", NULL);
	answered(NULL);
	fake_stuck = false;
	hear_rows('a', 16);
	run.deaf = 0;
	stop();
}
END_TEST

/* --- rewound, reset, begun anew --- */

START_TEST(a_stream_that_is_rewound_is_told_nothing_of_a_reload)
{
	struct message ack;

	start(true, SETTINGS("state.interval=1000"));
	open_stream('x', 'a');
	say_rows('x', 'a', 0, 3);
	snapshot("a");
	say_rows('x', 'a', 3, 6);
	hear_rows('a', 8);
	fake_stuck = true;
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .has_got = true });
	UNTIL(run.server.slots[0].use == SLOT_RESUMING);
	run.n_seen = 0;
	ask("reload", "a", NULL);
	answered(NULL);
	fake_stuck = false;
	ack = hear('a', MESSAGE_ACK);
	ck_assert_uint_eq(ack.next, 3);
	say_rows('x', 'a', 3, 6);
	hear_rows('a', 8);
	stop();
}
END_TEST

/* The epoch that a gap began has no state: one could not be written, the next fails while it is waited for. */
START_TEST(a_stream_that_is_rewound_stays_in_its_epoch)
{
	char key[HASH_TEXT], second[256];
	struct message ack;

	start(true, SETTINGS("state.interval=1000", "streams.on_gap=reset"));
	feed('a');
	snapshot("a");
	store_key("a", 1, key);
	snprintf(second, sizeof second, "%s/%s-%016x.safetensors", run.server.config->state.dir, key, 2);
	ck_assert_int_eq(mkdir(second, 0700), 0);
	say_rows('x', 'a', 50, 9); /* epoch 1, whose position 0 this is */
	hear_rows('a', 9);
	hear_rows('a', 8);
	UNTIL(run.server.state_stats.errors == 1);
	fake_stuck = true;
	ask("snapshot", "a", NULL);
	UNTIL(run.server.slots[0].use == SLOT_SAVING);
	run.n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .from = 54 });
	turn();
	fake_broken = ERR_DEVICE;
	fake_stuck = false;
	UNTIL(run.server.state_stats.errors == 2);
	fake_broken = 0;
	ack = hear('a', MESSAGE_ACK);
	ck_assert_uint_eq(ack.epoch, 1);
	ck_assert_uint_eq(ack.next, 0);
	say_rows('x', 'a', 50, 9);
	hear_rows('a', 8);
	ck_assert_uint_eq(stream_find(&run.server, "a", 1)->epoch, 1);
	ck_assert_int_eq(rmdir(second), 0);
	stop();
}
END_TEST

/* The epoch that the stream has begun, which is on disk by now. */
static uint64_t answered_epoch(void)
{
	struct control control = answered(NULL);
	uint64_t epoch = 0;
	char key[HASH_TEXT];

	store_key("a", 1, key);
	ck_assert_int_eq(control_get_uint(&control, "epoch", &epoch, &run.error), 0);
	ck_assert(states_has(states_find(&run.server, key), epoch) && !run.server.slots[0].use);
	return epoch;
}

START_TEST(a_reset_is_answered_when_it_is_on_disk)
{
	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	ask("reset", "a", NULL);
	ck_assert_uint_eq(answered_epoch(), 1);
	fake_broken = ERR_DEVICE;
	ask("reset", "a", NULL);
	answered("internal"); /* nor is it undone */
	fake_broken = 0;
	ask("reset", "a", NULL);
	ck_assert_uint_eq(answered_epoch(), 3);
	stop();
}
END_TEST

START_TEST(a_stream_on_disk_is_reset_to_the_epoch_after)
{
	start_evicted();
	ask("reset", "a", NULL);
	ck_assert_uint_eq(answered_epoch(), 1);
	UNTIL(!run.server.streams.n); /* it is idle again */
	ask("reset", "a", NULL);
	ck_assert_uint_eq(answered_epoch(), 2);
	stop();
}
END_TEST

START_TEST(a_stream_on_disk_is_not_reset_without_memory_or_when_the_daemon_drains)
{
	start_evicted();
	fake_full = true;
	ask("reset", "a", NULL);
	answered("internal");
	fake_full = false;
	server_drain(&run.server, false);
	ask("reset", "a", NULL);
	answered("shutting_down");
	stop();
}
END_TEST

START_TEST(the_last_epoch_is_not_reset)
{
	start(true, SETTINGS("state.interval=1000"));
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .epoch = UINT64_MAX });
	hear('a', MESSAGE_ACK);
	ask("reset", "a", NULL);
	answered("stale_epoch");
	ck_assert_uint_eq(open_stream('x', 'b'), 0);
	stop();
}
END_TEST

START_TEST(a_stream_that_is_reset_while_it_comes_back_comes_first)
{
	start_evicted();
	fake_stuck = true;
	say_open('x', 'a');
	UNTIL(run.server.slots[0].use == SLOT_RESUMING && run.server.slots[0].stream->in_flight);
	ask("reset", "a", NULL);
	turn();
	fake_stuck = false;
	ck_assert_uint_eq(answered_epoch(), 1);
	ck_assert_uint_eq(hear('a', MESSAGE_ACK).next, 9);
	ck_assert_uint_eq(hear('a', MESSAGE_ACK).epoch, 1);
	stop();
}
END_TEST

/* What can be had of it is its end, and then a new epoch. */
START_TEST(a_stream_that_ends_is_reset_when_it_has_ended)
{
	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	fake_stuck = true;
	ask("snapshot", "a", NULL);
	UNTIL(run.server.slots[0].use == SLOT_SAVING);
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE });
	turn();
	ask("reset", "a", NULL);
	turn();
	fake_stuck = false;
	ck_assert_uint_eq(answered_epoch(), 1);
	stop();
}
END_TEST

/* What is on disk then is of the epoch before, which is over: it does not come back in its place. */
START_TEST(an_epoch_that_is_closed_before_it_is_saved_leaves_nothing)
{
	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	snapshot("a");
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .epoch = 1 });
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE, .epoch = 1 });
	UNTIL(!run.server.streams.n);
	run.n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .from = 9 });
	ck_assert_uint_eq(hear('a', MESSAGE_ACK).next, 0);
	stop();
}
END_TEST

/* The states on disk are those of the life that ends: what its peer has confirmed of it says nothing of the next. */
START_TEST(a_stream_begun_anew_while_it_ends_counts_no_states_as_its_own)
{
	struct message ack;

	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	snapshot("a");
	fake_stuck = true;
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE });
	turn();
	run.n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_got = true, .got = 9 });
	ack = hear('a', MESSAGE_ACK);
	ck_assert_uint_eq(ack.next, 0);
	ck_assert_uint_eq(ack.durable, 0);
	fake_stuck = false;
	stop();
}
END_TEST

/* --- closed and marked --- */

/* How many streams are marked as closed in the folder of states. */
static size_t marked_in(const char *folder)
{
	DIR *dir = opendir(folder);
	struct dirent *file;
	size_t n = 0;

	ck_assert_ptr_nonnull(dir);
	while ((file = readdir(dir)))
		n += strstr(file->d_name, ".closed") != NULL;
	closedir(dir);
	return n;
}

/* Eight streams, a to h, that are saved. */
static void start_saved(void)
{
	start(true, SETTINGS("state.interval=1000"));
	for (char stream = 'a'; stream <= 'h'; stream++)
		feed(stream);
	snapshot("");
}

static void close_all(void)
{
	for (char stream = 'a'; stream <= 'h'; stream++)
		say('x', stream, &(struct message){ .type = MESSAGE_CLOSE });
}

START_TEST(streams_that_closed_are_marked_though_the_daemon_fails)
{
	char folder[256];

	start_saved();
	snprintf(folder, sizeof folder, "%.255s", run.server.config->state.dir);
	close_all();
	UNTIL(run.server.marks_begun == 8);
	run.server.failed = true;
	ck_assert_int_eq(await_end(), ERR_SYSTEM);
	ck_assert_uint_eq(marked_in(folder), 8);
	fake_folder_remove();
}
END_TEST

/* Does something wait until this life of the stream has ended? */
static bool is_awaited(char id)
{
	struct table_entry *entry = table_find(&run.server.streams, &id, 1);

	return entry && list_entry(entry, struct stream, entry)->held.first;
}

static bool end_heard(char stream)
{
	struct message hidden;

	while (heard(stream, MESSAGE_HIDDEN, &hidden))
		if (hidden.end)
			return true;
	return false;
}

START_TEST(an_end_waits_for_its_mark)
{
	size_t ended = 0;

	start_saved();
	run.n_seen = 0;
	close_all();
	for (char stream = 'a'; stream <= 'h'; stream++) {
		UNTIL(end_heard(stream));
		ck_assert_uint_ge(marked_in(run.server.config->state.dir), ++ended);
	}
	stop();
}
END_TEST

/* The path of a stream's mark. */
static const char *mark_of(char stream)
{
	static char path[300];
	char key[HASH_TEXT];

	store_key(&stream, 1, key);
	snprintf(path, sizeof path, "%s/%s.closed", run.server.config->state.dir, key);
	return path;
}

/* With a pipe in the mark's place the disk hangs, until the pipe is read. */
static void hang_over_mark(char stream)
{
	ck_assert_int_eq(mkfifo(mark_of(stream), 0600), 0);
}

static void hang_no_longer(char stream)
{
	int fd = open(mark_of(stream), O_RDONLY | O_NONBLOCK);

	ck_assert_int_ge(fd, 0);
	UNTIL(!run.server.marking);
	close(fd);
}

START_TEST(an_end_does_not_wait_for_a_disk_that_hangs)
{
	start_saved();
	hang_over_mark('a');
	run.n_seen = 0;
	close_all();
	for (int ms = 0; ms < SILENT_MS / 2; ms++) {
		turn();
		ck_assert(!end_heard('a') && !end_heard('h'));
	}
	UNTIL(end_heard('a'));
	UNTIL(end_heard('h'));
	ck_assert_uint_eq(marked_in(run.server.config->state.dir), 1);
	hang_no_longer('a');
	ck_assert_uint_eq(marked_in(run.server.config->state.dir), 8);
	stop();
}
END_TEST

/* The mark of its life before has failed a moment ago: its own is not put off for that. */
START_TEST(an_end_waits_for_its_mark_when_the_disk_works_again)
{
	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	snapshot("a");
	ck_assert_int_eq(mkdir(mark_of('a'), 0700), 0);
	run.n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE });
	UNTIL(end_heard('a'));
	ck_assert_int_eq(rmdir(mark_of('a')), 0);
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .from = 8 });
	hear('a', MESSAGE_ACK);
	say_rows('x', 'a', 9, 4);
	hear_rows('a', 12);
	snapshot("a");
	ck_assert(!list_empty(&run.server.failed_marks));
	hang_over_mark('a');
	run.n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE });
	for (int ms = 0; ms < SILENT_MS / 2; ms++) {
		turn();
		ck_assert(!end_heard('a'));
	}
	hang_no_longer('a');
	UNTIL(end_heard('a'));
	stop();
}
END_TEST

/* Its new epoch is closed before it was saved: until that is marked a kill brings the epoch before back. */
START_TEST(a_reset_is_answered_when_the_end_of_its_epoch_is_on_disk)
{
	start_saved();
	hang_over_mark('h');
	say('x', 'h', &(struct message){ .type = MESSAGE_CLOSE });
	UNTIL(run.server.marking);
	for (char stream = 'b'; stream <= 'd'; stream++) /* all slots wait for the disk */
		say_rows('x', stream, 9, 4);
	ask("snapshot", "", NULL);
	UNTIL(!states_slot(&run.server));
	ask("reset", "a", NULL);
	UNTIL(stream_find(&run.server, "a", 1) && stream_find(&run.server, "a", 1)->epoch == 1);
	run.n_answers = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE, .epoch = 1 });
	for (int ms = 0; ms < 100; ms++)
		turn();
	ck_assert_uint_eq(run.n_answers, 0);
	hang_no_longer('h');
	UNTIL(run.n_answers == 2);
	stop();
}
END_TEST

START_TEST(a_stream_that_is_back_as_soon_as_it_has_ended_goes_on)
{
	start_saved();
	run.n_seen = 0;
	fake_stuck = true;
	close_all();
	say('x', 'h', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .from = 8,
					 .has_got = true, .got = 8 });
	UNTIL(is_awaited('h'));
	fake_stuck = false;
	UNTIL(run.server.marks_begun == 8 && list_empty(&run.server.unmarked) && !run.server.marking);
	say_rows('x', 'h', 9, 4);
	hear_rows('h', 12);
	snapshot("h");
	ck_assert_uint_eq(marked_in(run.server.config->state.dir), 7);
	stop();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("lives");
	TCase *cases = tcase_create("lives");

	tcase_set_timeout(cases, 120);
	tcase_add_loop_test(cases, a_state_that_is_asked_for_has_all_rows_accepted_before, 0, 3);
	tcase_add_test(cases, a_state_that_is_copied_in_ends_a_stream_that_was_ending);
	tcase_add_test(cases, a_fork_waits_for_room);
	tcase_add_test(cases, a_request_that_waits_when_the_daemon_stops_is_refused);
	tcase_add_test(cases, a_stream_that_waits_to_be_saved_goes_on_when_a_reload_says_later);
	tcase_add_test(cases, a_stream_that_is_rewound_is_told_nothing_of_a_reload);
	tcase_add_test(cases, a_stream_that_is_rewound_stays_in_its_epoch);
	tcase_add_test(cases, a_reset_is_answered_when_it_is_on_disk);
	tcase_add_test(cases, a_stream_on_disk_is_reset_to_the_epoch_after);
	tcase_add_test(cases, a_stream_on_disk_is_not_reset_without_memory_or_when_the_daemon_drains);
	tcase_add_test(cases, the_last_epoch_is_not_reset);
	tcase_add_test(cases, a_stream_that_is_reset_while_it_comes_back_comes_first);
	tcase_add_test(cases, a_stream_that_ends_is_reset_when_it_has_ended);
	tcase_add_test(cases, an_epoch_that_is_closed_before_it_is_saved_leaves_nothing);
	tcase_add_test(cases, a_stream_begun_anew_while_it_ends_counts_no_states_as_its_own);
	tcase_add_test(cases, streams_that_closed_are_marked_though_the_daemon_fails);
	tcase_add_test(cases, an_end_waits_for_its_mark);
	tcase_add_test(cases, an_end_does_not_wait_for_a_disk_that_hangs);
	tcase_add_test(cases, an_end_waits_for_its_mark_when_the_disk_works_again);
	tcase_add_test(cases, a_reset_is_answered_when_the_end_of_its_epoch_is_on_disk);
	tcase_add_test(cases, a_stream_that_is_back_as_soon_as_it_has_ended_goes_on);
	suite_add_tcase(suite, cases);
	return suite_run(suite);
}
