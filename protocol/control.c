/*
 * Control messages as bytes: see control.h.  Maps are opened without a count, which is filled in when they are closed,
 * so that whoever writes an answer need not count its keys.
 */
#include "protocol/control.h"

#include <assert.h>
#include <string.h>

#include "protocol/message.h"
#include "protocol/refusal.h"

static void begin(struct control_writer *writer, void *buffer, size_t size)
{
	*writer = (struct control_writer){ .out = { .buffer = buffer, .size = size }, .depth = 1 };
	writer->level[0].opened = wire_open_map(&writer->out);
	control_put_uint(writer, "v", PROTOCOL_VERSION);
}

void control_begin_request(struct control_writer *writer, void *buffer, size_t size, const char *cmd)
{
	begin(writer, buffer, size);
	control_put_str(writer, "cmd", cmd);
}

void control_begin_answer(struct control_writer *writer, void *buffer, size_t size)
{
	begin(writer, buffer, size);
	control_put_bool(writer, "ok", true);
}

void control_begin_refusal(struct control_writer *writer, void *buffer, size_t size, int code, const char *message)
{
	begin(writer, buffer, size);
	control_put_bool(writer, "ok", false);
	control_put_str(writer, "code", refusal_name(code));
	control_put_str(writer, "message", message);
}

/* Count one more item of the map or array that is open, and write its key. */
static void put_key(struct control_writer *writer, const char *key)
{
	assert(writer->depth > 0);
	writer->level[writer->depth - 1].count++;
	if (key)
		wire_put_str(&writer->out, key);
}

void control_put_bool(struct control_writer *writer, const char *key, bool value)
{
	put_key(writer, key);
	wire_put_bool(&writer->out, value);
}

void control_put_uint(struct control_writer *writer, const char *key, uint64_t value)
{
	put_key(writer, key);
	wire_put_uint(&writer->out, value);
}

void control_put_float(struct control_writer *writer, const char *key, double value)
{
	put_key(writer, key);
	wire_put_float(&writer->out, value);
}

void control_put_str(struct control_writer *writer, const char *key, const char *text)
{
	put_key(writer, key);
	wire_put_str(&writer->out, text);
}

void control_put_bin(struct control_writer *writer, const char *key, const void *data, size_t size)
{
	put_key(writer, key);
	wire_put_bin(&writer->out, data, size);
}

void control_open_map(struct control_writer *writer, const char *key)
{
	put_key(writer, key);
	assert(writer->depth < CONTROL_DEPTH_MAX);
	writer->level[writer->depth].opened = wire_open_map(&writer->out);
	writer->level[writer->depth++].count = 0;
}

void control_open_array(struct control_writer *writer, const char *key)
{
	put_key(writer, key);
	assert(writer->depth < CONTROL_DEPTH_MAX);
	writer->level[writer->depth].opened = wire_open_array(&writer->out);
	writer->level[writer->depth++].count = 0;
}

void control_close(struct control_writer *writer)
{
	assert(writer->depth > 0);
	writer->depth--;
	wire_close(&writer->out, writer->level[writer->depth].opened, writer->level[writer->depth].count);
}

size_t control_finish(struct control_writer *writer)
{
	assert(writer->depth == 1);
	control_close(writer);
	return writer->out.length;
}

int control_read(const void *bytes, size_t size, struct control *ret_control, struct error *err)
{
	const struct control control = { .map = wire_reader(bytes, size) };
	uint64_t version = 0;

	if (wire_check_map(bytes, size, err) != 0)
		return REFUSED_BAD_HEADER;
	if (control_get_uint(&control, "v", &version, err) != 0 || version != PROTOCOL_VERSION)
		return error_set(err, REFUSED_BAD_VERSION, "v is missing or not %d", PROTOCOL_VERSION);
	*ret_control = control;
	return 0;
}

static int wrong_type(const char *key, const struct wire_value *value, const char *expected, struct error *err)
{
	return error_set(err, REFUSED_BAD_HEADER, "%s is %s, expected %s", key, wire_type_name(value->type), expected);
}

int control_get_bool(const struct control *control, const char *key, bool *value, struct error *err)
{
	struct wire_reader reader;
	struct wire_value found;

	if (!wire_find(control->map, key, &reader))
		return 0;
	found = wire_next(&reader);
	if (found.type != WIRE_BOOL)
		return wrong_type(key, &found, "a boolean", err);
	*value = found.boolean;
	return 0;
}

