/*
 * A message's header as a struct and as bytes.  One table says which key stands in which member, what it looks like
 * on the wire, and which types of message have it; decoding and encoding both walk it.  On the straight line this is
 * "decode and check": what comes out of message_decode can be believed, but for the payload.
 */
#include "protocol/message.h"

#include <assert.h>
#include <string.h>

#include "protocol/refusal.h"
#include "protocol/wire.h"

enum kind { KIND_UINT, KIND_BOOL, KIND_SHAPE, KIND_DTYPE, KIND_CODE, KIND_EVENT, KIND_TEXT };

#define BIT(type) (1u << (type))

enum {
	DATA = BIT(MESSAGE_DATA),
	OPEN = BIT(MESSAGE_OPEN),
	FLUSH = BIT(MESSAGE_FLUSH),
	CLOSE = BIT(MESSAGE_CLOSE),
	ACK = BIT(MESSAGE_ACK),
	ERROR = BIT(MESSAGE_ERROR),
	HIDDEN = BIT(MESSAGE_HIDDEN),
	EVENT = BIT(MESSAGE_EVENT),
	PRODUCER = DATA | OPEN | FLUSH | CLOSE
};

/* Every key but v and type.  has: the member that says whether an optional key is there, or NO_FLAG. */
static const struct field {
	const char *name;
	enum kind kind;
	size_t member, has;
	unsigned int required, optional; /* types of message */
} fields[] = {
#define NO_FLAG SIZE_MAX
#define MEMBER(name) offsetof(struct message, name)
	{ "epoch", KIND_UINT, MEMBER(epoch), NO_FLAG, ACK | HIDDEN | EVENT, PRODUCER | ERROR },
	{ "pos", KIND_UINT, MEMBER(pos), MEMBER(has_pos), HIDDEN | EVENT, DATA },
	{ "shape", KIND_SHAPE, 0, MEMBER(has_shape), HIDDEN, DATA },
	{ "dtype", KIND_DTYPE, 0, MEMBER(has_shape), HIDDEN, DATA },
	{ "flush", KIND_BOOL, MEMBER(flush), NO_FLAG, 0, DATA },
	{ "end", KIND_BOOL, MEMBER(end), NO_FLAG, 0, DATA | HIDDEN },
	{ "reply", KIND_BOOL, MEMBER(reply), NO_FLAG, 0, OPEN },
	{ "from", KIND_UINT, MEMBER(from), MEMBER(has_from), 0, OPEN },
	{ "got", KIND_UINT, MEMBER(got), MEMBER(has_got), 0, PRODUCER },
	{ "layer", KIND_UINT, MEMBER(layer), MEMBER(has_layer), 0, HIDDEN },
	{ "t", KIND_UINT, MEMBER(t), MEMBER(has_t), 0, DATA | HIDDEN },
	{ "next", KIND_UINT, MEMBER(next), NO_FLAG, ACK, 0 },
	{ "done", KIND_UINT, MEMBER(done), NO_FLAG, ACK, 0 },
	{ "durable", KIND_UINT, MEMBER(durable), NO_FLAG, ACK, 0 },
	{ "credit", KIND_UINT, MEMBER(credit), NO_FLAG, ACK, 0 },
	{ "code", KIND_CODE, 0, NO_FLAG, ERROR, 0 },
	{ "expected", KIND_UINT, MEMBER(expected), MEMBER(has_expected), 0, ERROR },
	{ "event", KIND_EVENT, 0, NO_FLAG, EVENT, 0 },
	{ "message", KIND_TEXT, 0, NO_FLAG, ERROR, EVENT }
#undef MEMBER
};
#define DTYPE_MISSING DTYPE_COUNT /* while a header is being decoded */
#define N_FIELDS (sizeof fields / sizeof *fields)

static const char *const type_names[] = { "data", "open", "flush", "close", "ack", "error", "hidden", "event" };
static const char *const event_names[] = { "gap", "reset", "closed", "evicted" };
#define N_TYPES (sizeof type_names / sizeof *type_names)
#define N_EVENTS (sizeof event_names / sizeof *event_names)

static uint64_t get_uint(const struct message *message, size_t member)
{
	uint64_t value;

	memcpy(&value, (const char *)message + member, sizeof value);
	return value;
}

static void set_uint(struct message *message, size_t member, uint64_t value)
{
	memcpy((char *)message + member, &value, sizeof value);
}

static bool get_bool(const struct message *message, size_t member)
{
	bool value;

	memcpy(&value, (const char *)message + member, sizeof value);
	return value;
}

static void set_bool(struct message *message, size_t member, bool value)
{
	memcpy((char *)message + member, &value, sizeof value);
}

/* What a peer wrote, cut and made fit to stand in an error text or a log line. */
struct quoted { char text[36]; };

