/*
 * JSON as checkpoints use it.  The only file that knows jansson.
 *
 * A struct jsondoc is one value of a parsed document.  The root is freed with jsondoc_free; every other value, and
 * every string, belongs to the root and lives as long.
 */
#ifndef MODEL_JSONDOC_H
#define MODEL_JSONDOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/error.h"

struct jsondoc;

/*
 * Parse one JSON object.  Duplicate keys, invalid UTF-8 and text after it are refused; the error has the line and
 * column.  With infinities, the bare words Infinity, -Infinity and NaN that Python writes are accepted as numbers.
 */
int jsondoc_parse(const char *text, size_t length, bool infinities, struct jsondoc **ret_root, struct error *err);

/* Parse the file at path, of at most JSONDOC_FILE_MAX bytes, with infinities.  Errors name the path. */
#define JSONDOC_FILE_MAX (64 << 20)
int jsondoc_read(const char *path, struct jsondoc **ret_root, struct error *err);

void jsondoc_free(struct jsondoc *root); /* NULL is fine */

/* The value of an object's key.  NULL if there is none, if it is null, or if object is no object. */
const struct jsondoc *jsondoc_get(const struct jsondoc *object, const char *key);

/* Each returns false, and leaves the output alone, where value is of another type (or NULL). */
bool jsondoc_string(const struct jsondoc *value, const char **ret_string);
bool jsondoc_boolean(const struct jsondoc *value, bool *ret_boolean);
bool jsondoc_size(const struct jsondoc *value, size_t *ret_size); /* an integer >= 0 */

/* Any number, or an infinity in one of its spellings: Infinity, "inf", {"__float__": "Infinity"}. */
bool jsondoc_number(const struct jsondoc *value, double *ret_number);

/* Arrays: their length (0 where value is no array) and element i < length. */
bool jsondoc_is_array(const struct jsondoc *value);
size_t jsondoc_length(const struct jsondoc *array);
const struct jsondoc *jsondoc_element(const struct jsondoc *array, size_t i);

/*
 * Walk over an object in the order of the text:
 * for (void *at = jsondoc_first(object); at; at = jsondoc_next(object, at)) use jsondoc_key(at), jsondoc_value(at)
 */
bool jsondoc_is_object(const struct jsondoc *value);
void *jsondoc_first(const struct jsondoc *object);
void *jsondoc_next(const struct jsondoc *object, void *at);
const char *jsondoc_key(void *at);
const struct jsondoc *jsondoc_value(void *at);
size_t jsondoc_members(const struct jsondoc *object); /* how many; 0 where it is no object */

/* The string as JSON writes it, quoted and escaped; free it with free.  NULL if it is not UTF-8 (or memory is out). */
char *jsondoc_quote(const char *string);

#endif
