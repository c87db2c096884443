/* msgpack values, control messages and stream ids: written, read, printed. */
#include <check.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/control.h"
#include "protocol/refusal.h"
#include "protocol/streamid.h"
#include "protocol/wire.h"

START_TEST(unsigned_values_come_back)
{
	static const uint64_t values[] = { 0, 1, 127, 128, 255, 256, 65535, 65536, UINT32_MAX, (uint64_t)UINT32_MAX + 1,
					   INT64_MAX, UINT64_MAX };
	char bytes[16];

	for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
		struct wire_writer writer = { .buffer = bytes, .size = sizeof bytes };
		struct wire_reader reader;
		struct wire_value value;

		wire_put_uint(&writer, values[i]);
		ck_assert_int_eq(wire_check(bytes, writer.length, NULL), 0);
		reader = wire_reader(bytes, writer.length);
		value = wire_next(&reader);
		ck_assert_int_eq(value.type, WIRE_UINT);
		ck_assert_uint_eq(value.uint, values[i]);
	}
}
END_TEST

START_TEST(signed_values_come_back)
{
	static const int64_t values[] = { -1, -32, -33, -128, -129, -32768, -32769, INT32_MIN, (int64_t)INT32_MIN - 1,
					  INT64_MIN };
	char bytes[16];

	for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
		struct wire_writer writer = { .buffer = bytes, .size = sizeof bytes };
		struct wire_reader reader;
		struct wire_value value;

		wire_put_int(&writer, values[i]);
		ck_assert_int_eq(wire_check(bytes, writer.length, NULL), 0);
		reader = wire_reader(bytes, writer.length);
		value = wire_next(&reader);
		ck_assert_int_eq(value.type, WIRE_INT);
		ck_assert_int_eq(value.negative, values[i]);
	}
}
END_TEST

START_TEST(other_values_come_back)
{
	char bytes[512], long_text[301];
	struct wire_writer writer = { .buffer = bytes, .size = sizeof bytes };
	struct wire_reader reader;
	struct wire_value value;

	memset(long_text, 'x', 300);
	long_text[300] = '\0';
	wire_put_array(&writer, 6);
	wire_put_nil(&writer);
	wire_put_bool(&writer, false);
	wire_put_float(&writer, -DBL_MAX);
	wire_put_str(&writer, long_text);
	wire_put_bin(&writer, "\0\xff", 2);
	wire_put_bin(&writer, NULL, 0);
	ck_assert_int_eq(wire_check(bytes, writer.length, NULL), 0);
	reader = wire_reader(bytes, writer.length);
	ck_assert_uint_eq(wire_next(&reader).count, 6);
	ck_assert_int_eq(wire_next(&reader).type, WIRE_NIL);
	value = wire_next(&reader);
	ck_assert(value.type == WIRE_BOOL && !value.boolean);
	value = wire_next(&reader);
	ck_assert(value.type == WIRE_FLOAT && value.real == -DBL_MAX);
	value = wire_next(&reader);
	ck_assert(wire_is(&value, long_text));
	value = wire_next(&reader);
	ck_assert(value.type == WIRE_BIN && value.bytes.size == 2 && memcmp(value.bytes.data, "\0\xff", 2) == 0);
	value = wire_next(&reader);
	ck_assert(value.type == WIRE_BIN && value.bytes.size == 0);
	ck_assert_ptr_eq(reader.at, reader.end);
}
END_TEST

START_TEST(narrow_float_is_read)
{
	struct wire_reader reader = wire_reader("\xca\x3f\xc0\x00\x00", 5);

	ck_assert_int_eq(wire_check("\xca\x3f\xc0\x00\x00", 5, NULL), 0);
	ck_assert(wire_next(&reader).real == 1.5);
}
END_TEST

/* A writer never writes behind its buffer, and says how much it would have taken. */
START_TEST(writer_is_bounded)
{
	char bytes[64];

	for (size_t size = 0; size < 20; size++) {
		struct wire_writer writer = { .buffer = bytes, .size = size };
		size_t opened;

		memset(bytes, '#', sizeof bytes);
		opened = wire_open_array(&writer);
		wire_put_str(&writer, "hello");
		wire_put_uint(&writer, 70000);
		wire_close(&writer, opened, 2);
		ck_assert_uint_eq(writer.length, 5 + 6 + 5);
		for (size_t i = size; i < sizeof bytes; i++)
			ck_assert_int_eq(bytes[i], '#');
		if (size >= writer.length)
			ck_assert_int_eq(wire_check(bytes, writer.length, NULL), 0);
	}
}
END_TEST

