/*
 * Control requests and answers: one msgpack map each, see "Control" in PROTOCOL.md.  The daemon reads requests and
 * writes answers, mamba2ctl the reverse; both ways it is the same writer and the same reader.
 */
#ifndef PROTOCOL_CONTROL_H
#define PROTOCOL_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "model/error.h"
#include "protocol/endpoint.h"
#include "protocol/wire.h"

#define CONTROL_DEPTH_MAX 8 /* maps and arrays within each other, the message's own map included */

/*
 * Writes a message: begin, put, finish.  key is the name within a map, NULL within an array.  What control_open_map
 * and control_open_array opened, control_close closes; items count themselves.
 */
struct control_writer {
	struct wire_writer out;
	struct { size_t opened; uint32_t count; } level[CONTROL_DEPTH_MAX];
	size_t depth;
};

/* Start a request {v, cmd}, an answer {v, ok: true} or a refusal {v, ok: false, code, message} in buffer [size]. */
void control_begin_request(struct control_writer *writer, void *buffer, size_t size, const char *cmd);
void control_begin_answer(struct control_writer *writer, void *buffer, size_t size);
void control_begin_refusal(struct control_writer *writer, void *buffer, size_t size, int code, const char *message);

void control_put_bool(struct control_writer *writer, const char *key, bool value);
void control_put_uint(struct control_writer *writer, const char *key, uint64_t value);
void control_put_float(struct control_writer *writer, const char *key, double value);
void control_put_str(struct control_writer *writer, const char *key, const char *text);
void control_put_bin(struct control_writer *writer, const char *key, const void *data, size_t size); /* stream ids */
void control_open_map(struct control_writer *writer, const char *key);
void control_open_array(struct control_writer *writer, const char *key);
void control_close(struct control_writer *writer);

/* End the message; returns its length.  More than size: nothing usable was written, begin again with so much room. */
size_t control_finish(struct control_writer *writer);

/* A checked message.  Points into the bytes that it was read from. */
struct control {
	struct wire_reader map;
};

/* Check a request or an answer.  REFUSED_BAD_HEADER if it is not one well-formed map, REFUSED_BAD_VERSION. */
int control_read(const void *bytes, size_t size, struct control *ret_control, struct error *err);

/*
 * The value of a key.  A key that is absent leaves the caller's default; one of another type is REFUSED_BAD_HEADER.
 * Bytes are those of a string or of binary data, in the message, with no NUL behind.
 */
int control_get_bool(const struct control *control, const char *key, bool *value, struct error *err);
int control_get_uint(const struct control *control, const char *key, uint64_t *value, struct error *err);
int control_get_bytes(const struct control *control, const char *key, const char **data, size_t *size,
		      struct error *err);
int control_get_number(const struct control *control, const char *key, double *value, struct error *err);
int control_get_map(const struct control *control, const char *key, struct control *map, struct error *err); /* empty */

/* The value of a key is an array: of numbers, of which up to max are stored and *n counted, or of maps. */
int control_get_numbers(const struct control *control, const char *key, double *values, size_t max, size_t *n,
			struct error *err);

/* Walk the maps of an array: *n items from *reader on, of which control_next takes one. */
int control_get_maps(const struct control *control, const char *key, struct wire_reader *reader, size_t *n,
		     struct error *err);
struct control control_next(struct wire_reader *reader);
bool control_has(const struct control *control, const char *key);

/* Whether the key's value is a string equal to text: for cmd. */
bool control_is(const struct control *control, const char *key, const char *text);

/*
 * Print the message as one line of JSON; or all but v and ok indented for people, arrays of like maps as tables.
 * Binary values are written as streamid_format does.
 */
void control_print_json(const struct control *control, FILE *out);
void control_print_text(const struct control *control, FILE *out);

/* The frame of a message from a control endpoint that holds the request, or 0 if it is framed as none. */
size_t control_request_frame(const struct endpoint_message *message);

/* Answer that message with bytes [size], framed as it was. */
int control_answer(struct endpoint *endpoint, const struct endpoint_message *message, const void *bytes, size_t size,
		   enum endpoint_sent *ret_sent, struct error *err);

#endif
