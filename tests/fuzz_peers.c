/*
 * Peers that send anything to a daemon: rows, token ids, control requests, imported states.
 *
 * The input is a list of messages for its sockets: bytes as they are, or messages that are right but for a detail, so
 * that the checks behind the first are reached, too.  Whatever comes, every control request is answered, and once; all
 * that the daemon says is well-formed; and in the end a peer that means well is served as ever.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "protocol/client.h"
#include "protocol/control.h"
#include "tests/fake_daemon.h"
#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/fuzz.h"

#define COLUMNS 64
#define MOST_BYTES ((size_t)1 << 17) /* of a frame */
#define MOST_REQUESTS 1000
#define MOST_TURNS 20000 /* without anything new, until it counts as never */
#define GOOD_ROWS 9 /* two windows and a row */

static const uint8_t *input;
static size_t input_left;
static struct server server;
static unsigned turns;
static bool deaf; /* y does not read */

/* Requests are known by the identities of those who ask: 0, 1, ... */
static uint16_t asked;
static size_t unanswered;
static bool waits[MOST_REQUESTS];

/* The last state that was exported. */
static unsigned char exported[MOST_BYTES];
static size_t exported_size;

/* The peer that means well: its stream has the longest of ids, which no other is likely to find. */
static enum { NOT_YET, OPENING, IS_OPEN, SERVED } good;
static unsigned char good_id[MESSAGE_STREAM_MAX];
static uint32_t good_state;
static uint64_t good_rows;

static uint8_t next_byte(void)
{
	if (!input_left)
		return 0;
	input_left--;
	return *input++;
}

/* Up to n bytes of the input as they are. */
static struct fake_frame next_bytes(size_t n)
{
	const struct fake_frame bytes = { input, n < input_left ? n : input_left };

	input += bytes.size;
	input_left -= bytes.size;
	return bytes;
}

static uint64_t next_number(void)
{
	static const uint64_t special[] = {
		UINT64_MAX, UINT64_MAX - 1, UINT64_MAX / 2, UINT64_MAX / 2 + 1, UINT32_MAX, UINT64_C(1) << 32,
		UINT64_C(1) << 62, 1000000
	};
	const uint8_t byte = next_byte();

	return byte < 240 ? byte : special[byte % 8];
}

static struct fake_frame next_id(uint8_t which)
{
	static const unsigned char longest[MESSAGE_STREAM_MAX + 1] = { 'l' };

	switch (which % 8) {
	default:
		return (struct fake_frame){ &"abcd"[which % 4], 1 };
	case 4:
		return (struct fake_frame){ "", 0 };
	case 5:
		return (struct fake_frame){ longest, MESSAGE_STREAM_MAX };
	case 6:
		return (struct fake_frame){ longest, MESSAGE_STREAM_MAX + 1 };
	case 7:
		return next_bytes(next_byte() % 8);
	}
}

/* --- control requests --- */

/* The request in the last of n frames, behind the identity, which is put in. */
static void ask(struct fake_frame *frames, size_t n)
{
	if (asked == MOST_REQUESTS)
		return;
	frames[0] = (struct fake_frame){ &asked, sizeof asked };
	waits[asked] = n == 2 || (n == 3 && !frames[1].size);
	unanswered += waits[asked];
	fake_send(ENDPOINT_CONTROL, frames, n);
	asked++;
}

/* The exported state, changed in a few places; without a checksum, or nothing would come further than that. */
static struct fake_frame change_state(void)
{
	static unsigned char state[MOST_BYTES];
	const uint8_t how = next_byte();
	size_t size = exported_size;
	unsigned char *checksum;

	memcpy(state, exported, size);
	checksum = memmem(state, size, "\"checksum\"", 10);
	if (checksum && !(how & 128))
		checksum[1] = 'C';
	for (int i = 0; i < how % 4 && size; i++) {
		size_t at = next_byte();

		at = at * 8 + next_byte() % 8; /* mostly in the header */
		state[at % size] = next_byte();
	}
	if (how & 64 && size)
		size -= next_byte() % size;
	return (struct fake_frame){ state, size };
}

static void put_bytes(struct control_writer *writer, const char *key, struct fake_frame bytes)
{
	control_put_bin(writer, key, bytes.data, bytes.size);
}

static void put_wrong(struct control_writer *writer)
{
	static const char *const keys[] = { "stream", "to", "prefix", "state" };
	const uint8_t how = next_byte();
	const char *key = keys[how % 4];

	switch (how / 4 % 4) {
	case 0:
		control_put_uint(writer, key, next_number());
		break;
	case 1:
		control_open_map(writer, key);
		control_close(writer);
		break;
	case 2:
		control_open_array(writer, key);
		put_bytes(writer, NULL, next_id(how / 16));
		control_close(writer);
		break;
	case 3:
		put_bytes(writer, key, next_bytes(next_byte()));
		break;
	}
}