START_TEST(depth_is_limited)
{
	char bytes[WIRE_DEPTH_MAX + 2];

	memset(bytes, '\x91', sizeof bytes);
	bytes[WIRE_DEPTH_MAX] = '\0';
	ck_assert_int_eq(wire_check(bytes, WIRE_DEPTH_MAX + 1, NULL), 0);
	memset(bytes, '\x91', sizeof bytes);
	bytes[WIRE_DEPTH_MAX + 1] = '\0';
	ck_assert_int_eq(wire_check(bytes, WIRE_DEPTH_MAX + 2, NULL), REFUSED_BAD_HEADER);
}
END_TEST

static bool is_utf8(const unsigned char *text, size_t size)
{
	char bytes[8];

	bytes[0] = (char)(0xa0 + size);
	memcpy(bytes + 1, text, size);
	return wire_check(bytes, size + 1, NULL) == 0;
}

/* Of all strings of up to three bytes, and of those of four that begin like a long character, as many as UTF-8 has. */
START_TEST(strings_are_utf8)
{
	static const unsigned char thirds[] = { 0x7f, 0x80, 0xbf, 0xc0 };
	const size_t ascii = 128, two_byte = 1920, three_byte = 63488 - 2048;
	size_t n[5] = { 0 };

	for (uint32_t i = 0; i < 1 << 24; i++) {
		const unsigned char text[] = { (unsigned char)(i >> 16), (unsigned char)(i >> 8), (unsigned char)i };

		n[3] += is_utf8(text, 3);
		n[2] += i < 1 << 16 && is_utf8(text + 1, 2);
		n[1] += i < 1 << 8 && is_utf8(text + 2, 1);
	}
	for (uint32_t i = 0; i < 1 << 16; i++) {
		const unsigned char text[] = { (unsigned char)(0xf0 | i >> 12), (unsigned char)(i >> 4),
					       thirds[i >> 2 & 3], thirds[i & 3] };

		n[4] += is_utf8(text, 4);
	}
	ck_assert_uint_eq(n[1], ascii);
	ck_assert_uint_eq(n[2], ascii * ascii + two_byte);
	ck_assert_uint_eq(n[3], ascii * ascii * ascii + 2 * ascii * two_byte + three_byte);
	ck_assert_uint_eq(n[4], (48 + 3 * 64 + 16) * 2 * 2);
}
END_TEST

START_TEST(printable_text)
{
	ck_assert(wire_is_printable("", 0));
	ck_assert(wire_is_printable("a ~\xc2\xa0\xe2\x82\xac", 8));
	ck_assert(!wire_is_printable("a\x1f", 2));
	ck_assert(!wire_is_printable("a\x7f", 2));
	ck_assert(!wire_is_printable("\xc2\x9f\xc3\xbf", 4));
	ck_assert(!wire_is_printable("a\xc2", 2));
}
END_TEST

/* A status answer as the daemon writes one, with everything that there is to print. */
static size_t write_answer(char *bytes, size_t size)
{
	struct control_writer writer;

	control_begin_answer(&writer, bytes, size);
	control_put_str(&writer, "model", "a \"b\"\n\x7f\xc3\xa9");
	control_put_uint(&writer, "window", 256);
	control_put_float(&writer, "busy", 0.1);
	control_put_float(&writer, "rate", INFINITY);
	control_open_map(&writer, "sockets");
	control_put_str(&writer, "ingest", "tcp://x");
	control_put_bool(&writer, "up", true);
	control_close(&writer);
	control_open_array(&writer, "streams");
	for (size_t i = 0; i < 3; i++) {
		control_open_map(&writer, NULL);
		control_put_bin(&writer, "stream", i == 1 ? "\0\xff" : "ecg", i == 1 ? 2 : 3);
		control_put_uint(&writer, "next", i * i * 1000);
		control_close(&writer);
	}
	control_close(&writer);
	control_open_array(&writer, "layers");
	control_put_uint(&writer, NULL, 3);
	control_open_map(&writer, NULL);
	control_put_uint(&writer, "n", 4);
	control_close(&writer);
	control_close(&writer);
	control_open_map(&writer, "none yet");
	control_close(&writer);
	return control_finish(&writer);
}

