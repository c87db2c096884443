/*
 * The stream table under random sequences of messages, control requests, time, evictions, batches and disks that fail,
 * and restarts.
 *
 * The input is a list of things to do.  Two peers feed four streams as PROTOCOL.md tells a client that must lose
 * nothing: they keep rows from `durable` on, confirm what they have, and open with `from` after every reconnect.
 * Whatever happens, each hidden state is the right one, in order, and none is missing; on the publish socket none comes
 * twice in a run; `next` is never before the `durable` told; and in the end every stream ends.  A kill is a restart at
 * which only the store still does what it was handed.
 */
#include <stdio.h>
#include <string.h>

#include "tests/fake_daemon.h"
#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/fuzz.h"
#include "tests/fuzz_copies.h"

#define PEERS 2
#define MOST_RESTARTS 6
#define MOST_TURNS 20000 /* without anything new, until it counts as never */

struct feed {
	uint64_t epoch, sent, accepted, have, durable;
	bool fed;     /* to be opened on every connection */
	bool is_open; /* that was answered */
	bool asked;   /* for the end */
	bool ended;
};

static struct feed feeds[STREAMS];
static unsigned turned_back[STREAMS]; /* times that rows may have been taken for not accepted */
static unsigned generation[PEERS]; /* of the connection */
static bool slow[PEERS];           /* does not read */
static struct { bool known; uint64_t epoch, next; } published[STREAMS];

static const uint8_t *input;
static size_t input_left;
static struct server server;
static enum { GO_ON, KILLED, TERMINATED, FINISHED } ending;
static bool finishing;
static bool disk_failed; /* at some time in this run */
static unsigned restarts, turns;

static uint8_t next_byte(void)
{
	if (!input_left)
		return 0;
	input_left--;
	return *input++;
}

/* --- what is right --- */

uint64_t fuzz_epoch(size_t stream)
{
	return feeds[stream].epoch;
}

uint64_t fuzz_accepted(size_t stream, unsigned *ret_turned_back)
{
	*ret_turned_back = turned_back[stream];
	return feeds[stream].accepted;
}

bool fuzz_hidden_right(size_t stream, uint64_t epoch, const struct message *message, const void *payload, size_t size)
{
	uint32_t state = 0;

	must(message->columns == COLUMNS && size == message->rows * COLUMNS * sizeof(float));
	must(message->pos + message->rows <= MOST_ROWS);
	for (uint64_t pos = 0; pos < message->pos + message->rows; pos++) {
		float value;

		state = fake_step(state, row_of(stream, epoch, pos));
		if (pos < message->pos)
			continue;
		memcpy(&value, (const float *)payload + (pos - message->pos) * COLUMNS, sizeof value);
		if (value != (float)state)
			return false;
	}
	return true;
}

static void check_published(size_t stream, const struct message *message)
{
	must(!published[stream].known || message->epoch >= published[stream].epoch);
	if (published[stream].known && published[stream].epoch == message->epoch && message->rows)
		must(message->pos == published[stream].next); /* an end alone may be that of a rewound stream */
	published[stream].known = !message->end;
	published[stream].epoch = message->epoch;
	published[stream].next = message->pos + message->rows;
}

/* --- what peers send --- */

static size_t identity_of(size_t peer, char identity[16])
{
	return (size_t)snprintf(identity, 16, "p%zu-%u", peer, generation[peer]);
}

static void send_message(size_t stream, struct message *message, uint64_t rows)
{
	const char id = (char)('a' + stream);
	unsigned char header[MESSAGE_HEADER_MAX];
	static float wide[MOST_ROWS * COLUMNS], payload[MOST_ROWS * COLUMNS];
	char identity[16];
	struct fake_frame frames[4] = { { identity, identity_of(stream % PEERS, identity) }, { &id, 1 } };

	message->epoch = feeds[stream].epoch;
	for (uint64_t i = 0; i < rows; i++)
		wide[i * COLUMNS] = row_of(stream, message->epoch, message->pos + i);
	dtype_narrow(message->dtype, wide, rows * COLUMNS, payload);
	frames[2] = (struct fake_frame){ header, message_encode(message, header) };
	frames[3] = (struct fake_frame){ payload, rows * COLUMNS * dtype_size(message->dtype) };
	fake_send(ENDPOINT_INGEST, frames, message->type == MESSAGE_DATA ? 4 : 3);
}

