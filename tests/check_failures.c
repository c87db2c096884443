/*
 * A daemon whose device, memory or sockets fail, between fakes of them: what is refused, what waits and comes right
 * again, and what ends the daemon.
 *
 * The daemon has a thread of its own, but runs only while the test waits in turn(), until it would wait itself.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "protocol/control.h"
#include "tests/fake_daemon.h"
#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/fuzz.h"
#include "tests/suite.h"

#define COLUMNS 64
#define MOST_ROWS 100
#define MOST_SEEN 200
#define MOST_TURNS 20000 /* until what is waited for counts as never */
#define SETTINGS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static struct server server;
static struct error error;
static pthread_t thread;
static sem_t go, paused;
static bool ended;
static int result, timeout_ms; /* of the run; of its last wait */
static char deaf;              /* the peer that does not read */

/* What the daemon said on ingest, without what was waited for. */
static struct { char stream; struct message message; } seen[MOST_SEEN];
static size_t n_seen;
static unsigned char answer[1 << 16]; /* to the last control request */
static size_t answer_size;
static unsigned n_answers;

/* --- the daemon --- */

static float row_of(uint64_t pos)
{
	return (float)(pos % 50 + 1);
}

static void check_rows(const struct message *message, const float *hidden)
{
	uint32_t state = 0;

	for (uint64_t pos = 0; pos < message->pos + message->rows; pos++) {
		state = fake_step(state, row_of(pos));
		if (pos >= message->pos)
			must(hidden[(pos - message->pos) * COLUMNS] == (float)state);
	}
}

static enum endpoint_sent take(enum endpoint_kind kind, const struct endpoint_frame *frames, size_t n)
{
	struct error err;

	if (kind == ENDPOINT_CONTROL) {
		must(frames[1].size <= sizeof answer);
		memcpy(answer, frames[1].data, frames[1].size);
		answer_size = frames[1].size;
		n_answers++;
	}
	if (kind != ENDPOINT_INGEST)
		return ENDPOINT_SENT;
	if (*(const char *)frames[0].data == deaf)
		return ENDPOINT_FULL;
	must(n_seen < MOST_SEEN);
	seen[n_seen].stream = *(const char *)frames[1].data;
	must(!message_decode(frames[2].data, frames[2].size, &seen[n_seen].message, &err));
	if (n > 3)
		check_rows(&seen[n_seen].message, frames[3].data);
	n_seen++;
	return ENDPOINT_SENT;
}

static void idle(int ms)
{
	timeout_ms = ms;
	sem_post(&paused);
	sem_wait(&go);
	fake_time_passes(1000000);
}

static void *serve(void *arg)
{
	(void)arg;
	result = fake_daemon_run(&server, &error);
	ended = true;
	sem_post(&paused);
	return NULL;
}

static void turn(void)
{
	ck_assert(!ended);
	sem_post(&go);
	sem_wait(&paused);
}

#define UNTIL(condition) \
	for (unsigned turns = 0; !(condition); turn()) \
		ck_assert_msg(turns++ < MOST_TURNS, "never: " #condition)

static void start(bool states, const char *const *settings)
{
	fake_world = (struct fake_world){ .take = take, .idle = idle };
	fake_broken = 0;
	ended = false;
	deaf = 0;
	n_seen = answer_size = n_answers = 0;
	fake_folder_make();
	sem_init(&go, 0, 0);
	sem_init(&paused, 0, 0);
	ck_assert_int_eq(fake_daemon_open(&server, states, settings, &error), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, serve, NULL), 0);
	sem_wait(&paused);
}

/* Wait for the daemon's end: server_run's result. */
static int end(void)
{
	UNTIL(ended);
	pthread_join(thread, NULL);
	fake_folder_remove();
	return result;
}

static void stop(void)
{
	server_drain(&server, true);
	ck_assert_int_eq(end(), 0);
}

/* --- its peers --- */

static void say(char peer, char stream, const struct message *message)
{
	static float payload[MOST_ROWS * COLUMNS];
	unsigned char header[MESSAGE_HEADER_MAX];
	const struct fake_frame frames[] = {
		{ &peer, 1 }, { &stream, 1 }, { header, message_encode(message, header) },
		{ payload, message->rows * COLUMNS * sizeof *payload }
	};

	for (uint64_t i = 0; i < message->rows; i++)
		payload[i * COLUMNS] = row_of(message->pos + i);
	fake_send(ENDPOINT_INGEST, frames, message->has_shape ? 4 : 3);
}