static char *print(void (*printer)(const struct control *, FILE *), const char *bytes, size_t size)
{
	struct control control;
	char *text;
	size_t n;
	FILE *out = open_memstream(&text, &n);

	ck_assert_int_eq(control_read(bytes, size, &control, NULL), 0);
	printer(&control, out);
	fclose(out);
	return text;
}

START_TEST(answer_prints_as_json)
{
	char bytes[512];
	char *text = print(control_print_json, bytes, write_answer(bytes, sizeof bytes));

	ck_assert_str_eq(text, "{\"v\": 1, \"ok\": true, \"model\": \"a \\\"b\\\"\\u000a\\u007f\xc3\xa9\", "
			 "\"window\": 256, \"busy\": 0.1, \"rate\": null, "
			 "\"sockets\": {\"ingest\": \"tcp://x\", \"up\": true}, "
			 "\"streams\": [{\"stream\": \"ecg\", \"next\": 0}, {\"stream\": \"0x00ff\", \"next\": 1000}, "
			 "{\"stream\": \"ecg\", \"next\": 4000}], \"layers\": [3, {\"n\": 4}], \"none yet\": {}}\n");
	free(text);
}
END_TEST

START_TEST(answer_prints_for_people)
{
	char bytes[512];
	char *text = print(control_print_text, bytes, write_answer(bytes, sizeof bytes));

	ck_assert_str_eq(text, "model     a \"b\"??\xc3\xa9\n"
			       "window    256\n"
			       "busy      0.1\n"
			       "rate      null\n"
			       "sockets\n"
			       "  ingest  tcp://x\n"
			       "  up      true\n"
			       "streams\n"
			       "  stream  next\n"
			       "  ecg        0\n"
			       "  0x00ff  1000\n"
			       "  ecg     4000\n"
			       "layers\n"
			       "  - 3\n"
			       "  -\n"
			       "    n  4\n"
			       "none yet  none\n");
	free(text);
}
END_TEST

/* Arrays that are no tables, and a table further in. */
START_TEST(arrays_print_for_people)
{
	char bytes[512], *text;
	struct control_writer writer;

	control_begin_answer(&writer, bytes, sizeof bytes);
	control_open_array(&writer, "keys differ");
	for (int i = 0; i < 2; i++) {
		control_open_map(&writer, NULL);
		control_put_uint(&writer, i == 0 ? "a" : "b", 1);
		control_close(&writer);
	}
	control_close(&writer);
	control_open_array(&writer, "counts differ");
	for (int i = 0; i < 2; i++) {
		control_open_map(&writer, NULL);
		control_put_uint(&writer, "a", 1);
		if (i == 1)
			control_put_uint(&writer, "b", 2);
		control_close(&writer);
	}
	control_close(&writer);
	control_open_map(&writer, "deep");
	control_open_array(&writer, "table");
	control_open_map(&writer, NULL);
	control_put_str(&writer, "x", "long");
	control_put_bool(&writer, "yes?", true);
	control_put_float(&writer, "y", -1.25e-7);
	control_close(&writer);
	control_close(&writer);
	control_put_bool(&writer, "ok", false);
	control_close(&writer);
	control_open_array(&writer, "pairs");
	control_open_array(&writer, NULL);
	control_put_uint(&writer, NULL, 1);
	control_put_uint(&writer, NULL, 2);
	control_close(&writer);
	control_close(&writer);
	text = print(control_print_text, bytes, control_finish(&writer));
	ck_assert_str_eq(text, "keys differ\n"
			       "  -\n"
			       "    a  1\n"
			       "  -\n"
			       "    b  1\n"
			       "counts differ\n"
			       "  -\n"
			       "    a  1\n"
			       "  -\n"
			       "    a  1\n"
			       "    b  2\n"
			       "deep\n"
			       "  table\n"
			       "    x     yes?          y\n"
			       "    long  true  -1.25e-07\n"
			       "  ok     false\n"
			       "pairs\n"
			       "  -\n"
			       "    - 1\n"
			       "    - 2\n");
	free(text);
}
END_TEST

