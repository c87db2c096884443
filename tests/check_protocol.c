/* Headers: every type there and back, hostile bytes and their refusals, and bytes made of valid ones by accident. */
#include <check.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/message.h"
#include "protocol/refusal.h"
#include "protocol/wire.h"

/* One of each type with every key, and with as few as can be. */
static const struct message samples[] = {
	{ .type = MESSAGE_DATA, .epoch = 3, .has_pos = true, .pos = 1000, .has_shape = true, .rows = 16, .columns = 768,
	  .dtype = DTYPE_BFLOAT16, .flush = true, .end = true, .has_got = true, .got = 900, .has_t = true,
	  .t = 1700000000000000000 },
	{ .type = MESSAGE_DATA, .has_shape = true, .rows = 1, .columns = 1, .dtype = DTYPE_FLOAT32 },
	{ .type = MESSAGE_DATA, .has_shape = true, .rows = 70000, .dtype = DTYPE_UINT16 },
	{ .type = MESSAGE_DATA, .has_shape = true, .columns = 64, .dtype = DTYPE_FLOAT16, .flush = true },
	{ .type = MESSAGE_DATA, .end = true },
	{ .type = MESSAGE_OPEN, .epoch = UINT64_MAX, .reply = true, .has_from = true, .from = 1, .has_got = true },
	{ .type = MESSAGE_OPEN },
	{ .type = MESSAGE_FLUSH, .epoch = 128, .has_got = true, .got = 65536 },
	{ .type = MESSAGE_CLOSE },
	{ .type = MESSAGE_ACK, .epoch = 1, .next = UINT64_MAX, .done = 4294967296, .durable = 255, .credit = 32767 },
	{ .type = MESSAGE_ERROR, .code = REFUSED_GAP, .has_expected = true, .expected = 17, .text = "a gap" },
	{ .type = MESSAGE_ERROR, .code = REFUSED_STALE_EPOCH, .epoch = 7, .text = "epoch 3, expected 7 or higher" },
	{ .type = MESSAGE_ERROR, .code = REFUSED_INTERNAL },
	{ .type = MESSAGE_HIDDEN, .epoch = 2, .has_pos = true, .pos = 512, .has_shape = true, .rows = 256,
	  .columns = 768, .dtype = DTYPE_FLOAT32, .has_layer = true, .layer = 23, .end = true, .has_t = true, .t = 5 },
	{ .type = MESSAGE_HIDDEN, .has_pos = true, .has_shape = true, .columns = 768, .dtype = DTYPE_FLOAT32,
	  .end = true },
	{ .type = MESSAGE_EVENT, .epoch = 1, .has_pos = true, .pos = 3, .event = EVENT_EVICTED, .text = "idle" },
	{ .type = MESSAGE_EVENT, .has_pos = true, .event = EVENT_GAP },
};
#define N_SAMPLES (sizeof samples / sizeof *samples)

static void assert_messages_equal(const struct message *got, const struct message *want)
{
#define SAME(member) if (got->member != want->member) ck_abort_msg(#member " differs")
	SAME(type); SAME(epoch); SAME(has_pos); SAME(has_from); SAME(has_got); SAME(has_t); SAME(has_layer);
	SAME(has_expected); SAME(has_shape); SAME(pos); SAME(from); SAME(got); SAME(t); SAME(flush); SAME(end);
	SAME(reply); SAME(rows); SAME(columns); SAME(dtype); SAME(next); SAME(done); SAME(durable); SAME(credit);
	SAME(code); SAME(expected); SAME(layer); SAME(event);
#undef SAME
	ck_assert_str_eq(got->text, want->text);
}

START_TEST(every_type_comes_back)
{
	char header[MESSAGE_HEADER_MAX];
	const size_t size = message_encode(&samples[_i], header);
	struct message decoded;
	struct error err;

	ck_assert_msg(message_decode(header, size, &decoded, &err) == 0, "%s", err.text);
	assert_messages_equal(&decoded, &samples[_i]);
}
END_TEST

