/* See fuzz_copies.h. */
#include "tests/fuzz_copies.h"

#include <stdio.h>
#include <string.h>

#include "daemon/statefile.h"
#include "protocol/control.h"
#include "tests/fake_device.h"
#include "tests/fake_endpoint.h"
#include "tests/fuzz.h"

#define MOST_REQUESTS 1000
#define MOST_BYTES ((size_t)1 << 17) /* of a state */
#define WINDOW 4

enum ask { ASK_SNAPSHOT, ASK_EXPORT, ASK_FORK, ASK_IMPORT, ASK_RESET, ASK_CLOSE };

/* Known by the identities of those who ask: 0, 1, ... */
static struct {
	bool waits, copy;
	enum ask ask;
	size_t stream;
	uint64_t accepted;    /* of the stream when it was asked, */
	unsigned turned_back; /* and how often it had lost rows by then */
} requests[MOST_REQUESTS];
static uint16_t n_requests;
static size_t unanswered;

/* The last state that was exported of a stream or of its copy. */
static struct {
	size_t size;
	unsigned char bytes[MOST_BYTES];
} exported[STREAMS];

static bool closed[STREAMS]; /* copies, by copies_close */
static struct { bool there; uint64_t epoch; } made[STREAMS]; /* copies, unless somebody asked for their end */

void copies_begin(void)
{
	n_requests = 0;
	unanswered = 0;
	for (size_t stream = 0; stream < STREAMS; stream++)
		exported[stream].size = 0;
}

void copies_forget(void)
{
	for (uint16_t i = 0; i < n_requests; i++)
		requests[i].waits = false;
	unanswered = 0;
	memset(closed, 0, sizeof closed);
	memset(made, 0, sizeof made);
}

size_t copies_unanswered(void)
{
	return unanswered;
}

/* --- asking --- */

static void put_id(struct control_writer *writer, const char *key, size_t stream, bool copy)
{
	const char id = (char)((copy ? 'A' : 'a') + stream);

	control_put_bin(writer, key, &id, 1);
}

static void ask(enum ask what, size_t stream, bool copy)
{
	static const char *const commands[] = { "snapshot", "export", "fork", "import", "reset", "close" };
	static unsigned char request[MOST_BYTES + 1024];
	struct control_writer writer;

	if (n_requests == MOST_REQUESTS)
		return;
	control_begin_request(&writer, request, sizeof request, commands[what]);
	if (what == ASK_IMPORT)
		control_put_bin(&writer, "state", exported[stream].bytes, exported[stream].size);
	if (stream < STREAMS)
		put_id(&writer, "stream", stream, copy);
	if (what == ASK_FORK)
		put_id(&writer, "to", stream, true);
	if (stream < STREAMS)
		requests[n_requests].accepted = fuzz_accepted(stream, &requests[n_requests].turned_back);
	made[stream % STREAMS].there &= what != ASK_CLOSE;
	requests[n_requests].waits = true;
	requests[n_requests].copy = copy;
	requests[n_requests].ask = what;
	requests[n_requests].stream = stream;
	unanswered++;
	fake_send(ENDPOINT_CONTROL, (struct fake_frame[]){ { &n_requests, sizeof n_requests },
							    { request, control_finish(&writer) } }, 2);
	n_requests++;
}

void copies_ask(size_t stream, uint8_t how)
{
	switch (how % 8) {
	case 0: case 1:
		ask(ASK_FORK, stream, false);
		break;
	case 2:
		if (exported[stream].size)
			ask(ASK_IMPORT, stream, true);
		break;
	case 3:
		ask(ASK_RESET, stream, true);
		break;
	case 4:
		ask(ASK_CLOSE, stream, true);
		break;
	case 5:
		ask(ASK_SNAPSHOT, stream, how & 8);
		break;
	default:
		ask(ASK_EXPORT, stream, how & 8);
		break;
	}
}

void copies_snapshot(void)
{
	ask(ASK_SNAPSHOT, STREAMS, false);
}

