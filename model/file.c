/* Whole files, read or mapped: see file.h. */
#include "model/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int file_path(const char *folder, const char *name, char *path, struct error *err)
{
	int length = snprintf(path, FILE_PATH, "%s/%s", folder, name);

	if (length < 0 || length >= FILE_PATH)
		return error_set(err, ERR_ARGUMENT, "%.100s...: the path is too long", folder);
	return 0;
}

bool file_exists(const char *path)
{
	return !access(path, F_OK);
}

/* Open a regular file; O_NONBLOCK because opening a FIFO would wait. */
static int open_regular(const char *path, int *ret_fd, size_t *ret_size, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat status;

	if (fd < 0)
		return error_system(err, "%.200s", path);
	if (fstat(fd, &status) || !S_ISREG(status.st_mode)) {
		close(fd);
		return error_set(err, ERR_FORMAT, "%.200s is no regular file", path);
	}
	*ret_fd = fd;
	*ret_size = (size_t)status.st_size;
	return 0;
}

/* Read up to size bytes: fewer if the file has become shorter. */
static int read_all(int fd, char *text, size_t size, size_t *ret_length)
{
	ssize_t got = 1;

	*ret_length = 0;
	while (*ret_length < size && (got = read(fd, text + *ret_length, size - *ret_length)) > 0)
		*ret_length += (size_t)got;
	return got < 0 ? -1 : 0;
}

int file_read(const char *path, size_t max, char **ret_text, size_t *ret_length, struct error *err)
{
	char *text = NULL;
	size_t size = 0;
	int fd = -1, rc = open_regular(path, &fd, &size, err);

	if (rc)
		return rc;
	if (size > max)
		rc = error_set(err, ERR_FORMAT, "%.200s has %zu bytes: expected at most %zu", path, size, max);
	else if (!(text = malloc(size + 1)))
		rc = error_memory(err, path);
	else if (read_all(fd, text, size, ret_length))
		rc = error_system(err, "%.200s", path);
	close(fd);
	if (rc)
		free(text);
	else
		*ret_text = text;
	return rc;
}

int file_map(const char *path, const void **ret_bytes, size_t *ret_size, struct error *err)
{
	size_t size = 0;
	int fd = -1, rc = open_regular(path, &fd, &size, err);
	void *bytes = MAP_FAILED;

	if (rc)
		return rc;
	if (!size)
		rc = error_set(err, ERR_FORMAT, "%.200s is empty", path);
	else if ((bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
		rc = error_system(err, "%.200s: cannot map it", path);
	close(fd);
	if (rc)
		return rc;
	*ret_bytes = bytes;
	*ret_size = size;
	return 0;
}

void file_unmap(const void *bytes, size_t size)
{
	munmap((void *)bytes, size);
}
