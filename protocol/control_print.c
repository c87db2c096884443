/*
 * Control messages for people and for scripts: any message, whatever keys a newer daemon puts into it.  Maps become
 * indented lines, arrays of like maps become tables, and everything becomes JSON on request.
 */
#include "protocol/control.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/streamid.h"

#define COLUMNS_MAX 32 /* of a table */
#define INDENT 2

static bool is_nested(const struct wire_value *value)
{
	return value->type == WIRE_MAP || value->type == WIRE_ARRAY;
}

/* Keys of every message that say nothing about its subject. */
static bool is_envelope(const struct wire_value *key)
{
	return wire_is(key, "v") || wire_is(key, "ok");
}

/* The shortest decimal form that reads back as the same number. */
static void format_real(double real, char *text, size_t size)
{
	for (int digits = 6; digits <= 17; digits++) {
		snprintf(text, size, "%.*g", digits, real);
		if (strtod(text, NULL) == real)
			break;
	}
}

/* A scalar that is no string, as text; the same in JSON, but for numbers that JSON has not. */
static void format_number(const struct wire_value *value, char *text, size_t size)
{
	if (value->type == WIRE_BOOL)
		snprintf(text, size, "%s", value->boolean ? "true" : "false");
	else if (value->type == WIRE_UINT)
		snprintf(text, size, "%llu", (unsigned long long)value->uint);
	else if (value->type == WIRE_INT)
		snprintf(text, size, "%lld", (long long)value->negative);
	else if (value->type == WIRE_FLOAT && isfinite(value->real))
		format_real(value->real, text, size);
	else
		snprintf(text, size, "null");
}

static void json_string(const char *text, size_t size, FILE *out)
{
	fputc('"', out);
	for (size_t i = 0; i < size; i++) {
		const unsigned char byte = (unsigned char)text[i];

		if (byte == '"' || byte == '\\')
			fprintf(out, "\\%c", byte);
		else if (byte < 0x20 || byte == 0x7f)
			fprintf(out, "\\u%04x", byte);
		else
			fputc(byte, out);
	}
	fputc('"', out);
}

static void json_scalar(const struct wire_value *value, FILE *out)
{
	char text[STREAMID_TEXT_MAX];

	if (value->type == WIRE_STR) {
		json_string(value->bytes.data, value->bytes.size, out);
	} else if (value->type == WIRE_BIN) {
		streamid_format(value->bytes.data, value->bytes.size, text);
		json_string(text, strlen(text), out);
	} else {
		format_number(value, text, sizeof text);
		fputs(text, out);
	}
}

/* A key, which JSON wants to be a string whatever it was. */
static void json_key(struct wire_reader *reader, FILE *out)
{
	struct wire_reader whole = *reader;
	const struct wire_value key = wire_next(reader);
	char text[32] = "";

	if (key.type == WIRE_STR || key.type == WIRE_BIN) {
		json_scalar(&key, out);
		return;
	}
	if (!is_nested(&key))
		format_number(&key, text, sizeof text);
	json_string(text, strlen(text), out);
	wire_skip(&whole);
	*reader = whole;
}

/* Recursion is as deep as the message, which wire_check has bounded. */
static void json_value(struct wire_reader *reader, FILE *out)
{
	const struct wire_value value = wire_next(reader);

	if (!is_nested(&value)) {
		json_scalar(&value, out);
		return;
	}
	fputc(value.type == WIRE_MAP ? '{' : '[', out);
	for (size_t i = 0; i < value.count; i++) {
		if (i > 0)
			fputs(", ", out);
		if (value.type == WIRE_MAP) {
			json_key(reader, out);
			fputs(": ", out);
		}
		json_value(reader, out);
	}
	fputc(value.type == WIRE_MAP ? '}' : ']', out);
}

void control_print_json(const struct control *control, FILE *out)
{
	struct wire_reader reader = control->map;

	json_value(&reader, out);
	fputc('\n', out);
}

/* Print a scalar, or only measure it where out is NULL; returns its width in characters. */
static int plain(const struct wire_value *value, FILE *out)
{
	char text[STREAMID_TEXT_MAX];
	const char *from = text;
	size_t size;
	int width = 0;

	if (value->type == WIRE_STR) {
		from = value->bytes.data;
		size = value->bytes.size;
	} else {
		if (value->type == WIRE_BIN)
			streamid_format(value->bytes.data, value->bytes.size, text);
		else if (is_nested(value))
			snprintf(text, sizeof text, "%zu", value->count);
		else
			format_number(value, text, sizeof text);
		size = strlen(text);
	}
	for (size_t i = 0; i < size; i++) {
		const unsigned char byte = (unsigned char)from[i];

		width += (byte & 0xc0) != 0x80;
		if (out)
			fputc(byte < 0x20 || byte == 0x7f ? '?' : byte, out);
	}
	return width;
}

static void spaces(int n, FILE *out)
{
	fprintf(out, "%*s", n > 0 ? n : 0, "");
}