static void say_rows(char peer, char stream, uint64_t pos, uint64_t rows)
{
	say(peer, stream, &(struct message){ .type = MESSAGE_DATA, .has_pos = true, .pos = pos, .has_shape = true,
					     .rows = rows, .columns = COLUMNS, .dtype = DTYPE_FLOAT32 });
}

/* Has something of this type been said of the stream?  Then it is taken off the list. */
static bool heard(char stream, enum message_type type, struct message *ret_message)
{
	for (size_t i = 0; i < n_seen; i++) {
		if (seen[i].stream != stream || seen[i].message.type != type)
			continue;
		*ret_message = seen[i].message;
		for (n_seen--; i < n_seen; i++)
			seen[i] = seen[i + 1];
		return true;
	}
	return false;
}

static struct message hear(char stream, enum message_type type)
{
	struct message message;

	UNTIL(heard(stream, type, &message));
	return message;
}

static void say_open(char peer, char stream)
{
	say(peer, stream, &(struct message){ .type = MESSAGE_OPEN, .reply = true });
}

/* Open the stream: at what position it goes on. */
static uint64_t open_stream(char peer, char stream)
{
	say_open(peer, stream);
	return hear(stream, MESSAGE_ACK).next;
}

static void hear_rows(char stream, uint64_t stop)
{
	struct message hidden;

	do
		hidden = hear(stream, MESSAGE_HIDDEN);
	while (hidden.pos + hidden.rows < stop);
	ck_assert_uint_eq(hidden.pos + hidden.rows, stop);
}

/* to, with_state: NULL where the command has none. */
static void ask_of(const char *cmd, const char *stream, const char *to, const struct control *with_state)
{
	static unsigned char request[1 << 16];
	struct control_writer writer;
	const char *state = NULL;
	size_t size;

	control_begin_request(&writer, request, sizeof request, cmd);
	if (*stream)
		control_put_bin(&writer, "stream", stream, 1);
	if (to)
		control_put_bin(&writer, "to", to, 1);
	if (with_state && !control_get_bytes(with_state, "state", &state, &size, &error))
		control_put_bin(&writer, "state", state, size);
	answer_size = 0;
	fake_send(ENDPOINT_CONTROL, (struct fake_frame[]){ { "c", 1 }, { request, control_finish(&writer) } }, 2);
}

static void ask(const char *cmd, const char *stream, const struct control *with_state)
{
	ask_of(cmd, stream, NULL, with_state);
}

/* The answer to what was asked last, or its refusal with this code. */
static struct control answered(const char *code)
{
	struct control control;

	UNTIL(answer_size);
	ck_assert_int_eq(control_read(answer, answer_size, &control, &error), 0);
	ck_assert(code ? control_is(&control, "code", code) : !control_has(&control, "code"));
	return control;
}

/* A stream of two windows and a row, all of it known to its peer. */
static void feed(char stream)
{
	open_stream('x', stream);
	say_rows('x', stream, 0, 9);
	hear_rows(stream, 8);
}

/* Have a stream saved, or "": all. */
static void snapshot(const char *stream)
{
	ask("snapshot", stream, NULL);
	answered(NULL);
}

static struct control export_of(const char *stream)
{
	ask("export", stream, NULL);
	return answered(NULL);
}

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
	began = server.now_ms;
	fake_broken = endings[_i].code;
	say_rows('x', 'a', 9, 3);
	ck_assert_int_eq(end(), endings[_i].code);
	ck_assert_int_ge(server.now_ms - began, endings[_i].ms);
	ck_assert_uint_eq(server.stats.failed_batches, endings[_i].failures);
}
END_TEST