/* Within the message's own map keys may be anything. */
START_TEST(strange_keys_print)
{
	static const char bytes[] = "\x82\xa1v\x01\xa1x\x85\x07\xc2\xc4\x01\xff\xff\xca\x3f\x80\x00\x00\xc0\x91\x05\x06"
				    "\xd4\x01\x02\xd4\x03\x04";
	char *json = print(control_print_json, bytes, sizeof bytes - 1);
	char *text = print(control_print_text, bytes, sizeof bytes - 1);

	ck_assert_str_eq(json, "{\"v\": 1, \"x\": {\"7\": false, \"0xff\": -1, \"1\": null, \"\": 6, "
			 "\"null\": null}}\n");
	ck_assert_str_eq(text, "x\n"
			       "  7     false\n"
			       "  0xff  -1\n"
			       "  1     null\n"
			       "  1     6\n"
			       "  null  null\n");
	free(json);
	free(text);
}
END_TEST

/* Too small a buffer is told by the length, and the length is what it takes. */
START_TEST(answer_that_does_not_fit)
{
	char bytes[512], small[512];
	const size_t size = write_answer(bytes, sizeof bytes);

	for (size_t room = 0; room <= size; room++)
		ck_assert_uint_eq(write_answer(small, room), size);
	ck_assert_mem_eq(small, bytes, size);
}
END_TEST

START_TEST(request_is_read)
{
	char bytes[256];
	struct control_writer writer;
	struct control request;
	struct error err;
	const char *stream = NULL;
	size_t stream_size = 0;
	uint64_t rows = 11;
	bool wait = false;

	control_begin_request(&writer, bytes, sizeof bytes, "reset");
	control_put_bin(&writer, "stream", "a\0b", 3);
	control_put_uint(&writer, "rows", 5);
	control_put_bool(&writer, "wait", true);
	ck_assert_int_eq(control_read(bytes, control_finish(&writer), &request, &err), 0);
	ck_assert(control_is(&request, "cmd", "reset"));
	ck_assert(!control_is(&request, "cmd", "rese"));
	ck_assert(!control_is(&request, "rows", "5"));
	ck_assert(!control_is(&request, "absent", ""));
	ck_assert(control_has(&request, "rows") && !control_has(&request, "row"));
	ck_assert_int_eq(control_get_bytes(&request, "stream", &stream, &stream_size, &err), 0);
	ck_assert_uint_eq(stream_size, 3);
	ck_assert_mem_eq(stream, "a\0b", 3);
	ck_assert_int_eq(control_get_uint(&request, "absent", &rows, &err), 0);
	ck_assert_int_eq(control_get_bool(&request, "absent", &wait, &err), 0);
	ck_assert_int_eq(control_get_bytes(&request, "absent", &stream, &stream_size, &err), 0);
	ck_assert_uint_eq(stream_size, 3);
	ck_assert_uint_eq(rows, 11);
	ck_assert_int_eq(control_get_uint(&request, "rows", &rows, &err), 0);
	ck_assert_uint_eq(rows, 5);
	ck_assert_int_eq(control_get_bool(&request, "wait", &wait, &err), 0);
	ck_assert(wait);
	ck_assert_int_eq(control_get_uint(&request, "cmd", &rows, &err), REFUSED_BAD_HEADER);
	ck_assert_str_eq(err.text, "cmd is a string, expected an integer of at least 0");
	ck_assert_int_eq(control_get_bool(&request, "rows", &wait, &err), REFUSED_BAD_HEADER);
	ck_assert_int_eq(control_get_bytes(&request, "rows", &stream, &stream_size, &err), REFUSED_BAD_HEADER);
	ck_assert_uint_eq(rows, 5);
}
END_TEST