/* The example of PROTOCOL.md. */
START_TEST(encoding_is_the_published_one)
{
	static const char want[] = "\x87\xa1v\x01\xa4type\xa4" "data\xa5" "epoch\x00\xa3pos\xcd\x03\xe8"
				   "\xa5shape\x92\x01\x08\xa5" "dtype\xa7" "float32\xa5" "flush\xc3";
	const struct message message = { .type = MESSAGE_DATA, .has_pos = true, .pos = 1000, .has_shape = true,
					 .rows = 1, .columns = 8, .flush = true };
	char header[MESSAGE_HEADER_MAX];

	ck_assert_uint_eq(message_encode(&message, header), sizeof want - 1);
	ck_assert_mem_eq(header, want, sizeof want - 1);
}
END_TEST

START_TEST(epoch_of_an_error_only_when_stale)
{
	struct message message = { .type = MESSAGE_ERROR, .code = REFUSED_GAP, .epoch = 9 }, decoded;
	char header[MESSAGE_HEADER_MAX];

	ck_assert_int_eq(message_decode(header, message_encode(&message, header), &decoded, NULL), 0);
	ck_assert_uint_eq(decoded.epoch, 0);
	message.code = REFUSED_STALE_EPOCH;
	ck_assert_int_eq(message_decode(header, message_encode(&message, header), &decoded, NULL), 0);
	ck_assert_uint_eq(decoded.epoch, 9);
}
END_TEST

START_TEST(longest_text_fits_and_broken_text_is_mended)
{
	struct message message = { .type = MESSAGE_ERROR, .code = REFUSED_INTERNAL }, decoded;
	char header[MESSAGE_HEADER_MAX];

	memset(message.text, '\xff', sizeof message.text - 1);
	ck_assert_int_eq(message_decode(header, message_encode(&message, header), &decoded, NULL), 0);
	ck_assert_uint_eq(strlen(decoded.text), sizeof message.text - 1);
	ck_assert_uint_eq(strspn(decoded.text, "?"), sizeof message.text - 1);
}
END_TEST

/* A longer text than there is room for is cut between characters. */
START_TEST(long_text_is_cut_between_characters)
{
	char header[MESSAGE_HEADER_MAX], text[301] = "x";
	struct wire_writer writer = { .buffer = header, .size = sizeof header };
	struct message decoded;

	for (size_t i = (size_t)_i; i < 298; i += 2)
		memcpy(text + i, "\xc3\xa9", 3);
	wire_put_map(&writer, 4);
	wire_put_str(&writer, "v");
	wire_put_uint(&writer, 1);
	wire_put_str(&writer, "type");
	wire_put_str(&writer, "error");
	wire_put_str(&writer, "code");
	wire_put_str(&writer, "no_such_code");
	wire_put_str(&writer, "message");
	wire_put_str(&writer, text);
	ck_assert_int_eq(message_decode(header, writer.length, &decoded, NULL), 0);
	ck_assert_int_eq(decoded.code, REFUSED_INTERNAL);
	ck_assert_uint_eq(strlen(decoded.text), _i == 0 ? 254 : 255);
	ck_assert_mem_eq(decoded.text, text, strlen(decoded.text));
}
END_TEST

START_TEST(payload_bytes)
{
	ck_assert_uint_eq(message_payload_bytes(&samples[0]), 16 * 768 * 2);
	ck_assert_uint_eq(message_payload_bytes(&samples[2]), 70000 * 2);
	ck_assert_uint_eq(message_payload_bytes(&samples[3]), 0);
	ck_assert_uint_eq(message_payload_bytes(&samples[4]), 0);
}
END_TEST

#define V "\xa1v\x01"
#define TYPE(name) "\xa4type" name
#define DATA TYPE("\xa4" "data")
#define OPEN TYPE("\xa4open")
#define ACK TYPE("\xa3" "ack")
#define HIDDEN TYPE("\xa6hidden")
#define SHAPE "\xa5shape"
#define DTYPE "\xa5" "dtype"
#define F32 DTYPE "\xa7" "float32"
#define EPOCH "\xa5" "epoch"
#define U64(high, low) "\xcf" high low
#define HEADER(bytes) bytes, sizeof bytes - 1