bool copies_close(void)
{
	bool all = true;

	for (size_t stream = 0; stream < STREAMS; stream++)
		if (!closed[stream]) {
			all = false;
			if (!unanswered)
				ask(ASK_CLOSE, stream, true);
		}
	return all && !unanswered;
}

/* --- what is right --- */

static bool state_right(size_t stream, uint64_t epoch, const struct state *state)
{
	uint32_t number = 0;

	for (uint64_t pos = 0; pos < state->position; pos++)
		number = fake_step(number, row_of(stream, epoch, pos));
	if (state->cache[0] != (float)number)
		return false;
	for (uint64_t i = 0; i < state->pending_rows; i++)
		if (state->positions[i] != state->position + i ||
		    state->pending[i * COLUMNS] != row_of(stream, epoch, state->position + i))
			return false;
	return true;
}

/* The state of a stream follows from its rows, all that were accepted; that of a copy from the stream's in some epoch. */
static void check_state(const struct model *model, uint16_t who, const void *bytes, size_t size)
{
	static struct state *state;
	const bool copy = requests[who].copy;
	const size_t stream = requests[who].stream;
	const uint64_t last = fuzz_epoch(stream);
	unsigned turned_back;
	struct error err;
	uint64_t epoch;

	if (!state)
		must(!state_new(&model->shape, WINDOW, &state, &err));
	must(!statefile_decode(bytes, size, "answer", true, &model->shape, model->fingerprint, WINDOW, state, &err));
	epoch = copy ? 0 : state->epoch;
	while (copy && epoch < last && !state_right(stream, epoch, state))
		epoch++;
	must(epoch <= last && state_right(stream, epoch, state));
	fuzz_accepted(stream, &turned_back);
	must(copy || turned_back != requests[who].turned_back || state_next(state) >= requests[who].accepted);
}

/* A copy was made: in the epoch after that of the one before it, wherever that was. */
static void check_made(size_t stream, const struct control *answer)
{
	struct error err;
	uint64_t epoch = 0;

	must(control_has(answer, "epoch") && !control_get_uint(answer, "epoch", &epoch, &err));
	must(!made[stream].there || epoch > made[stream].epoch);
	made[stream].there = true;
	made[stream].epoch = epoch;
}

void copies_take_answer(const struct model *model, const struct endpoint_frame *frames, size_t n, bool failing)
{
	struct control answer;
	struct error err;
	const char *state = "";
	size_t size = 0;
	bool ok = false;
	uint16_t who;

	must(n == 2 && frames[0].size == sizeof who);
	memcpy(&who, frames[0].data, sizeof who);
	must(who < n_requests && requests[who].waits);
	requests[who].waits = false;
	unanswered--;
	must(!control_read(frames[1].data, frames[1].size, &answer, &err) && control_has(&answer, "ok"));
	must(!control_get_bool(&answer, "ok", &ok, &err) && !control_get_bytes(&answer, "state", &state, &size, &err));
	closed[requests[who].stream % STREAMS] |= requests[who].ask == ASK_CLOSE;
	if (!ok) {
		must(control_is(&answer, "code", "closed") || control_is(&answer, "code", "no_credit") ||
		     control_is(&answer, "code", "shutting_down") ||
		     control_is(&answer, "code", "too_many_streams") ||
		     (failing && control_is(&answer, "code", "internal")));
		return;
	}
	made[requests[who].stream % STREAMS].there &= requests[who].ask != ASK_CLOSE && !failing;
	if (requests[who].ask == ASK_FORK || requests[who].ask == ASK_IMPORT)
		check_made(requests[who].stream, &answer);
	if (requests[who].ask != ASK_EXPORT)
		return;
	must(size && size <= MOST_BYTES && !control_has(&answer, "damaged"));
	check_state(model, who, state, size);
	exported[requests[who].stream].size = size;
	memcpy(exported[requests[who].stream].bytes, state, size);
}

void copies_take_hidden(size_t stream, const struct message *message, const void *payload, size_t size)
{
	uint64_t epoch = 0;

	while (epoch < fuzz_epoch(stream) && !fuzz_hidden_right(stream, epoch, message, payload, size))
		epoch++;
	must(fuzz_hidden_right(stream, epoch, message, payload, size));
}