START_TEST(refusal_is_read)
{
	char bytes[256];
	struct control_writer writer;
	struct control answer;
	bool ok = true;

	control_begin_refusal(&writer, bytes, sizeof bytes, REFUSED_CLOSED, "no such stream");
	ck_assert_int_eq(control_read(bytes, control_finish(&writer), &answer, NULL), 0);
	ck_assert_int_eq(control_get_bool(&answer, "ok", &ok, NULL), 0);
	ck_assert(!ok);
	ck_assert(control_is(&answer, "code", "closed"));
	ck_assert(control_is(&answer, "message", "no such stream"));
}
END_TEST

/* Numbers, maps and arrays: what is absent leaves the default or is empty, what is of another type is said so. */
START_TEST(parts_are_read)
{
	static const char answer[] = "\x88\xa1v\x01\xa1n\x07\xa1r\xcb\x3f\xf8\0\0\0\0\0\0\xa1i\xff"
				     "\xa1m\x81\xa1k\x05\xa1" "a\x93\x01\x02\xcb\x3f\xf8\0\0\0\0\0\0"
				     "\xa1t\x92\x81\xa1k\x01\x81\xa1k\x02\xa1s\xa1x";
	struct control control, map;
	struct wire_reader reader;
	struct error err;
	double number = 4, numbers[2] = { 0, 0 };
	uint64_t k = 0;
	size_t n = 9;

	ck_assert_int_eq(control_read(answer, sizeof answer - 1, &control, &err), 0);
	ck_assert_int_eq(control_get_number(&control, "absent", &number, &err), 0);
	ck_assert(number == 4);
	ck_assert(!control_get_number(&control, "n", &number, &err) && number == 7);
	ck_assert(!control_get_number(&control, "r", &number, &err) && number == 1.5);
	ck_assert(!control_get_number(&control, "i", &number, &err) && number == -1);
	ck_assert_int_eq(control_get_number(&control, "s", &number, &err), REFUSED_BAD_HEADER);

	ck_assert(!control_get_map(&control, "m", &map, &err) && !control_get_uint(&map, "k", &k, &err));
	ck_assert_uint_eq(k, 5);
	ck_assert(!control_get_map(&control, "absent", &map, &err) && !control_has(&map, "k"));
	ck_assert_int_eq(control_get_map(&control, "a", &map, &err), REFUSED_BAD_HEADER);

	ck_assert(!control_get_numbers(&control, "a", numbers, 2, &n, &err));
	ck_assert(n == 3 && numbers[0] == 1 && numbers[1] == 2);
	ck_assert_int_eq(control_get_numbers(&control, "t", numbers, 2, &n, &err), REFUSED_BAD_HEADER);
	ck_assert_int_eq(control_get_numbers(&control, "m", numbers, 2, &n, &err), REFUSED_BAD_HEADER);

	ck_assert(!control_get_maps(&control, "t", &reader, &n, &err) && n == 2);
	for (uint64_t i = 1; i <= 2; i++) {
		map = control_next(&reader);
		ck_assert(!control_get_uint(&map, "k", &k, &err) && k == i);
	}
	ck_assert_int_eq(control_get_maps(&control, "a", &reader, &n, &err), REFUSED_BAD_HEADER);
	ck_assert_int_eq(control_get_maps(&control, "s", &reader, &n, &err), REFUSED_BAD_HEADER);
}
END_TEST

START_TEST(broken_requests_are_refused)
{
	struct control control;

	ck_assert_int_eq(control_read("", 0, &control, NULL), REFUSED_BAD_HEADER);
	ck_assert_int_eq(control_read("\x91\x01", 2, &control, NULL), REFUSED_BAD_HEADER);
	ck_assert_int_eq(control_read("\xdf\xff\xff\xff\xff", 5, &control, NULL), REFUSED_BAD_HEADER);
	ck_assert_int_eq(control_read("\x80", 1, &control, NULL), REFUSED_BAD_VERSION);
	ck_assert_int_eq(control_read("\x81\xa1v\x02", 4, &control, NULL), REFUSED_BAD_VERSION);
	ck_assert_int_eq(control_read("\x81\xa1v\xc3", 4, &control, NULL), REFUSED_BAD_VERSION);
	ck_assert_int_eq(control_read("\x81\xa1v\x01", 4, &control, NULL), 0);
}
END_TEST