static const struct {
	const char *bytes;
	size_t size;
	int code;
	const char *text; /* that the error has somewhere */
} hostile[] = {
	/* not one well-formed map */
	{ HEADER(""), REFUSED_BAD_HEADER, "end within" },
	{ HEADER("\xc0"), REFUSED_BAD_HEADER, "expected a map" },
	{ HEADER("\x01"), REFUSED_BAD_HEADER, "expected a map" },
	{ HEADER("\x93" V DATA), REFUSED_BAD_HEADER, "follow the end" },
	{ HEADER("\xc1"), REFUSED_BAD_HEADER, "0xc1" },
	{ HEADER("\xdd\xff\xff\xff\xff"), REFUSED_BAD_HEADER, "more items than" },
	{ HEADER("\xdf\xff\xff\xff\xff"), REFUSED_BAD_HEADER, "more pairs than" },
	{ HEADER("\xdf\x80\x00\x00\x00"), REFUSED_BAD_HEADER, "more pairs than" },
	{ HEADER("\xdb\xff\xff\xff\xff" "abc"), REFUSED_BAD_HEADER, "end within" },
	{ HEADER("\xc6\xff\xff\xff\xff" "abc"), REFUSED_BAD_HEADER, "end within" },
	{ HEADER("\xc9\xff\xff\xff\xff" "abc"), REFUSED_BAD_HEADER, "end within" },
	{ HEADER("\xd8" "abc"), REFUSED_BAD_HEADER, "end within" },
	{ HEADER("\x82" V DATA "\x00"), REFUSED_BAD_HEADER, "follow the end" },
	{ HEADER("\x83" V DATA "\xa1x\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x00"),
	  REFUSED_BAD_HEADER, "nested too deep" },
	{ HEADER("\x83" V DATA "\x01\x02"), REFUSED_BAD_HEADER, "key 3 is an integer" },
	{ HEADER("\x83" V DATA "\xc4\x01x\x02"), REFUSED_BAD_HEADER, "key 3 is binary" },
	{ HEADER("\x83" V DATA V), REFUSED_BAD_HEADER, "keys 1 and 3" },
	{ HEADER("\x84" V OPEN "\xa1x\x01\xa1x\x01"), REFUSED_BAD_HEADER, "keys 3 and 4" },
	{ HEADER("\x84" V OPEN "\xa1x\x01\xd9\x01x\x01"), REFUSED_BAD_HEADER, "keys 3 and 4" },
	{ HEADER("\x83" V OPEN "\xa1\xff\x01"), REFUSED_BAD_HEADER, "UTF-8" },
	{ HEADER("\x83" V OPEN "\xa1x\xa2\xc0\x80"), REFUSED_BAD_HEADER, "UTF-8" },     /* an overlong NUL */
	{ HEADER("\x83" V OPEN "\xa1x\xa3\xed\xa0\x80"), REFUSED_BAD_HEADER, "UTF-8" }, /* a surrogate */
	{ HEADER("\x83" V OPEN "\xa1x\xa4\xf4\x90\x80\x80"), REFUSED_BAD_HEADER, "UTF-8" },
	{ HEADER("\x83" V OPEN "\xa1x\xa2\xe2\x82"), REFUSED_BAD_HEADER, "UTF-8" },
	/* the version comes before everything else */
	{ HEADER("\x80"), REFUSED_BAD_VERSION, "v is missing" },
	{ HEADER("\x81" OPEN), REFUSED_BAD_VERSION, "v is missing" },
	{ HEADER("\x82" "\xa1v\x02" OPEN), REFUSED_BAD_VERSION, "v is 2, expected 1" },
	{ HEADER("\x82" "\xa1v\x00" TYPE("\xa1?")), REFUSED_BAD_VERSION, "v is 0, expected 1" },
	{ HEADER("\x82" "\xa1v\xa1" "1" OPEN), REFUSED_BAD_VERSION, "v is a string" },
	{ HEADER("\x82" "\xa1v\xca\x3f\x80\x00\x00" OPEN), REFUSED_BAD_VERSION, "v is a float" },
	/* the type */
	{ HEADER("\x81" V), REFUSED_BAD_HEADER, "type is missing" },
	{ HEADER("\x82" V TYPE("\x01")), REFUSED_BAD_HEADER, "type is an integer" },
	{ HEADER("\x82" V TYPE("\xa5" "datum")), REFUSED_BAD_HEADER, "\"datum\" is unknown" },
	{ HEADER("\x82" V TYPE("\xa3" "a\nb")), REFUSED_BAD_HEADER, "\"a?b\" is unknown" },
	{ HEADER("\x82" V TYPE("\xa0")), REFUSED_BAD_HEADER, "unknown" },
	/* numbers and booleans */
	{ HEADER("\x83" V OPEN EPOCH "\xff"), REFUSED_BAD_HEADER, "epoch is a negative integer" },
	{ HEADER("\x83" V OPEN EPOCH "\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"), REFUSED_BAD_HEADER, "epoch is a float" },
	{ HEADER("\x83" V OPEN EPOCH "\xc3"), REFUSED_BAD_HEADER, "epoch is a boolean" },
	{ HEADER("\x83" V OPEN EPOCH "\xc0"), REFUSED_BAD_HEADER, "epoch is nil" },
	{ HEADER("\x83" V OPEN "\xa4" "from\xd3\x80\x00\x00\x00\x00\x00\x00\x00"), REFUSED_BAD_HEADER,
	  "from is a negative" },
	{ HEADER("\x83" V OPEN "\xa5reply\x01"), REFUSED_BAD_HEADER, "reply is an integer, expected a boolean" },
	/* the shape */
	{ HEADER("\x82" V DATA), REFUSED_BAD_HEADER, "shape is missing" },
	{ HEADER("\x83" V DATA F32), REFUSED_BAD_HEADER, "shape is missing" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x05"), REFUSED_BAD_HEADER, "shape is an integer, expected an array" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x90"), REFUSED_BAD_SHAPE, "shape has 0 numbers" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x93\x01\x02\x03"), REFUSED_BAD_SHAPE, "shape has 3 numbers" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92\x01\xff"), REFUSED_BAD_SHAPE, "shape holds a negative integer" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92\xca\x3f\x80\x00\x00\x01"), REFUSED_BAD_SHAPE, "shape holds a float" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92\x01\x91\x01"), REFUSED_BAD_SHAPE, "shape holds an array" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92\x01\x00"), REFUSED_BAD_SHAPE, "0 columns" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92\x00\x08"), REFUSED_BAD_SHAPE, "0 rows" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92" U64("\x80\0\0\0", "\0\0\0\0") "\x02"), REFUSED_BAD_SHAPE, "larger" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92" U64("\0\0\0\1", "\0\0\0\0") U64("\0\0\0\1", "\0\0\0\0")),
	  REFUSED_BAD_SHAPE, "larger" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x92\x01" U64("\x20\0\0\0", "\0\0\0\0")), REFUSED_BAD_SHAPE, "larger" },
	{ HEADER("\x84" V DATA DTYPE "\xa5" "uint8" SHAPE "\x91" U64("\x80\0\0\0", "\0\0\0\0")), REFUSED_BAD_SHAPE,
	  "larger" },
	{ HEADER("\x85" V DATA F32 SHAPE "\x92\x02\x08" "\xa3pos" U64("\xff\xff\xff\xff", "\xff\xff\xff\xff")),
	  REFUSED_BAD_HEADER, "beyond the last position" },
	/* the dtype */
	{ HEADER("\x83" V DATA SHAPE "\x92\x01\x08"), REFUSED_BAD_HEADER, "dtype is missing" },
	{ HEADER("\x84" V DATA DTYPE "\x05" SHAPE "\x92\x01\x08"), REFUSED_BAD_HEADER, "dtype is an integer" },
	{ HEADER("\x84" V DATA DTYPE "\xa7" "float64" SHAPE "\x92\x01\x08"), REFUSED_BAD_DTYPE,
	  "\"float64\" is unknown" },
	{ HEADER("\x84" V DATA DTYPE "\xa3" "F32" SHAPE "\x92\x01\x08"), REFUSED_BAD_DTYPE, "\"F32\" is unknown" },
	{ HEADER("\x84" V DATA DTYPE "\xa0" SHAPE "\x92\x01\x08"), REFUSED_BAD_DTYPE, "unknown" },
	{ HEADER("\x84" V DATA DTYPE "\xa5int32" SHAPE "\x92\x01\x08"), REFUSED_BAD_DTYPE,
	  "dtype int32 with shape [rows, columns], expected" },
	{ HEADER("\x84" V DATA F32 SHAPE "\x91\x01"), REFUSED_BAD_DTYPE, "dtype float32 with shape [rows], expected" },
	/* keys that the daemon's messages must have */
	{ HEADER("\x86" V ACK EPOCH "\x00\xa4next\x00\xa4" "done\x00\xa7" "durable\x00"), REFUSED_BAD_HEADER,
	  "credit is missing" },
	{ HEADER("\x85" V HIDDEN EPOCH "\x00" F32 SHAPE "\x92\x01\x08"), REFUSED_BAD_HEADER, "pos is missing" },
	{ HEADER("\x86" V HIDDEN EPOCH "\x00\xa3pos\x00" F32 SHAPE "\x91\x08"), REFUSED_BAD_SHAPE, "one number" },
	{ HEADER("\x86" V HIDDEN EPOCH "\x00\xa3pos\x00" DTYPE "\xa5uint8" SHAPE "\x92\x01\x08"), REFUSED_BAD_DTYPE,
	  "dtype is uint8" },
	{ HEADER("\x85" V TYPE("\xa5" "event") EPOCH "\x00\xa3pos\x00\xa5" "event\xa4" "boom"), REFUSED_BAD_HEADER,
	  "event is unknown" },
	{ HEADER("\x84" V TYPE("\xa5" "error") "\xa4" "code\x05\xa7message\xa0"), REFUSED_BAD_HEADER,
	  "code is an integer" },
};