/* Print a scalar in a column of this width, at its left or at its right. */
static void cell(struct wire_value value, int width, bool right, FILE *out)
{
	const int room = width - plain(&value, NULL);

	if (right)
		spaces(room, out);
	plain(&value, out);
	if (!right)
		spaces(room, out);
}

struct table {
	size_t columns;
	struct wire_value key[COLUMNS_MAX];
	int width[COLUMNS_MAX];
	bool right[COLUMNS_MAX]; /* numbers, by the first row */
};

static bool is_same(const struct wire_value *a, const struct wire_value *b)
{
	return a->bytes.size == b->bytes.size && memcmp(a->bytes.data, b->bytes.data, a->bytes.size) == 0;
}

/* Read an item of an array into the table's widths; false if it is no row like the first. */
static bool read_row(struct wire_reader *reader, bool first, struct table *table)
{
	const struct wire_value map = wire_next(reader);

	if (map.type != WIRE_MAP || map.count == 0 || map.count > COLUMNS_MAX)
		return false;
	if (!first && map.count != table->columns)
		return false;
	table->columns = map.count;
	for (size_t i = 0; i < map.count; i++) {
		const struct wire_value key = wire_next(reader), value = wire_next(reader);
		const int width = plain(&value, NULL);

		if (key.type != WIRE_STR || is_nested(&value) || (!first && !is_same(&key, &table->key[i])))
			return false;
		if (first) {
			table->key[i] = key;
			table->width[i] = plain(&key, NULL);
			table->right[i] = value.type == WIRE_UINT || value.type == WIRE_INT || value.type == WIRE_FLOAT;
		}
		if (table->width[i] < width)
			table->width[i] = width;
	}
	return true;
}

/* Whether all n (at least one) items of an array are maps of the same keys in the same order, with nothing nested. */
static bool is_table(struct wire_reader reader, size_t n, struct table *table)
{
	for (size_t i = 0; i < n; i++)
		if (!read_row(&reader, i == 0, table))
			return false;
	return true;
}

static void text_table(struct wire_reader *reader, size_t n, const struct table *table, int indent, FILE *out)
{
	for (size_t row = 0; row <= n; row++) {
		if (row > 0)
			wire_next(reader);
		for (size_t i = 0; i < table->columns; i++) {
			const bool last = i + 1 == table->columns, right = table->right[i];

			if (row > 0)
				wire_next(reader);
			spaces(i == 0 ? indent : INDENT, out);
			cell(row > 0 ? wire_next(reader) : table->key[i], last && !right ? 0 : table->width[i], right,
			     out);
		}
		fputc('\n', out);
	}
}

static void text_items(struct wire_reader *reader, int indent, FILE *out);

/* Whether the value takes lines of its own. */
static bool is_open(struct wire_value value)
{
	return is_nested(&value) && value.count > 0;
}

/* Print a value behind its key or dash, on the same line or on lines of its own. */
static void text_value(struct wire_reader *reader, int indent, FILE *out)
{
	struct wire_reader ahead = *reader;
	const struct wire_value value = wire_next(&ahead);

	if (is_open(value)) {
		fputc('\n', out);
		text_items(reader, indent, out);
		return;
	}
	if (is_nested(&value))
		fputs("none", out);
	else
		plain(&value, out);
	fputc('\n', out);
	*reader = ahead;
}

static int widest_key(struct wire_reader reader, size_t pairs)
{
	int widest = 0;

	for (size_t i = 0; i < pairs; i++) {
		struct wire_reader ahead = reader;
		const struct wire_value key = wire_next(&ahead);
		const int width = plain(&key, NULL);

		widest = width > widest ? width : widest;
		wire_skip(&reader);
		wire_skip(&reader);
	}
	return widest;
}

static void text_map(struct wire_reader *reader, size_t pairs, int indent, FILE *out)
{
	const int width = widest_key(*reader, pairs);

	for (size_t i = 0; i < pairs; i++) {
		struct wire_reader ahead = *reader;
		const struct wire_value key = wire_next(&ahead);

		wire_skip(reader);
		if (indent == 0 && is_envelope(&key)) {
			wire_skip(reader);
			continue;
		}
		ahead = *reader;
		spaces(indent, out);
		cell(key, is_open(wire_next(&ahead)) ? 0 : width + INDENT, false, out);
		text_value(reader, indent + INDENT, out);
	}
}

static void text_items(struct wire_reader *reader, int indent, FILE *out)
{
	const struct wire_value value = wire_next(reader);
	struct table table = { 0 };

	if (value.type == WIRE_MAP) {
		text_map(reader, value.count, indent, out);
	} else if (is_table(*reader, value.count, &table)) {
		text_table(reader, value.count, &table, indent, out);
	} else {
		for (size_t i = 0; i < value.count; i++) {
			struct wire_reader ahead = *reader;

			spaces(indent, out);
			fputs(is_open(wire_next(&ahead)) ? "-" : "- ", out);
			text_value(reader, indent + INDENT, out);
		}
	}
}

void control_print_text(const struct control *control, FILE *out)
{
	struct wire_reader reader = control->map;

	text_items(&reader, 0, out);
}