static const struct {
	const char *id;
	size_t size;
	const char *text;
} ids[] = {
	{ "ecg", 3, "ecg" },
	{ "patient 7/\xc3\xa9", 12, "patient 7/\xc3\xa9" },
	{ "\0", 1, "0x00" },
	{ "a\nb", 3, "0x610a62" },
	{ "\xff\x1b", 2, "0xff1b" },
	{ "\xc2\x9b", 2, "0xc29b" }, /* a control character of its own in UTF-8 */
	{ "0x41", 4, "0x30783431" }, /* text that would be read as hex */
	{ "0X41", 4, "0X41" },
};

START_TEST(ids_become_text_and_come_back)
{
	char text[STREAMID_TEXT_MAX], id[MESSAGE_STREAM_MAX];
	size_t size;

	ck_assert_str_eq(streamid_format(ids[_i].id, ids[_i].size, text), ids[_i].text);
	ck_assert_int_eq(streamid_parse(text, id, &size, NULL), 0);
	ck_assert_uint_eq(size, ids[_i].size);
	ck_assert_mem_eq(id, ids[_i].id, size);
}
END_TEST

START_TEST(longest_ids)
{
	char text[STREAMID_TEXT_MAX], id[MESSAGE_STREAM_MAX + 1], back[MESSAGE_STREAM_MAX];
	size_t size;

	memset(id, '\xfe', sizeof id);
	streamid_format(id, MESSAGE_STREAM_MAX, text);
	ck_assert_uint_eq(strlen(text), 2 * MESSAGE_STREAM_MAX + 2);
	ck_assert_int_eq(streamid_parse(text, back, &size, NULL), 0);
	ck_assert_uint_eq(size, MESSAGE_STREAM_MAX);
	ck_assert_mem_eq(back, id, size);
	streamid_format(id, MESSAGE_STREAM_MAX + 1, text);
	ck_assert_uint_eq(strlen(text), 2 * MESSAGE_STREAM_MAX + 2);
}
END_TEST

START_TEST(broken_id_texts_are_refused)
{
	char long_text[MESSAGE_STREAM_MAX + 2], id[MESSAGE_STREAM_MAX];
	static const char *const texts[] = { "", "0x", "0x4", "0x414", "0x4g", "0x-1" };
	size_t size;

	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		ck_assert_int_eq(streamid_parse(texts[i], id, &size, NULL), ERR_ARGUMENT);
	memset(long_text, 'x', sizeof long_text);
	long_text[MESSAGE_STREAM_MAX + 1] = '\0';
	ck_assert_int_eq(streamid_parse(long_text, id, &size, NULL), ERR_ARGUMENT);
	long_text[MESSAGE_STREAM_MAX] = '\0';
	ck_assert_int_eq(streamid_parse(long_text, id, &size, NULL), 0);
	ck_assert_int_eq(streamid_parse("0xAbcF", id, &size, NULL), 0);
	ck_assert_mem_eq(id, "\xab\xcf", 2);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("control");
	TCase *values = tcase_create("values"), *control = tcase_create("control");
	TCase *streamid = tcase_create("streamid");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, values);
	tcase_add_test(values, unsigned_values_come_back);
	tcase_add_test(values, signed_values_come_back);
	tcase_add_test(values, other_values_come_back);
	tcase_add_test(values, narrow_float_is_read);
	tcase_add_test(values, writer_is_bounded);
	tcase_add_test(values, depth_is_limited);
	tcase_add_test(values, strings_are_utf8);
	tcase_add_test(values, printable_text);
	tcase_set_timeout(values, 120);
	suite_add_tcase(suite, control);
	tcase_add_test(control, answer_prints_as_json);
	tcase_add_test(control, answer_prints_for_people);
	tcase_add_test(control, arrays_print_for_people);
	tcase_add_test(control, strange_keys_print);
	tcase_add_test(control, answer_that_does_not_fit);
	tcase_add_test(control, request_is_read);
	tcase_add_test(control, refusal_is_read);
	tcase_add_test(control, parts_are_read);
	tcase_add_test(control, broken_requests_are_refused);
	suite_add_tcase(suite, streamid);
	tcase_add_loop_test(streamid, ids_become_text_and_come_back, 0, (int)(sizeof ids / sizeof *ids));
	tcase_add_test(streamid, longest_ids);
	tcase_add_test(streamid, broken_id_texts_are_refused);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
