/*
 * The wrapper around jansson, and the one thing that jansson refuses and Python's json module writes: bare Infinity
 * and NaN.  They are turned into strings before parsing; jsondoc_number reads such strings as numbers.
 */
#include "model/jsondoc.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/file.h"

/* struct jsondoc stands for json_t, which headers shall not see.  jansson takes json_t * even where it only reads. */
static json_t *native(const struct jsondoc *value)
{
	return (json_t *)value;
}

static const struct jsondoc *wrap(const json_t *value)
{
	return (const struct jsondoc *)value;
}

/* The length of the bare word of infinity that text begins with, or 0. */
static size_t infinity_word(const char *text, size_t length)
{
	static const char *const words[] = { "Infinity", "-Infinity", "NaN" };

	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		size_t n = strlen(words[i]);

		if (length >= n && !memcmp(text, words[i], n))
			return n;
	}
	return 0;
}

/* Copy text to out [2 * length] with quotes around bare words of infinity; returns the new length. */
static size_t quote_infinities(const char *text, size_t length, char *out)
{
	bool in_string = false;
	size_t used = 0;

	for (size_t i = 0; i < length; i++) {
		size_t word = in_string ? 0 : infinity_word(text + i, length - i);

		if (word) {
			out[used++] = '"';
			memcpy(out + used, text + i, word);
			used += word;
			out[used++] = '"';
			i += word - 1;
			continue;
		}
		if (text[i] == '"')
			in_string = !in_string;
		out[used++] = text[i];
		if (in_string && text[i] == '\\' && i + 1 < length)
			out[used++] = text[++i];
	}
	return used;
}

int jsondoc_parse(const char *text, size_t length, bool infinities, struct jsondoc **ret_root, struct error *err)
{
	json_error_t why;
	json_t *root;
	char *quoted = NULL;

	if (infinities) {
		quoted = malloc(2 * length + 1);
		if (!quoted)
			return error_memory(err, "JSON text");
		length = quote_infinities(text, length, quoted);
		text = quoted;
	}
	root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
	free(quoted);
	if (!root)
		return error_set(err, ERR_FORMAT, "line %d, column %d: %s", why.line, why.column, why.text);
	if (!json_is_object(root)) {
		json_decref(root);
		return error_set(err, ERR_FORMAT, "expected a JSON object");
	}
	*ret_root = (struct jsondoc *)root;
	return 0;
}

int jsondoc_read(const char *path, struct jsondoc **ret_root, struct error *err)
{
	struct error why;
	size_t length = 0;
	char *text = NULL;
	int rc = file_read(path, JSONDOC_FILE_MAX, &text, &length, err);

	if (rc)
		return rc;
	rc = jsondoc_parse(text, length, true, ret_root, &why);
	if (rc)
		error_set(err, rc, "%.200s: %.160s", path, why.text);
	free(text);
	return rc;
}

void jsondoc_free(struct jsondoc *root)
{
	json_decref(native(root));
}

const struct jsondoc *jsondoc_get(const struct jsondoc *object, const char *key)
{
	const json_t *value = json_object_get(native(object), key);

	return json_is_null(value) ? NULL : wrap(value);
}

bool jsondoc_string(const struct jsondoc *value, const char **ret_string)
{
	if (!json_is_string(native(value)))
		return false;
	*ret_string = json_string_value(native(value));
	return true;
}

bool jsondoc_boolean(const struct jsondoc *value, bool *ret_boolean)
{
	if (!json_is_boolean(native(value)))
		return false;
	*ret_boolean = json_is_true(native(value));
	return true;
}

bool jsondoc_size(const struct jsondoc *value, size_t *ret_size)
{
	if (!json_is_integer(native(value)) || json_integer_value(native(value)) < 0)
		return false;
	*ret_size = (size_t)json_integer_value(native(value));
	return true;
}

static bool infinity_string(const char *string, double *ret_number)
{
	static const struct {
		const char *spelling;
		double number;
	} known[] = {
		{ "Infinity", INFINITY }, { "inf", INFINITY }, { "-Infinity", -INFINITY }, { "-inf", -INFINITY },
		{ "NaN", NAN }, { "nan", NAN },
	};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		if (!strcmp(string, known[i].spelling)) {
			*ret_number = known[i].number;
			return true;
		}
	}
	return false;
}

bool jsondoc_number(const struct jsondoc *value, double *ret_number)
{
	const char *spelling;

	if (json_is_number(native(value))) {
		*ret_number = json_number_value(native(value));
		return true;
	}
	if (json_is_object(native(value)))
		value = jsondoc_get(value, "__float__");
	return jsondoc_string(value, &spelling) && infinity_string(spelling, ret_number);
}

bool jsondoc_is_array(const struct jsondoc *value)
{
	return json_is_array(native(value));
}

size_t jsondoc_length(const struct jsondoc *array)
{
	return json_array_size(native(array));
}

const struct jsondoc *jsondoc_element(const struct jsondoc *array, size_t i)
{
	return wrap(json_array_get(native(array), i));
}

bool jsondoc_is_object(const struct jsondoc *value)
{
	return json_is_object(native(value));
}

void *jsondoc_first(const struct jsondoc *object)
{
	return json_object_iter(native(object));
}

void *jsondoc_next(const struct jsondoc *object, void *at)
{
	return json_object_iter_next(native(object), at);
}

const char *jsondoc_key(void *at)
{
	return json_object_iter_key(at);
}

const struct jsondoc *jsondoc_value(void *at)
{
	return wrap(json_object_iter_value(at));
}

size_t jsondoc_members(const struct jsondoc *object)
{
	return json_object_size(native(object));
}

char *jsondoc_quote(const char *string)
{
	json_t *value = json_string(string);
	char *quoted = value ? json_dumps(value, JSON_ENCODE_ANY) : NULL;

	json_decref(value);
	return quoted;
}