START_TEST(hostile_header_is_refused)
{
	struct message message;
	struct error err = { 0 };
	struct message before;

	memset(&message, 0x5a, sizeof message);
	before = message;
	ck_assert_msg(message_decode(hostile[_i].bytes, hostile[_i].size, &message, &err) == hostile[_i].code,
		      "got %s (%s), expected %s", refusal_name(err.code), err.text, refusal_name(hostile[_i].code));
	ck_assert_int_eq(err.code, hostile[_i].code);
	ck_assert_msg(strstr(err.text, hostile[_i].text), "\"%s\" without \"%s\"", err.text, hostile[_i].text);
	ck_assert_mem_eq(&message, &before, sizeof message);
}
END_TEST

/* What is well-formed and unknown, or known but of other types of message, is ignored. */
static const struct {
	const char *bytes;
	size_t size;
} tolerated[] = {
	{ HEADER("\x83" V OPEN "\xa1x\xc0") },
	{ HEADER("\x83" V OPEN "\xa1x\x82\x01\x02\x01\x02") }, /* a map with keys of its own kind */
	{ HEADER("\x83" V OPEN "\xa1x\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00") },
	{ HEADER("\x83" V OPEN "\xa1x\xd4\x05\x00") },
	{ HEADER("\x83" V OPEN "\xa1x\xc7\x00\x05") },
	{ HEADER("\x83" V OPEN "\xa1x\xc4\x01\xff") },
	{ HEADER("\x83" V OPEN "\xa1x\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x00") },
	{ HEADER("\x83" V OPEN "\xa0\x00") },
	{ HEADER("\x83" V OPEN "\xa3pos\xa3" "abc") },
	{ HEADER("\x83" V OPEN SHAPE "\x93\x01\x01\x01") },
	{ HEADER("\x83" V OPEN EPOCH "\xd3\x00\x00\x00\x00\x00\x00\x00\x07") }, /* not negative, if signed */
	{ HEADER("\x83" V OPEN EPOCH "\xd0\x00") },
	{ HEADER("\xde\x00\x02" OPEN "\xa1v\xcf\x00\x00\x00\x00\x00\x00\x00\x01") },
	{ HEADER("\xdf\x00\x00\x00\x02\xd9\x04type\xda\x00\x04open\xdb\x00\x00\x00\x01v\xcc\x01") },
};

