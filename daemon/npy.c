/* NumPy's .npy files (format 1.0 to 3.0): see npy.h. */
#include "daemon/npy.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "\x93NUMPY"
#define HEADER_MAX 65536

static const struct {
	const char *descr;
	enum dtype dtype;
} descrs[] = {
	{ "<f4", DTYPE_FLOAT32 }, { "<f2", DTYPE_FLOAT16 }, { "|u1", DTYPE_UINT8 }, { "<u2", DTYPE_UINT16 },
	{ "<i4", DTYPE_INT32 }, { "<u4", DTYPE_UINT32 },
};

static int map_file(const char *path, struct npy *npy, struct error *err)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_system(err, "%s", path);
	if (fstat(fd, &status) || status.st_size <= 0) {
		close(fd);
		return error_set(err, ERR_FORMAT, "%s: empty, expected a .npy file", path);
	}
	npy->map_size = (size_t)status.st_size;
	npy->map = mmap(NULL, npy->map_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (npy->map == MAP_FAILED) {
		npy->map = NULL;
		return error_system(err, "%s: mmap", path);
	}
	return 0;
}

/* The text behind 'key': in the header's dictionary; NULL: there is none. */
static const char *value_of(const char *header, const char *key)
{
	const char *at = strstr(header, key);

	at = at ? strchr(at + strlen(key), ':') : NULL;
	at = at ? at + 1 + strspn(at + 1, " ") : NULL;
	return at && *at ? at : NULL;
}

/* Read "(rows,)" or "(rows, columns)". */
static bool read_shape(const char *text, struct npy *npy)
{
	char *end;

	if (!text || *text++ != '(')
		return false;
	npy->rows = strtoull(text, &end, 10);
	if (end == text)
		return false;
	text = end + strspn(end, ", ");
	if (*text == ')')
		return true;
	npy->columns = strtoull(text, &end, 10);
	return end != text && npy->columns && *(end + strspn(end, ", ")) == ')';
}

/* int64 token ids, as NumPy makes them by default, become uint32. */
static int convert_int64(const char *path, struct npy *npy, const char *data, struct error *err)
{
	uint32_t *converted = malloc((npy->rows ? npy->rows : 1) * sizeof *converted);

	if (!converted)
		return error_memory(err, "token ids");
	npy->converted = converted;
	for (size_t i = 0; i < npy->rows; i++) {
		int64_t token;

		memcpy(&token, data + i * sizeof token, sizeof token);
		if (token < 0 || token > UINT32_MAX)
			return error_set(err, ERR_FORMAT, "%s: [%zu] is %" PRId64 ", no token id", path, i, token);
		converted[i] = (uint32_t)token;
	}
	npy->data = converted;
	npy->dtype = DTYPE_UINT32;
	return 0;
}

static int read_header(const char *path, const char *header, const char *data, size_t bytes, struct npy *npy,
		       struct error *err)
{
	const char *descr = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'");
	size_t itemsize = 0, row_bytes;

	if (!descr || !order || !read_shape(value_of(header, "'shape'"), npy))
		return error_set(err, ERR_FORMAT, "%s: not an array of one or two dimensions", path);
	if (!strncmp(order, "True", 4))
		return error_set(err, ERR_FORMAT, "%s: in Fortran order, expected C order (NumPy: ascontiguousarray)",
				 path);
	for (size_t i = 0; i < sizeof descrs / sizeof descrs[0]; i++)
		if (!strncmp(descr + 1, descrs[i].descr, 3)) {
			npy->dtype = descrs[i].dtype;
			itemsize = dtype_size(npy->dtype);
		}
	if (!strncmp(descr + 1, "<i8", 3) && !npy->columns)
		itemsize = 8;
	if (!itemsize)
		return error_set(err, ERR_FORMAT, "%s: dtype %.5s, expected '<f4' or '<f2' (NumPy: "
				 "astype(\"float32\")), or integer token ids", path, descr);
	row_bytes = npy->columns > SIZE_MAX / itemsize ? 0 : itemsize * (npy->columns ? npy->columns : 1);
	if (!row_bytes || npy->rows > bytes / row_bytes)
		return error_set(err, ERR_FORMAT, "%s: truncated: %zu bytes of data are too few for its shape", path,
				 bytes);
	npy->data = data;
	return itemsize == 8 ? convert_int64(path, npy, data, err) : 0;
}

int npy_open(const char *path, struct npy *ret_npy, struct error *err)
{
	struct npy npy = { .map = NULL };
	char header[HEADER_MAX + 1];
	const unsigned char *bytes;
	size_t prefix, length;
	int rc = map_file(path, &npy, err);

	if (rc)
		return rc;
	bytes = npy.map;
	prefix = npy.map_size > 12 && bytes[6] > 1 ? 12 : 10;
	if (npy.map_size < prefix || memcmp(bytes, MAGIC, 6)) {
		rc = error_set(err, ERR_FORMAT, "%s: not a .npy file", path);
		goto out;
	}
	length = (size_t)bytes[8] | (size_t)bytes[9] << 8;
	if (prefix == 12)
		length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
	if (length > HEADER_MAX || length > npy.map_size - prefix) {
		rc = error_set(err, ERR_FORMAT, "%s: truncated header", path);
		goto out;
	}
	memcpy(header, bytes + prefix, length);
	header[length] = '\0';
	rc = read_header(path, header, (const char *)bytes + prefix + length, npy.map_size - prefix - length, &npy,
			 err);
out:
	if (rc)
		npy_close(&npy);
	else
		*ret_npy = npy;
	return rc;
}

void npy_close(struct npy *npy)
{
	free(npy->converted);
	if (npy->map)
		munmap(npy->map, npy->map_size);
	*npy = (struct npy){ .map = NULL };
}

int npy_create(struct npy_writer *writer, const char *path, size_t rows, size_t columns, struct error *err)
{
	char header[128];
	int n;

	writer->file = NULL;
	if (strlen(path) >= sizeof writer->path)
		return error_set(err, ERR_ARGUMENT, "%s: name too long", path);
	snprintf(writer->path, sizeof writer->path, "%s", path);
	snprintf(writer->part, sizeof writer->part, "%s.part", path);
	writer->columns = columns;
	writer->file = fopen(writer->part, "we");
	if (!writer->file)
		return error_system(err, "%s", writer->part);
	n = snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows,
		     columns);
	memset(header + n, ' ', sizeof header - (size_t)n);
	header[117] = '\n'; /* magic, version and length (10 bytes) and this: 128 */
	if (fwrite(MAGIC "\x01\x00\x76\x00", 1, 10, writer->file) != 10 ||
	    fwrite(header, 1, 118, writer->file) != 118) {
		error_system(err, "%s", writer->part);
		npy_abandon(writer);
		return ERR_SYSTEM;
	}
	return 0;
}

int npy_append(struct npy_writer *writer, const float *data, size_t rows, struct error *err)
{
	size_t n = rows * writer->columns;

	return fwrite(data, sizeof *data, n, writer->file) == n ? 0 : error_system(err, "%s", writer->part);
}

int npy_commit(struct npy_writer *writer, struct error *err)
{
	FILE *file = writer->file;

	writer->file = NULL;
	if (fclose(file) || rename(writer->part, writer->path)) {
		error_system(err, "%s", writer->path);
		unlink(writer->part);
		return ERR_SYSTEM;
	}
	return 0;
}

void npy_abandon(struct npy_writer *writer)
{
	if (!writer->file)
		return;
	fclose(writer->file);
	unlink(writer->part);
	writer->file = NULL;
}
