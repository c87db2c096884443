/*
 * msgpack, which headers and control messages are written in: a bounded writer, and a reader that checks everything
 * before it believes anything.  Nothing here allocates.  wire.c is the only file that knows msgpack-c.
 */
#ifndef PROTOCOL_WIRE_H
#define PROTOCOL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

#define WIRE_DEPTH_MAX 16 /* arrays and maps within each other */
#define WIRE_KEYS_MAX 128 /* of a map that wire_check_map accepts */

/*
 * Writes into the caller's buffer [size].  What does not fit is not written but counted: length > size afterwards
 * means that the buffer was too small, and says how much it takes.
 */
struct wire_writer {
	char *buffer;
	size_t size;
	size_t length;
};

void wire_put_nil(struct wire_writer *writer);
void wire_put_bool(struct wire_writer *writer, bool value);
void wire_put_uint(struct wire_writer *writer, uint64_t value);
void wire_put_int(struct wire_writer *writer, int64_t value);
void wire_put_float(struct wire_writer *writer, double value);
void wire_put_str(struct wire_writer *writer, const char *text); /* bytes that are not UTF-8 become '?' */
void wire_put_bin(struct wire_writer *writer, const void *data, size_t size);
void wire_put_array(struct wire_writer *writer, uint32_t items); /* the items follow */
void wire_put_map(struct wire_writer *writer, uint32_t pairs);   /* a key and a value each follow */

/*
 * A map or array whose count is not known beforehand: open it, write the items, and close it with what open returned
 * and the count.
 */
size_t wire_open_array(struct wire_writer *writer);
size_t wire_open_map(struct wire_writer *writer);
void wire_close(struct wire_writer *writer, size_t opened, uint32_t count);

enum wire_type {
	WIRE_NIL, WIRE_BOOL,
	WIRE_UINT, /* every integer that is not negative, however it was written */
	WIRE_INT,  /* a negative one */
	WIRE_FLOAT, WIRE_STR, WIRE_BIN, WIRE_EXT, WIRE_ARRAY, WIRE_MAP
};

/* One value.  Of an array or map only the count: what it holds comes next from the reader. */
struct wire_value {
	enum wire_type type;
	union {
		bool boolean;
		uint64_t uint;
		int64_t negative;
		double real;
		struct { const char *data; size_t size; } bytes; /* str, bin, ext: in the message, no NUL behind */
		size_t count;                                    /* items of an array, pairs of a map */
	};
};

/* "a string", "an integer": for error texts. */
const char *wire_type_name(enum wire_type type);

/*
 * Check that the bytes are exactly one well-formed value: counts within the bytes that are there, at most
 * WIRE_DEPTH_MAX deep, strings in UTF-8, nothing behind it.  REFUSED_BAD_HEADER says what is wrong, and where.
 */
int wire_check(const void *bytes, size_t size, struct error *err);

/* As wire_check, and the value is a map of at most WIRE_KEYS_MAX keys, all of them strings, none twice. */
int wire_check_map(const void *bytes, size_t size, struct error *err);

/* Where in checked bytes the next value starts.  Reading unchecked bytes, or beyond their end, is a bug. */
struct wire_reader {
	const unsigned char *at, *end;
};

struct wire_reader wire_reader(const void *bytes, size_t size);
struct wire_value wire_next(struct wire_reader *reader);
void wire_skip(struct wire_reader *reader); /* the next value and all that it holds */

/* The value of a key in the map that starts at reader: sets *ret_reader to it, or returns false. */
bool wire_find(struct wire_reader map, const char *key, struct wire_reader *ret_reader);

bool wire_is(const struct wire_value *value, const char *text); /* the string with just these bytes */

/* UTF-8 without control characters: fit for a terminal or a log line. */
bool wire_is_printable(const char *text, size_t size);

#endif