START_TEST(strange_header_is_tolerated)
{
	struct message message;
	struct error err;

	ck_assert_msg(message_decode(tolerated[_i].bytes, tolerated[_i].size, &message, &err) == 0, "%s", err.text);
	ck_assert_int_eq(message.type, MESSAGE_OPEN);
}
END_TEST

START_TEST(empty_shape_needs_no_dtype)
{
	static const char rows[] = "\x84" V DATA SHAPE "\x92\x00\x08\xa5" "flush\xc3";
	static const char tokens[] = "\x84" V DATA SHAPE "\x91\x00\xa3" "end\xc3";
	struct message message;

	ck_assert_int_eq(message_decode(rows, sizeof rows - 1, &message, NULL), 0);
	ck_assert_int_eq(message.dtype, DTYPE_FLOAT32);
	ck_assert_int_eq(message_decode(tokens, sizeof tokens - 1, &message, NULL), 0);
	ck_assert(!dtype_is_float(message.dtype));
	ck_assert_uint_eq(message_payload_bytes(&message), 0);
}
END_TEST

/* A header of just so many bytes, filled up with an unknown key. */
static size_t padded_header(char *header, size_t size)
{
	static const char start[] = "\x83" V OPEN "\xa1x\xc5";
	const size_t used = sizeof start - 1;

	memcpy(header, start, used);
	header[used] = (char)((size - used - 2) >> 8);
	header[used + 1] = (char)((size - used - 2) & 0xff);
	memset(header + used + 2, 0, size - used - 2);
	return size;
}

