/*
 * msgpack in and out.  Writing is msgpack-c's packer over a bounded buffer.  Reading is done here: msgpack-c's unpacker
 * allocates what a count claims before it looks for the items, and lets trailing bytes, keys that come twice and
 * broken UTF-8 pass.  A message is checked whole, once; after that it is read in place and reading cannot fail.
 */
#include "protocol/wire.h"

#include <assert.h>
#include <string.h>

#include <msgpack.h>

#include "protocol/refusal.h"

static int append(void *data, const char *bytes, size_t size)
{
	struct wire_writer *writer = data;

	if (size > 0 && writer->length <= writer->size && size <= writer->size - writer->length)
		memcpy(writer->buffer + writer->length, bytes, size);
	writer->length += size;
	return 0;
}

static msgpack_packer packer(struct wire_writer *writer)
{
	msgpack_packer made;

	msgpack_packer_init(&made, writer, append);
	return made;
}

void wire_put_nil(struct wire_writer *writer)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_nil(&out);
}

void wire_put_bool(struct wire_writer *writer, bool value)
{
	msgpack_packer out = packer(writer);

	if (value)
		msgpack_pack_true(&out);
	else
		msgpack_pack_false(&out);
}

void wire_put_uint(struct wire_writer *writer, uint64_t value)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_uint64(&out, value);
}

void wire_put_int(struct wire_writer *writer, int64_t value)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_int64(&out, value);
}

void wire_put_float(struct wire_writer *writer, double value)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_double(&out, value);
}

void wire_put_bin(struct wire_writer *writer, const void *data, size_t size)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_bin(&out, size);
	append(writer, data, size);
}

void wire_put_array(struct wire_writer *writer, uint32_t items)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_array(&out, items);
}

void wire_put_map(struct wire_writer *writer, uint32_t pairs)
{
	msgpack_packer out = packer(writer);

	msgpack_pack_map(&out, pairs);
}

/* The largest count takes the widest form, whose last four bytes wire_close overwrites. */
size_t wire_open_array(struct wire_writer *writer)
{
	wire_put_array(writer, UINT32_MAX);
	return writer->length;
}

size_t wire_open_map(struct wire_writer *writer)
{
	wire_put_map(writer, UINT32_MAX);
	return writer->length;
}

void wire_close(struct wire_writer *writer, size_t opened, uint32_t count)
{
	if (opened > writer->size)
		return;
	for (size_t i = 1; i <= 4; i++, count >>= 8)
		writer->buffer[opened - i] = (char)(count & 0xff);
}

/*
 * Bytes of the UTF-8 character that text starts with, or 0 if it starts with none: RFC 3629, so no overlong forms, no
 * surrogates, nothing beyond U+10FFFF.
 */
