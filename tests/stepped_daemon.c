/* A daemon that runs in steps: see stepped_daemon.h. */
#include "tests/stepped_daemon.h"

#include <pthread.h>
#include <semaphore.h>
#include <string.h>

#include "tests/fake_daemon.h"
#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/fuzz.h"

#define COLUMNS 64
#define MOST_ROWS 100
#define MOST_SEEN 200

struct run run;

static pthread_t thread;
static sem_t go, paused;
static int result; /* of the run */

static struct { char stream; struct message message; } seen[MOST_SEEN]; /* run.n_seen of them */
static unsigned char answer[1 << 16]; /* to the last control request */
static size_t answer_size;

/* --- the daemon --- */

/* Exact in every dtype. */
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
		run.n_answers++;
	}
	if (kind != ENDPOINT_INGEST)
		return ENDPOINT_SENT;
	if (*(const char *)frames[0].data == run.deaf)
		return ENDPOINT_FULL;
	must(run.n_seen < MOST_SEEN);
	seen[run.n_seen].stream = *(const char *)frames[1].data;
	must(!message_decode(frames[2].data, frames[2].size, &seen[run.n_seen].message, &err));
	if (n > 3)
		check_rows(&seen[run.n_seen].message, frames[3].data);
	run.n_seen++;
	return ENDPOINT_SENT;
}

static void idle(int ms)
{
	run.timeout_ms = ms;
	sem_post(&paused);
	sem_wait(&go);
	fake_time_passes(1000000);
}

static void *serve(void *arg)
{
	(void)arg;
	result = fake_daemon_run(&run.server, &run.error);
	run.ended = true;
	sem_post(&paused);
	return NULL;
}

void turn(void)
{
	ck_assert(!run.ended);
	sem_post(&go);
	sem_wait(&paused);
}

void start(bool states, const char *const *settings)
{
	fake_world = (struct fake_world){ .take = take, .idle = idle };
	fake_broken = 0;
	run.ended = false;
	run.deaf = 0;
	run.n_seen = answer_size = run.n_answers = 0;
	fake_folder_make();
	sem_init(&go, 0, 0);
	sem_init(&paused, 0, 0);
	ck_assert_int_eq(fake_daemon_open(&run.server, states, settings, &run.error), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, serve, NULL), 0);
	sem_wait(&paused);
}

int await_end(void)
{
	UNTIL(run.ended);
	pthread_join(thread, NULL);
	return result;
}

int end_of_run(void)
{
	await_end();
	fake_folder_remove();
	return result;
}

void stop(void)
{
	server_drain(&run.server, true);
	ck_assert_int_eq(end_of_run(), 0);
}

/* --- its peers --- */

void say(char peer, char stream, const struct message *message)
{
	static float wide[MOST_ROWS * COLUMNS], payload[MOST_ROWS * COLUMNS];
	unsigned char header[MESSAGE_HEADER_MAX];
	const struct fake_frame frames[] = {
		{ &peer, 1 }, { &stream, 1 }, { header, message_encode(message, header) },
		{ payload, message->rows * COLUMNS * dtype_size(message->dtype) }
	};

	for (uint64_t i = 0; i < message->rows; i++)
		wide[i * COLUMNS] = row_of(message->pos + i);
	dtype_narrow(message->dtype, wide, message->rows * COLUMNS, payload);
	fake_send(ENDPOINT_INGEST, frames, message->has_shape ? 4 : 3);
}

void say_rows(char peer, char stream, uint64_t pos, uint64_t rows)
{
	say(peer, stream, &(struct message){ .type = MESSAGE_DATA, .has_pos = true, .pos = pos, .has_shape = true,
					     .rows = rows, .columns = COLUMNS, .dtype = fake_dtype(pos) });
}

bool heard(char stream, enum message_type type, struct message *ret_message)
{
	for (size_t i = 0; i < run.n_seen; i++) {
		if (seen[i].stream != stream || seen[i].message.type != type)
			continue;
		*ret_message = seen[i].message;
		for (run.n_seen--; i < run.n_seen; i++)
			seen[i] = seen[i + 1];
		return true;
	}
	return false;
}

struct message hear(char stream, enum message_type type)
{
	struct message message;

	UNTIL(heard(stream, type, &message));
	return message;
}

void say_open(char peer, char stream)
{
	say(peer, stream, &(struct message){ .type = MESSAGE_OPEN, .reply = true });
}

uint64_t open_stream(char peer, char stream)
{
	say_open(peer, stream);
	return hear(stream, MESSAGE_ACK).next;
}

void hear_rows(char stream, uint64_t stop)
{
	struct message hidden;

	do
		hidden = hear(stream, MESSAGE_HIDDEN);
	while (hidden.pos + hidden.rows < stop);
	ck_assert_uint_eq(hidden.pos + hidden.rows, stop);
}

void ask_of(const char *cmd, const char *stream, const char *to, const struct control *with_state)
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
	if (with_state && !control_get_bytes(with_state, "state", &state, &size, &run.error))
		control_put_bin(&writer, "state", state, size);
	answer_size = 0;
	fake_send(ENDPOINT_CONTROL, (struct fake_frame[]){ { "c", 1 }, { request, control_finish(&writer) } }, 2);
}

void ask(const char *cmd, const char *stream, const struct control *with_state)
{
	ask_of(cmd, stream, NULL, with_state);
}

struct control answered(const char *code)
{
	struct control control;

	UNTIL(answer_size);
	ck_assert_int_eq(control_read(answer, answer_size, &control, &run.error), 0);
	ck_assert(code ? control_is(&control, "code", code) : !control_has(&control, "code"));
	return control;
}

void feed(char stream)
{
	open_stream('x', stream);
	say_rows('x', stream, 0, 9);
	hear_rows(stream, 8);
}

void snapshot(const char *stream)
{
	ask("snapshot", stream, NULL);
	answered(NULL);
}

struct control export_of(const char *stream)
{
	ask("export", stream, NULL);
	return answered(NULL);
}

void start_evicted(void)
{
	start(true, SETTINGS("streams.idle_timeout=2"));
	feed('a');
	UNTIL(!run.server.streams.n);
	run.n_seen = 0;
}