START_TEST(header_limit)
{
	char header[MESSAGE_HEADER_MAX + 1];
	struct message message;
	struct error err;

	ck_assert_int_eq(message_decode(header, padded_header(header, MESSAGE_HEADER_MAX), &message, &err), 0);
	ck_assert_int_eq(message_decode(header, padded_header(header, MESSAGE_HEADER_MAX + 1), &message, &err),
			 REFUSED_BAD_HEADER);
	ck_assert_str_eq(err.text, "the header has 4097 bytes, expected at most 4096");
}
END_TEST

START_TEST(key_limit)
{
	char header[MESSAGE_HEADER_MAX];

	for (uint32_t extra = WIRE_KEYS_MAX - 2; extra <= WIRE_KEYS_MAX - 1; extra++) {
		struct wire_writer writer = { .buffer = header, .size = sizeof header };
		struct message message;

		wire_put_map(&writer, extra + 2);
		wire_put_str(&writer, "v");
		wire_put_uint(&writer, 1);
		wire_put_str(&writer, "type");
		wire_put_str(&writer, "open");
		for (uint32_t i = 0; i < extra; i++) {
			char key[8];

			snprintf(key, sizeof key, "k%u", i);
			wire_put_str(&writer, key);
			wire_put_nil(&writer);
		}
		ck_assert_int_eq(message_decode(header, writer.length, &message, NULL),
				 extra + 2 > WIRE_KEYS_MAX ? REFUSED_BAD_HEADER : 0);
	}
}
END_TEST

/* Copies to the heap, so that a read behind the end is seen. */
static int decode_copy(const char *bytes, size_t size, struct message *ret_message, struct error *err)
{
	char *copy = malloc(size > 0 ? size : 1);
	int status;

	memcpy(copy, bytes, size);
	status = message_decode(copy, size, ret_message, err);
	free(copy);
	return status;
}

START_TEST(every_truncation_is_refused)
{
	char header[MESSAGE_HEADER_MAX];
	const size_t size = message_encode(&samples[_i], header);
	struct message message;
	struct error err;

	for (size_t n = 0; n < size; n++)
		ck_assert_int_eq(decode_copy(header, n, &message, &err), REFUSED_BAD_HEADER);
}
END_TEST

static uint64_t random_state;

static uint64_t random_below(uint64_t n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 11) % n;
}

/* Change, insert, remove or repeat a few bytes; returns the new size. */
static size_t mutate(char *bytes, size_t size, size_t room)
{
	for (uint64_t n = 1 + random_below(4); n > 0 && size > 0; n--) {
		const size_t at = random_below(size), span = 1 + random_below(size - at < 8 ? size - at : 8);

		switch (random_below(5)) {
		case 0:
			bytes[at] = (char)random_below(256);
			break;
		case 1:
			bytes[at] = (char)(bytes[at] ^ 1 << random_below(8));
			break;
		case 2: /* a first byte of the wide formats */
			bytes[at] = (char)(0xc0 + random_below(32));
			break;
		case 3:
			memmove(bytes + at, bytes + at + span, size - at - span);
			size -= span;
			break;
		default:
			if (size + span > room)
				break;
			memmove(bytes + at + span, bytes + at, size - at);
			size += span;
		}
	}
	return size;
}