static void open_feed(size_t stream)
{
	struct feed *feed = &feeds[stream];

	feed->fed = true;
	feed->is_open = feed->asked = false;
	feed->accepted = 0;
	turned_back[stream]++;
	send_message(stream, &(struct message){ .type = MESSAGE_OPEN, .reply = true, .has_from = true,
						.from = feed->have }, 0);
}

static void send_rows(size_t stream, uint64_t pos, uint64_t rows, bool flush, bool end, bool got)
{
	struct feed *feed = &feeds[stream];

	if (!feed->is_open) {
		if (!feed->fed)
			open_feed(stream);
		return;
	}
	if (pos + rows > MOST_ROWS - 1)
		rows = pos < MOST_ROWS - 1 ? MOST_ROWS - 1 - pos : 0;
	if (!rows && !end && !flush)
		return;
	send_message(stream, &(struct message){ .type = MESSAGE_DATA, .has_pos = true, .pos = pos, .has_shape = true,
						.rows = rows, .columns = COLUMNS, .dtype = fake_dtype(pos),
						.flush = flush, .end = end, .has_got = got, .got = feed->have }, rows);
	feed->asked |= end;
	if (pos == feed->sent)
		feed->sent += rows;
}

static void next_epoch(size_t stream)
{
	feeds[stream] = (struct feed){ .epoch = feeds[stream].epoch + 1 };
	turned_back[stream]++;
}

static void reconnect(size_t peer)
{
	generation[peer]++;
	for (size_t stream = peer; stream < STREAMS; stream += PEERS)
		if (feeds[stream].fed)
			open_feed(stream);
}

/* --- what they get --- */

static void take_ack(size_t stream, const struct message *ack)
{
	struct feed *feed = &feeds[stream];

	must(ack->done <= ack->next && ack->durable <= ack->next && ack->next <= MOST_ROWS);
	must(feed->durable <= ack->next);
	if (!feed->is_open) {
		feed->is_open = true;
		feed->sent = ack->next;
	}
	feed->accepted = ack->next;
	must(ack->done <= feed->have);
	if (ack->durable > feed->durable)
		feed->durable = ack->durable;
}

static void take_hidden(size_t stream, const struct message *hidden)
{
	struct feed *feed = &feeds[stream];
	const uint64_t stop = hidden->pos + hidden->rows;

	must(hidden->pos <= feed->have);
	if (stop > feed->have)
		feed->have = stop;
	if (!hidden->end)
		return;
	send_message(stream, &(struct message){ .type = MESSAGE_CLOSE, .has_got = true, .got = feed->have }, 0);
	if (finishing)
		feed->ended = true;
	else
		next_epoch(stream);
	feed->fed = false;
}

static void take_error(size_t stream, const struct message *error)
{
	struct feed *feed = &feeds[stream];

	switch (error->code) {
	case REFUSED_GAP:
	case REFUSED_NO_CREDIT:
		if (!feed->is_open || !error->has_expected)
			break;
		must(error->expected >= feed->durable);
		feed->sent = error->expected;
		feed->asked = false;
		break;
	case REFUSED_DENIED: /* of a message on its way while the stream was opened on another connection */
		open_feed(stream);
		break;
	case REFUSED_TOO_MANY_STREAMS:
		feed->fed = feed->is_open = feed->asked = false;
		break;
	case REFUSED_SHUTTING_DOWN:
	case REFUSED_CLOSED:
		break;
	default:
		must(false);
	}
}

static enum endpoint_sent take_reply(const struct endpoint_frame *frames, size_t n)
{
	struct message message;
	struct error err;
	char identity[16];
	size_t stream, peer;

