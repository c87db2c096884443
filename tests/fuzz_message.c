/*
 * Headers and control messages from anywhere: no crash, and what was accepted survives being written again.  A client
 * that is told such things never thinks that it may send more than its credit.
 */
#include <stdio.h>
#include <string.h>

#include "protocol/client.h"
#include "protocol/control.h"
#include "protocol/message.h"
#include "protocol/refusal.h"
#include "tests/fuzz.h"

static void fuzz_header(const uint8_t *data, size_t size)
{
	unsigned char once[MESSAGE_HEADER_MAX], twice[MESSAGE_HEADER_MAX];
	struct client_stream stream = { .position = 10, .done = 5, .credit = 100, .open = true };
	struct message message, again;
	struct error err = { 0 };
	const int status = message_decode(data, size, &message, &err);
	size_t length;

	if (status != 0) {
		must(status == err.code && status <= REFUSED_BAD_VERSION && status >= REFUSED_BAD_DTYPE);
		must(err.text[0] != '\0');
		return;
	}
	length = message_encode(&message, once);
	must(message_decode(once, length, &again, NULL) == 0);
	must(message_payload_bytes(&again) == message_payload_bytes(&message));
	must(message_encode(&again, twice) == length && memcmp(once, twice, length) == 0);
	if (client_stream_update(&stream, &message, &err) != 0)
		must(err.code == message.code);
	must(client_stream_room(&stream) <= stream.credit);
}

static void fuzz_control(const uint8_t *data, size_t size)
{
	static FILE *nowhere;
	struct control control;
	const char *bytes;
	uint64_t number;
	size_t n;
	bool flag;

	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	must(nowhere != NULL);
	if (control_read(data, size, &control, NULL) != 0)
		return;
	control_print_json(&control, nowhere);
	control_print_text(&control, nowhere);
	control_get_bytes(&control, "cmd", &bytes, &n, NULL);
	control_get_uint(&control, "rows", &number, NULL);
	control_get_bool(&control, "ok", &flag, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fuzz_header(data, size);
	fuzz_control(data, size);
	return 0;
}