static size_t utf8_character(const unsigned char *text, size_t size)
{
	unsigned char lowest = 0x80, highest = 0xbf; /* of the second byte */
	size_t n;

	if (text[0] < 0x80)
		return 1;
	if (text[0] < 0xc2 || text[0] > 0xf4)
		return 0;
	n = text[0] < 0xe0 ? 2 : text[0] < 0xf0 ? 3 : 4;
	if (text[0] == 0xe0)
		lowest = 0xa0;
	else if (text[0] == 0xed)
		highest = 0x9f;
	else if (text[0] == 0xf0)
		lowest = 0x90;
	else if (text[0] == 0xf4)
		highest = 0x8f;
	if (size < n || text[1] < lowest || text[1] > highest)
		return 0;
	for (size_t i = 2; i < n; i++)
		if ((text[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

static bool is_utf8(const char *text, size_t size)
{
	for (size_t i = 0, n; i < size; i += n) {
		n = utf8_character((const unsigned char *)text + i, size - i);
		if (n == 0)
			return false;
	}
	return true;
}

bool wire_is_printable(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		const unsigned char byte = (unsigned char)text[i];

		if (byte < 0x20 || byte == 0x7f)
			return false;
		if (byte == 0xc2 && i + 1 < size && (unsigned char)text[i + 1] < 0xa0) /* U+0080 to U+009F */
			return false;
	}
	return is_utf8(text, size);
}

void wire_put_str(struct wire_writer *writer, const char *text)
{
	const size_t size = strlen(text);
	msgpack_packer out = packer(writer);

	msgpack_pack_str(&out, size);
	for (size_t i = 0; i < size;) {
		const size_t n = utf8_character((const unsigned char *)text + i, size - i);

		append(writer, n > 0 ? text + i : "?", n > 0 ? n : 1);
		i += n > 0 ? n : 1;
	}
}

const char *wire_type_name(enum wire_type type)
{
	static const char *const names[] = {
		"nil", "a boolean", "an integer", "a negative integer", "a float", "a string", "binary", "an extension",
		"an array", "a map"
	};

	return names[type];
}

/* What the first bytes 0xc0 to 0xdf stand for: the type, and the bytes of the number or size that follows. */
static const struct format {
	unsigned char type, width;
} formats[32] = {
	{ WIRE_NIL, 0 }, { WIRE_EXT, 0 }, { WIRE_BOOL, 0 }, { WIRE_BOOL, 0 },
	{ WIRE_BIN, 1 }, { WIRE_BIN, 2 }, { WIRE_BIN, 4 },
	{ WIRE_EXT, 1 }, { WIRE_EXT, 2 }, { WIRE_EXT, 4 },
	{ WIRE_FLOAT, 4 }, { WIRE_FLOAT, 8 },
	{ WIRE_UINT, 1 }, { WIRE_UINT, 2 }, { WIRE_UINT, 4 }, { WIRE_UINT, 8 },
	{ WIRE_INT, 1 }, { WIRE_INT, 2 }, { WIRE_INT, 4 }, { WIRE_INT, 8 },
	{ WIRE_EXT, 0 }, { WIRE_EXT, 0 }, { WIRE_EXT, 0 }, { WIRE_EXT, 0 }, { WIRE_EXT, 0 },
	{ WIRE_STR, 1 }, { WIRE_STR, 2 }, { WIRE_STR, 4 },
	{ WIRE_ARRAY, 2 }, { WIRE_ARRAY, 4 }, { WIRE_MAP, 2 }, { WIRE_MAP, 4 }
};

#define FORMAT_NEVER 0xc1     /* the one first byte that msgpack leaves unused */
#define FORMAT_TRUE 0xc3
#define FORMAT_FIXEXT1 0xd4   /* fixext 1, 2, 4, 8, 16 */

static const char cut[] = "the bytes end within a value";

/* Set the value's string, binary or extension of size bytes; returns what is wrong, or NULL. */
static const char *take_bytes(struct wire_reader *reader, uint64_t size, struct wire_value *value)
{
	const uint64_t header = value->type == WIRE_EXT; /* an extension's type byte */

	if (size + header > (uint64_t)(reader->end - reader->at))
		return cut;
	value->bytes.data = (const char *)reader->at + header;
	value->bytes.size = (size_t)size;
	reader->at += size + header;
	return NULL;
}

/* Set the count of an array or map; each item takes a byte at least, and so bounds the count. */
static const char *take_count(const struct wire_reader *reader, uint64_t count, struct wire_value *value)
{
	const uint64_t left = (uint64_t)(reader->end - reader->at);

	if (count > (value->type == WIRE_MAP ? left / 2 : left))
		return value->type == WIRE_MAP ? "a map claims more pairs than there are bytes"
					       : "an array claims more items than there are bytes";
	value->count = (size_t)count;
	return NULL;
}

static void take_signed(uint64_t bits, unsigned int width, struct wire_value *value)
{
	const unsigned int unused = 64 - 8 * width;

	value->negative = (int64_t)(bits << unused) >> unused;
	if (value->negative >= 0) {
		value->type = WIRE_UINT;
		value->uint = (uint64_t)value->negative;
	}
}

static void take_real(uint64_t bits, unsigned int width, struct wire_value *value)
{
	const uint32_t half = (uint32_t)bits;
	float narrow;

	if (width == 8) {
		memcpy(&value->real, &bits, sizeof value->real);
	} else {
		memcpy(&narrow, &half, sizeof narrow);
		value->real = (double)narrow;
	}
}

/* Interpret number, which has been read behind the first byte (or in it), as type asks. */
static const char *take(struct wire_reader *reader, unsigned char first, uint64_t number, unsigned int width,
			struct wire_value *value)
{
	switch (value->type) {
	case WIRE_NIL:
		break;
	case WIRE_BOOL:
		value->boolean = first == FORMAT_TRUE;
		break;
	case WIRE_UINT:
		value->uint = number;
		break;
	case WIRE_INT:
		take_signed(number, width, value);
		break;
	case WIRE_FLOAT:
		take_real(number, width, value);
		break;
	case WIRE_EXT:
		if (first == FORMAT_NEVER)
			return "0xc1 starts no value";
		if (width == 0)
			number = (uint64_t)1 << (first - FORMAT_FIXEXT1);
		return take_bytes(reader, number, value);
	case WIRE_STR:
	case WIRE_BIN:
		return take_bytes(reader, number, value);
	case WIRE_ARRAY:
	case WIRE_MAP:
		return take_count(reader, number, value);
	}
	return NULL;
}

/* Read one value, trusting nothing; returns what is wrong, or NULL. */
static const char *read_value(struct wire_reader *reader, struct wire_value *value)
{
	unsigned int width = 0;
	uint64_t number = 0;
	unsigned char first;

	if (reader->at == reader->end)
		return cut;
	first = *reader->at++;
	if (first < 0x80) {
		value->type = WIRE_UINT;
		number = first;
	} else if (first < 0x90) {
		value->type = WIRE_MAP;
		number = first & 0x0f;
	} else if (first < 0xa0) {
		value->type = WIRE_ARRAY;
		number = first & 0x0f;
	} else if (first < 0xc0) {
		value->type = WIRE_STR;
		number = first & 0x1f;
	} else if (first < 0xe0) {
		value->type = (enum wire_type)formats[first - 0xc0].type;
		width = formats[first - 0xc0].width;
	} else {
		value->type = WIRE_INT;
		number = first;
		return take(reader, first, number, 1, value);
	}
	if (width > (size_t)(reader->end - reader->at))
		return cut;
	for (unsigned int i = 0; i < width; i++)
		number = number << 8 | *reader->at++;
	return take(reader, first, number, width, value);
}

/* Values that follow this one and belong to it. */
static size_t held(const struct wire_value *value)
{
	return value->type == WIRE_MAP ? 2 * value->count : value->type == WIRE_ARRAY ? value->count : 0;
}

int wire_check(const void *bytes, size_t size, struct error *err)
{
	struct wire_reader reader = wire_reader(bytes, size);
	size_t left[WIRE_DEPTH_MAX + 1] = { 1 }; /* values still to come: of the message, of each map or array open */
	size_t depth = 0;
	struct wire_value value;

	for (;;) {
		const char *wrong;

		while (left[depth] == 0 && depth > 0)
			depth--;
		if (left[depth] == 0)
			break;
		left[depth]--;
		wrong = read_value(&reader, &value);
		if (!wrong && value.type == WIRE_STR && !is_utf8(value.bytes.data, value.bytes.size))
			wrong = "a string is not UTF-8";
		if (!wrong && held(&value) > 0 && depth == WIRE_DEPTH_MAX)
			wrong = "arrays and maps are nested too deep";
		if (wrong)
			return error_set(err, REFUSED_BAD_HEADER, "not well-formed msgpack: %s (at byte %zu of %zu)",
					 wrong, (size_t)(reader.at - (const unsigned char *)bytes), size);
		if (held(&value) > 0)
			left[++depth] = held(&value);
	}
	if (reader.at != reader.end)
		return error_set(err, REFUSED_BAD_HEADER, "%zu bytes follow the end of the msgpack value",
				 (size_t)(reader.end - reader.at));
	return 0;
}

static bool same_bytes(const struct wire_value *a, const struct wire_value *b)
{
	return a->bytes.size == b->bytes.size && memcmp(a->bytes.data, b->bytes.data, a->bytes.size) == 0;
}

int wire_check_map(const void *bytes, size_t size, struct error *err)
{
	struct wire_reader reader = wire_reader(bytes, size);
	struct wire_value map, keys[WIRE_KEYS_MAX];

	if (wire_check(bytes, size, err) != 0)
		return REFUSED_BAD_HEADER;
	map = wire_next(&reader);
	if (map.type != WIRE_MAP)
		return error_set(err, REFUSED_BAD_HEADER, "it is %s, expected a map", wire_type_name(map.type));
	if (map.count > WIRE_KEYS_MAX)
		return error_set(err, REFUSED_BAD_HEADER, "the map has %zu keys, expected at most %d", map.count,
				 WIRE_KEYS_MAX);
	for (size_t i = 0; i < map.count; i++) {
		keys[i] = wire_next(&reader);
		if (keys[i].type != WIRE_STR)
			return error_set(err, REFUSED_BAD_HEADER, "key %zu is %s, expected a string", i + 1,
					 wire_type_name(keys[i].type));
		for (size_t j = 0; j < i; j++)
			if (same_bytes(&keys[i], &keys[j]))
				return error_set(err, REFUSED_BAD_HEADER, "keys %zu and %zu are the same", j + 1,
						 i + 1);
		wire_skip(&reader);
	}
	return 0;
}

struct wire_reader wire_reader(const void *bytes, size_t size)
{
	return (struct wire_reader){ bytes, (const unsigned char *)bytes + size };
}

struct wire_value wire_next(struct wire_reader *reader)
{
	struct wire_value value = { 0 };
	const char *wrong = read_value(reader, &value);

	assert(!wrong);
	(void)wrong;
	return value;
}

void wire_skip(struct wire_reader *reader)
{
	for (size_t left = 1; left > 0; left--) {
		const struct wire_value value = wire_next(reader);

		left += held(&value);
	}
}

bool wire_find(struct wire_reader map, const char *key, struct wire_reader *ret_reader)
{
	const struct wire_value head = wire_next(&map);

	assert(head.type == WIRE_MAP);
	for (size_t i = 0; i < head.count; i++) {
		const struct wire_value name = wire_next(&map);

		if (wire_is(&name, key)) {
			*ret_reader = map;
			return true;
		}
		wire_skip(&map);
	}
	return false;
}

bool wire_is(const struct wire_value *value, const char *text)
{
	return value->type == WIRE_STR && strncmp(value->bytes.data, text, value->bytes.size) == 0
	    && value->bytes.size == strlen(text);
}