static struct quoted quote(const struct wire_value *value)
{
	const size_t most = sizeof((struct quoted *)0)->text - 4;
	struct quoted quoted = { "" };
	size_t n = value->bytes.size < most ? value->bytes.size : most;

	for (size_t i = 0; i < n; i++) {
		const char c = value->bytes.data[i];

		quoted.text[i] = c >= ' ' && c <= '~' ? c : '?';
	}
	if (value->bytes.size > most)
		memcpy(quoted.text + n, "...", 4);
	return quoted;
}

static int wrong_type(const char *name, const struct wire_value *value, const char *expected, struct error *err)
{
	return error_set(err, REFUSED_BAD_HEADER, "%s is %s, expected %s", name, wire_type_name(value->type), expected);
}

/* The index of a string among n names, or n. */
static size_t find_name(const struct wire_value *value, const char *const *names, size_t n)
{
	size_t i = 0;

	while (i < n && !wire_is(value, names[i]))
		i++;
	return i;
}

static int decode_shape(const struct wire_value *value, struct wire_reader *reader, struct message *message,
			struct error *err)
{
	uint64_t sizes[2] = { 0, 0 };

	if (value->type != WIRE_ARRAY)
		return wrong_type("shape", value, "an array", err);
	if (value->count != 1 && value->count != 2)
		return error_set(err, REFUSED_BAD_SHAPE, "shape has %zu numbers, expected [rows, columns] or [rows]",
				 value->count);
	for (size_t i = 0; i < value->count; i++) {
		const struct wire_value item = wire_next(reader);

		if (item.type != WIRE_UINT)
			return error_set(err, REFUSED_BAD_SHAPE, "shape holds %s, expected integers of at least 0",
					 wire_type_name(item.type));
		sizes[i] = item.uint;
	}
	if (value->count == 2 && sizes[1] == 0)
		return error_set(err, REFUSED_BAD_SHAPE, "shape has 0 columns, expected at least 1");
	message->rows = sizes[0];
	message->columns = sizes[1];
	return 0;
}

static int decode_dtype(const struct wire_value *value, struct message *message, struct error *err)
{
	if (value->type != WIRE_STR)
		return wrong_type("dtype", value, "a string", err);
	for (enum dtype dtype = 0; dtype < DTYPE_COUNT; dtype++)
		if (wire_is(value, dtype_name(dtype))) {
			message->dtype = dtype;
			return 0;
		}
	return error_set(err, REFUSED_BAD_DTYPE, "dtype \"%s\" is unknown, expected float32, float16 or bfloat16, "
			 "or of token ids uint8, uint16, int32 or uint32", quote(value).text);
}

static int decode_event(const struct wire_value *value, struct message *message, struct error *err)
{
	const size_t event = find_name(value, event_names, N_EVENTS);

	if (event == N_EVENTS)
		return error_set(err, REFUSED_BAD_HEADER, "event is unknown, expected gap, reset, closed or evicted");
	message->event = (enum message_event)event;
	return 0;
}

/* Keep as much of a text as there is room for, without half a character at its end. */
static void decode_text(const struct wire_value *value, struct message *message)
{
	size_t n = value->bytes.size;

	if (n >= sizeof message->text)
		for (n = sizeof message->text - 1; n > 0 && (value->bytes.data[n] & 0xc0) == 0x80;)
			n--;
	memcpy(message->text, value->bytes.data, n);
	message->text[n] = '\0';
}

static int decode_string(const struct field *field, const struct wire_value *value, struct message *message,
			 struct error *err)
{
	if (value->type != WIRE_STR)
		return wrong_type(field->name, value, "a string", err);
	if (field->kind == KIND_EVENT)
		return decode_event(value, message, err);
	if (field->kind == KIND_CODE)
		message->code = refusal_find(value->bytes.data, value->bytes.size);
	else
		decode_text(value, message);
	return 0;
}

/* Decode the value that reader is at into the field's member. */
static int decode_field(const struct field *field, struct wire_reader reader, struct message *message,
			struct error *err)
{
	const struct wire_value value = wire_next(&reader);

	switch (field->kind) {
	case KIND_UINT:
		if (value.type != WIRE_UINT)
			return wrong_type(field->name, &value, "an integer of at least 0", err);
		set_uint(message, field->member, value.uint);
		break;
	case KIND_BOOL:
		if (value.type != WIRE_BOOL)
			return wrong_type(field->name, &value, "a boolean", err);
		set_bool(message, field->member, value.boolean);
		break;
	case KIND_SHAPE:
		return decode_shape(&value, &reader, message, err);
	case KIND_DTYPE:
		return decode_dtype(&value, message, err);
	case KIND_CODE:
	case KIND_EVENT:
	case KIND_TEXT:
		return decode_string(field, &value, message, err);
	}
	return 0;
}

