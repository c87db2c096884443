/*
 * Getting at files whole: paths, reading, mapping.  Errors name the path.
 */
#ifndef MODEL_FILE_H
#define MODEL_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "model/error.h"

#define FILE_PATH 4096 /* bytes of a path, with the NUL */

/* Write folder/name to path [FILE_PATH].  ERR_ARGUMENT if that is too long. */
int file_path(const char *folder, const char *name, char *path, struct error *err);

bool file_exists(const char *path);

/* Read a regular file of at most max bytes.  Free *ret_text with free. */
int file_read(const char *path, size_t max, char **ret_text, size_t *ret_length, struct error *err);

/* Map a regular, non-empty file for reading.  Unmap it with file_unmap. */
int file_map(const char *path, const void **ret_bytes, size_t *ret_size, struct error *err);
void file_unmap(const void *bytes, size_t size);

#endif