START_TEST(devices_must_be_alike)
{
	fake_folder_make();
	ck_assert_int_eq(fake_daemon_open(&server, false, SETTINGS("device=[cpu, cuda]"), &error), ERR_ARGUMENT);
	ck_assert_ptr_nonnull(strstr(error.text, "cuda is \"another fake\": they must be alike"));
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
	address.sin_port = htons((uint16_t)atoi(strchr(http_address(server.http), ':') + 1));
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
	ck_assert_int_eq(control_get_maps(&control, "devices", &devices, &n, &error), 0);
	ck_assert_uint_eq(n, 1);
	control = control_next(&devices);
	ck_assert_int_eq(control_get_map(&control, "caches", &caches, &error), 0);
	ck_assert_int_eq(control_get_uint(&caches, "moved_out", &moved, &error), 0);
	ck_assert_uint_eq(moved, 5);
	ask("metrics", "-", NULL);
	answered(NULL);
	ck_assert_uint_eq(server.metrics.streams[PLACE_HOST], 1);
	ck_assert_uint_eq(server.metrics.streams[PLACE_DEVICE], 0);
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
	ck_assert_int_eq(end(), ERR_DEVICE_LOST);
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

	start(true, SETTINGS("state.interval=1000", "streams.max=2"));
	feed('b');
	feed('c');
	say_rows('x', 'c', 9, 3);
	hear_rows('c', 12);
	open_stream('x', 'd'); /* the one that is idle longest, b, leaves memory */
	for (const char *to = "cb"; *to; to++) {
		exported = export_of("d");
		fake_broken = ERR_DEVICE;
		ask("import", (char[]){ *to, '\0' }, &exported);
		answered("internal");
		fake_broken = 0;
		n_seen = 0; /* older acks */
		ck_assert_uint_eq(open_stream('x', *to), *to == 'b' ? 9 : 12);
	}
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
	UNTIL(server.slots[0].use == SLOT_RESUMING && server.slots[0].stream->in_flight);
	open_stream('x', 'c');
	fake_stuck = false;
	answered("too_many_streams");
	say_rows('x', 'c', 0, 4);
	hear_rows('c', 4);
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
	UNTIL(server.slots[0].use == SLOT_SAVING && server.slots[0].stream->in_flight);
	say('x', 'a', &(struct message){ .type = MESSAGE_CLOSE, .has_got = true, .got = 8 });
	UNTIL(server.slots[0].stream->phase == STREAM_ENDING);
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

START_TEST(a_state_that_cannot_be_copied_is_saved_later)
{
	start(true, SETTINGS("state.interval=1000"));
	feed('a');
	fake_broken = ERR_DEVICE;
	ask("snapshot", "a", NULL);
	answered("internal");
	ck_assert_uint_eq(server.state_stats.errors, 1);
	fake_broken = 0;
	snapshot("a");
	ck_assert_uint_eq(server.state_stats.saved, 1);
	stop();
}
END_TEST

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
	UNTIL(server.stats.failed_batches);
	ask(commands[_i], _i ? "a" : "", NULL);
	control = answered(NULL);
	store_key("a", 1, key);
	saved = states_find(&server, key);
	if (saved)
		position = saved->generations.item[saved->generations.n - 1].reach;
	else
		ck_assert_int_eq(control_get_uint(&control, "position", &position, &error), 0);
	ck_assert_uint_eq(position, 20);
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
	snprintf(mark, sizeof mark, "%s/%s.closed", server.config->state.dir, key);
	ck_assert_int_eq(mkdir(mark, 0700), 0);
	fake_stuck = true;
	ask("snapshot", "a", NULL);
	UNTIL(server.slots[0].use == SLOT_SAVING);
	say('x', 'b', &(struct message){ .type = MESSAGE_CLOSE });
	UNTIL(server.state_stats.errors);
	fake_stuck = false;
	answered(NULL);
	ask("snapshot", "", NULL); /* of all: the mark is among it */
	answered("internal");
	ck_assert_int_eq(rmdir(mark), 0);
	stop();
}
END_TEST

/* Begin a daemon with a stream that has left memory. */
static void start_evicted(void)
{
	start(true, SETTINGS("streams.idle_timeout=2"));
	feed('a');
	UNTIL(!server.streams.n);
	n_seen = 0;
}

START_TEST(a_stream_comes_back_when_its_state_can_be_copied)
{
	start_evicted();
	fake_broken = ERR_DEVICE;
	say_open('x', 'a');
	UNTIL(server.state_stats.errors == 2);
	ck_assert_uint_eq(n_seen, 0);
	ck_assert_uint_eq(server.state_stats.damaged, 0);
	fake_broken = 0;
	ck_assert_uint_eq(hear('a', MESSAGE_ACK).next, 9);
	say_rows('x', 'a', 9, 3);
	hear_rows('a', 12);
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
	ck_assert_int_eq(control_get_uint(&control, "epoch", &epoch, &error), 0);
	ck_assert(states_has(states_find(&server, key), epoch) && !server.slots[0].use);
	return epoch;
}

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
	UNTIL(server.slots[0].use == SLOT_RESUMING);
	n_seen = 0;
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