static void send_request(void)
{
	static const char *const commands[] = {
		"status", "streams", "metrics", "reset", "close", "drain", "reload", "snapshot", "export", "import",
		"fork", "import", "export", "fork", "reset", "nothing"
	};
	static unsigned char request[MOST_BYTES + 1024];
	struct fake_frame frames[3] = { { NULL, 0 }, { "", 0 } };
	const uint8_t what = next_byte(), how = next_byte();
	struct control_writer writer;

	control_begin_request(&writer, request, sizeof request, commands[what % 16]);
	if (how & 1)
		put_bytes(&writer, "stream", next_id(what / 16));
	if (how & 2)
		put_bytes(&writer, "to", next_id(next_byte()));
	if (how & 4)
		put_bytes(&writer, "prefix", next_id(next_byte()));
	if (how & 8)
		put_bytes(&writer, "state", change_state());
	if (how & 16)
		put_wrong(&writer);
	frames[how & 32 ? 2 : 1] = (struct fake_frame){ request, control_finish(&writer) };
	ask(frames, how & 32 ? 3 : 2);
}

/* --- messages --- */

static const void *next_payload(size_t size)
{
	static unsigned char payload[MOST_BYTES];
	const struct fake_frame number = next_bytes(next_byte() % 5), last = next_bytes(next_byte() % 5);

	memset(payload, 0, size);
	for (size_t i = 0; i < size && number.size; i++)
		payload[i] = ((const unsigned char *)number.data)[i % number.size];
	if (last.size && last.size <= size)
		memcpy(payload + size - last.size, last.data, last.size);
	return payload;
}

static void send_message(void)
{
	static const uint64_t columns[] = { COLUMNS, COLUMNS, COLUMNS, 0, 0, COLUMNS - 1, 1, UINT64_MAX / 8 };
	const uint8_t what = next_byte(), has = next_byte(), how = next_byte();
	unsigned char header[MESSAGE_HEADER_MAX];
	struct fake_frame frames[4] = { { &"xy"[what % 2], 1 }, next_id(what / 2) };
	struct message message = {
		.type = (enum message_type)(what & 128 ? how % 8 : MESSAGE_DATA), .has_pos = has & 1, .flush = has & 2,
		.end = has & 4, .has_got = has & 8, .has_from = has & 16, .has_t = has & 32, .reply = !(has & 64),
		.has_shape = !(has & 128), .columns = columns[how / 8 % 8], .text = "text"
	};
	size_t size;

	message.epoch = has & 1 ? next_number() : 0;
	message.pos = has & 1 ? next_number() : 0;
	message.got = message.from = has & 24 ? next_number() : 0;
	message.t = has & 32 ? next_number() : 0;
	message.rows = next_byte() % 64;
	message.dtype = (enum dtype)(next_byte() % DTYPE_COUNT);
	size = message_payload_bytes(&message);
	if (size > MOST_BYTES || how & 128)
		size = next_byte();
	frames[2] = (struct fake_frame){ header, message_encode(&message, header) };
	frames[3] = (struct fake_frame){ next_payload(size), size };
	if (how & 64)
		fake_send(ENDPOINT_SUBSCRIBE, frames + 1, message.has_shape ? 3 : 2);
	else
		fake_send(ENDPOINT_INGEST, frames, message.has_shape ? 4 : 3);
}

static void send_bytes(void)
{
	const uint8_t what = next_byte();
	const size_t n = 1 + what / 4 % 4;
	struct fake_frame frames[5] = { { "z", 1 } };

	for (size_t i = 1; i <= n; i++)
		frames[i] = next_bytes(next_byte());
	if (what % 4 == 0)
		fake_send(ENDPOINT_SUBSCRIBE, frames + 1, n);
	else if (what % 4 == 1)
		fake_send(ENDPOINT_INGEST, frames, n + 1);
	else
		ask(frames, n + 1);
}

/* --- what the daemon says --- */

static void take_answer(const struct endpoint_frame *frames, size_t n)
{
	static FILE *nowhere;
	struct control answer;
	struct error err;
	const char *text = "";
	size_t size = 0;
	bool ok = false;
	uint16_t who;

	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	must(frames[0].size == sizeof who && n >= 2 && n <= 3);
	memcpy(&who, frames[0].data, sizeof who);
	must(who < asked && waits[who]);
	waits[who] = false;
	unanswered--;
	must(!control_read(frames[n - 1].data, frames[n - 1].size, &answer, &err));
	must(!control_get_bool(&answer, "ok", &ok, &err) && control_has(&answer, "ok"));
	must(!control_get_bytes(&answer, ok ? "state" : "message", &text, &size, &err) && (ok || size));
	if (ok && control_has(&answer, "pending") && size <= MOST_BYTES) {
		exported_size = size;
		memcpy(exported, text, size);
	}
	control_print_json(&answer, nowhere);
	control_print_text(&answer, nowhere);
}