static const struct field *field_find(const struct wire_value *key, enum message_type type)
{
	for (size_t i = 0; i < N_FIELDS; i++)
		if ((fields[i].required | fields[i].optional) & BIT(type) && wire_is(key, fields[i].name))
			return &fields[i];
	return NULL;
}

/* Decode every key that the type has; *ret_seen tells which there were, a bit for each field. */
static int decode_fields(struct wire_reader reader, struct message *message, unsigned int *ret_seen, struct error *err)
{
	const struct wire_value map = wire_next(&reader);
	unsigned int seen = 0;
	int status;

	for (size_t i = 0; i < map.count; i++) {
		const struct wire_value key = wire_next(&reader);
		const struct field *field = field_find(&key, message->type);

		if (field) {
			status = decode_field(field, reader, message, err);
			if (status != 0)
				return status;
			seen |= BIT(field - fields);
			if (field->has != NO_FLAG && field->kind != KIND_DTYPE)
				set_bool(message, field->has, true);
		}
		wire_skip(&reader);
	}
	*ret_seen = seen;
	return 0;
}

static int check_required(enum message_type type, unsigned int seen, struct error *err)
{
	for (size_t i = 0; i < N_FIELDS; i++)
		if (fields[i].required & BIT(type) && !(seen & BIT(i)))
			return error_set(err, REFUSED_BAD_HEADER, "%s is missing, every %s message has it",
					 fields[i].name, type_names[type]);
	return 0;
}

/* Of data that carries a shape: a dtype of its kind, and rows unless it flushes. */
static int check_data(struct message *message, struct error *err)
{
	const bool tokens = message->columns == 0;

	if (message->rows == 0 && !message->flush && !message->end)
		return error_set(err, REFUSED_BAD_SHAPE, "shape has 0 rows, expected at least 1 without flush or end");
	if (message->dtype == DTYPE_MISSING && message->rows > 0)
		return error_set(err, REFUSED_BAD_HEADER, "dtype is missing, data with rows has it");
	if (message->dtype == DTYPE_MISSING)
		message->dtype = tokens ? DTYPE_UINT32 : DTYPE_FLOAT32;
	if (dtype_is_float(message->dtype) == tokens)
		return error_set(err, REFUSED_BAD_DTYPE, "dtype %s with shape %s, expected %s",
				 dtype_name(message->dtype), tokens ? "[rows]" : "[rows, columns]",
				 tokens ? "an integer type for token ids" : "float32, float16 or bfloat16");
	return 0;
}

/* What the payload's size and the position after it are computed from must not overflow. */
static int check_sizes(const struct message *message, struct error *err)
{
	const uint64_t columns = message->columns > 0 ? message->columns : 1;
	uint64_t bytes, after;

	if (__builtin_mul_overflow(message->rows, columns, &bytes)
	    || __builtin_mul_overflow(bytes, dtype_size(message->dtype), &bytes) || bytes > PTRDIFF_MAX)
		return error_set(err, REFUSED_BAD_SHAPE, "shape asks for a larger payload than any machine can hold");
	if (__builtin_add_overflow(message->pos, message->rows, &after))
		return error_set(err, REFUSED_BAD_HEADER, "pos and the rows of shape reach beyond the last position");
	return 0;
}

static int check_shape(struct message *message, struct error *err)
{
	int status = 0;

	if (message->type == MESSAGE_DATA && !message->has_shape && !message->flush && !message->end)
		return error_set(err, REFUSED_BAD_HEADER, "shape is missing, data without flush or end has it");
	if (!message->has_shape) {
		message->dtype = DTYPE_FLOAT32;
		return 0;
	}
	if (message->type == MESSAGE_DATA)
		status = check_data(message, err);
	else if (message->columns == 0)
		status = error_set(err, REFUSED_BAD_SHAPE, "shape has one number, expected [rows, columns]");
	else if (!dtype_is_float(message->dtype))
		status = error_set(err, REFUSED_BAD_DTYPE, "dtype is %s, expected float32, float16 or bfloat16",
				   dtype_name(message->dtype));
	return status != 0 ? status : check_sizes(message, err);
}

static int check_version(struct wire_reader reader, struct error *err)
{
	struct wire_value version;

	if (!wire_find(reader, "v", &reader))
		return error_set(err, REFUSED_BAD_VERSION, "v is missing, expected %d", PROTOCOL_VERSION);
	version = wire_next(&reader);
	if (version.type != WIRE_UINT)
		return error_set(err, REFUSED_BAD_VERSION, "v is %s, expected %d", wire_type_name(version.type),
				 PROTOCOL_VERSION);
	if (version.uint != PROTOCOL_VERSION)
		return error_set(err, REFUSED_BAD_VERSION, "v is %llu, expected %d", (unsigned long long)version.uint,
				 PROTOCOL_VERSION);
	return 0;
}