	if (frames[0].size == 1) /* the stranger */
		return ENDPOINT_SENT;
	stream = (size_t)(*(const char *)frames[1].data - 'a');
	peer = stream % PEERS;
	if (frames[0].size != identity_of(peer, identity) || memcmp(frames[0].data, identity, frames[0].size) != 0)
		return ENDPOINT_GONE;
	if (slow[peer] && !finishing)
		return ENDPOINT_FULL;
	must(!message_decode(frames[2].data, frames[2].size, &message, &err));
	if (message.type == MESSAGE_HIDDEN)
		must(fuzz_hidden_right(stream, message.epoch, &message, n > 3 ? frames[3].data : "",
				       n > 3 ? frames[3].size : 0));
	if (message.type == MESSAGE_ERROR)
		take_error(stream, &message);
	else if (message.epoch != feeds[stream].epoch || !feeds[stream].fed)
		return ENDPOINT_SENT; /* of an earlier life */
	else if (message.type == MESSAGE_ACK)
		take_ack(stream, &message);
	else
		take_hidden(stream, &message);
	return ENDPOINT_SENT;
}

static enum endpoint_sent take(enum endpoint_kind kind, const struct endpoint_frame *frames, size_t n)
{
	const void *payload = n > 2 ? frames[2].data : "";
	const size_t size = n > 2 ? frames[2].size : 0;
	struct message message;
	struct error err;
	size_t stream;
	char id;

	turns = 0;
	if (kind == ENDPOINT_INGEST)
		return take_reply(frames, n);
	if (kind == ENDPOINT_CONTROL)
		copies_take_answer(server.model, frames, n, disk_failed || !server.store);
	if (kind != ENDPOINT_PUBLISH)
		return ENDPOINT_SENT;
	id = *(const char *)frames[0].data;
	stream = (size_t)(id - (id < 'a' ? 'A' : 'a'));
	must(!message_decode(frames[1].data, frames[1].size, &message, &err));
	if (id < 'a') {
		if (message.type == MESSAGE_HIDDEN)
			copies_take_hidden(stream, &message, payload, size);
	} else if (message.type == MESSAGE_HIDDEN) {
		must(fuzz_hidden_right(stream, message.epoch, &message, payload, size));
		check_published(stream, &message);
	} else if (message.event == EVENT_CLOSED || message.event == EVENT_RESET ||
		   (message.event == EVENT_EVICTED && !server.store)) { /* without states it begins anew */
		published[stream].known = false;
	}
	return ENDPOINT_SENT;
}

/* --- what happens --- */

static void send_noise(size_t stream)
{
	const char id = (char)('a' + stream);
	size_t n = next_byte() % 24;

	n = n < input_left ? n : input_left;
	fake_send(ENDPOINT_INGEST, (struct fake_frame[]){ { "x", 1 }, { &id, 1 }, { input, n }, { input, n } },
		  1 + next_byte() % 4);
	input += n < input_left ? n : input_left;
	input_left -= n < input_left ? n : input_left;
}

static void restart(bool kill)
{
	if (restarts++ == MOST_RESTARTS)
		return;
	ending = kill ? KILLED : TERMINATED;
	if (kill)
		server.failed = true;
	else
		server_drain(&server, true);
}