/* Behind one that cannot be saved now, as its peer does not read. */
START_TEST(a_stream_that_waits_to_be_saved_goes_on_when_a_reload_says_later)
{
	start(true, SETTINGS("state.interval=0.05"));
	open_stream('y', 'b');
	deaf = 'y';
	say_rows('y', 'b', 0, 9);
	UNTIL(!list_empty(&server.stalled));
	open_stream('x', 'a');
	fake_stuck = true;
	say_rows('x', 'a', 0, 9);
	UNTIL(!list_empty(&server.on_hold));
	say_rows('x', 'a', 9, 8);
	fake_daemon_set("state.interval=100000");
	ask("reload", "", NULL);
	answered(NULL);
	fake_stuck = false;
	hear_rows('a', 16);
	deaf = 0;
	stop();
}
END_TEST

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
	UNTIL(!server.streams.n); /* it is idle again */
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
	server_drain(&server, false);
	ask("reset", "a", NULL);
	answered("shutting_down");
	stop();
}
END_TEST

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
	snprintf(folder, sizeof folder, "%.255s", server.config->state.dir);
	close_all();
	UNTIL(server.marks_begun == 8);
	server.failed = true;
	UNTIL(ended);
	pthread_join(thread, NULL);
	ck_assert_int_eq(result, ERR_SYSTEM);
	ck_assert_uint_eq(marked_in(folder), 8);
	fake_folder_remove();
}
END_TEST

/* Does something wait until this life of the stream has ended? */
static bool is_awaited(char id)
{
	struct table_entry *entry = table_find(&server.streams, &id, 1);

	return entry && list_entry(entry, struct stream, entry)->held.first;
}

/* All end at once, so that others are marked before its turn comes. */
START_TEST(a_stream_that_is_back_before_its_turn_is_not_marked)
{
	start_saved();
	n_seen = 0;
	fake_stuck = true;
	close_all();
	say('x', 'h', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .from = 8,
					 .has_got = true, .got = 8 });
	UNTIL(is_awaited('h'));
	fake_stuck = false;
	UNTIL(server.marks_begun == 8 && list_empty(&server.unmarked) && !server.marking);
	ck_assert_uint_eq(marked_in(server.config->state.dir), 7);
	say_rows('x', 'h', 9, 4);
	hear_rows('h', 12);
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
	ck_assert_ptr_null(stream_find(&server, "a", 1));
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
	deaf = 'x';
	say_rows('x', 'a', 9, 3);
	UNTIL(!list_empty(&server.stalled));
	ask("export", "a", NULL); /* which waits for x to read */
	UNTIL(server.n_requests);
	server_drain(&server, true);
	ck_assert_int_eq(end(), ERR_SYSTEM);
	answered("shutting_down");
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
	UNTIL(server.slots[0].use == SLOT_RESUMING && server.slots[0].stream->in_flight);
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
	UNTIL(server.slots[0].use == SLOT_SAVING);
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
	UNTIL(!server.streams.n);
	n_seen = 0;
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
	n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_got = true, .got = 9 });
	ack = hear('a', MESSAGE_ACK);
	ck_assert_uint_eq(ack.next, 0);
	ck_assert_uint_eq(ack.durable, 0);
	fake_stuck = false;
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
	snprintf(second, sizeof second, "%s/%s-%016x.safetensors", server.config->state.dir, key, 2);
	ck_assert_int_eq(mkdir(second, 0700), 0);
	say_rows('x', 'a', 50, 9); /* epoch 1, whose position 0 this is */
	hear_rows('a', 9);
	hear_rows('a', 8);
	UNTIL(server.state_stats.errors == 1);
	fake_stuck = true;
	ask("snapshot", "a", NULL);
	UNTIL(server.slots[0].use == SLOT_SAVING);
	n_seen = 0;
	say('x', 'a', &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true, .from = 54 });
	turn();
	fake_broken = ERR_DEVICE;
	fake_stuck = false;
	UNTIL(server.state_stats.errors == 2);
	fake_broken = 0;
	ack = hear('a', MESSAGE_ACK);
	ck_assert_uint_eq(ack.epoch, 1);
	ck_assert_uint_eq(ack.next, 0);
	say_rows('x', 'a', 50, 9);
	hear_rows('a', 8);
	ck_assert_uint_eq(stream_find(&server, "a", 1)->epoch, 1);
	ck_assert_int_eq(rmdir(second), 0);
	stop();
}
END_TEST