static int decode_type(struct wire_reader reader, enum message_type *ret_type, struct error *err)
{
	struct wire_value name;
	size_t type;

	if (!wire_find(reader, "type", &reader))
		return error_set(err, REFUSED_BAD_HEADER, "type is missing, every message has it");
	name = wire_next(&reader);
	if (name.type != WIRE_STR)
		return wrong_type("type", &name, "a string", err);
	type = find_name(&name, type_names, N_TYPES);
	if (type == N_TYPES)
		return error_set(err, REFUSED_BAD_HEADER, "type \"%s\" is unknown, expected data, open, flush or close "
				 "(or of the daemon's own ack, error, hidden or event)", quote(&name).text);
	*ret_type = (enum message_type)type;
	return 0;
}

int message_decode(const void *header, size_t length, struct message *ret_message, struct error *err)
{
	const struct wire_reader reader = wire_reader(header, length);
	struct message message = { .dtype = DTYPE_MISSING };
	unsigned int seen;
	int status;

	if (length > MESSAGE_HEADER_MAX)
		return error_set(err, REFUSED_BAD_HEADER, "the header has %zu bytes, expected at most %d", length,
				 MESSAGE_HEADER_MAX);
	status = wire_check_map(header, length, err);
	if (status == 0)
		status = check_version(reader, err);
	if (status == 0)
		status = decode_type(reader, &message.type, err);
	if (status == 0)
		status = decode_fields(reader, &message, &seen, err);
	if (status == 0)
		status = check_required(message.type, seen, err);
	if (status == 0)
		status = check_shape(&message, err);
	if (status == 0)
		*ret_message = message;
	return status;
}

/* Whether an optional key that the type has, and that has no flag of its own, is worth writing. */
static bool is_worth_writing(const struct field *field, const struct message *message)
{
	if (field->kind == KIND_BOOL)
		return get_bool(message, field->member);
	if (field->kind == KIND_TEXT)
		return message->text[0] != '\0';
	return message->type != MESSAGE_ERROR || message->code == REFUSED_STALE_EPOCH; /* the epoch */
}

static bool is_present(const struct field *field, const struct message *message)
{
	if (field->required & BIT(message->type))
		return true;
	if (!(field->optional & BIT(message->type)))
		return false;
	return field->has != NO_FLAG ? get_bool(message, field->has) : is_worth_writing(field, message);
}

static void encode_shape(struct wire_writer *writer, const struct message *message)
{
	const bool tokens = message->columns == 0;

	wire_put_array(writer, tokens ? 1 : 2);
	wire_put_uint(writer, message->rows);
	if (!tokens)
		wire_put_uint(writer, message->columns);
}

static void encode_field(struct wire_writer *writer, const struct field *field, const struct message *message)
{
	wire_put_str(writer, field->name);
	switch (field->kind) {
	case KIND_UINT:
		wire_put_uint(writer, get_uint(message, field->member));
		break;
	case KIND_BOOL:
		wire_put_bool(writer, get_bool(message, field->member));
		break;
	case KIND_SHAPE:
		encode_shape(writer, message);
		break;
	case KIND_DTYPE:
		wire_put_str(writer, dtype_name(message->dtype));
		break;
	case KIND_CODE:
		wire_put_str(writer, refusal_name(message->code));
		break;
	case KIND_EVENT:
		wire_put_str(writer, event_names[message->event]);
		break;
	case KIND_TEXT:
		wire_put_str(writer, message->text);
		break;
	}
}

size_t message_encode(const struct message *message, void *buffer)
{
	struct wire_writer writer = { .buffer = buffer, .size = MESSAGE_HEADER_MAX };
	uint32_t pairs = 2;

	for (size_t i = 0; i < N_FIELDS; i++)
		pairs += is_present(&fields[i], message);
	wire_put_map(&writer, pairs);
	wire_put_str(&writer, "v");
	wire_put_uint(&writer, PROTOCOL_VERSION);
	wire_put_str(&writer, "type");
	wire_put_str(&writer, type_names[message->type]);
	for (size_t i = 0; i < N_FIELDS; i++)
		if (is_present(&fields[i], message))
			encode_field(&writer, &fields[i], message);
	assert(writer.length <= writer.size);
	return writer.length;
}

size_t message_payload_bytes(const struct message *message)
{
	const uint64_t columns = message->columns > 0 ? message->columns : 1;

	return message->has_shape ? (size_t)(message->rows * columns) * dtype_size(message->dtype) : 0;
}