int control_get_uint(const struct control *control, const char *key, uint64_t *value, struct error *err)
{
	struct wire_reader reader;
	struct wire_value found;

	if (!wire_find(control->map, key, &reader))
		return 0;
	found = wire_next(&reader);
	if (found.type != WIRE_UINT)
		return wrong_type(key, &found, "an integer of at least 0", err);
	*value = found.uint;
	return 0;
}

int control_get_bytes(const struct control *control, const char *key, const char **data, size_t *size,
		      struct error *err)
{
	struct wire_reader reader;
	struct wire_value found;

	if (!wire_find(control->map, key, &reader))
		return 0;
	found = wire_next(&reader);
	if (found.type != WIRE_STR && found.type != WIRE_BIN)
		return wrong_type(key, &found, "a string or binary data", err);
	*data = found.bytes.data;
	*size = found.bytes.size;
	return 0;
}

static bool is_number(const struct wire_value *value, double *ret_number)
{
	switch (value->type) {
	case WIRE_UINT:
		*ret_number = (double)value->uint;
		return true;
	case WIRE_INT:
		*ret_number = (double)value->negative;
		return true;
	case WIRE_FLOAT:
		*ret_number = value->real;
		return true;
	default:
		return false;
	}
}

int control_get_number(const struct control *control, const char *key, double *value, struct error *err)
{
	struct wire_reader reader;
	struct wire_value found;

	if (!wire_find(control->map, key, &reader))
		return 0;
	found = wire_next(&reader);
	return is_number(&found, value) ? 0 : wrong_type(key, &found, "a number", err);
}

int control_get_map(const struct control *control, const char *key, struct control *map, struct error *err)
{
	static const unsigned char empty = 0x80;
	struct wire_reader reader = wire_reader(&empty, 1), ahead;
	struct wire_value found;

	wire_find(control->map, key, &reader);
	ahead = reader;
	found = wire_next(&ahead);
	if (found.type != WIRE_MAP)
		return wrong_type(key, &found, "a map", err);
	map->map = reader;
	return 0;
}

int control_get_numbers(const struct control *control, const char *key, double *values, size_t max, size_t *n,
			struct error *err)
{
	struct wire_reader reader;
	struct wire_value found;
	double number = 0;

	if (!wire_find(control->map, key, &reader))
		return 0;
	found = wire_next(&reader);
	if (found.type != WIRE_ARRAY)
		return wrong_type(key, &found, "an array", err);
	*n = found.count;
	for (size_t i = 0; i < *n; i++) {
		found = wire_next(&reader);
		if (!is_number(&found, &number))
			return wrong_type(key, &found, "a number in its array", err);
		if (i < max)
			values[i] = number;
	}
	return 0;
}

int control_get_maps(const struct control *control, const char *key, struct wire_reader *reader, size_t *n,
		     struct error *err)
{
	struct wire_reader found, ahead;
	struct wire_value value;

	if (!wire_find(control->map, key, &found))
		return 0;
	value = wire_next(&found);
	if (value.type != WIRE_ARRAY)
		return wrong_type(key, &value, "an array", err);
	*n = value.count;
	*reader = ahead = found;
	for (size_t i = 0; i < *n; i++) {
		struct wire_reader item = ahead;

		value = wire_next(&item);
		if (value.type != WIRE_MAP)
			return wrong_type(key, &value, "a map in its array", err);
		wire_skip(&ahead);
	}
	return 0;
}

struct control control_next(struct wire_reader *reader)
{
	const struct control item = { .map = *reader };

	wire_skip(reader);
	return item;
}

bool control_has(const struct control *control, const char *key)
{
	struct wire_reader reader;

	return wire_find(control->map, key, &reader);
}

bool control_is(const struct control *control, const char *key, const char *text)
{
	struct wire_reader reader;
	struct wire_value found;

	if (!wire_find(control->map, key, &reader))
		return false;
	found = wire_next(&reader);
	return wire_is(&found, text);
}

/* Behind the peer's identity comes the request, or an empty frame and the request. */
size_t control_request_frame(const struct endpoint_message *message)
{
	if (message->n_frames == 2)
		return 1;
	return message->n_frames == 3 && message->frame[1].size == 0 ? 2 : 0;
}

int control_answer(struct endpoint *endpoint, const struct endpoint_message *message, const void *bytes, size_t size,
		   enum endpoint_sent *ret_sent, struct error *err)
{
	const size_t body = control_request_frame(message);
	struct endpoint_frame frames[3] = { { .data = NULL } };

	assert(body > 0);
	frames[0] = (struct endpoint_frame){ .data = message->frame[0].data, .size = message->frame[0].size };
	frames[body] = (struct endpoint_frame){ .data = bytes, .size = size };
	return endpoint_send(endpoint, frames, body + 1, ret_sent, err);
}
