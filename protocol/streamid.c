/* Stream ids as text and back: see streamid.h. */
#include "protocol/streamid.h"

#include <string.h>

#include "protocol/wire.h"

static const char digits[] = "0123456789abcdef";

static bool is_hex(const char *text, size_t size)
{
	return size >= 2 && text[0] == '0' && text[1] == 'x';
}

const char *streamid_format(const void *id, size_t size, char text[STREAMID_TEXT_MAX])
{
	const unsigned char *bytes = id;
	char *at = text;

	if (size > MESSAGE_STREAM_MAX)
		size = MESSAGE_STREAM_MAX;
	if (wire_is_printable(id, size) && !is_hex(id, size)) {
		memcpy(text, id, size);
		text[size] = '\0';
		return text;
	}
	*at++ = '0';
	*at++ = 'x';
	for (size_t i = 0; i < size; i++) {
		*at++ = digits[bytes[i] >> 4];
		*at++ = digits[bytes[i] & 15];
	}
	*at = '\0';
	return text;
}

/* The value of a hex digit, or -1. */
static int digit_value(char c)
{
	const char *found;

	if (c >= 'A' && c <= 'F')
		c = (char)(c - 'A' + 'a');
	found = c != '\0' ? strchr(digits, c) : NULL;
	return found ? (int)(found - digits) : -1;
}

int streamid_parse(const char *text, void *id, size_t *ret_size, struct error *err)
{
	const bool hex = is_hex(text, strlen(text));
	const char *from = hex ? text + 2 : text;
	const size_t size = hex ? strlen(from) / 2 : strlen(from);
	unsigned char *bytes = id;

	if (size == 0 || size > MESSAGE_STREAM_MAX)
		return error_set(err, ERR_ARGUMENT, "stream id of %zu bytes, expected 1 to %d", size,
				 MESSAGE_STREAM_MAX);
	if (!hex)
		memcpy(id, from, size);
	for (size_t i = 0; hex && i < size; i++) {
		const int high = digit_value(from[2 * i]), low = digit_value(from[2 * i + 1]);

		if (high < 0 || low < 0)
			return error_set(err, ERR_ARGUMENT, "stream id %s is not hex after 0x", text);
		bytes[i] = (unsigned char)(high << 4 | low);
	}
	if (hex && strlen(from) % 2 != 0)
		return error_set(err, ERR_ARGUMENT, "stream id %s has an odd number of hex digits", text);
	*ret_size = size;
	return 0;
}