/* What we accept, msgpack-c accepts, and it comes back the same from another round. */
static void check_accepted(const char *bytes, size_t size, const struct message *message)
{
	struct message want = *message, decoded;
	char again[MESSAGE_HEADER_MAX];
	msgpack_unpacked unpacked;
	size_t offset = 0;

	msgpack_unpacked_init(&unpacked);
	ck_assert_int_eq(msgpack_unpack_next(&unpacked, bytes, size, &offset), MSGPACK_UNPACK_SUCCESS);
	ck_assert_uint_eq(offset, size);
	msgpack_unpacked_destroy(&unpacked);
	if (want.type == MESSAGE_ERROR && want.code != REFUSED_STALE_EPOCH)
		want.epoch = 0; /* is not written */
	ck_assert_int_eq(message_decode(again, message_encode(message, again), &decoded, NULL), 0);
	assert_messages_equal(&decoded, &want);
}

START_TEST(mutated_headers_do_no_harm)
{
	char bytes[512];
	size_t accepted = 0;
	const size_t rounds = 20000;

	random_state = 0x9e3779b97f4a7c15 + (uint64_t)_i;
	for (size_t i = 0; i < rounds; i++) {
		const size_t size = mutate(bytes, message_encode(&samples[_i], bytes), sizeof bytes);
		struct message message;
		struct error err;
		const int status = decode_copy(bytes, size, &message, &err);

		if (status == 0) {
			accepted++;
			check_accepted(bytes, size, &message);
		} else if (status > REFUSED_BAD_VERSION || status < REFUSED_BAD_DTYPE || status != err.code) {
			ck_abort_msg("status %d, code %d", status, err.code);
		}
	}
	ck_assert_uint_gt(accepted, 0);
	ck_assert_uint_lt(accepted, rounds);
}
END_TEST

START_TEST(refusals_have_names)
{
	for (int i = 0; i < REFUSAL_COUNT; i++) {
		const int code = ERR_REFUSED - i;
		const char *name = refusal_name(code);

		ck_assert_int_eq(refusal_index(code), i);
		ck_assert_int_eq(refusal_find(name, strlen(name)), code);
	}
	ck_assert_str_eq(refusal_name(REFUSED_BAD_VERSION), "bad_version");
	ck_assert_str_eq(refusal_name(REFUSED_STATE_DAMAGED), "state_damaged");
	ck_assert_str_eq(refusal_name(REFUSED_INTERNAL), "internal");
	ck_assert_str_eq(refusal_name(ERR_MEMORY), "internal");
	ck_assert_int_eq(refusal_index(0), REFUSAL_COUNT - 1);
	ck_assert_int_eq(refusal_index(REFUSED_INTERNAL - 1), REFUSAL_COUNT - 1);
	ck_assert_int_eq(refusal_find("gap!", 4), REFUSED_INTERNAL);
	ck_assert_int_eq(refusal_find("gap!", 3), REFUSED_GAP);
	ck_assert_int_eq(refusal_find("", 0), REFUSED_INTERNAL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("protocol");
	TCase *messages = tcase_create("messages");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, messages);
	tcase_set_timeout(messages, 120);
	tcase_add_loop_test(messages, every_type_comes_back, 0, (int)N_SAMPLES);
	tcase_add_test(messages, encoding_is_the_published_one);
	tcase_add_test(messages, epoch_of_an_error_only_when_stale);
	tcase_add_test(messages, longest_text_fits_and_broken_text_is_mended);
	tcase_add_loop_test(messages, long_text_is_cut_between_characters, 0, 2);
	tcase_add_test(messages, payload_bytes);
	tcase_add_loop_test(messages, hostile_header_is_refused, 0, (int)(sizeof hostile / sizeof *hostile));
	tcase_add_loop_test(messages, strange_header_is_tolerated, 0, (int)(sizeof tolerated / sizeof *tolerated));
	tcase_add_test(messages, empty_shape_needs_no_dtype);
	tcase_add_test(messages, header_limit);
	tcase_add_test(messages, key_limit);
	tcase_add_loop_test(messages, every_truncation_is_refused, 0, (int)N_SAMPLES);
	tcase_add_loop_test(messages, mutated_headers_do_no_harm, 0, (int)N_SAMPLES);
	tcase_add_test(messages, refusals_have_names);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
