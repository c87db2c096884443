/* A checkpoint's model.safetensors.index.json from anywhere, beside one shard, a.safetensors, with tensors x and y. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/checkpoint.h"
#include "tests/fuzz.h"

static const char shard[] = "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
			    "\"y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}     "
			    "12345678";
static char folder[] = "/dev/shm/mamba2d-index-XXXXXX";

static void write_file(const char *name, const void *head, size_t head_size, const void *data, size_t size)
{
	char path[80];
	int fd;

	snprintf(path, sizeof path, "%s/%s", folder, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0 && write(fd, head, head_size) == (ssize_t)head_size && write(fd, data, size) == (ssize_t)size);
	close(fd);
}

static void remove_folder(void)
{
	char path[80];

	snprintf(path, sizeof path, "%s/a.safetensors", folder);
	unlink(path);
	snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
	unlink(path);
	rmdir(folder);
}

static void make_folder(void)
{
	const uint64_t length = sizeof shard - 1 - 8; /* little-endian, as everything here */

	must(mkdtemp(folder) != NULL);
	atexit(remove_folder);
	write_file("a.safetensors", &length, sizeof length, shard, sizeof shard - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool ready;
	struct checkpoint *checkpoint = NULL;
	struct error err = { 0 };
	int rc;

	if (!ready)
		make_folder();
	ready = true;
	write_file("model.safetensors.index.json", "", 0, data, size);
	rc = checkpoint_open(folder, &checkpoint, &err);
	if (rc) {
		must_explain(rc, &err);
		return 0;
	}
	must(checkpoint_count(checkpoint) == 2);
	must(!memcmp(checkpoint_find(checkpoint, "x")->data, "1234", 4));
	must(!memcmp(checkpoint_find(checkpoint, "y")->data, "5678", 4));
	checkpoint_close(checkpoint);
	return 0;
}