/* --- memory --- */

START_TEST(rows_wait_for_memory_for_their_hidden_states)
{
	start(false, SETTINGS("window=4"));
	open_stream('x', 'a');
	say_rows('x', 'a', 0, 1);
	UNTIL(server.stats.rows_in == 1);
	fake_full = true;
	say_rows('x', 'a', 1, 7);
	UNTIL(server.stats.rows_in == 8);
	for (int i = 0; i < 20; i++)
		turn();
	ck_assert_uint_eq(server.stats.batches, 0);
	ck_assert(timeout_ms >= 0 && timeout_ms < 100); /* it will look again by itself */
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
	deaf = 'x';
	for (uint64_t pos = 0; pos < 8; pos++)
		say_rows('x', 'a', pos, 1);
	for (char stream = first; stream <= last; stream++)
		say_open('y', stream);
	UNTIL(server.stats.messages_in == 1 + 8 + (size_t)(last - first + 1));
	ck_assert_uint_le(server.held_bytes, 4096);
	deaf = '\0';
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
	UNTIL(n_answers + server.n_requests == n);
	answered("no_credit");
	ck_assert_uint_gt(server.n_requests, 10);
	ck_assert_uint_le(server.n_requests, 256);
	ck_assert_uint_gt(server.held_bytes, 0);
	ck_assert_uint_le(server.held_bytes, 4 * server.config->limits.message_bytes);
	fake_stuck = false;
	UNTIL(n_answers == n);
	ck_assert_uint_eq(server.held_bytes, 0);
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
	deaf = 'x';
	say_rows('x', 'a', 50, 1); /* a gap */
	say_rows('x', 'a', 0, 64);
	UNTIL(server.stats.stalls > 1);
	deaf = '\0';
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
	ck_assert_int_eq(end(), ERR_SYSTEM);
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
	UNTIL(server.slots[0].use == SLOT_RESUMING && server.slots[0].stream->in_flight);
	fake_world.broken = true;
	ask("status", "a", NULL);
	ck_assert_int_eq(end(), ERR_SYSTEM);
	memset(server.slots, 0, sizeof server.slots); /* so that it shows if the stream is lost */
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
	tcase_add_test(cases, a_state_that_is_copied_in_when_there_is_no_room_any_more_is_refused);
	tcase_add_test(cases, a_state_that_is_copied_in_ends_a_stream_that_was_ending);
	tcase_add_test(cases, a_state_that_cannot_be_copied_is_saved_later);
	tcase_add_loop_test(cases, a_state_that_is_asked_for_has_all_rows_accepted_before, 0, 3);
	tcase_add_test(cases, another_streams_failure_is_no_failure_of_a_snapshot);
	tcase_add_test(cases, a_stream_comes_back_when_its_state_can_be_copied);
	tcase_add_test(cases, a_stream_that_is_rewound_is_told_nothing_of_a_reload);
	tcase_add_test(cases, a_stream_that_waits_to_be_saved_goes_on_when_a_reload_says_later);
	tcase_add_test(cases, a_reset_is_answered_when_it_is_on_disk);
	tcase_add_test(cases, a_stream_on_disk_is_reset_to_the_epoch_after);
	tcase_add_test(cases, a_stream_on_disk_is_not_reset_without_memory_or_when_the_daemon_drains);
	tcase_add_test(cases, streams_that_closed_are_marked_though_the_daemon_fails);
	tcase_add_test(cases, a_stream_that_is_back_before_its_turn_is_not_marked);
	tcase_add_test(cases, a_fork_waits_for_room);
	tcase_add_test(cases, a_request_that_waits_when_the_daemon_stops_is_refused);
	tcase_add_test(cases, the_last_epoch_is_not_reset);
	tcase_add_test(cases, a_stream_that_is_reset_while_it_comes_back_comes_first);
	tcase_add_test(cases, a_stream_that_ends_is_reset_when_it_has_ended);
	tcase_add_test(cases, an_epoch_that_is_closed_before_it_is_saved_leaves_nothing);
	tcase_add_test(cases, a_stream_begun_anew_while_it_ends_counts_no_states_as_its_own);
	tcase_add_test(cases, a_stream_that_is_rewound_stays_in_its_epoch);
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