static void decode(const struct endpoint_frame *frames, size_t n, struct message *ret_message)
{
	const float *rows = n > 2 ? frames[2].data : NULL;
	const size_t size = n > 2 ? frames[2].size : 0;
	struct error err;

	must(n >= 2 && n <= 3 && frames[0].size <= MESSAGE_STREAM_MAX);
	must(!message_decode(frames[1].data, frames[1].size, ret_message, &err));
	must(ret_message->type >= MESSAGE_ACK && message_payload_bytes(ret_message) == size);
	for (size_t i = 0; i < size / sizeof *rows; i++)
		must(isfinite(rows[i]));
}

static void send_good(struct message *message)
{
	static float rows[GOOD_ROWS * COLUMNS];
	unsigned char header[MESSAGE_HEADER_MAX];
	const struct fake_frame frames[] = {
		{ "good", 4 }, { good_id, sizeof good_id }, { header, message_encode(message, header) },
		{ rows, sizeof rows }
	};

	for (size_t i = 0; i < GOOD_ROWS; i++)
		rows[i * COLUMNS] = (float)i;
	fake_send(ENDPOINT_INGEST, frames, message->has_shape ? 4 : 3);
}

/* What the peer that means well gets. */
static void take_good(const struct message *message, const float *rows)
{
	if (message->type == MESSAGE_ERROR) {
		must(server.phase != SERVER_SERVING || message->code == REFUSED_TOO_MANY_STREAMS);
		good = SERVED;
		return;
	}
	if (message->type == MESSAGE_ACK && good == OPENING) {
		must(message->next == 0 && message->credit);
		good = IS_OPEN;
		send_good(&(struct message){ .type = MESSAGE_DATA, .has_shape = true, .rows = GOOD_ROWS,
					     .columns = COLUMNS, .dtype = DTYPE_FLOAT32, .end = true });
	}
	if (message->type != MESSAGE_HIDDEN)
		return;
	must(message->pos == good_rows && message->columns == COLUMNS);
	for (size_t i = 0; i < message->rows; i++) {
		good_state = fake_step(good_state, (float)good_rows++);
		must(rows[i * COLUMNS] == (float)good_state);
	}
	must(message->end == (good_rows == GOOD_ROWS));
	if (message->end)
		good = SERVED;
}

static enum endpoint_sent take(enum endpoint_kind kind, const struct endpoint_frame *frames, size_t n)
{
	struct message message;

	turns = 0;
	if (kind == ENDPOINT_INGEST && deaf && input_left && frames[0].size == 1 &&
	    *(const char *)frames[0].data == 'y')
		return ENDPOINT_FULL;
	if (kind == ENDPOINT_CONTROL) {
		take_answer(frames, n);
	} else if (kind == ENDPOINT_PUBLISH) {
		decode(frames, n, &message);
	} else {
		decode(frames + 1, n - 1, &message);
		if (frames[0].size == 4)
			take_good(&message, n > 3 ? frames[3].data : NULL);
		else
			must(frames[0].size == 1 && memchr("xyz", *(const char *)frames[0].data, 3));
	}
	return ENDPOINT_SENT;
}

/* --- what happens --- */

static void act(void)
{
	const uint8_t what = next_byte();

	if (what < 64)
		send_bytes();
	else if (what < 144)
		send_request();
	else if (what < 240)
		send_message();
	else if (what == 240)
		deaf = !deaf;
	else
		fake_time_passes(UINT64_C(1000000) << what % 16);
}

static void idle(int timeout_ms)
{
	(void)timeout_ms;
	must(turns++ < MOST_TURNS);
	if (input_left) {
		act();
		return;
	}
	fake_time_passes(10000000);
	if (unanswered)
		return;
	if (good == NOT_YET) {
		good = OPENING;
		send_good(&(struct message){ .type = MESSAGE_OPEN, .reply = true });
	} else if (good == SERVED) {
		server_drain(&server, true);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const gap[] = { "auto", "reject", "reset", "skip" };
	struct error err;
	char on_gap[32];
	uint8_t variant;

	fake_world = (struct fake_world){ .take = take, .idle = idle };
	input = data;
	input_left = size < 2000 ? size : 2000;
	variant = next_byte();
	turns = 0;
	asked = 0;
	unanswered = exported_size = 0;
	deaf = false;
	good = NOT_YET;
	good_state = 0;
	good_rows = 0;
	memset(good_id, 'g', sizeof good_id);
	snprintf(on_gap, sizeof on_gap, "streams.on_gap=%s", gap[variant % 4]);
	fake_folder_make();
	must(!fake_daemon_open(&server, variant & 4,
			       (const char *const[]){
				       on_gap, "sockets.subscribe=ipc://sub",
				       variant & 8 ? "streams.max=3" : "streams.max=1000",
				       variant & 16 ? "streams.flush_after=0.05" : "streams.flush_after=0",
				       variant & 32 ? "streams.idle_timeout=5" : "streams.idle_timeout=0",
				       variant & 64 ? "state.interval=1" : "state.interval=0.01",
				       variant & 128 ? "limits.peer_streams=2" : "limits.peer_streams=0",
				       variant & 128 ? "limits.peer_messages=20" : "limits.peer_messages=0", NULL
			       }, &err));
	must(!fake_daemon_run(&server, &err));
	fake_folder_remove();
	return 0;
}