static void act(void)
{
	const uint8_t what = next_byte();
	const size_t stream = what / 32 % STREAMS;
	struct feed *feed = &feeds[stream];
	uint8_t how;

	switch (what % 32) {
	default:
		how = next_byte();
		if (!feed->asked)
			send_rows(stream, feed->sent, 1 + how % 16, how & 16, false, how & 32);
		break;
	case 14:
		copies_ask(stream, next_byte());
		break;
	case 15:
		fake_disk_broken = !fake_disk_broken;
		disk_failed |= fake_disk_broken;
		break;
	case 16: case 17:
		break; /* let the daemon work */
	case 18:
		fake_failure = true;
		break;
	case 19:
		fake_time_passes(UINT64_C(1000000) << next_byte() % 15);
		break;
	case 20:
		reconnect(stream % PEERS);
		break;
	case 21:
		if (feed->fed)
			open_feed(stream);
		break;
	case 22:
		if (feed->is_open)
			send_message(stream, &(struct message){ .type = MESSAGE_FLUSH, .has_got = true,
								.got = feed->have }, 0);
		break;
	case 23: case 24:
		if (!feed->asked)
			send_rows(stream, feed->sent, next_byte() % 4, false, true, true);
		break;
	case 25:
		restart(true);
		break;
	case 26:
		restart(false);
		break;
	case 27:
		copies_snapshot();
		break;
	case 28:
		next_epoch(stream);
		break;
	case 29:
		slow[stream % PEERS] = !slow[stream % PEERS];
		break;
	case 30:
		send_noise(stream);
		break;
	case 31: /* again, or with a gap */
		how = next_byte();
		if (!feed->asked)
			send_rows(stream, feed->sent + 8 > how % 16 ? feed->sent + 8 - how % 16 : 0, how / 16, false,
				  false, false);
		break;
	}
}

/* End every stream that was begun, when nothing is in the way any more. */
static void finish(void)
{
	bool all = true;

	fake_time_passes(10000000);
	fake_disk_broken = false;
	if (!copies_close())
		return;
	for (size_t stream = 0; stream < STREAMS; stream++) {
		struct feed *feed = &feeds[stream];

		if (feed->ended)
			continue;
		all = false;
		if (!feed->asked)
			send_rows(stream, feed->sent, 1, false, true, true);
	}
	if (!all)
		return;
	ending = FINISHED;
	server_drain(&server, true);
}

static void idle(int timeout_ms)
{
	(void)timeout_ms;
	must(turns++ < MOST_TURNS);
	if (ending != GO_ON) {
		memset(slow, 0, sizeof slow); /* or it would wait for them, */
		fake_disk_broken = false;     /* and for this one */
		fake_time_passes(1000000);
		return;
	}
	if (finishing)
		finish();
	else if (input_left)
		act();
	else
		finishing = true;
}

/* --- a life of the daemon --- */

/* Run a daemon, with settings by the input's first byte, until it is killed, terminated or all is done. */
static void run(uint8_t variant)
{
	static const char *const most[] = { "2", "3", "4", "1000" }, *const keep[] = { "1", "2", "3", "2" };
	char text[2][32];
	struct error err;
	int rc;

	snprintf(text[0], sizeof *text, "streams.max=%s", most[variant % 4]);
	snprintf(text[1], sizeof *text, "state.keep=%s", keep[variant / 4 % 4]);
	rc = fake_daemon_open(&server, variant & 64,
			      (const char *const[]){
				      text[0], text[1], variant & 16 ? "state.interval=1" : "state.interval=0.01",
				      variant & 32 ? "streams.flush_after=0.05" : "streams.flush_after=0",
				      variant & 128 ? "streams.idle_timeout=5" : "streams.idle_timeout=0", NULL
			      }, &err);
	must(!rc);
	ending = GO_ON;
	turns = 0;
	disk_failed = fake_disk_broken;
	memset(published, 0, sizeof published);
	for (size_t peer = 0; peer < PEERS; peer++)
		reconnect(peer);
	rc = fake_daemon_run(&server, &err);
	must((rc != 0) == (ending == KILLED));
	must(disk_failed || !server.state_stats.errors); /* whatever batches do */
	must(!server.state_stats.damaged && (ending == KILLED || !copies_unanswered()));
	copies_forget();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t variant;

	fake_world = (struct fake_world){ .take = take, .idle = idle };
	input = data;
	input_left = size < 1000 ? size : 1000;
	variant = next_byte();
	memset(feeds, 0, sizeof feeds);
	memset(turned_back, 0, sizeof turned_back);
	memset(generation, 0, sizeof generation);
	memset(slow, 0, sizeof slow);
	copies_begin();
	fake_disk_broken = false;
	restarts = 0;
	finishing = false;
	fake_folder_make();
	do
		run(variant);
	while (ending != FINISHED);
	fake_folder_remove();
	return 0;
}
